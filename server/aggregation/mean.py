"""The mean of updates, exact and in any order: a fixed-point sum in 64-bit integers.

The rule: the result depends on which updates were added, never on when they arrived or how many
processes made them. Each coordinate is rounded once to a multiple of 2^-36 (1.5e-11, far below
float32's own steps at the sizes of updates) and added as an integer, so addition is associative.
With coordinates below 2^10 and at most 2^16 updates the sum stays below 2^62. Memory is one
accumulator.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.wire import Arrays

SCALE = 2.0**36
MAX_VALUE = 1024.0
MAX_UPDATES = 2**16


class ExactMean:
    """Adds updates of given shapes; gives their mean.

    Args:
        shapes: parameter name to shape.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._sums: dict[str, NDArray[np.int64]] = {
            name: np.zeros(shape, np.int64) for name, shape in shapes.items()
        }
        self.count = 0

    def add(self, update: Arrays) -> None:
        """Add one validated update: same names and shapes, finite, every |value| <= 1024."""
        if self.count >= MAX_UPDATES:
            raise ValueError(f"more than {MAX_UPDATES} updates in one mean")
        for name, total in self._sums.items():
            total += np.rint(update[name].astype(np.float64) * SCALE).astype(np.int64)
        self.count += 1

    def mean(self) -> dict[str, NDArray[np.float64]]:
        """The mean of what was added, float64; at least one update."""
        return {name: total / (SCALE * self.count) for name, total in self._sums.items()}
