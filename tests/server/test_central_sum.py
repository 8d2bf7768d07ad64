"""The clipped sum and its noise: what one client can change, to the bit, and what is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from common.central import Adaptive, Central
from common.plan import Plan
from common.privacy.noise import GRID_BITS as NOISE_GRID
from common.privacy.noise import Stream
from common.wire import Arrays
from server.central import release
from server.central.bounded import BoundedSum
from server.central.release import noised
from tests.world import PLAN

SHAPES = {"weight": (40, 50), "bias": (7,), "scale": ()}
SIZE = 2008
GREATEST = float(np.finfo(np.float32).max)


def update(flat: NDArray[np.float32]) -> Arrays:
    parts = np.split(flat, [2000, 2007])
    return {name: p.reshape(s) for (name, s), p in zip(SHAPES.items(), parts, strict=True)}


def random(seed: int, scale: float) -> Arrays:
    return update((np.random.default_rng(seed).normal(size=SIZE) * scale).astype(np.float32))


HOSTILE = {
    "huge": update(np.full(SIZE, 1024.0, np.float32)),
    "greatest": update(np.full(SIZE, GREATEST, np.float32)),
    "one coordinate": update(np.eye(1, SIZE, 3, np.float32)[0] * 1e30),
    "smallest": update(np.full(SIZE, 1e-45, np.float32)),
    "negative": update(np.full(SIZE, -1024.0, np.float32)),
    "on the norm": update(np.full(SIZE, 1 / math.sqrt(SIZE), np.float32)),
    "half grid steps": update(np.full(SIZE, 1.5 * 2.0**-32, np.float32)),
    "spread": update(np.geomspace(1e-30, 1e30, SIZE).astype(np.float32)),
    "infinite": update(np.full(SIZE, np.inf, np.float32)),
    "no number": update(np.full(SIZE, np.nan, np.float32)),
}


def summed(updates: Sequence[Arrays], norm: float) -> BoundedSum:
    total = BoundedSum(SHAPES)
    total.begin(norm)
    for one in updates:
        total.add("", one)
    return total


def exact_square(vector: NDArray[np.float64]) -> Fraction:
    """The squared L2 norm without any rounding."""
    return sum((Fraction(float(value)) ** 2 for value in vector), Fraction(0))


@pytest.mark.parametrize("norm", [1.0, 0.75, 1e-5, 1e6, 3.0000000000000004])
@pytest.mark.parametrize("who", HOSTILE)
def test_one_client_more_changes_the_sum_by_at_most_the_norm_to_the_bit(
    who: str, norm: float
) -> None:
    others = [random(seed, 10.0 ** (seed - 4)) for seed in range(8)]
    without, with_ = summed(others, norm), summed([*others, HOSTILE[who]], norm)
    moved = [Fraction(float(a)) - Fraction(float(b)) for a, b in
             zip(with_.total(), without.total(), strict=True)]  # fmt: skip
    assert sum((value**2 for value in moved), Fraction(0)) <= Fraction(norm) ** 2
    assert abs(with_.excess() - without.excess()) == 0.5


def test_an_update_within_the_norm_is_added_as_it_is_but_for_the_grid() -> None:
    one = random(1, 0.01)
    flat = np.concatenate([value.ravel() for value in one.values()])
    assert np.linalg.norm(flat) < 1
    assert np.abs(summed([one], 1.0).total() - flat).max() <= 2.0**-31


def test_a_longer_update_keeps_its_direction_and_gets_the_norm() -> None:
    one = random(1, 1.0)
    flat = np.concatenate([value.ravel() for value in one.values()]).astype(np.float64)
    total = summed([one], 0.5).total()
    assert float(np.linalg.norm(total)) == pytest.approx(0.5, rel=2e-6)
    assert float(total @ flat) == pytest.approx(0.5 * float(np.linalg.norm(flat)), rel=2e-6)


def test_the_sum_does_not_depend_on_the_order() -> None:
    updates = [random(seed, 10.0 ** (seed % 7 - 3)) for seed in range(40)]
    forwards, backwards = summed(updates, 0.7), summed(updates[::-1], 0.7)
    assert forwards.total().tobytes() == backwards.total().tobytes()
    assert forwards.excess() == backwards.excess()


def test_a_planted_bug_that_forgets_the_clip_is_seen_by_the_bound() -> None:
    total = np.concatenate([value.ravel() for value in HOSTILE["huge"].values()])
    assert exact_square(total.astype(np.float64)) > 1


# -- noise ---------------------------------------------------------------------------------------


def central(adaptive: Adaptive | None = None, **privacy: float) -> Plan:
    return replace(
        PLAN,
        privacy=replace(PLAN.privacy, **{"trust": "central", "steps": 1, **privacy}),
        central=Central(1, 1.0, adaptive),
    )


def flat_mean(result: release.Noised) -> NDArray[np.float64]:
    return np.concatenate([v.ravel() for v in result.mean.values()]).astype(np.float64)


def deviation(plan: Plan, norm: float, updates: Sequence[Arrays] = ()) -> float:
    """Of the noise on the sum, measured over 50 x 2008 values."""
    quiet = summed(updates, norm).total()
    draws = [
        flat_mean(noised(summed(updates, norm), plan, Stream.simulated(seed))) for seed in range(50)
    ]
    return float(np.std(np.concatenate(draws) * plan.privacy.divisor - np.tile(quiet, 50)))


# The standard deviation of 100,400 values is within 1 % with chance 1 - 7e-6 (4.5 sigma).
@pytest.mark.parametrize("norm", [0.5, 2.0])
def test_the_noise_has_the_declared_deviation_whoever_answered(norm: float) -> None:
    plan = central(noise_multiplier=1.5, divisor=60.0)
    assert deviation(plan, norm) == pytest.approx(1.5 * norm, rel=0.01)
    assert deviation(plan, norm, [random(1, 1.0)] * 3) == pytest.approx(1.5 * norm, rel=0.01)


def test_with_an_adaptive_norm_the_sum_gets_the_greater_noise_that_the_count_leaves_it() -> None:
    adaptive = Adaptive(0.5, 0.2, 1.0, 0.1, 10.0)
    plan = central(adaptive, noise_multiplier=1.5, divisor=60.0)
    split = 1 / math.sqrt(1.5**-2 - 2.0**-2)  # 2.27
    assert deviation(plan, 0.5) == pytest.approx(split * 0.5, rel=0.01)


def test_the_count_gets_its_own_noise_and_is_centred() -> None:
    adaptive = Adaptive(0.5, 1.0, 4.0, 1e-5, 1e6)
    plan = central(adaptive, noise_multiplier=1.5, divisor=60.0)
    # Eight within, two beyond: 1/2 + (8 - 2) / 2 / 60, and noise of 4 / 60.
    updates = [random(1, 1e-4)] * 8 + [random(2, 1e3)] * 2
    norms = [noised(summed(updates, 1.0), plan, Stream.simulated(s)).norm for s in range(2000)]
    shares = 0.5 - np.log(norms)  # the norm moves by exp(-(share - 1/2))
    assert float(np.mean(shares)) == pytest.approx(0.55, abs=5 * 4 / 60 / math.sqrt(2000))
    assert float(np.std(shares)) == pytest.approx(4 / 60, rel=0.08)  # 5 sigma


def test_the_divisor_is_the_plans_and_no_number_of_replies() -> None:
    plan = central(noise_multiplier=1e-6, divisor=60.0)
    for count in (1, 7):
        result = noised(summed([random(1, 0.01)] * count, 1.0), plan, Stream.simulated(1))
        expected = summed([random(1, 0.01)], 1.0).total() * count / 60
        assert np.abs(flat_mean(result) - expected).max() < 1e-6


def test_nobody_at_all_is_noised_like_anybody() -> None:
    result = noised(summed([], 1.0), central(), Stream.simulated(1))
    assert float(np.std(flat_mean(result))) > 0


def test_the_noised_sum_lies_on_the_grid_of_the_norm() -> None:
    norm = 0.75
    plan = central(divisor=1.0, noise_multiplier=1e-3)
    flat = flat_mean(noised(summed([random(1, 0.001)], norm), plan, Stream.simulated(1)))
    steps = flat / (norm * 2.0**-NOISE_GRID)
    assert np.abs(steps - np.rint(steps)).max() < 1e-2  # float32 keeps 24 bits


def test_what_is_stored_comes_back_as_it_was() -> None:
    adaptive = Adaptive(0.5, 0.2, 2.0, 0.1, 10.0)
    result = noised(summed([], 1.0), central(adaptive), Stream.simulated(1))
    again = release.Noised.of(result.arrays())
    assert again.norm == result.norm
    assert set(again.mean) == set(SHAPES)


# -- the adaptive norm ---------------------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("first", [0.01, 50.0])
def test_the_norm_comes_to_the_quantile_from_either_side(quantile: float, first: float) -> None:
    """Andrew et al. 2021, figure 1: geometric updates find the quantile of a fixed distribution."""
    generator = np.random.default_rng(7)
    lengths = generator.lognormal(0.0, 0.5, size=400)
    adaptive = Adaptive(quantile, 0.2, 5.0, 1e-5, 1e6)
    plan = central(adaptive, noise_multiplier=1.0, divisor=100.0)
    shapes, norm, path = {"w": (1,)}, first, list[float]()
    total = BoundedSum(shapes)
    for round_ in range(350):  # from 50 to 1.9 it takes 164, two hundredths of a nat each
        total.begin(norm)
        for length in lengths[generator.random(400) < 0.25]:
            total.add("", {"w": np.array([length], np.float32)})
        norm = noised(total, plan, Stream.simulated(round_)).norm
        path.append(norm)
    reached = float((lengths <= np.exp(np.mean(np.log(path[-100:])))).mean())
    assert reached == pytest.approx(quantile, abs=0.07)
    assert all(abs(math.log(b / a)) <= 0.2 * 2 for a, b in pairwise(path))
