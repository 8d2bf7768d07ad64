"""May it happen? A privacy filter: a fixed budget at one fixed Rényi order.

The rule: the order is chosen before the first event, from the budget alone; events are admitted
while the sum of their costs *at that order* fits. That stays a valid (epsilon, delta) guarantee
however the server adapts later requests to earlier answers, which a minimum over orders taken
afterwards does not. Nothing is ever refunded.

Source: Feldman and Zrnic 2021 (arXiv 2008.11193); Lécuyer 2021 (arXiv 2103.01379).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from common.privacy import accountant
from common.privacy.events import Event, merge

_MOST_STEPS = 10**9


@dataclass(frozen=True)
class Budget:
    """What a data owner allows over the whole life of a data set: (epsilon, delta) at one order.

    Args:
        epsilon: > 0; add-or-remove-one record.
        delta: in (0, 1).
        order: the Rényi order that the filter adds up at; an integer >= 2.
    """

    epsilon: float
    delta: float
    order: int

    @classmethod
    def of(cls, epsilon: float, delta: float, order: int | None = None) -> Budget:
        """A budget at the given order, or at the one that :func:`default_order` derives."""
        return cls(epsilon, delta, order or default_order(epsilon, delta))

    def spent(self, events: Iterable[Event]) -> float:
        """``epsilon_filter``: what these events have used, in the budget's own terms.

        Zero for no events; otherwise the epsilon that the filter vouches for, which starts above
        zero because delta buys a fixed part of it.
        """
        cost = accountant.rdp(events, self.order)
        return accountant.to_epsilon(cost, self.order, self.delta) if cost else 0.0

    def admits(self, spent: Iterable[Event], asked: Event) -> bool:
        """Whether ``asked`` still fits after everything already spent."""
        return self.spent([*spent, asked]) <= self.epsilon

    def steps_left(self, spent: Iterable[Event], like: Event) -> int:
        """How many further steps of ``like``'s mechanism the budget covers."""
        before = merge(spent)
        room = self.epsilon - accountant.conversion(self.order, self.delta)
        room -= accountant.rdp(before, self.order)
        cost = accountant.step_cost(like.sampling_rate, like.noise_multiplier, self.order)
        if room <= 0 or cost == math.inf:
            return 0
        steps = math.floor(min(room / cost, _MOST_STEPS)) if cost else _MOST_STEPS
        # A quotient's rounding may be a step away from what admits() says; admits() decides.
        while steps and not self.admits(before, replace(like, steps=steps)):
            steps -= 1
        while steps < _MOST_STEPS and self.admits(before, replace(like, steps=steps + 1)):
            steps += 1
        return steps


def default_order(epsilon: float, delta: float) -> int:
    """The order that serves a budget of (epsilon, delta) best for Gaussian-like spending.

    A mechanism of Rényi cost rho x order converts to epsilon = rho + 2 sqrt(rho log(1/delta)) at
    the order 1 + sqrt(log(1/delta) / rho) (Bun and Steinke 2016, arXiv 1605.02065, proposition
    1.3); this solves that for rho.

    >>> default_order(8.0, 1e-5), default_order(3.0, 1e-5)
    (4, 9)
    """
    log_term = math.log(1 / delta)
    # sqrt(log_term / rho), where sqrt(rho) = sqrt(log_term + epsilon) - sqrt(log_term), without
    # the cancellation of that difference at a small epsilon.
    ratio = (math.sqrt(log_term * (log_term + epsilon)) + log_term) / epsilon
    return max(2, round(min(max(accountant.ORDERS), 1 + ratio)))


def least_budget(events: Iterable[Event], delta: float) -> Budget:
    """The least budget that admits all of ``events``: its epsilon, and the order to hold it at."""
    merged = tuple(events)
    best = min(accountant.ORDERS, key=lambda order: Budget(math.inf, delta, order).spent(merged))
    return Budget(Budget(math.inf, delta, best).spent(merged), delta, best)
