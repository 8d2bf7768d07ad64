"""The second opinion: Google's dp-accounting, by privacy loss distributions and by Rényi orders.

The rule: a number from here is never used to admit anything; it is the headline for a schedule
fixed in advance (PLD, the tightest) and the cross-check of our own accountant (RDP). Values are
upper bounds (pessimistic discretisation) and are memoised, since a distinct schedule costs up to a
second.

Source: Koskela et al. 2020 (arXiv 1906.03049) and Doroshenko et al. 2022 (arXiv 2207.04380), as in
dp-accounting 0.6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from common.errors import PlanError
from common.privacy.accountant import ORDERS
from common.privacy.events import Event, merge

DISCRETIZATION = 1e-4  # of the privacy loss; part of what makes an epsilon reproducible
COARSE = 5e-3  # for searching only


def pld_epsilon(events: Iterable[Event], delta: float) -> float:
    """The headline epsilon: PLD, add-or-remove-one, pessimistic.

    Infinite where a mechanism has no noise. Memoised by schedule.
    """
    return _pld(merge(events), delta)


def rdp_epsilon(events: Iterable[Event], delta: float) -> float:
    """dp-accounting's Rényi accountant over the same pinned orders as our own."""
    return _rdp(merge(events), delta)


@lru_cache(maxsize=256)
def calibrate(sampling_rate: float, steps: int, epsilon: float, delta: float) -> float:
    """A noise multiplier, within 1e-3 of the least, whose whole schedule costs at most ``epsilon``.

    Args:
        sampling_rate: q in (0, 1].
        steps: over all rounds.
        epsilon: target for the full schedule, > 0.
        delta: in (0, 1).

    Raises:
        PlanError: no noise multiplier below 1e5 reaches the target.
    """

    def cost(sigma: float, interval: float = DISCRETIZATION) -> float:
        return _pld((Event(sampling_rate, sigma, steps),), delta, interval)

    # A coarse grid is a valid upper bound, less than 1e-4 above, at a twentieth of the time: search
    # there, and let the fine grid have the last word.
    low, high = 0.2, 1.0
    while cost(high, COARSE) > epsilon:
        low, high = high, high * 2
        if high > 1e5:
            raise PlanError(
                f"no noise reaches epsilon {epsilon} at delta {delta} in {steps} steps",
                hint="ask for fewer rounds or steps, a lower sampling_rate, or a larger epsilon",
            )
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle, COARSE) > epsilon else (low, middle)
    # Four decimals are what a person can compare between two files; rounding up only adds noise.
    sigma = math.ceil(high * 1e4) / 1e4
    while cost(sigma) > epsilon:
        sigma = round(sigma + 1e-4, 4)
    return sigma


@lru_cache(maxsize=1024)
def _pld(events: tuple[Event, ...], delta: float, interval: float = DISCRETIZATION) -> float:
    if not events:
        return 0.0
    if any(event.noise_multiplier == 0 for event in events):
        return math.inf
    from dp_accounting import pld

    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    return _compose(accountant, events, delta)


@lru_cache(maxsize=1024)
def _rdp(events: tuple[Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    if any(event.noise_multiplier == 0 for event in events):
        return math.inf
    from dp_accounting import rdp

    return _compose(rdp.RdpAccountant([float(order) for order in ORDERS]), events, delta)


def _compose(accountant: Any, events: tuple[Event, ...], delta: float) -> float:
    import dp_accounting

    for event in events:
        step = dp_accounting.PoissonSampledDpEvent(
            event.sampling_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
        )
        accountant.compose(step, event.steps)
    return float(accountant.get_epsilon(delta))
