"""The built-in networks, and their parameters as plain named arrays.

The rule: no layer looks across records (no batch statistics), no value is drawn from torch's
global random state, and whatever is fixed stands in ``features``, apart from what is trained.
Hidden layers are tanh, which keeps gradients bounded (Papernot et al. 2021, arXiv 2007.14191).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.data.schema import Schema
from common.errors import InputError, PlanError
from common.models.model import Model
from common.models.scattering import Scattering, channels

HIDDEN = 32  # units of the mlp's hidden layer
LEAST_IMAGE = 8  # pixels a side
GROUPS_PER_CHANNEL = 27  # 81 scattering channels in groups of 3 (Tramer and Boneh 2021, 2011.11660)
NORM_EPSILON = 1e-7  # second-order paths vary by about 1e-6, which the usual 1e-5 would drown

Parameters = dict[str, NDArray[np.float32]]
Layer = TypeVar("Layer", bound=nn.Module)


def softmax(schema: Schema) -> Model:
    """Multinomial logistic regression, started at zero: size x classes + classes parameters."""
    return Model(nn.Flatten(), _linear(schema.size, len(schema.classes)))


def mlp(schema: Schema, generator: torch.Generator) -> Model:
    """One hidden layer of 32 tanh units."""
    hidden = _random(_linear(schema.size, HIDDEN), generator)
    output = _linear(HIDDEN, len(schema.classes))
    layers = OrderedDict(hidden=hidden, tanh=nn.Tanh(), output=output)
    return Model(nn.Flatten(), nn.Sequential(layers))


def cnn(schema: Schema, generator: torch.Generator) -> Model:
    """Two halving tanh convolutions and a linear layer: 20,746 parameters for 28 x 28 pixels."""
    count, height, width = _image(schema, "cnn")
    quarter = math.ceil(height / 4) * math.ceil(width / 4)
    layers = OrderedDict(
        first=_random(_convolution(count, 16, 5), generator),  # (B, 16, H/2, W/2)
        tanh1=nn.Tanh(),
        second=_random(_convolution(16, 32, 3), generator),  # (B, 32, H/4, W/4)
        tanh2=nn.Tanh(),
        flat=nn.Flatten(),
        output=_linear(32 * quarter, len(schema.classes)),
    )
    return Model(nn.Identity(), nn.Sequential(layers))


def scattering(schema: Schema) -> Model:
    """Fixed scattering features, normalised within each record, and logistic regression on them.

    Features of a 28 x 28 image: 81 channels x 7 x 7 = 3,969. The group norm has no parameters, so
    it is fixed too. Few models do better at a small epsilon (Tramer and Boneh 2021, 2011.11660).
    """
    count, height, width = _image(schema, "scattering")
    features = nn.Sequential(
        OrderedDict(
            scattering=Scattering(height, width),
            norm=nn.GroupNorm(
                GROUPS_PER_CHANNEL * count, channels() * count, eps=NORM_EPSILON, affine=False
            ),
            flat=nn.Flatten(),
        )
    )
    size = channels() * count * math.ceil(height / 4) * math.ceil(width / 4)
    return Model(features, _linear(size, len(schema.classes)), cache="scattering-1")


# -- parameters as arrays ------------------------------------------------------------------------


def parameters_of(network: nn.Module) -> Parameters:
    """Copies of a network's parameters, float32, by name, in the network's own order."""
    return {
        name: value.detach().numpy().astype(np.float32, copy=True)
        for name, value in network.named_parameters()
    }


def load_parameters(network: nn.Module, parameters: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays into a network; everything is checked before anything is changed.

    Raises:
        InputError: a name is missing or unknown, or an array is not float32 of the right shape.
    """
    state = dict(network.named_parameters())  # not state_dict: opacus.layers rename theirs
    if set(parameters) != set(state):
        odd = sorted(set(parameters) ^ set(state))
        raise InputError(
            f"these are not this network's parameters: {odd[0]!r:.80} is "
            f"{'missing' if odd[0] in state else 'unknown'}",
            hint="use the model that the plan names",
        )
    for name, value in state.items():
        array = parameters[name]
        if array.dtype != np.float32 or array.shape != tuple(value.shape):
            raise InputError(
                f"parameter {name} is {array.dtype} {array.shape}, not float32 "
                f"{tuple(value.shape)}",
                hint="use the model that the plan names",
            )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(torch.tensor(parameters[name]))


# -- pieces --------------------------------------------------------------------------------------


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return _zero(nn.Linear(inputs, outputs, device="meta"))


def _convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    return _zero(nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2, device="meta"))


def _zero(layer: Layer) -> Layer:
    """Real memory for a layer made without any, so that its constructor drew no random numbers."""
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _random(layer: Layer, generator: torch.Generator) -> Layer:
    """Weights uniform with variance 1 / fan-in (LeCun et al. 1998, section 4.6); bias zero."""
    weight = layer.get_parameter("weight")
    bound = math.sqrt(3 / weight[0].numel())
    nn.init.uniform_(weight, -bound, bound, generator=generator)
    return layer


def _image(schema: Schema, name: str) -> tuple[int, int, int]:
    if schema.kind != "image":
        raise PlanError(
            f"model {name!r} reads images, but plan.schema describes a {schema.kind}",
            hint='use model = "softmax" or "mlp"',
        )
    count, height, width = schema.shape
    if min(height, width) < LEAST_IMAGE:
        raise PlanError(
            f"model {name!r} needs images of at least {LEAST_IMAGE} x {LEAST_IMAGE} pixels, "
            f"not {height} x {width}",
            hint='use model = "softmax" or "mlp"',
        )
    return count, height, width
