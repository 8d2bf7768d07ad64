"""Our Rényi accountant against an independent library, published numbers and exact formulas."""

from __future__ import annotations

import math
import random

import dp_accounting
import pytest
from dp_accounting import rdp as library_rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.canonical import CanonicalError
from common.errors import PlanError
from common.privacy.accountant import (
    ORDERS,
    conversion,
    epsilon,
    epsilon_floor,
    rdp,
    step_cost,
    to_epsilon,
)
from common.privacy.events import REPLACE_ONE, Event, merge
from common.privacy.reference import rdp_epsilon

RATES = st.floats(1e-4, 1.0)
SIGMAS = st.floats(0.3, 50.0)
STEPS = st.integers(1, 10_000)
EVENTS = st.builds(Event, RATES, SIGMAS, STEPS)


def library_epsilon(events: list[Event], delta: float) -> float:
    accountant = library_rdp.RdpAccountant([float(order) for order in ORDERS])
    for event in events:
        step = dp_accounting.PoissonSampledDpEvent(
            event.sampling_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
        )
        accountant.compose(step, event.steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, pytest.param(240, marks=pytest.mark.figures)])
def test_random_schedules_cost_what_dp_accounting_says(count: int) -> None:
    chance = random.Random(20261121)
    worst = 0.0
    for _ in range(count):
        events = [
            Event(
                chance.choice([1.0, 10 ** chance.uniform(-4, 0), chance.uniform(0.1, 0.9)]),
                10 ** chance.uniform(-0.3, 1.3),
                int(10 ** chance.uniform(0, 3)),
            )
            for _ in range(chance.randint(2, 5))
        ]
        delta = 10 ** chance.uniform(-9, -2)
        worst = max(worst, abs(epsilon(events, delta) - library_epsilon(events, delta)))
    assert worst <= 1e-9


def test_replace_one_is_refused_by_name() -> None:
    for accounted in (epsilon, rdp_epsilon):
        with pytest.raises(PlanError, match="not 'replace-one'") as caught:
            accounted([Event(0.1, 1.0, 1)], 1e-5, adjacency=REPLACE_ONE)
        assert caught.value.code == "unsupported-adjacency"
        assert "PLD" in caught.value.hint


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "delta", "published"),
    [
        # reference/dp-sgd.md, section 3, column G-RDP: dp-accounting with fractional orders too.
        (0.1, 1.0, 100, 1e-5, 7.904),
        (0.1, 2.0, 300, 1e-5, 4.564),
        (0.1, 4.0, 1000, 1e-5, 3.736),
        (0.0043, 1.1, 14062, 1e-5, 2.619),
        (0.0341, 2.15, 1172, 1e-5, 2.603),
        (0.01, 1.0, 1000, 1e-5, 2.101),
        (1.0, 10.0, 100, 1e-5, 4.729),
        # reference/privacy-audit.md, section 4, column RDP dp-acc.
        (0.05, 1.0962, 200, 1e-5, 4.47310),
        (0.02, 0.8, 300, 1e-5, 4.46002),
        (1.0, 4.0, 50, 1e-5, 9.23496),
    ],
)
def test_published_values_are_met_from_above_and_closely(q, sigma, steps, delta, published) -> None:
    # Integer orders alone can only be looser: here by less than two per cent.
    own = epsilon([Event(q, sigma, steps)], delta)
    assert published - 6e-4 <= own <= published * 1.02


@given(SIGMAS, STEPS, st.integers(2, 512))
def test_a_full_batch_costs_order_times_steps_over_twice_the_variance(sigma, steps, order) -> None:
    # Mironov 2017, corollary 3.
    expected = steps * order / (2 * sigma**2)
    assert rdp([Event(1.0, sigma, steps)], order) == pytest.approx(expected, rel=1e-12)


def test_order_two_has_the_closed_form_of_the_second_moment() -> None:
    # E[(1 - q + q L)^2] = 1 + q^2 (exp(1 / sigma^2) - 1).
    for q, sigma in [(0.1, 1.0), (0.5, 3.0), (0.9, 0.5), (1e-6, 20.0), (1e-9, 2.0)]:
        expected = math.log1p(q * q * math.expm1(1 / sigma**2))
        assert step_cost(q, sigma, 2) == pytest.approx(expected, rel=1e-12)


def test_the_conversion_is_proposition_12_of_canonne_kamath_steinke() -> None:
    cost, order, delta = 0.7, 9, 1e-5
    expected = cost + math.log((order - 1) / order) - math.log(delta * order) / (order - 1)
    assert to_epsilon(cost, order, delta) == pytest.approx(expected, rel=1e-14)
    assert to_epsilon(0.0, 512, 0.09) == 0.0 > conversion(512, 0.09)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_outside_of_zero_to_one_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        to_epsilon(1.0, 2, delta)


def test_an_order_below_two_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        step_cost(0.1, 1.0, 1)


@pytest.mark.parametrize("rate", [1e-3, 0.5, 1.0])
def test_no_noise_costs_everything(rate: float) -> None:
    assert epsilon([Event(rate, 0.0, 1)], 1e-5) == math.inf
    assert epsilon([Event(rate, 1.0, 1), Event(rate, 0.0, 1)], 1e-5) == math.inf


@pytest.mark.parametrize("sigma", [5e-324, 1e-200, 1e-160, 1e-155, 1e-154, 1e-150, 1e-100, 1e-10])
@pytest.mark.parametrize("rate", [1e-9, 0.5, 1.0])
def test_noise_too_small_for_arithmetic_never_looks_cheap(rate: float, sigma: float) -> None:
    # A plan with sigma = 1e-155 once cost nothing: infinity minus infinity is not a number.
    for order in ORDERS:
        assert step_cost(rate, sigma, order) >= 1e10
    assert epsilon([Event(rate, sigma, 1)], 1e-5) >= 1e10


@pytest.mark.parametrize("sigma", [1e6, 1e154, 1e155, 1e300, 1.7e308])
def test_noise_too_large_for_arithmetic_does_not_crash(sigma: float) -> None:
    for rate in (5e-324, 1e-9, 0.5, 1 - 2**-53, 1.0):
        assert 0 <= epsilon([Event(rate, sigma, 1)], 1e-5) < 0.1


@given(SIGMAS, RATES, st.sampled_from(ORDERS))
def test_cost_is_positive_however_rare_the_sampling(sigma, rate, order) -> None:
    tiny = rate * 1e-6
    assert step_cost(tiny, sigma, order) > 0


@given(EVENTS, st.integers(1, 1000))
def test_more_steps_cost_more(event: Event, more: int) -> None:
    longer = Event(event.sampling_rate, event.noise_multiplier, event.steps + more)
    assert epsilon([longer], 1e-5) >= epsilon([event], 1e-5)
    for order in (2, 9, 64, 512):
        assert rdp([longer], order) > rdp([event], order)


@given(EVENTS, st.floats(1.001, 4.0))
def test_more_noise_costs_less(event: Event, factor: float) -> None:
    quieter = Event(event.sampling_rate, event.noise_multiplier * factor, event.steps)
    for order in (2, 9, 64, 512):
        assert rdp([quieter], order) < rdp([event], order)


@given(EVENTS, st.floats(0.1, 0.999))
def test_rarer_sampling_costs_less(event: Event, factor: float) -> None:
    rarer = Event(event.sampling_rate * factor, event.noise_multiplier, event.steps)
    for order in (2, 9, 64, 512):
        assert rdp([rarer], order) < rdp([event], order)


@given(st.lists(EVENTS, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_events_and_how_they_are_split_do_not_matter(events, chance) -> None:
    parts = [
        Event(e.sampling_rate, e.noise_multiplier, part)
        for e in events
        for part in ([e.steps] if e.steps == 1 else [1, e.steps - 1])
    ]
    chance.shuffle(parts)
    for order in (2, 33, 512):
        assert rdp(parts, order) == pytest.approx(rdp(events, order), rel=1e-12)
    assert sum(e.steps for e in merge(parts)) == sum(e.steps for e in events)


def test_a_schedule_too_faint_to_exceed_delta_has_epsilon_zero() -> None:
    # delta <= sqrt(1 - exp(-KL)) (Bretagnolle and Huber 1979), as in dp-accounting.
    faint = [Event(5e-4, 15.0, 3)]
    assert epsilon(faint, 7e-5) == library_epsilon(faint, 7e-5) == 0.0
    assert epsilon(faint, 1e-7) > 0


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert merge([]) == ()


def test_an_orders_minimum_is_one_of_the_pinned_orders_own_values() -> None:
    event = Event(0.2, 1.5, 500)
    values = [to_epsilon(rdp([event], order), order, 1e-5) for order in ORDERS]
    assert epsilon([event], 1e-5) == min(values)


# -- events ----------------------------------------------------------------------------------------


@given(EVENTS)
def test_an_event_comes_back_from_json_to_the_bit(event: Event) -> None:
    assert Event.from_json(event.json()) == event


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 1.0, 1),
        (-0.1, 1.0, 1),
        (1.1, 1.0, 1),
        (math.nan, 1.0, 1),
        (0.5, -1.0, 1),
        (0.5, math.inf, 1),
        (0.5, math.nan, 1),
        (0.5, 1.0, 0),
        (0.5, 1.0, -1),
        (0.5, 1.0, 2**53),
    ],
)
def test_an_impossible_event_cannot_be_made(values) -> None:
    with pytest.raises(ValueError, match="must be"):
        Event(*values)


GOOD = Event(0.1, 1.0, 5).json()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**GOOD, "extra": 1},
        {**GOOD, "mechanism": "laplace"},
        {**GOOD, "steps": "5"},
        {**GOOD, "steps": True},
        {**GOOD, "steps": 0},
        {**GOOD, "sampling_rate": "0.10"},
        {**GOOD, "sampling_rate": "2.0"},
        {**GOOD, "noise_multiplier": "-1.0"},
        {**GOOD, "noise_multiplier": None},
    ],
)
def test_json_that_is_not_an_event_is_refused(value: object) -> None:
    with pytest.raises(CanonicalError):
        Event.from_json(value)


def test_schedules_that_add_up_to_very_many_steps_are_still_counted() -> None:
    many = [Event(0.1, 1.0, 10**9)] * 3
    assert merge(many) == (Event(0.1, 1.0, 3 * 10**9),)


# -- the floor -------------------------------------------------------------------------------------


def exact_gaussian_delta(mu: float, eps: float) -> float:
    """Balle and Wang 2018, theorem 8."""

    def tail(z: float) -> float:
        return math.erfc(-z / math.sqrt(2)) / 2

    return tail(mu / 2 - eps / mu) - math.exp(eps) * tail(-mu / 2 - eps / mu)


@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 50), (10.0, 100), (1.0, 1), (0.7, 3)])
def test_the_floor_is_exact_for_full_batches(sigma: float, steps: int) -> None:
    floor = epsilon_floor(Event(1.0, sigma, steps), 1e-5)
    delta = exact_gaussian_delta(math.sqrt(steps) / sigma, floor)
    assert delta == pytest.approx(1e-5, rel=1e-5)


def test_the_floor_grows_with_steps_and_never_meets_the_renyi_bound() -> None:
    floors = [epsilon_floor(Event(0.1, 2.0, steps), 1e-5) for steps in (1, 10, 100, 1000)]
    assert floors == sorted(floors)
    for steps, floor in zip((1, 10, 100, 1000), floors, strict=True):
        assert floor < epsilon([Event(0.1, 2.0, steps)], 1e-5)


@settings(max_examples=60)
@given(EVENTS, st.floats(1e-9, 1e-2))
def test_the_floor_is_below_the_renyi_bound_everywhere(event: Event, delta: float) -> None:
    assert epsilon_floor(event, delta) <= epsilon([event], delta) * (1 + 1e-9)


def test_the_floor_of_no_noise_is_infinite() -> None:
    assert epsilon_floor(Event(0.5, 0.0, 1), 1e-5) == math.inf
