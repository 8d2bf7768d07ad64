"""How many records make whole turns of torch's vector loops?

The rule: every tensor of a pass over a batch is whole turns, since what a loop leaves over goes
through a scalar formula that rounds otherwise, and which values are left over depends on how many
records there are. A batch of a multiple of ``LOOP`` records is whole turns whatever the network
does. Finer steps are for networks where two things hold. They are a ``Sequential`` of layers on a
list, so which operations run depends on shapes alone; and a pass was watched operation by
operation, autograd's own included, in which each tensor held k values a record with k times the
step a multiple of ``LOOP``. Such a tensor is as whole as one of ``LOOP`` records.

On the list are layers whose operations take values one by one, or sum within a record: a loop then
runs over all values of a batch, or over a row that lies within one record and is of one length. Of
matrix products and the library's convolutions no such thing is known; for every size alike, trying
them decides (:mod:`client.training.invariance`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from client.training.per_record import Native, PerRecord

# Float32 values in a turn of torch's vector loops: two registers.
LOOP = {"AVX2": 16, "DEFAULT": 16}.get(torch.backends.cpu.get_cpu_capability(), 32)
# Matrix products take rows by eights; finer steps would pad less and be tried for longer.
FINEST = 8
LEAVES = frozenset(
    {
        *(nn.Linear, nn.Conv1d, nn.Conv2d),
        *(nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
        *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
        *(nn.Tanh, nn.Sigmoid, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU),
        *(nn.GELU, nn.Softplus, nn.Mish),
        *(nn.Flatten, nn.Identity),
    }
)


def step(network: nn.Module, gradients: PerRecord, shape: torch.Size) -> int:
    """Batches of ``LOOP`` records and any multiple of this more are whole turns.

    Args:
        network: as its author wrote it.
        gradients: of a copy of it.
        shape: of one record's features.
    """
    if not (isinstance(gradients, Native) and _is_listed(network)):
        return LOOP
    few, more = LOOP // 2, LOOP  # no more than memory must allow anyway
    pairs: list[tuple[int, int]] = []
    with contextlib.suppress(Exception):  # it may not take zeros, or run otherwise for more records
        watched = _watch(gradients, shape, few), _watch(gradients, shape, more)
        pairs = list(zip(*watched, strict=True))
    if not pairs:
        return LOOP
    result = FINEST
    for for_few, for_more in pairs:
        if for_few == for_more:
            continue  # of weights: the same in every batch
        if for_few * more != for_more * few:
            return LOOP  # not so many a record
        result = max(result, LOOP // math.gcd(LOOP, for_more // more))
    return result


def _is_listed(network: nn.Module) -> bool:
    """Layers on the list, one after the other; no subclass, no hook, no forward pass of its own."""
    return all(
        (type(module) in LEAVES or type(module) is nn.Sequential)
        and "forward" not in vars(module)
        and not any(
            getattr(module, hooks)
            for hooks in (
                "_forward_hooks",
                "_forward_pre_hooks",
                "_backward_hooks",
                "_backward_pre_hooks",
            )
        )
        for module in network.modules()
    )


def _watch(gradients: PerRecord, shape: torch.Size, records: int) -> list[int]:
    """How many values each floating tensor holds that an operation of a pass takes or gives."""
    sizes = _Sizes()
    with sizes:
        gradients.parts(torch.zeros(records, *shape), torch.zeros(records, dtype=torch.long))
    return sizes.found


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers of values, in the order of operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[int] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.found.append(value.numel())
        return result
