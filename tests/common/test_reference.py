"""The headline accountant: published values, its place between other methods, calibration."""

from __future__ import annotations

import math
import random
import warnings

import pytest
from opacus.accountants import PRVAccountant

from common.errors import PlanError
from common.privacy import accountant
from common.privacy.events import REPLACE_ONE, Event
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
        (0.1, 4.0, 1000, 3.444, 5e-4),
        (0.1, 0.6, 10, 8.342, 5e-4),
    ],
)
def test_published_headlines_are_met_to_their_digits(q, sigma, steps, published, digits) -> None:
    headline = pld_epsilon([Event(q, sigma, steps)], 1e-5)
    assert headline == pytest.approx(published, abs=digits)
    floor = accountant.epsilon_floor(Event(q, sigma, steps), 1e-5)
    assert floor <= headline * (1 + 1e-6)
    assert headline <= accountant.epsilon([Event(q, sigma, steps)], 1e-5)


# reference/dp-sgd.md, section 3: (q, sigma, steps), delta, G-PLD add/remove, G-PLD replace.
PUBLISHED = [
    (0.1, 1.0, 100, 1e-5, 7.047, 10.516),
    (0.1, 2.0, 300, 1e-5, 4.183, 8.327),
    (0.1, 4.0, 1000, 1e-5, 3.444, 7.489),
    (0.0043, 1.1, 14062, 1e-5, 2.403, 4.259),
    (0.0341, 2.15, 1172, 1e-5, 2.387, 4.818),
    (0.1, 0.6, 10, 1e-5, 8.342, 9.012),
    (0.01, 1.0, 1000, 1e-5, 1.828, 2.843),
    (1.0, 10.0, 100, 1e-5, 4.377, 9.997),
    (0.01, 0.5, 100, 1e-6, 7.916, 8.142),
]


@pytest.mark.parametrize(("q", "sigma", "steps", "delta", "add_or_remove", "replace"), PUBLISHED)
def test_replace_one_costs_what_is_published_and_never_less(
    q, sigma, steps, delta, add_or_remove, replace
) -> None:
    schedule = [Event(q, sigma, steps)]
    assert pld_epsilon(schedule, delta) == pytest.approx(add_or_remove, abs=5e-4)
    assert pld_epsilon(schedule, delta, REPLACE_ONE) == pytest.approx(replace, abs=5e-4)
    assert replace > add_or_remove


def test_replacing_a_record_of_a_full_batch_is_moving_a_gaussian_twice_as_far() -> None:
    # The sum changes by at most 2C instead of C: the same epsilon as half the noise multiplier.
    replaced = pld_epsilon([Event(1.0, 8.0, 10)], 1e-5, REPLACE_ONE)
    assert replaced == pytest.approx(pld_epsilon([Event(1.0, 4.0, 10)], 1e-5), rel=1e-4)


def test_an_adjacency_that_nobody_defined_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="zero-out"):
        pld_epsilon([Event(0.1, 1.0, 1)], 1e-5, "zero-out")


def prv_epsilon(events: list[Event], delta: float) -> float:
    """Opacus' accountant by privacy random variables: an upper bound, up to 0.01 above the truth.

    Source: Gopi, Lee and Wutschitz 2021 (arXiv 2106.02848).
    """
    library = PRVAccountant()
    library.history = [(e.noise_multiplier, e.sampling_rate, e.steps) for e in events]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from inside of the library
        return float(library.get_epsilon(delta))


def random_schedules(count: int) -> list[tuple[list[Event], float]]:
    chance = random.Random(4)
    return [
        (
            [
                Event(
                    10 ** chance.uniform(-2.5, -0.3),
                    chance.uniform(0.7, 5.0),
                    int(10 ** chance.uniform(0.5, 2.5)),
                )
                for _ in range(chance.randint(1, 3))
            ],
            10 ** chance.uniform(-7, -4),
        )
        for _ in range(count)
    ]


GRID = [([Event(q, sigma, steps)], delta) for q, sigma, steps, delta, *_ in PUBLISHED]


@pytest.mark.slow
@pytest.mark.parametrize(("events", "delta"), [*GRID, *random_schedules(20)])
def test_three_methods_bracket_the_truth(events: list[Event], delta: float) -> None:
    headline, own = pld_epsilon(events, delta), accountant.epsilon(events, delta)
    assert abs(prv_epsilon(events, delta) - headline) <= 0.02
    assert own >= headline - 1e-6


@pytest.mark.parametrize(("rounds", "epsilon"), [(1, 0.61), (3, 0.93), (50, 3.68), (100, 5.42)])
def test_local_epochs_are_composed_over_all_rounds(rounds: int, epsilon: float) -> None:
    """Flower's Opacus example, at its own settings: sigma 1, batches of 32 out of 4,000 records,
    one local epoch (125 steps) a round, delta 1e-5; by PLD.

    That example makes a new accountant in each call and reports 0.61 every round, for ever. It
    answers a question that nobody asked: what that one round discloses to somebody who saw no
    other. The server has seen all of them, each computed on the same records, and privacy loss
    adds up over what was seen: after a hundred rounds epsilon is 5.42. A number that does not
    grow while records are used again is not the number that was spent.
    """
    event = Event(32 / 4000, 1.0, 125 * rounds)
    assert round(pld_epsilon([event], 1e-5), 2) == epsilon
    # However the client was restarted in between, what its ledger holds adds up to the same.
    entries = [Event(32 / 4000, 1.0, 125)] * rounds
    assert pld_epsilon(entries, 1e-5) == pld_epsilon([event], 1e-5)


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
