"""The sum of per-example gradients, each clipped to L2 norm C: all that training sees.

The rule: whatever the records and the weights are, adding or removing one record changes the result
by at most C. Three things make it so: a contribution is clipped by the norm of the very values that
are added, and a non-finite one counts as zero; a record's own gradient does not depend on the
records beside it (:mod:`client.training.invariance`); and sums over records are float64. Micro-
batches bound memory, whatever the batch is.

Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from client.training.invariance import SIZES, choose
from client.training.parts import Part, Rows
from client.training.per_record import per_record

log = logging.getLogger("privet.client")

# Relative head-room below C, for the rounding of float64 sums of up to a million records.
HEADROOM = 1e-6
# Parameters of so few values share their norms and sums: below, calls cost more than arithmetic.
SMALL = 2048


class ClippedSum:
    """The clipped sum for one network, reused for any number of batches; keeps only buffers.

    Args:
        network: maps features to logits (B, K); copied, and never changed.
        precision: None: float32 where this machine's kernels allow it, else float64.
        batch: about as many records as a batch has; only the speed depends on it.

    Raises:
        PlanError: no way is known to take its gradients record by record.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: torch.dtype | None = None,
        batch: float = math.inf,
    ) -> None:
        self._network, self._precision, self._batch = network, precision, batch
        self._gradients = per_record(network, precision or torch.float32)
        self._weights = self._gradients.weights.double()  # (P,), a copy
        self._sizes: tuple[int, ...] = SIZES[:1]
        self._ready: torch.Size | None = None

    @property
    def precision(self) -> torch.dtype:
        """float32 or float64: what the last batch was computed in."""
        return self._gradients.weights.dtype

    def load(self, weights: Tensor) -> None:
        """Set the network's parameters: (P,) float64, in the order of ``network.parameters()``."""
        self._weights.copy_(weights)
        self._gradients.weights.copy_(weights)

    def __call__(
        self, features: Tensor, labels: Tensor, clip: float, chosen: Tensor | None = None
    ) -> Tensor:
        """The clipped sum of cross-entropy's gradients: (P,) float64; zeros for an empty batch.

        Args:
            features: (N, …) float32, N >= 0.
            labels: (N,) int64.
            clip: C > 0.
            chosen: (B,) int64, the records of the batch; all of them without it.
        """
        total = torch.zeros_like(self._weights)
        if chosen is None:
            chosen = torch.arange(len(labels))
        if not len(chosen):
            return total
        with one_thread():
            self._prepare(features.shape[1:])
            for start, end, size in micro_batches(len(chosen), self._sizes):
                self._add(total, features, labels, clip, chosen[start:end], size)
        return total

    def _add(
        self,
        total: Tensor,
        features: Tensor,
        labels: Tensor,
        clip: float,
        records: Tensor,
        size: int,
    ) -> None:
        """Add one micro-batch; a record that the network cannot take counts as zero."""
        try:
            parts = self._gradients.parts(
                _padded(features, records, size), _padded(labels, records, size)
            )
        except Exception:
            if len(records) == 1:
                log.debug("a record counts as zero", exc_info=True)
                return
            for record in records:
                self._add(total, features, labels, clip, record[None], self._sizes[0])
            return
        _add_clipped(total, parts, len(records), clip)

    def _prepare(self, shape: torch.Size) -> None:
        """Choose sizes and precision for features of one shape, once."""
        if shape == self._ready:
            return
        self._gradients, self._sizes = choose(self._network, shape, self._precision, self._batch)
        self._gradients.weights.copy_(self._weights)
        self._ready = shape


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """More would cut vector loops anywhere, and so round by place."""
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)


def micro_batches(records: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Cut a batch: (start, end, size) with ``end - start <= size``, each size one of ``sizes``."""
    start = 0
    while start < records:
        left = records - start
        size = max((size for size in sizes if size <= left), default=sizes[0])
        above = min((size for size in sizes if size >= left), default=0)
        if above and above - left < max(sizes[0], left // 4):  # padding is cheaper than one more
            size = above
        yield start, min(start + size, records), size
        start += size


def _padded(values: Tensor, records: Tensor, size: int) -> Tensor:
    """The values of ``records``, and zeros up to ``size``: (size, …)."""
    if len(records) == size:
        return values.index_select(0, records)
    result = values.new_zeros(size, *values.shape[1:])
    torch.index_select(values, 0, records, out=result[: len(records)])
    return result


def _add_clipped(total: Tensor, parts: list[Part], records: int, clip: float) -> None:
    """Add the first ``records`` gradients, each scaled to at most C, to ``total`` (P,)."""
    slices = torch.split(total, [part.size for part in parts])
    small = [position for position, part in enumerate(parts) if part.size <= SMALL]
    held = [part for part in parts if part.size > SMALL]
    into = [values for values in slices if len(values) > SMALL]
    if small:
        held.append(Rows(torch.cat([parts[position].rows() for position in small], dim=1)))
        into.append(total.new_zeros(held[-1].size))
    norms = torch.stack([part.squares() for part in held]).sum(0).sqrt()  # (B,)
    scale = (clip * (1 - HEADROOM) / norms.clamp_min(1e-300)).clamp_max(1.0)  # (B,)
    lost = ~torch.isfinite(norms)
    if bool(lost.any()):
        scale[lost] = 0.0
        for part in held:
            part.drop(lost)
    scale[records:] = 0.0
    for part, values in zip(held, into, strict=True):
        part.add_to(values, scale)
    if small:
        sums = torch.split(into[-1], [parts[position].size for position in small])
        for position, values in zip(small, sums, strict=True):
            slices[position].add_(parts[position].ordered(values[None])[0])
