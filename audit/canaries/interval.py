"""How much noise was there, and what epsilon does that make? An interval, from the run's own noise.

The rule: the only noise that is looked at is that of canaries which were held out and of rows that
no record has, so no record is in it. What results is conditional on the mechanism's form: it holds
if records were clipped and sampled as declared, which other tests look at. It is an interval for
the declared mechanism's epsilon at the noise that there really was; it is not an attack's bound.

The standard library, and for the headline's method dp-accounting; without it the interval's ends
are our own Rényi bounds, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from audit.canaries.bounds import LARGEST_EPSILON
from audit.canaries.special import (
    chi_square_quantile,
    chi_square_tails,
    normal_cdf,
)
from common.canonical import Json, number
from common.privacy import accountant
from common.privacy.events import Event

PLD, RDP = "pld (dp-accounting)", "rdp (privet)"


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval.

    Args:
        low, high: its ends; ``high`` may be infinite.
        confidence: in (0, 1).
    """

    low: float
    high: float
    confidence: float

    @property
    def relative_half_width(self) -> float:
        """Half of the width, as a share of the middle."""
        if not math.isfinite(self.high) or self.high + self.low == 0:
            return math.inf
        return (self.high - self.low) / (self.high + self.low)


def sigma_interval(squares: float, values: int, confidence: float) -> Interval:
    """The noise multiplier, from so many noise ``values`` in units of C, and their sum of squares.

    Chi-square: exact for independent normal values.

    >>> found = sigma_interval(100_000 * 1.1**2, 100_000, 0.99)
    >>> round(found.low, 3), round(found.high, 3)
    (1.094, 1.106)
    """
    tail = (1 - confidence) / 2
    return Interval(
        math.sqrt(squares / chi_square_quantile(1 - tail, values)),
        math.sqrt(squares / chi_square_quantile(tail, values)),
        confidence,
    )


def epsilon_interval(sigma: Interval, event: Event, delta: float, method: str) -> Interval:
    """Epsilon of ``event`` at the ends of a noise interval: epsilon falls as noise grows.

    An end above 100 is given as infinite: a loss distribution would be too large to compute.
    """
    cost = _method(method)

    def at(noise: float) -> float:
        found = [replace(event, noise_multiplier=noise)]
        bound = accountant.epsilon(found, delta)
        if not bound <= LARGEST_EPSILON:
            return math.inf
        return cost(found, delta) if bound else 0.0

    return Interval(at(sigma.high), at(sigma.low), sigma.confidence)


def best_method() -> str:
    """The tightest method that is installed."""
    return PLD if find_spec("dp_accounting") else RDP


def epsilon_by(method: str, event: Event, delta: float) -> float:
    """The epsilon of one schedule by a method's name."""
    return _method(method)([event], delta)


def curve_by(method: str, event: Event, deltas: Sequence[float]) -> tuple[float, ...]:
    """The same at several deltas, on a coarser grid where there is one: upper bounds too."""
    if method == RDP:
        return tuple(accountant.epsilon([event], delta) for delta in deltas)
    from common.privacy import reference

    return reference.pld_curve([event], deltas)


def _method(name: str) -> Callable[[list[Event], float], float]:
    if name == RDP:
        return accountant.epsilon
    if name != PLD:
        raise ValueError(f"no accountant is called {name!r:.40}")
    from common.privacy import reference

    return reference.pld_epsilon


def too_little_noise(squares: float, values: int, declared: float) -> float:
    """The chance of noise as small as this, if it had the ``declared`` multiplier (> 0)."""
    return chi_square_tails(squares / declared**2, values)[0]


def too_much_influence(total: float, included: int, event: Event) -> float:
    """The chance that included canaries moved the sums so far, or further, as declared.

    Args:
        total: of all steps and included canaries, their coordinates along their own direction, in
            units of C.
        included: how many canaries that is.
        event: the declared mechanism, with the steps that were run.

    Each of ``included`` x ``steps`` uses counts with probability q and adds at most 1, and has
    noise of its own: a binomial plus a normal variable, summed exactly.
    """
    uses, q = included * event.steps, event.sampling_rate
    if not uses:
        return 1.0
    scale = event.noise_multiplier * math.sqrt(uses)
    mean, width = uses * q, 12 * math.sqrt(uses * q * (1 - q)) + 40
    low, high = max(0, math.floor(mean - width)), min(uses, math.ceil(mean + width))
    return min(
        1.0,
        math.fsum(
            _binomial(uses, k, q) * normal_cdf((k - total) / scale) for k in range(low, high + 1)
        )
        + 1e-15,
    )


def _binomial(n: int, k: int, p: float) -> float:
    if p >= 1:
        return float(k == n)
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))


def interval_json(interval: Interval) -> Json:
    """Numbers as canonical text; an infinite end is null."""

    def finite(end: float) -> str | None:
        return number(end) if math.isfinite(end) else None

    return {
        "low": finite(interval.low),
        "high": finite(interval.high),
        "confidence": number(interval.confidence),
    }
