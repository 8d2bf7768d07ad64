"""Can a network be trained record by record? Asked when a plan is approved, before any spending.

The rule: what is refused is refused by name, with what to use instead; and what is accepted was
seen to give, for synthetic records, the gradients that plain autograd gives for each alone. So a
parameter that is used behind its layer's back, or a layer that looks across records, cannot pass.
"""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor, nn

from client.training.clipping import ClippedSum
from client.training.invariance import randomise, synthetic
from common.errors import PlanError
from common.models.fixes import instead_of

RECORDS = 3
NO_CLIP = 1e12
APART = 1e-9  # of the greatest logit; rounding in float64 is far below
# Of the gradient's norm; autograd's own rounding in float32 is below a tenth of it.
TOLERANCE = 1e-4


def check_trainable(network: nn.Module, example: Tensor) -> None:
    """Refuse, before any budget is spent, a network whose records cannot be told apart.

    Args:
        network: maps features to logits (B, K).
        example: one record's features, with a batch axis of one.

    Raises:
        PlanError: names the layer and what to use instead.
    """
    for name, module in network.named_modules():
        _check_module(name, module)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            raise _refusal(
                f"parameter {name!r} is frozen, and a round would add noise to it all the same",
                "move what is not trained into the model's fixed features",
            )
    try:
        _check_repeatable(network, example)
        wild = copy.deepcopy(network)
        with torch.no_grad():
            randomise(list(wild.parameters()), positive=False)
        kinds = [example + kind for kind in synthetic(example.shape[1:], RECORDS)]
        taken = [kind for kind in kinds if _takes(network, kind)] or kinds[:1]
        for weights in (network, wild):
            gradients = ClippedSum(weights, batch=RECORDS)
            for features in taken:
                _check_gradients(weights, gradients, features)
                _check_apart(weights, features)
        if not any(_told_apart(wild, features) for features in taken):
            raise _refusal(
                "the network gives every record the same logits, whatever is in it",
                "look for what throws its input away",
            )
    except PlanError:
        raise
    except Exception as error:  # the network is somebody's own code
        raise _refusal(
            f"the network cannot be trained record by record: {error!s:.300}",
            "avoid layers that draw random numbers or change state in the forward pass",
        ) from error


def _takes(network: nn.Module, features: Tensor) -> bool:
    with contextlib.suppress(Exception), torch.no_grad():
        network(features)
        return True
    return False


def _told_apart(network: nn.Module, features: Tensor) -> bool:
    with torch.no_grad():
        logits = network(features)
    return bool((logits != logits[:1]).any())


def _check_repeatable(network: nn.Module, example: Tensor) -> None:
    """The forward pass draws nothing, whatever it is given."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        for kind in synthetic(example.shape[1:], RECORDS):
            with contextlib.suppress(Exception):
                network(example + kind)
        drawn = not torch.equal(before, torch.get_rng_state())
    if drawn:
        raise _refusal(
            "the network draws random numbers in its forward pass, which no seed of ours repeats",
            "remove what draws them: the noise already keeps a model from overfitting",
        )


def _check_gradients(network: nn.Module, gradients: ClippedSum, features: Tensor) -> None:
    """Ours, of each record alone and of all together, are autograd's."""
    labels = torch.zeros(RECORDS, dtype=torch.long)
    ours = [gradients(features, labels, NO_CLIP, torch.tensor([i])) for i in range(RECORDS)]
    ours.append(gradients(features, labels, NO_CLIP))
    expected = [_by_autograd(network, features[i : i + 1]) for i in range(RECORDS)]
    expected.append(torch.stack(expected).sum(0))
    if not all(bool(torch.isfinite(gradient).all()) for gradient in (*ours, *expected)):
        raise _refusal(
            "the network's gradient is not finite for records in [-1, 1)",
            "look for a division by zero, or for weights that are not finite",
        )
    for one, other in zip(ours, expected, strict=True):
        if float((one - other).norm()) > TOLERANCE * max(1e-3, float(other.norm())):
            raise _refusal(
                f"{_where(network, one - other)} has no gradient of its own for each record: it is "
                "used outside of its layer, or the network looks across records",
                "call each layer, and keep the batch as the first axis of what it is given",
            )


def _check_apart(network: nn.Module, features: Tensor) -> None:
    """A record's logits are its own, to the last bits of float64."""
    wide = copy.deepcopy(network).double()
    with torch.no_grad():
        together = wide(features.double())
        alone = torch.cat([wide(features[i : i + 1].double()) for i in range(RECORDS)])
    if float((together - alone).abs().max()) > APART * max(1.0, float(alone.abs().max())):
        raise _refusal(
            "the network gives a record other logits when other records are beside it",
            "remove what looks across the batch; per-record clipping needs records apart",
        )


def _refusal(message: str, hint: str) -> PlanError:
    return PlanError(message, hint=hint, code="untrainable-model")


RECURRENT = {
    nn.LSTM: "opacus.layers.DPLSTM",
    nn.GRU: "opacus.layers.DPGRU",
    nn.RNN: "opacus.layers.DPRNN",
    nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention with batch_first=True",
}


def _check_module(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    layer = f"layer {name!r} is {kind}"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        raise _refusal(
            f"{layer}: it mixes a batch's records, so no record has a gradient of its own",
            instead_of(module),
        )
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        raise _refusal(
            f"{layer} with running statistics, which noise does not cover",
            "give it track_running_stats=False",
        )
    drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    if drops or isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):
        raise _refusal(
            f"{layer}: it draws random numbers that no seed of ours repeats, and none per record",
            "remove it: the noise and the clipping already keep a model from overfitting",
        )
    if type(module) in RECURRENT:
        raise _refusal(
            f"{layer}, whose kernels do not tell records apart",
            f"use {RECURRENT[type(module)]}, which has the same parameters",
        )
    if isinstance(module, nn.modules.conv._ConvNd) and module.padding_mode != "zeros":
        raise _refusal(
            f"{layer} with padding_mode {module.padding_mode!r}, which no rule covers",
            "use padding_mode='zeros', or pad with a layer of its own before it",
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (
        module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    ):
        raise _refusal(
            f"{layer} with max_norm, scale_grad_by_freq or sparse, which mix records or change "
            "weights in the forward pass",
            "leave these options at their defaults",
        )


def _by_autograd(network: nn.Module, features: Tensor) -> Tensor:
    """Autograd's gradient of one record with label 0: (P,) float64."""
    parameters = list(network.parameters())
    with torch.enable_grad():
        logits = network(features)
        loss = nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.long))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]
    return torch.cat([gradient.flatten() for gradient in flat]).double()


def _where(network: nn.Module, difference: Tensor) -> str:
    """The parameter whose gradient is furthest off."""
    sizes = [parameter.numel() for parameter in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    norms = [float(part.norm()) for part in torch.split(difference, sizes)]
    return f"parameter {names[norms.index(max(norms))]!r}"
