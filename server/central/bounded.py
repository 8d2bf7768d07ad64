"""The sum of whole updates, each clipped to L2 norm C: all that a round sees of its clients.

The rule: whatever updates are added, one more or less changes the sum by a vector of norm at most
C, to the bit, and the sum does not depend on their order. So the clipped update is cut to whole
multiples of a grid of C x 2^-32 *towards zero*, which never makes it longer, and added as integers.
A coordinate is at most 2^32 of them and a sum of 2^20 updates at most 2^52: it is exact in float64
too. Memory is one accumulator and one update.

Which updates are within C is counted with them: a half for each that is, minus a half for each that
is not, so that one client more or less moves the count by a half.

Source: McMahan et al. 2018 (arXiv 1710.06963), flat clipping; Andrew et al. 2021 (arXiv
1905.03871), section 3, for the shifted count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.wire import Arrays

GRID_BITS = 32
MAX_UPDATES = 2**20
# Relative head-room below C, for the rounding of float64 norms and products.
HEADROOM = 1e-6


class BoundedSum:
    """Clips and adds updates of given shapes.

    Args:
        shapes: parameter name to shape; their order is that of :meth:`total`.

    ``count`` is how many were added: for operators only, it must not reach a model.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.size = sum(math.prod(shape) for shape in self._shapes.values())
        self._sum = np.zeros(self.size, np.int64)
        self.begin(1.0)

    def begin(self, norm: float) -> None:
        """Start a round with clipping norm C = ``norm`` > 0: forget what was added."""
        if not (norm > 0 and math.isfinite(norm)):
            raise ValueError(f"a clipping norm is positive and finite, not {norm}")
        self.norm, self.count, self._halves = norm, 0, 0
        self._grid = math.ldexp(1.0, math.frexp(norm)[1] - GRID_BITS)  # a power of two
        self._sum.fill(0)

    def add(self, _client: str, update: Arrays) -> None:
        """Add one update: float32 of these names and shapes; one that is not finite adds zero."""
        if self.count >= MAX_UPDATES:
            raise ValueError(f"more than {MAX_UPDATES} updates in one sum")
        flat = np.concatenate(
            [np.asarray(update[name], np.float64).reshape(-1) for name in self._shapes]
        )
        length = float(np.linalg.norm(flat)) if flat.size else 0.0
        within = length <= self.norm  # False if it is not a number
        if math.isfinite(length):
            aim = self.norm * (1 - HEADROOM)
            if length > aim:
                flat *= aim / length
            flat /= self._grid  # exact: a power of two
            self._sum += np.trunc(flat, out=flat).astype(np.int64)
        self._halves += 1 if within else -1
        self.count += 1

    def total(self) -> NDArray[np.float64]:
        """The sum, exact: shape (size,)."""
        return self._sum.astype(np.float64) * self._grid

    def excess(self) -> float:
        """Half of how many more updates were within C than beyond it; each moves it by 1/2."""
        return self._halves / 2

    def named(self, flat: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """A vector like :meth:`total` as arrays by name."""
        parts = np.split(flat, np.cumsum([math.prod(s) for s in self._shapes.values()])[:-1])
        shapes = self._shapes.items()
        return {
            name: part.reshape(shape) for (name, shape), part in zip(shapes, parts, strict=True)
        }
