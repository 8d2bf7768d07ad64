"""How does a network that mixes records become one that does not? By another kind of normalisation.

The rule: what cannot be trained record by record is replaced by what can, layer by layer, and
nothing else is touched. It is offered, never done unasked: the network is the user's.
"""

from __future__ import annotations

import math

from torch import nn

from common.errors import PlanError

MOST_GROUPS = 32  # as in Wu and He 2018 (arXiv 1803.08494)
LEAST_CHANNELS = 4  # in a group: a batch norm after a linear layer has one value a channel


def without_batch_norm(network: nn.Module) -> nn.Module:
    """Replace every batch norm of a network by a group norm; changed in place, and returned.

    There are as many groups as a power of two allows, up to 32, with four channels in each; weights
    and biases are kept, running statistics go.

    Raises:
        PlanError: a lazy batch norm, or one of a single channel, which would normalise to nothing.

    >>> without_batch_norm(nn.Sequential(nn.Conv2d(1, 48, 3), nn.BatchNorm2d(48)))[1]
    GroupNorm(8, 48, eps=1e-05, affine=True, bias=True)
    """
    return _replaced(network, {})


def _replaced(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in done:
        done[module] = module
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            done[module] = group_norm_for(module)
        for name, child in list(module._modules.items()):  # each name, also of a shared layer
            if child is not None:
                setattr(module, name, _replaced(child, done))
    return done[module]


def instead_of(norm: nn.modules.batchnorm._BatchNorm) -> str:
    """What to tell somebody whose network has a batch norm."""
    channels = norm.num_features
    sizes = f"({_groups(channels)}, {channels})" if channels else ""
    return (
        f"use torch.nn.GroupNorm{sizes} instead of {type(norm).__name__}: it looks at one record "
        "at a time; common.models.fixes.without_batch_norm does it for a whole network"
    )


def group_norm_for(norm: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    """The group norm that stands in for a batch norm."""
    channels = norm.num_features
    if channels < 2:
        raise PlanError(
            f"{type(norm).__name__} of {channels or 'unknown'} channels: no group norm stands in "
            "for it",
            hint="run a lazy network once, or leave a norm of one channel out",
        )
    result = nn.GroupNorm(_groups(channels), channels, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        result.weight, result.bias = norm.weight, norm.bias
    return result


def _groups(channels: int) -> int:
    groups = math.gcd(MOST_GROUPS, channels)
    while groups > 1 and channels // groups < LEAST_CHANNELS:
        groups //= 2
    return groups
