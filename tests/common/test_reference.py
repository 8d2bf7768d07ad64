"""The headline accountant: published values, its place below the Rényi bound, and calibration."""

from __future__ import annotations

import math

import pytest

from common.errors import PlanError
from common.privacy import accountant
from common.privacy.events import Event
from common.privacy.reference import calibrate, pld_epsilon, rdp_epsilon


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "published", "digits"),
    [
        # reference/privacy-audit.md, section 4, column PLD 1e-4.
        (0.05, 1.0962, 200, 3.9875226, 1e-4),  # its sigma was rounded to print it
        (0.01, 1.0, 1000, 1.8282436, 5e-7),
        (0.02, 0.8, 300, 3.7874306, 5e-7),
        (1.0, 4.0, 50, 8.5958659, 5e-7),
        # reference/dp-sgd.md, section 3, column G-PLD add/remove.
        (0.1, 1.0, 100, 7.047, 5e-4),
        (0.1, 2.0, 300, 4.183, 5e-4),
        (0.1, 4.0, 1000, 3.444, 5e-4),
        (0.0341, 2.15, 1172, 2.387, 5e-4),
        (0.1, 0.6, 10, 8.342, 5e-4),
        (1.0, 10.0, 100, 4.377, 5e-4),
    ],
)
def test_published_headlines_are_met_to_their_digits(q, sigma, steps, published, digits) -> None:
    headline = pld_epsilon([Event(q, sigma, steps)], 1e-5)
    assert headline == pytest.approx(published, abs=digits)
    floor = accountant.epsilon_floor(Event(q, sigma, steps), 1e-5)
    assert floor <= headline * (1 + 1e-6)
    assert headline <= accountant.epsilon([Event(q, sigma, steps)], 1e-5)


@pytest.mark.parametrize(("rounds", "epsilon"), [(3, 0.93), (50, 3.68), (100, 5.42)])
def test_local_epochs_are_composed_over_all_rounds(rounds: int, epsilon: float) -> None:
    # An accountant that is made anew in each round says 0.79 for ever; this is the composed truth
    # for sigma 1, batches of 32 out of 4000, 125 steps a round (Opacus' PRV minus its error).
    event = Event(32 / 4000, 1.0, 125 * rounds)
    assert pld_epsilon([event], 1e-5) == pytest.approx(epsilon, abs=5e-3)


def test_a_mixed_schedule_costs_the_same_in_any_order() -> None:
    one, other = Event(0.1, 2.0, 20), Event(0.05, 1.5, 30)
    assert pld_epsilon([one, other], 1e-5) == pytest.approx(pld_epsilon([other, one], 1e-5))
    assert pld_epsilon([one, other], 1e-5) > pld_epsilon([one], 1e-5)


def test_both_renyi_accountants_agree_and_lie_above_the_headline() -> None:
    schedule = [Event(0.1, 2.0, 20), Event(0.5, 4.0, 5), Event(1.0, 20.0, 3)]
    own = accountant.epsilon(schedule, 1e-5)
    assert rdp_epsilon(schedule, 1e-5) == pytest.approx(own, abs=1e-9)
    assert pld_epsilon(schedule, 1e-5) <= own


def test_no_noise_is_infinite_and_no_events_are_nothing() -> None:
    for accounted in (pld_epsilon, rdp_epsilon):
        assert accounted([Event(0.1, 0.0, 1)], 1e-5) == math.inf
        assert accounted([], 1e-5) == 0.0


@pytest.mark.parametrize(
    ("rate", "steps", "target", "published"),
    [
        # reference/dp-sgd.md, section 3: "sigma for q=.1, 200 steps".
        (0.1, 200, 1.0, 5.430),
        (0.1, 200, 3.0, 2.180),
        (0.1, 200, 8.0, 1.130),
        # reference/privacy-audit.md, section 4: the exact Gaussian of the table.
        (1.0, 50, 8.5958658, 4.0),
        # Many steps of little loss, where a coarse grid alone is wrong by a factor of ten.
        (0.001, 100_000, 0.5, None),
    ],
)
def test_calibration_meets_its_target_from_below_and_closely(rate, steps, target, published):
    sigma = calibrate(rate, steps, target, 1e-5)
    assert pld_epsilon([Event(rate, sigma, steps)], 1e-5) <= target
    assert pld_epsilon([Event(rate, sigma * 0.999, steps)], 1e-5) > target * 0.999
    assert published is None or sigma == pytest.approx(published, rel=1e-3)


def test_a_target_that_no_noise_reaches_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="no noise reaches") as caught:
        calibrate(1.0, 10**9, 0.01, 1e-5)
    assert caught.value.hint
