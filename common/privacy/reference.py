"""The second opinion: dp-accounting, by privacy loss distributions (PLD) and by Rényi orders.

The rule: a number from here is never used to admit anything; it is the headline for a schedule
fixed in advance (PLD, the tightest) and the cross-check of our own accountant (RDP). Values are
upper bounds (pessimistic discretisation) and are memoised, since a distinct schedule costs up to a
second. Replace-one is offered here alone, by PLD, for comparison with work that states it: at
common settings it is about twice the number under add-or-remove-one, for the same noise.

Source: Koskela et al. 2020 (arXiv 1906.03049) and Doroshenko et al. 2022 (arXiv 2207.04380), as in
dp-accounting 0.6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from common.errors import PlanError
from common.privacy import accountant
from common.privacy.accountant import ORDERS, only_add_or_remove
from common.privacy.events import ADJACENCY, REPLACE_ONE, Event, merge

DISCRETIZATION = 1e-4  # of the privacy loss; part of what makes an epsilon reproducible
CURVE = 1e-3  # for a whole curve
COARSE = 5e-3  # for searching only


def pld_epsilon(events: Iterable[Event], delta: float, adjacency: str = ADJACENCY) -> float:
    """The headline epsilon: PLD, pessimistic; under ``add-or-remove-one`` unless told otherwise.

    Infinite where a mechanism has no noise. Memoised by schedule. Under ``replace-one`` a record
    is exchanged for another, drawn by the same coins: nothing is charged or stated by that number.

    Raises:
        PlanError: an adjacency that is neither of the two.
    """
    if adjacency not in (ADJACENCY, REPLACE_ONE):
        raise PlanError(
            f"{adjacency!r:.40} is not an adjacency that can be accounted for",
            hint=f"use {ADJACENCY}, or {REPLACE_ONE} to compare",
            code="unsupported-adjacency",
        )
    return _pld(merge(events), delta, DISCRETIZATION, adjacency)


def pld_curve(events: Iterable[Event], deltas: Iterable[float]) -> tuple[float, ...]:
    """Epsilon at several deltas, composed once and on a coarser grid; upper bounds all the same.

    A tenth of the time of :func:`pld_epsilon`, and above it by less than 1e-3 for 1,000 steps; for
    looking at a whole curve, never for a headline. Memoised by schedule and deltas.
    """
    return _pld_curve(merge(events), tuple(deltas))


def rdp_epsilon(
    events: Iterable[Event],
    delta: float,
    orders: tuple[int, ...] = ORDERS,
    adjacency: str = ADJACENCY,
) -> float:
    """dp-accounting's Rényi accountant, over the same pinned orders as our own unless told.

    Raises:
        PlanError: another adjacency than add-or-remove-one.
    """
    only_add_or_remove(adjacency)
    return _rdp(merge(events), delta, orders)


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

    def event(sigma: float) -> Event:
        return Event(sampling_rate, sigma, steps)

    def cost(sigma: float, interval: float = DISCRETIZATION) -> float:
        # With all arguments, as above: then the headline of what was calibrated is remembered.
        return _pld((event(sigma),), delta, interval, ADJACENCY)

    # Cheap bounds on both sides keep the search where a loss distribution is small.
    high = _least(lambda sigma: accountant.epsilon([event(sigma)], delta) <= epsilon, 1e-2, 1e5)
    if high is None:
        raise PlanError(
            f"no noise reaches epsilon {epsilon} at delta {delta} in {steps} steps",
            hint="ask for fewer rounds or steps, a lower sampling_rate, or a larger epsilon",
        )
    low = _least(lambda sigma: accountant.epsilon_floor(event(sigma), delta) <= epsilon, 1e-2, high)
    # A coarse grid is a valid upper bound at a twentieth of the time; the fine grid, on which a
    # cost is nearly a power of sigma, has the last word.
    coarse = _least(lambda sigma: cost(sigma, COARSE) <= epsilon, (low or high) / 1.01, high)
    good, bad, power = coarse or high, 0.0, 1.0
    for _ in range(8):
        if cost(good) >= epsilon * (1 - 3e-4) or good - bad <= 2e-4 * good:
            break
        guess = good * (cost(good) / (epsilon * (1 - 1e-4))) ** power
        guess = min(max(guess, bad + 1e-4 * good, 0.8 * good), good * (1 - 1e-4))
        if 0 < cost(good) < cost(guess):
            power = math.log(guess / good) / math.log(cost(good) / cost(guess))
        good, bad = (guess, bad) if cost(guess) <= epsilon else (good, guess)
    # Four decimals are what a person can compare between two files; rounding up only adds noise.
    sigma = math.ceil(good * 1e4) / 1e4
    while cost(sigma) > epsilon:
        sigma = round(sigma + 1e-4, 4)
    return sigma


def _least(holds: Callable[[float], bool], low: float, high: float) -> float | None:
    """The least sigma for which ``holds``, to a ratio of 1e-4 and from above; None without one."""
    if not holds(high):
        return None
    if holds(low):
        return low
    while high > low * (1 + 1e-4):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@lru_cache(maxsize=1024)
def _pld(
    events: tuple[Event, ...],
    delta: float,
    interval: float,
    adjacency: str,
) -> float:
    if not events:
        return 0.0
    if any(event.noise_multiplier == 0 for event in events):
        return math.inf
    from dp_accounting import NeighboringRelation, pld

    relation = {
        ADJACENCY: NeighboringRelation.ADD_OR_REMOVE_ONE,
        REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    }[adjacency]
    library = pld.PLDAccountant(relation, value_discretization_interval=interval)
    return _compose(library, events, delta)


@lru_cache(maxsize=64)
def _pld_curve(events: tuple[Event, ...], deltas: tuple[float, ...]) -> tuple[float, ...]:
    if not events or any(event.noise_multiplier == 0 for event in events):
        return tuple(math.inf if events else 0.0 for _ in deltas)
    from dp_accounting import pld

    library = pld.PLDAccountant(value_discretization_interval=CURVE)
    _add(library, events)
    return tuple(float(library.get_epsilon(delta)) for delta in deltas)


@lru_cache(maxsize=1024)
def _rdp(events: tuple[Event, ...], delta: float, orders: tuple[int, ...]) -> float:
    if not events:
        return 0.0
    if any(event.noise_multiplier == 0 for event in events):
        return math.inf
    from dp_accounting import rdp

    return _compose(rdp.RdpAccountant([float(order) for order in orders]), events, delta)


def _compose(library: Any, events: tuple[Event, ...], delta: float) -> float:
    _add(library, events)
    return float(library.get_epsilon(delta))


def _add(library: Any, events: tuple[Event, ...]) -> None:
    import dp_accounting

    for event in events:
        step = dp_accounting.PoissonSampledDpEvent(
            event.sampling_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
        )
        library.compose(step, event.steps)
