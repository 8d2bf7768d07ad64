"""The sum of per-example gradients, each clipped to L2 norm C: all that training sees.

The rule: whatever the records are, adding or removing one changes the result by at most C. So a
non-finite gradient counts as zero, and the clip aims a hair below C, so that rounding cannot carry
a gradient above it. Sums over records are float64: in float32, one record more or less shifts the
rounding of all the others, which at 4,096 records adds up to 1.0001 C. Which implementation
computes it never changes the value beyond rounding; :func:`clipped_sum` chooses, and micro-batches
bound memory whatever the batch is.

Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1; the closed form for a linear layer:
Goodfellow 2015 (arXiv 1510.01799).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from common.errors import PlanError

# Relative head-room for float32: about 80 roundings, measured excess is below 5e-7.
HEADROOM = 1e-5
# Floats of per-example gradients held at once by the general path (256 MB).
MAX_GRADIENT_FLOATS = 2**25
MAX_LINEAR_RECORDS = 4096

ClippedSum = Callable[[Tensor, Tensor, float], Tensor]


def clipped_sum(network: nn.Module) -> ClippedSum:
    """The clipped-sum function for a network: (features (B, …), labels (B,), C) -> (P,) float64.

    P counts the network's parameters, flat, in the order of ``network.parameters()``. The loss is
    cross-entropy. An empty batch gives zeros.
    """
    linear = _only_linear(network)
    if linear is not None:
        return _in_chunks(partial(_linear, linear), MAX_LINEAR_RECORDS, network)
    size = sum(parameter.numel() for parameter in network.parameters())
    chunk = max(1, min(4096, MAX_GRADIENT_FLOATS // max(1, size)))
    return _in_chunks(partial(_general, network), chunk, network)


def check_trainable(network: nn.Module, example: Tensor) -> None:
    """Refuse, before any budget is spent, a network whose examples cannot be told apart.

    Args:
        example: one record's features, with a batch axis of one.

    Raises:
        PlanError: names the layer and what to use instead.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise PlanError(
                f"layer {name!r} is {type(module).__name__}: it mixes a batch's records, so no "
                "record has a gradient of its own",
                hint=f"use torch.nn.GroupNorm instead of {type(module).__name__}",
                code="untrainable-model",
            )
        if isinstance(module, nn.modules.dropout._DropoutNd):
            raise PlanError(
                f"layer {name!r} is {type(module).__name__}: it draws random numbers that no seed "
                "of ours repeats, and none per record",
                hint="remove it: the noise and the clipping already keep a model from overfitting",
                code="untrainable-model",
            )
    try:
        total = clipped_sum(network)(example, torch.zeros(1, dtype=torch.long), 1.0)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise PlanError(
            f"the network cannot be trained example by example: {error}",
            hint="avoid layers that draw random numbers or change state in the forward pass",
            code="untrainable-model",
        ) from error
    if not bool(torch.isfinite(total).all()):
        raise PlanError("the network's gradient is not finite", code="untrainable-model")


def _in_chunks(part: ClippedSum, chunk: int, network: nn.Module) -> ClippedSum:
    size = sum(parameter.numel() for parameter in network.parameters())

    def total(features: Tensor, labels: Tensor, clip: float) -> Tensor:
        result = torch.zeros(size, dtype=torch.float64)  # (P,)
        for start in range(0, len(labels), chunk):
            end = start + chunk
            result += part(features[start:end], labels[start:end], clip)
        return result

    return total


def _scale(norms: Tensor, clip: float) -> Tensor:
    """What each gradient is multiplied by: (B,) in [0, 1]; 0 where the norm is not finite."""
    scale = (clip * (1 - HEADROOM) / norms.clamp_min(1e-30)).clamp_max(1.0)
    return torch.where(torch.isfinite(norms), scale, torch.zeros_like(scale))


def _only_linear(network: nn.Module) -> nn.Linear | None:
    """The linear layer, if the network is nothing but flattening and one linear layer."""
    layers = list(network) if type(network) is nn.Sequential else [network]
    layers = [layer for layer in layers if not isinstance(layer, (nn.Flatten, nn.Identity))]
    if len(layers) == 1 and type(layers[0]) is nn.Linear:
        return layers[0]
    return None


def _linear(layer: nn.Linear, features: Tensor, labels: Tensor, clip: float) -> Tensor:
    """Closed form: a record's gradient is an outer product, so its norm needs no gradient."""
    inputs = features.flatten(1).double()  # (B, F)
    with torch.no_grad():
        bias = None if layer.bias is None else layer.bias.double()
        logits = nn.functional.linear(inputs, layer.weight.double(), bias)  # (B, K)
        errors = torch.softmax(logits, dim=1)  # (B, K)
        errors[torch.arange(len(labels)), labels] -= 1
        squares = inputs.square().sum(1) + (0.0 if bias is None else 1.0)  # (B,)
        norms = (errors.square().sum(1) * squares).sqrt()  # (B,)
        scale = _scale(norms, clip)  # (B,)
        errors = torch.nan_to_num(errors, 0.0, 0.0, 0.0) * scale[:, None]
        if not bool(torch.isfinite(norms).all()):
            inputs = torch.nan_to_num(inputs, 0.0, 0.0, 0.0)  # 0 x inf would be nan
        parts = [(errors.T @ inputs).flatten()]  # (K, F)
        if bias is not None:
            parts.append(errors.sum(0))  # (K,)
    return torch.cat(parts)


def _general(network: nn.Module, features: Tensor, labels: Tensor, clip: float) -> Tensor:
    """Any network that ``torch.func`` can differentiate one record at a time."""
    # Float64 for the same reason as the sums: rounding in a record's own gradient would otherwise
    # depend on which records happen to be beside it.
    parameters = {name: value.detach().double() for name, value in network.named_parameters()}

    def loss(values: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, values, (record[None],))  # (1, K)
        return nn.functional.cross_entropy(logits, label[None])

    per_record = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, features.double(), labels)
    gradients = [per_record[name].reshape(len(labels), -1) for name in parameters]  # each (B, p)
    squares = torch.stack([gradient.square().sum(1) for gradient in gradients])  # (L, B)
    scale = _scale(squares.sum(0).sqrt(), clip)  # (B,)
    return torch.cat([scale @ torch.nan_to_num(gradient, 0.0, 0.0, 0.0) for gradient in gradients])
