"""What is a declared mechanism said to cost, and can that be so?

The rule: an epsilon is computed here from the mechanism alone, by code that shares nothing with
whoever claimed one, and a claim is also held against what a simple attack on the declared mechanism
achieves: below that, no accountant is right. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

from audit.canaries.bounds import LARGEST_EPSILON, gaussian_mu
from audit.canaries.design import Claim
from audit.canaries.interval import PLD, RDP, best_method, curve_by, epsilon_by
from audit.canaries.special import normal_quantile
from common.errors import InputError
from common.privacy import accountant
from common.privacy.events import Event

# Where canaries look at a trade-off curve: chances from a half down to about 1e-4.
CURVE = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2)
RDP_TOLERANCE = 1e-9
PLD_TOLERANCE = 1e-6  # of a value on its own grid
# With less noise a loss distribution takes up to half a minute, and whoever checks a record must
# not wait for what somebody else chose: the claim is our own Rényi bound then.
LEAST_PLD_NOISE = 0.5


@dataclass(frozen=True)
class Clause:
    """One clause of the accounting, held against what was computed here."""

    name: str
    ok: bool
    message: str


def claim_of(event: Event, delta: float, method: str | None = None) -> Claim:
    """What ``event`` costs, by the tightest method that is quick here, or by ``method``.

    Raises:
        InputError: epsilon is infinite or above 100: nothing is claimed that could be tested.
        ValueError: ``method`` is PLD, and it would not be quick.
    """
    if not accountant.epsilon([event], delta) <= LARGEST_EPSILON:
        raise InputError(
            f"{event.steps} steps at noise multiplier {event.noise_multiplier:g} cost an epsilon "
            f"above {LARGEST_EPSILON:g}: nothing is claimed that could be tested",
            hint="plan more noise, fewer steps or a lower sampling rate",
        )
    quick = event.noise_multiplier >= LEAST_PLD_NOISE
    method = method or (best_method() if quick else RDP)
    if method == PLD and not quick:
        raise ValueError(
            f"noise_multiplier: {event.noise_multiplier:g}, and no claim is by {PLD} below "
            f"{LEAST_PLD_NOISE:g}"
        )
    epsilon = epsilon_by(method, event, delta)
    return Claim(event, delta, epsilon, method, _curve(event, delta, epsilon, method))


def _curve(event: Event, delta: float, epsilon: float, method: str) -> float:
    """The least mu whose Gaussian curve is above the declared one at each of several deltas."""
    costs = curve_by(method, event, CURVE)
    points = [(epsilon, delta), *zip(costs, CURVE, strict=True)]
    # At an epsilon of 0, delta bounds the total variation: mu = 2 Phi^-1((1 + delta) / 2).
    least = next((each for cost, each in points if cost <= 0), 1.0)
    found = [gaussian_mu(cost, each) for cost, each in points if cost > 0]
    if least < 1:
        found.append(2 * normal_quantile((1 + least) / 2) if not found else 0.0)
    return max(found)


def check_accounting(event: Event, delta: float, claimed: float | None = None) -> list[Clause]:
    """Recompute an epsilon, and look for a way in which a wrong one could have come about.

    Args:
        event: the whole declared schedule.
        delta: in (0, 1).
        claimed: what somebody says it costs; None where nobody says anything.
    """
    own = accountant.epsilon([event], delta)
    floor = accountant.epsilon_floor(event, delta)
    clauses = []
    least = floor
    if find_spec("dp_accounting"):
        from common.privacy import reference

        rdp, least = reference.rdp_epsilon([event], delta), reference.pld_epsilon([event], delta)
        agree = math.isclose(own, rdp, rel_tol=RDP_TOLERANCE, abs_tol=RDP_TOLERANCE)
        clauses.append(
            Clause(
                "rdp-twice",
                agree,
                f"two Rényi accountants that share no code give {own:.9g} and {rdp:.9g}",
            )
        )
        ordered = floor * (1 - PLD_TOLERANCE) <= least <= own * (1 + RDP_TOLERANCE)
        clauses.append(
            Clause(
                "pld-between",
                ordered,
                f"PLD gives {least:.6g}, between {floor:.6g}, which an attack on the declared "
                f"mechanism achieves, and its Rényi bound {own:.6g}",
            )
        )
    if claimed is not None:
        clauses.append(_check_claim(event, delta, claimed, least, own))
    return clauses


def _check_claim(event: Event, delta: float, claimed: float, least: float, own: float) -> Clause:
    what = f"the claimed epsilon {claimed:.6g}"
    if claimed > own * (1 + PLD_TOLERANCE):
        more = f"{what} is above the Rényi bound {own:.6g}: too careful, and not this mechanism's"
        return Clause("claimed-epsilon", False, more)
    if claimed >= least * (1 - PLD_TOLERANCE):
        return Clause("claimed-epsilon", True, f"{what} is what the declared mechanism costs")
    return Clause(
        "claimed-epsilon",
        False,
        f"{what} is too small: {event.steps} steps at sampling rate {event.sampling_rate:g} and "
        f"noise multiplier {event.noise_multiplier:g} cost {least:.6g}. "
        f"{_would_fit(event, delta, claimed)}",
    )


def _would_fit(event: Event, delta: float, claimed: float) -> str:
    """For which other schedules the claim would be right: what may have gone wrong."""
    method = best_method()

    def cost(event: Event) -> float:
        return curve_by(method, event, [delta])[0]

    def share(of: Callable[[float], Event]) -> float:
        """The share of a figure at which the claim would be right, to about 2 %."""
        low, high = math.log(1e-4), 0.0
        for _ in range(9):
            middle = (low + high) / 2
            fits = cost(of(math.exp(middle))) >= claimed
            low, high = (low, middle) if fits else (middle, high)
        return math.exp(high)

    steps = share(lambda part: replace(event, steps=max(1, round(part * event.steps))))
    rate = share(lambda part: replace(event, sampling_rate=part * event.sampling_rate))
    return (
        f"It would fit about {max(1, round(steps * event.steps))} of the steps, or a sampling "
        f"rate of about {rate * event.sampling_rate:.2g}"
    )
