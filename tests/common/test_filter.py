"""A fixed budget at a fixed order: what is admitted never adds up to more."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy import accountant
from common.privacy.events import Event
from common.privacy.filter import Budget, default_order, least_budget

EVENTS = st.builds(
    Event, st.floats(0.001, 1.0), st.floats(0.4, 20.0), st.integers(min_value=1, max_value=200)
)
BUDGETS = st.builds(Budget.of, st.floats(0.1, 50.0), st.sampled_from([1e-9, 1e-6, 1e-5, 1e-2]))


def closed_form(events: list[Event], order: int, delta: float) -> float:
    """Full batches only: Mironov 2017, corollary 3, and Canonne et al. 2020, proposition 12."""
    cost = sum(e.steps * order / (2 * e.noise_multiplier**2) for e in events)
    return cost + math.log((order - 1) / order) - math.log(delta * order) / (order - 1)


def test_no_adaptive_sequence_of_requests_gets_past_the_budget() -> None:
    chance = random.Random(7)
    for _ in range(40):
        budget = Budget.of(10 ** chance.uniform(-0.5, 1.5), 10 ** chance.uniform(-9, -3))
        spent: list[Event] = []
        refused = 0
        while refused < 8 and len(spent) < 60:
            # An adversary who has seen everything asks for what might just still fit.
            like = Event(chance.uniform(0.01, 1), chance.uniform(0.5, 10), 1)
            left = budget.steps_left(spent, like)
            steps = max(1, min(10**6, left + chance.choice([-1, 0, 1, left // 2])))
            asked = Event(like.sampling_rate, like.noise_multiplier, steps)
            if budget.admits(spent, asked):
                spent.append(asked)
            else:
                refused += 1
            assert budget.spent(spent) <= budget.epsilon
            total = sum(
                e.steps * accountant.step_cost(e.sampling_rate, e.noise_multiplier, budget.order)
                for e in spent
            )
            conversion = accountant.conversion(budget.order, budget.delta)
            assert not spent or total + conversion <= budget.epsilon * (1 + 1e-12)


@given(st.lists(st.tuples(st.floats(0.5, 20.0), st.integers(1, 50)), min_size=1, max_size=5))
def test_what_was_spent_is_a_sum_at_the_budgets_own_order(pairs) -> None:
    events = [Event(1.0, sigma, steps) for sigma, steps in pairs]
    for order in (2, 9, 100):
        spent = Budget(8.0, 1e-5, order).spent(events)
        assert spent == pytest.approx(max(0.0, closed_form(events, order, 1e-5)), rel=1e-12)


def test_a_minimum_over_orders_taken_afterwards_is_not_what_is_charged() -> None:
    events = [Event(0.1, 1.0, 100)]
    assert Budget.of(50.0, 1e-5).spent(events) > accountant.epsilon(events, 1e-5)


def test_nothing_spent_is_zero() -> None:
    assert Budget.of(1.0, 1e-5).spent([]) == 0.0


@settings(max_examples=200)
@given(BUDGETS, st.lists(EVENTS, max_size=3), EVENTS)
def test_the_last_step_that_is_left_is_admitted_and_one_more_is_not(budget, spent, like) -> None:
    left = budget.steps_left(spent, like)
    if left:
        assert budget.admits(spent, Event(like.sampling_rate, like.noise_multiplier, left))
    if left == 10**9:
        return  # the most that is ever reported
    more = Event(like.sampling_rate, like.noise_multiplier, left + 1)
    assert not budget.admits(spent, more)


def test_a_budget_of_exactly_ten_steps_covers_ten() -> None:
    like = Event(1.0, 4.0, 1)
    for steps in range(1, 60):
        exact = Budget(100.0, 1e-5, 4).spent([Event(1.0, 4.0, steps)])
        assert Budget(exact, 1e-5, 4).steps_left([], like) == steps
        below = math.nextafter(exact, 0)
        assert Budget(below, 1e-5, 4).steps_left([], like) == steps - 1


def test_an_overdrawn_budget_has_no_steps_left() -> None:
    budget = Budget.of(1.0, 1e-5)
    assert budget.steps_left([Event(1.0, 0.5, 100)], Event(0.1, 1.0, 1)) == 0


@pytest.mark.parametrize("sigma", [0.0, 1e-200, 1e-155, 1e-150])
def test_no_noise_or_next_to_none_is_never_admitted(sigma: float) -> None:
    budget = Budget.of(1000.0, 1e-5)
    for rate in (1e-6, 0.5, 1.0):
        assert not budget.admits([], Event(rate, sigma, 1))
        assert budget.steps_left([], Event(rate, sigma, 1)) == 0


def test_one_infinite_event_closes_the_budget_for_good() -> None:
    budget = Budget.of(1000.0, 1e-5)
    assert not budget.admits([Event(0.5, 0.0, 1)], Event(1e-6, 1e5, 1))


def test_next_to_no_cost_leaves_a_finite_number_of_steps() -> None:
    assert Budget.of(1.0, 1e-5).steps_left([], Event(1e-200, 1e5, 1)) == 10**9


@given(st.lists(EVENTS, min_size=1, max_size=4), st.sampled_from([1e-9, 1e-5, 1e-3]))
def test_the_least_budget_admits_exactly_what_it_was_made_for(events, delta) -> None:
    least = least_budget(events, delta)
    assert least.admits(events[:-1], events[-1])
    for order in accountant.ORDERS if least.epsilon else ():
        below = math.nextafter(least.epsilon, 0)
        assert not Budget(below, delta, order).admits(events[:-1], events[-1])


@pytest.mark.parametrize(
    ("epsilon", "delta", "order"),
    # 1 + sqrt(L / rho) where rho + 2 sqrt(rho L) = epsilon, L = log(1 / delta), by hand:
    # L = 11.5129; epsilon 8: sqrt(rho) = 4.41734 - 3.39307; 3.39307 / 1.02427 + 1 = 4.31.
    [(8.0, 1e-5, 4), (3.0, 1e-5, 9), (1.0, 1e-5, 25), (50.0, 1e-5, 2), (1000.0, 1e-5, 2)]
    + [(0.1, 1e-5, 232), (0.01, 1e-5, 512), (1e-300, 1e-5, 512), (5e-324, 1e-5, 512)],
)
def test_the_default_order_follows_from_the_budget_alone(epsilon, delta, order) -> None:
    assert default_order(epsilon, delta) == order
    assert Budget.of(epsilon, delta) == Budget(epsilon, delta, order)


@given(st.floats(0.01, 100), st.floats(1e-12, 0.09))
def test_the_default_order_solves_bun_and_steinkes_equation(epsilon, delta) -> None:
    order = default_order(epsilon, delta)
    log_term = math.log(1 / delta)
    if 2 < order < 512:
        # Rounded to an integer, so epsilon lies between what the neighbours half a step away give.
        given_by = [
            (rho := log_term / (a - 1) ** 2) + 2 * math.sqrt(rho * log_term)
            for a in (order - 0.5, order + 0.5)
        ]
        assert given_by[1] * (1 - 1e-9) <= epsilon <= given_by[0] * (1 + 1e-9)


def test_an_order_that_the_owner_fixed_is_kept() -> None:
    assert Budget.of(8.0, 1e-5, 17).order == 17
