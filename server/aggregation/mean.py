"""The mean of updates, exact and in any order: a fixed-point sum in 64-bit integers.

The rule: the result depends on which updates were added, never on when they arrived or how many
processes made them. Each coordinate is rounded once to a multiple of 2^-36 (1.5e-11, far below
float32's own steps at the sizes of updates) and added as an integer, so addition is associative.
With coordinates below 2^10 and at most 2^16 updates the sum stays below 2^62. Memory is one
accumulator, and a scratch of at most half a mebibyte.

The rounding is an addition. A float64 from 2^16 to 2^17 is a multiple of 2^-36, so adding
1.5 * 2^16 to a coordinate rounds it to one, to nearest and ties to even, and leaves it as an
integer in the low bits of the sum: those of 1.5 * 2^16 plus what is wanted. Those bits are added
as they are, modulo 2^64, and the constant is taken off once, at the end. Multiplying, rounding
and converting gives the same integers in more passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.cohort import MAX_CLIENTS
from common.wire import Arrays

SCALE = 2.0**36
MAX_VALUE = 1024.0
MAX_UPDATES = MAX_CLIENTS

_SHIFT = 1.5 * 2.0**16
_SHIFT_BITS = int(np.float64(_SHIFT).view(np.int64))
_CHUNK = 2**16  # coordinates at a time: what fits a processor's cache


class ExactMean:
    """Adds updates of given shapes; gives their mean.

    Args:
        shapes: parameter name to shape.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        # Flat, and with _SHIFT_BITS in each element for every update that was added.
        self._sums: dict[str, NDArray[np.int64]] = {
            name: np.zeros(math.prod(shape), np.int64) for name, shape in shapes.items()
        }
        largest = max((len(total) for total in self._sums.values()), default=0)
        self._scratch = np.empty(min(largest, _CHUNK))
        self.count = 0

    def add(self, update: Arrays) -> None:
        """Add one validated update: same names and shapes, finite, every |value| <= 1024."""
        if self.count >= MAX_UPDATES:
            raise ValueError(f"more than {MAX_UPDATES} updates in one mean")
        for name, total in self._sums.items():
            flat = np.asarray(update[name]).reshape(-1)
            for start in range(0, len(flat), _CHUNK):
                part = flat[start : start + _CHUNK]
                shifted = self._scratch[: len(part)]
                np.copyto(shifted, part)
                np.add(shifted, _SHIFT, out=shifted)
                sums = total[start : start + _CHUNK]
                np.add(sums, shifted.view(np.int64), out=sums)
        self.count += 1

    def mean(self) -> dict[str, NDArray[np.float64]]:
        """The mean of what was added, float64; at least one update."""
        shifts = np.uint64(self.count * _SHIFT_BITS % 2**64)
        return {
            name: np.asarray(
                (total.view(np.uint64) - shifts).view(np.int64) / (SCALE * self.count)
            ).reshape(self._shapes[name])
            for name, total in self._sums.items()
        }
