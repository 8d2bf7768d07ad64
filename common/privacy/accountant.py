"""What events cost, in Rényi differential privacy at integer orders: the standard library alone.

The rule: an epsilon from this module is an upper bound under add-or-remove-one adjacency, and the
same on every machine up to the last few bits. Replace-one is refused: the formula is no bound
under it. This is the accountant that the filter and an auditor's offline check run;
:mod:`common.privacy.reference` is the independent second opinion. Costs are remembered by
mechanism, so a thousand rounds of one plan take as long as one.

Sources: Rényi cost of the subsampled Gaussian at an integer order: Mironov, Talwar, Zhang 2019
(arXiv 1908.10530), section 3.3. Conversion to (epsilon, delta): Canonne, Kamath,
Steinke 2020 (arXiv 2004.00010, v4), proposition 12.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from common.errors import PlanError
from common.privacy.events import ADJACENCY, Event, merge

# Pinned: an epsilon is only reproducible together with the orders that it was minimised over.
ORDERS: tuple[int, ...] = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512)

_LARGEST = 1e300  # exponents and variances stay below this, short of where a float overflows


def step_cost(sampling_rate: float, noise_multiplier: float, order: int) -> float:
    """Rényi divergence bound of one step at an integer ``order`` >= 2.

    >>> round(step_cost(1.0, 2.0, 8), 6)      # order / (2 sigma^2)
    1.0
    """
    if order < 2:
        raise ValueError(f"order must be an integer of at least 2, not {order}")
    return _step_costs(sampling_rate, noise_multiplier, (order,))[0]


@lru_cache(maxsize=4096)
def _step_costs(
    sampling_rate: float, noise_multiplier: float, orders: tuple[int, ...]
) -> tuple[float, ...]:
    """One step's cost at each of ``orders``: together, because they share most of the work."""
    q, variance = sampling_rate, min(noise_multiplier * noise_multiplier, _LARGEST)
    # No noise, or too little for a finite cost, is infinite.
    finite = [order for order in orders if variance >= order * order / _LARGEST]
    if q == 1:
        return tuple(order / (2 * variance) if order in finite else math.inf for order in orders)
    growth = [
        k * math.log(q) + _log_expm1((k * k - k) / (2 * variance))
        for k in range(2, max(finite, default=1) + 1)
    ]
    return tuple(
        _subsampled_cost(order, growth, math.log1p(-q)) if order in finite else math.inf
        for order in orders
    )


def _subsampled_cost(order: int, growth: list[float], log_absent: float) -> float:
    """One order's cost; ``growth`` has the part of each term, from k = 2, that no order changes."""
    # The binomial weights add up to one, and the terms of k = 0 and 1 are weights alone. Taking
    # that one out leaves positive terms only: nothing cancels, however small q or the cost is.
    terms = [
        weight + grown + (order - k) * log_absent
        for k, (weight, grown) in enumerate(zip(_log_binomials(order), growth, strict=False), 2)
    ]
    top = max(terms)
    log_excess = top + math.log(math.fsum(math.exp(term - top) for term in terms))
    return _log1p_exp(log_excess) / (order - 1)


def rdp(events: Iterable[Event], order: int) -> float:
    """The Rényi cost of all events together at one order: plain addition (Mironov 2017)."""
    return math.fsum(
        event.steps * step_cost(event.sampling_rate, event.noise_multiplier, order)
        for event in merge(events)
    )


def to_epsilon(cost: float, order: int, delta: float) -> float:
    """Epsilon at ``delta`` for a Rényi ``cost`` at ``order``; never below zero."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), not {delta}")
    return max(0.0, cost + conversion(order, delta))


def conversion(order: int, delta: float) -> float:
    """What turns a Rényi cost at ``order`` into epsilon, whatever the cost."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def epsilon(events: Iterable[Event], delta: float, adjacency: str = ADJACENCY) -> float:
    """The least epsilon over the pinned orders, for a schedule that was fixed in advance.

    Raises:
        PlanError: another adjacency than add-or-remove-one.

    >>> round(epsilon([Event(0.1, 1.0, 100)], 1e-5), 3)     # 7.904 with fractional orders too
    7.973
    """
    only_add_or_remove(adjacency)
    return _epsilon(merge(events), delta)


def only_add_or_remove(adjacency: str) -> None:
    """Refuse to account for any adjacency but add-or-remove-one by Rényi orders.

    Raises:
        PlanError: says which accountant offers replace-one.
    """
    if adjacency != ADJACENCY:
        raise PlanError(
            f"Rényi accounting is for {ADJACENCY}, not {adjacency!r:.40}",
            hint="replace-one is accounted for through PLD only, to compare; nothing is charged "
            "or stated under it",
            code="unsupported-adjacency",
        )


@lru_cache(maxsize=1024)
def _epsilon(events: tuple[Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    costs = [
        [event.steps * cost for cost in _step_costs(*_mechanism(event), ORDERS)] for event in events
    ]
    totals = [math.fsum(column) for column in zip(*costs, strict=True)]
    # Total variation is at most sqrt(1 - exp(-KL)), and KL at most any order's cost: where that
    # alone is below delta there is nothing left for epsilon to pay.
    if delta * delta + math.expm1(-totals[ORDERS.index(2)]) > 0:
        return 0.0
    return min(to_epsilon(cost, order, delta) for cost, order in zip(totals, ORDERS, strict=True))


def _mechanism(event: Event) -> tuple[float, float]:
    return event.sampling_rate, event.noise_multiplier


def epsilon_floor(event: Event, delta: float) -> float:
    """An epsilon that ``event`` certainly exceeds at ``delta``: no honest claim lies below it.

    It is what one attack achieves: add up all noised outputs along the record's own direction and
    compare with a threshold. With the record, the sum is N(K, T sigma^2) with K binomial(T, q);
    without it, N(0, T sigma^2). Then epsilon >= log((P[with] - delta) / P[without]) for every
    threshold. Exact for q = 1 (Balle and Wang 2018, arXiv 1805.06530), else up to a third
    low at common settings.

    >>> round(epsilon_floor(Event(1.0, 4.0, 50), 1e-5), 4)      # exact: 8.5959
    8.5959
    """
    q, sigma = event.sampling_rate, event.noise_multiplier
    if sigma == 0:
        return math.inf
    # Fewer steps disclose less, so this stays a floor where a long schedule would take long.
    steps = event.steps if q == 1 else min(event.steps, math.ceil(1e4 / (q * (1 - q))))
    counts = _binomial(steps, q)
    scale = math.sqrt(steps) * sigma

    def attack(z: float) -> float:
        hit = math.fsum(weight * _upper_tail(z - k / scale) for k, weight in counts)
        return math.log((hit - delta) / _upper_tail(z)) if hit > delta else 0.0

    best = max(range(37), key=attack)
    low, high = max(0.0, best - 1.0), min(36.0, best + 1.0)
    for _ in range(40):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if attack(left) < attack(right) else (low, right)
    return max(0.0, attack(best), attack(low))


def _binomial(steps: int, q: float) -> list[tuple[int, float]]:
    """Counts within ten standard deviations of the mean, with their probabilities."""
    if q == 1:
        return [(steps, 1.0)]
    mean, width = steps * q, 10 * math.sqrt(steps * q * (1 - q)) + 20
    least, most = max(0, math.floor(mean - width)), min(steps, math.ceil(mean + width))
    return [
        (k, math.exp(_log_binomial(steps, k) + k * math.log(q) + (steps - k) * math.log1p(-q)))
        for k in range(least, most + 1)
    ]


def _upper_tail(z: float) -> float:
    """P[N(0, 1) > z]."""
    return math.erfc(z / math.sqrt(2)) / 2


def _log_expm1(x: float) -> float:
    """log(e^x - 1) for x > 0, where e^x may be beyond a float."""
    return x + math.log(-math.expm1(-x))


def _log1p_exp(x: float) -> float:
    """log(1 + e^x), where e^x may be beyond a float."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@lru_cache(maxsize=128)
def _log_binomials(n: int) -> tuple[float, ...]:
    """log of n over k, for k from 2 to n."""
    return tuple(_log_binomial(n, k) for k in range(2, n + 1))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
