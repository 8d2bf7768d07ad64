"""How is a round's sum made private? Noise on the sum, and on the count where the norm adapts.

The rule: this is the one place where the server draws noise. What comes in is a sum with the stated
sensitivity and what goes out may be seen by everybody. The divisor is the plan's, never a number of
replies.

    sum     + N(0, (z_Delta C)^2) in each coordinate     sensitivity C
    excess  + N(0, sigma_b^2)                            sensitivity 1/2, where the norm adapts
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.plan import Plan
from common.privacy.noise import Stream, add_gaussian
from common.wire import Arrays
from server.central.bounded import BoundedSum

NORM = "next clipping norm"  # beside the parameters in a stored release; no parameter's name
MAX_VALUE = 1024.0  # what the exact mean holds


@dataclass(frozen=True)
class Noised:
    """What a round releases.

    Args:
        mean: the noised sum over the plan's divisor, float32 by parameter name.
        norm: the next round's clipping norm.
    """

    mean: Arrays
    norm: float

    def arrays(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.floating]]]:
        """All of it as one set of arrays, to store and digest."""
        return {**self.mean, NORM: np.array([self.norm], np.float64)}

    @classmethod
    def of(cls, arrays: Arrays) -> Noised:
        mean = {name: value for name, value in arrays.items() if name != NORM}
        return cls(mean, float(arrays[NORM][0]))


def noised(total: BoundedSum, plan: Plan, stream: Stream) -> Noised:
    """Draw the round's noise. Its cost is recorded already.

    Args:
        total: what valid updates added up to, none included.
        plan: with central trust.
        stream: used for nothing else.
    """
    privacy, adaptive = plan.privacy, plan.central.adaptive if plan.central else None
    multiplier = privacy.noise_multiplier
    if adaptive:
        multiplier = adaptive.sum_noise(multiplier)
    flat = add_gaussian(
        total.total(),
        clip=total.norm,
        noise_multiplier=multiplier,
        stream=stream,
        draws=privacy.noise_draws,
    )
    flat /= privacy.divisor
    np.clip(flat, -MAX_VALUE, MAX_VALUE, out=flat)
    mean = {name: value.astype(np.float32) for name, value in total.named(flat).items()}
    if adaptive is None:
        return Noised(mean, total.norm)
    count = add_gaussian(
        np.array([total.excess()]),
        clip=0.5,
        noise_multiplier=2 * adaptive.count_noise,
        stream=stream,
        draws=privacy.noise_draws,
    )
    within = 0.5 + float(count[0]) / privacy.divisor
    return Noised(mean, adaptive.next_norm(total.norm, within))
