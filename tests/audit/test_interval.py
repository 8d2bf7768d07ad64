"""The noise that there was, and the epsilon that it makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from audit.canaries.interval import (
    PLD,
    RDP,
    Interval,
    best_method,
    epsilon_interval,
    interval_json,
    sigma_interval,
    too_little_noise,
    too_much_influence,
)
from common.privacy import accountant
from common.privacy.events import Event

EVENT = Event(0.05, 1.0962, 200)


def test_a_noise_interval_is_chi_squares() -> None:
    found = sigma_interval(100_000 * 1.0962**2, 100_000, 0.99)
    low = 1.0962 * math.sqrt(100_000 / stats.chi2.ppf(0.995, 100_000))
    high = 1.0962 * math.sqrt(100_000 / stats.chi2.ppf(0.005, 100_000))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    assert found.relative_half_width == pytest.approx(0.0058, abs=1e-4)


def test_a_noise_interval_holds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for squares in 1.3**2 * generator.chisquare(2000, size=400):
        found = sigma_interval(float(squares), 2000, 0.9)
        held += found.low <= 1.3 <= found.high
    assert stats.binomtest(held, 400, 0.9).pvalue > 1e-4


def test_an_epsilon_interval_holds_the_declared_one_and_is_narrow() -> None:
    """100,000 noise values: [3.935, 4.022] around 3.9875, less than 1.5 % either way."""
    sigma = sigma_interval(100_000 * 1.0962**2, 100_000, 0.99)
    found = epsilon_interval(sigma, EVENT, 1e-5, PLD)
    assert found.low < 3.9875 < found.high
    assert (found.low, found.high) == pytest.approx((3.945, 4.031), abs=0.015)
    assert found.relative_half_width < 0.015
    bug = epsilon_interval(
        sigma_interval(1e5 * (0.9 * 1.0962) ** 2, 100_000, 0.99), EVENT, 1e-5, PLD
    )
    assert (bug.low, bug.high) == pytest.approx((4.83, 4.94), abs=0.03)


def test_without_dp_accounting_the_ends_are_renyi_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.canaries.interval.find_spec", lambda _: None)
    assert best_method() == RDP
    found = epsilon_interval(Interval(1.0, 1.2, 0.99), EVENT, 1e-5, RDP)
    assert found.low == accountant.epsilon([Event(0.05, 1.2, 200)], 1e-5)
    assert found.high == accountant.epsilon([Event(0.05, 1.0, 200)], 1e-5)


def test_no_noise_is_an_infinite_end_and_null_in_json() -> None:
    found = epsilon_interval(sigma_interval(0.0, 1000, 0.99), EVENT, 1e-5, RDP)
    assert (found.low, found.high) == (math.inf, math.inf)
    assert found.relative_half_width == math.inf
    assert interval_json(Interval(1.0, math.inf, 0.99))["high"] is None
    assert interval_json(found) == {"low": None, "high": None, "confidence": "0.99"}


@pytest.mark.parametrize("noise", [1e-9, 0.044, 1e100])
def test_absurd_noise_is_said_and_not_computed_for_ever(noise: float) -> None:
    """A loss distribution at a noise of 0.044 would fill the memory."""
    found = epsilon_interval(Interval(noise, noise, 0.99), EVENT, 1e-5, PLD)
    assert found.low == found.high == (0.0 if noise > 1 else math.inf)


def test_the_chance_of_so_little_noise_is_chi_squares_lower_tail() -> None:
    expected = float(stats.chi2.cdf(980.0, 1000))
    assert too_little_noise(980.0 * 4, 1000, 2.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("event", [Event(0.05, 1.0, 20), Event(1.0, 2.0, 3), Event(0.001, 0.5, 5)])
def test_the_chance_of_so_much_influence_is_that_of_binomial_plus_normal(event: Event) -> None:
    generator = np.random.default_rng(1)
    uses = 500 * event.steps
    drawn = generator.binomial(uses, event.sampling_rate, size=20_000)
    drawn = drawn + event.noise_multiplier * math.sqrt(uses) * generator.normal(size=20_000)
    for quantile in (0.5, 0.9, 0.99):
        total = float(np.quantile(drawn, quantile))
        found = too_much_influence(total, 500, event)
        assert found == pytest.approx(1 - quantile, abs=5 * math.sqrt(quantile / 20_000) * 0.5)
    assert too_much_influence(0.0, 0, event) == 1.0
