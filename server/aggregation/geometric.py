"""The geometric median of updates: the point with the least sum of distances to all of them.

The rule: half of the points minus one may be anywhere, and the result stays near the others. The
algorithm is Weiszfeld's, smoothed (Pillutla, Kakade and Harchaoui 2019, arXiv 1912.13445, algorithm
2): each step is a mean in which a point weighs one over its distance, or over ``smoothing`` where
it is nearer than that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def geometric_median(
    points: Sequence[NDArray[np.float32]], smoothing: float, iterations: int
) -> NDArray[np.float64]:
    """The smoothed geometric median, from the mean on; it stops early where nothing moves.

    Args:
        points: at least one, each (d,); the bits of the result depend on their order.
        smoothing: > 0, least distance that is divided by.
        iterations: at most so many steps, >= 1.

    Returns:
        (d,) float64. Beside the points, memory is four of these.

    >>> corners = [np.array(p, np.float32) for p in ((0, 0), (4, 0), (4, 3), (0, 3), (2, 1.5))]
    >>> geometric_median(corners, 1e-6, 10).tolist()
    [2.0, 1.5]
    """
    centre = np.zeros(points[0].shape)
    for point in points:
        centre += point
    centre /= len(points)
    away, scratch = np.empty_like(centre), np.empty_like(centre)
    for _ in range(iterations):
        step, weights = np.zeros_like(centre), 0.0
        for point in points:
            np.subtract(point, centre, out=away)
            # Not a dot product: that of a BLAS depends on how many threads make it.
            distance = float(np.sqrt(np.square(away, out=scratch).sum()))
            weight = 1 / max(smoothing, distance)
            step += np.multiply(away, weight, out=away)
            weights += weight
        step /= weights
        moved = centre + step
        if np.array_equal(moved, centre):
            break
        centre = moved
    return centre
