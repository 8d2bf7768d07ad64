"""What events cost, in Rényi differential privacy at integer orders: the standard library alone.

The rule: an epsilon from this module is an upper bound under add-or-remove-one adjacency, and the
same on every machine up to the last few bits. This is the accountant that the filter and an
auditor's offline check run; :mod:`common.privacy.reference` is the independent second opinion.

Sources: Rényi cost of the subsampled Gaussian at an integer order: Mironov, Talwar, Zhang 2019
(arXiv 1908.10530), section 3.3. Conversion to (epsilon, delta): Canonne, Kamath,
Steinke 2020 (arXiv 2004.00010, v4), proposition 12.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from common.privacy.events import Event, merge

# Pinned: an epsilon is only reproducible together with the orders that it was minimised over.
ORDERS: tuple[int, ...] = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512)

_LARGEST = 1e300  # exponents and variances stay below this, short of where a float overflows


@lru_cache(maxsize=4096)
def step_cost(sampling_rate: float, noise_multiplier: float, order: int) -> float:
    """Rényi divergence bound of one step at an integer ``order`` >= 2.

    >>> round(step_cost(1.0, 2.0, 8), 6)      # order / (2 sigma^2)
    1.0
    """
    if order < 2:
        raise ValueError(f"order must be an integer of at least 2, not {order}")
    q, variance = sampling_rate, min(noise_multiplier * noise_multiplier, _LARGEST)
    if variance < order * order / _LARGEST:  # no noise, or too little for a finite cost
        return math.inf
    if q == 1:
        return order / (2 * variance)
    # The binomial weights add up to one, and the terms of k = 0 and 1 are weights alone. Taking
    # that one out leaves positive terms only: nothing cancels, however small q or the cost is.
    terms = [
        _log_binomial(order, k)
        + k * math.log(q)
        + (order - k) * math.log1p(-q)
        + _log_expm1((k * k - k) / (2 * variance))
        for k in range(2, order + 1)
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


def epsilon(events: Iterable[Event], delta: float) -> float:
    """The least epsilon over the pinned orders, for a schedule that was fixed in advance.

    >>> round(epsilon([Event(0.1, 1.0, 100)], 1e-5), 3)     # 7.904 with fractional orders too
    7.973
    """
    merged = merge(events)
    if not merged:
        return 0.0
    return min(to_epsilon(rdp(merged, order), order, delta) for order in ORDERS)


def _log_expm1(x: float) -> float:
    """log(e^x - 1) for x > 0, where e^x may be beyond a float."""
    return x + math.log(-math.expm1(-x))


def _log1p_exp(x: float) -> float:
    """log(1 + e^x), where e^x may be beyond a float."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
