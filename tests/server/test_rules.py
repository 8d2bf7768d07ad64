"""Each rule is what its paper says, in any order of arrival, and refuses what it cannot combine."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.aggregation import AGGREGATIONS, Aggregation
from common.wire import Arrays, digest_arrays
from server.aggregation import rules
from server.aggregation.geometric import geometric_median
from server.aggregation.rules import advance, rule_for
from server.aggregation.strategy import CannotCombine
from tests.world import flower_identity

SHAPES: dict[str, tuple[int, ...]] = {"weight": (4, 3), "bias": (3,), "scale": ()}
HONEST = 8
ALL = [Aggregation(name) for name in AGGREGATIONS] + [
    Aggregation("multi-krum", malicious=2, selected=4),
    Aggregation("trimmed-mean", trim=0.3),
    Aggregation("norm-bounded", norm_bound=0.1),
]
ROBUST = [
    Aggregation("fedmedian"),
    Aggregation("trimmed-mean", trim=0.25),
    Aggregation("krum", malicious=2),
    Aggregation("multi-krum", malicious=2, selected=4),
    Aggregation("geometric-median", iterations=100),
]
STATEFUL = [
    Aggregation("fedavgm", server_learning_rate=0.5),
    Aggregation("fedadam", server_learning_rate=0.1),
    Aggregation("fedyogi", server_learning_rate=0.01),
]


@pytest.fixture(autouse=True)
def _flower() -> None:
    flower_identity()


def name_of(rule: Aggregation) -> str:
    return "-".join(str(value) for value in rule.json().values())


def update(client: int, round_: int = 1) -> Arrays:
    generator = np.random.default_rng([round_, client])
    return {n: (0.5 + generator.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}


def start(value: float = 3.0) -> Arrays:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def flat(arrays: Any) -> NDArray[Any]:
    return np.concatenate([np.asarray(arrays[name]).reshape(-1) for name in SHAPES])


def combined(
    rule: Aggregation, updates: dict[str, Arrays], model: Arrays | None = None
) -> NDArray[np.float64]:
    """What one round adds to the model, as the model's own numbers show it."""
    made, model = rule_for(rule, SHAPES), start(0.0) if model is None else model
    for client, one in updates.items():
        made.add(client, one)
    return flat(made.next_model(1, model)).astype(np.float64) - flat(model)


def clients(count: int = HONEST) -> dict[str, Arrays]:
    return {f"clinic-{index:02d}": update(index) for index in range(count)}


def matrix(count: int = HONEST) -> NDArray[np.float64]:
    return np.stack([flat(one).astype(np.float64) for one in clients(count).values()])


# -- what holds for all --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_the_next_model_is_finite_float32_of_the_same_shapes_and_the_old_one_stays(
    rule: Aggregation,
) -> None:
    made, model = rule_for(rule, SHAPES), start()
    before = digest_arrays(model)
    for round_ in (1, 2, 3):
        made.begin()
        for client, one in clients().items():
            kept = digest_arrays(one)
            made.add(client, one)
            assert digest_arrays(one) == kept
        model = made.next_model(round_, model)
        assert {name: value.shape for name, value in model.items()} == SHAPES
        assert {value.dtype.name for value in model.values()} == {"float32"}
        assert np.isfinite(flat(model)).all()
    assert digest_arrays(model) != before == digest_arrays(start())


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_the_order_of_arrival_does_not_change_a_bit_in_any_round(rule: Aggregation) -> None:
    def run(seed: int) -> str:
        made, model = rule_for(rule, SHAPES), start()
        for round_ in (1, 2, 3):
            made.begin()
            names = [f"clinic-{index:02d}" for index in range(HONEST)]
            np.random.default_rng(seed + round_).shuffle(names)
            for name in names:
                # … nor the order of the parameters in a reply
                arrays = update(int(name[-2:]), round_)
                made.add(name, dict(reversed(arrays.items())) if seed % 2 else arrays)
            model = made.next_model(round_, model)
        return digest_arrays(model)

    assert len({run(seed) for seed in range(6)}) == 1


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_a_round_with_too_few_replies_changes_nothing_and_says_so(rule: Aggregation) -> None:
    made, model = rule_for(rule, SHAPES), start()
    for index in range(rule.least - 1):
        made.add(f"clinic-{index}", update(index))
    before = digest_arrays(made.state())
    if rule.least > 1:
        with pytest.raises(CannotCombine) as caught:
            made.next_model(1, model)
        assert caught.value.code == "too-few-replies"
        assert advance(made, 1, model, quorum=1) == (model, "too-few-replies")
    assert advance(made, 1, model, quorum=rule.least) == (model, "no-quorum")
    assert digest_arrays(made.state()) == before
    made.add("clinic-99", update(99))
    after, why = advance(made, 2, model, quorum=rule.least)
    assert not why
    assert digest_arrays(after) != digest_arrays(model)


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_what_a_round_left_behind_is_forgotten_when_the_next_begins(rule: Aggregation) -> None:
    disturbed, made = rule_for(rule, SHAPES), rule_for(rule, SHAPES)
    disturbed.add("clinic-90", update(90))
    results = []
    for one in (disturbed, made):
        one.begin()
        assert one.count == 0
        for client, sent in clients().items():
            one.add(client, sent)
        results.append(digest_arrays(one.next_model(1, start())))
    assert results[0] == results[1]


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_a_rule_that_is_restored_goes_on_to_the_same_bits(rule: Aggregation) -> None:
    def run(killed_after: int) -> list[str]:
        made, model, seen = rule_for(rule, SHAPES), start(), []
        for round_ in range(1, 6):
            made.begin()
            for client in range(HONEST):
                made.add(f"clinic-{client}", update(client, round_))
            model = made.next_model(round_, model)
            seen.append(digest_arrays(model))
            if round_ == killed_after:
                stored = {name: value.copy() for name, value in made.state().items()}
                assert {value.dtype.name for value in stored.values()} <= {"float32"}
                made = rule_for(rule, SHAPES, stored)
        return seen

    assert all(run(after) == run(0) for after in (1, 2, 4))
    assert bool(rule_for(rule, SHAPES).state()) is False


@pytest.mark.parametrize("rule", STATEFUL, ids=name_of)
def test_a_round_whose_model_would_not_be_finite_leaves_the_rules_memory_alone(
    rule: Aggregation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = rule_for(rule, SHAPES), start()
    for client, one in clients().items():
        made.add(client, one)
    model = made.next_model(1, model)
    before = digest_arrays(made.state())
    greatest = {
        name: np.full(s, np.finfo(np.float32).max, np.float32) for name, s in SHAPES.items()
    }
    whole = rules.aggregate

    def overflows(*arguments: Any) -> Any:
        return {name: value * 1e38 for name, value in whole(*arguments).items()}

    monkeypatch.setattr(rules, "aggregate", overflows)
    assert advance(made, 2, greatest, quorum=1) == (greatest, "not-finite")
    assert digest_arrays(made.state()) == before


def test_a_rule_without_a_memory_refuses_anothers() -> None:
    state = {"m/weight": np.zeros((4, 3), np.float32)}
    with pytest.raises(ValueError, match="remembers nothing"):
        rule_for(Aggregation(), SHAPES, state)


# -- what each one is ----------------------------------------------------------------------------


def test_the_means_are_the_mean() -> None:
    for name in ("fedavg", "fedprox"):
        np.testing.assert_allclose(
            combined(Aggregation(name), clients()), matrix().mean(0), atol=1e-7
        )


def test_the_median_and_the_trimmed_mean_are_sorted_columns() -> None:
    ordered = np.sort(matrix(), axis=0)
    median = combined(Aggregation("fedmedian"), clients())
    np.testing.assert_allclose(median, (ordered[3] + ordered[4]) / 2, atol=1e-6)
    trimmed = combined(Aggregation("trimmed-mean", trim=0.25), clients())
    np.testing.assert_allclose(trimmed, ordered[2:6].mean(0), atol=1e-6)


def krum_scores(points: NDArray[np.float64], malicious: int) -> list[float]:
    """Blanchard et al. 2017, section 3: squared distances to the n - f - 2 nearest others."""
    scores = []
    for index, point in enumerate(points):
        others = np.delete(points, index, axis=0)
        nearest = np.sort(((others - point) ** 2).sum(1))[: len(points) - malicious - 2]
        scores.append(float(nearest.sum()))
    return scores


@pytest.mark.parametrize("malicious", [1, 2])
def test_krum_takes_the_update_with_the_least_score_bit_for_bit(malicious: int) -> None:
    best = int(np.argmin(krum_scores(matrix(), malicious)))
    result = combined(Aggregation("krum", malicious=malicious), clients())
    assert result.tolist() == matrix()[best].tolist()
    chosen = np.argsort(krum_scores(matrix(), malicious))[:3]
    several = combined(Aggregation("multi-krum", malicious=malicious, selected=3), clients())
    np.testing.assert_allclose(several, matrix()[chosen].mean(0), atol=1e-6)


def test_krum_sees_small_updates_of_a_model_whose_weights_are_large() -> None:
    """Distances of models of size 1000 lose updates of 0.001 in float32; those of updates do not.

    The rule gets updates, so the model has no say in who is chosen.
    """
    small = {
        client: {n: np.asarray(v * 1e-3, np.float32) for n, v in one.items()}
        for client, one in clients().items()
    }
    points = np.stack([flat(one).astype(np.float64) for one in small.values()])
    best = points[int(np.argmin(krum_scores(points, 2)))]
    result = combined(Aggregation("krum", malicious=2), small, start(1000.0))
    np.testing.assert_allclose(result, best, atol=1e-4)  # float32's steps at 1000


def test_the_geometric_median_of_three_points_is_fermats() -> None:
    """Of an equilateral triangle, its centre; where an angle is over 120 degrees, that corner."""
    height = np.sqrt(3) / 2
    triangle = [np.array(p, np.float32) for p in ((0, 0), (1, 0), (0.5, height))]
    centre = geometric_median(triangle, 1e-9, 500)
    np.testing.assert_allclose(centre, [0.5, height / 3], atol=1e-6)
    blunt = [np.array(p, np.float32) for p in ((-2, 0.1), (0, 1), (2, 0.1))]
    np.testing.assert_allclose(geometric_median(blunt, 1e-9, 2000), [0, 1], atol=1e-3)


def test_the_geometric_median_on_a_line_is_the_median() -> None:
    points = [np.array([value], np.float32) for value in (-50.0, 1.0, 2.0, 4.0, 900.0)]
    np.testing.assert_allclose(geometric_median(points, 1e-6, 1000), [2.0], atol=1e-3)


def test_no_step_away_from_the_geometric_median_lessens_the_sum_of_distances() -> None:
    points = matrix()
    median = combined(Aggregation("geometric-median", iterations=1000), clients())

    def total(at: NDArray[np.float64]) -> float:
        return float(np.sqrt(((points - at) ** 2).sum(1)).sum())

    generator = np.random.default_rng(4)
    for size in (1e-3, 1e-2, 1.0):
        for _ in range(200):
            away = generator.normal(size=median.shape)
            assert total(median + size * away / np.linalg.norm(away)) > total(median) - 1e-6


def test_a_bounded_update_keeps_its_direction_and_has_the_bounds_length() -> None:
    rule = Aggregation("norm-bounded", norm_bound=0.25)
    one = {"only": update(1)}
    given_ = flat(update(1)).astype(np.float64)
    result = combined(rule, one)
    np.testing.assert_allclose(result, given_ * 0.25 / np.linalg.norm(given_), atol=1e-7)
    short = {"only": {n: np.asarray(v / 100, np.float32) for n, v in update(1).items()}}
    np.testing.assert_allclose(combined(rule, short), given_ / 100, atol=1e-9)


def test_momentum_adds_up_as_sutskever_and_hsu_write_it() -> None:
    """v <- beta v + mean; model <- model + eta v (Hsu et al. 2019, section 4.3)."""
    rule = rule_for(Aggregation("fedavgm", server_learning_rate=0.5, server_momentum=0.5), SHAPES)
    model, by_hand, velocity = start(), flat(start()).astype(np.float64), 0.0
    for round_ in range(1, 5):
        rule.begin()
        for client in range(3):
            rule.add(f"{client}", update(client, round_))
        mean = np.mean([flat(update(c, round_)) for c in range(3)], axis=0, dtype=np.float64)
        velocity = 0.5 * velocity + mean
        by_hand = by_hand + 0.5 * velocity
        model = rule.next_model(round_, model)
        np.testing.assert_allclose(flat(model), by_hand, atol=1e-5)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_the_adaptive_rules_are_those_of_reddi_and_others(name: str) -> None:
    """Algorithm 2 of arXiv 2003.00295, from moments of zero; Flower's FedAdam also corrects the
    bias of both, at t + 1."""
    eta, beta1, beta2, tau = 0.1, 0.8, 0.9, 0.01
    settings_ = Aggregation(
        name, server_learning_rate=eta, server_beta1=beta1, server_beta2=beta2, server_tau=tau
    )
    rule, model = rule_for(settings_, SHAPES), start()
    by_hand, m, v = flat(start()).astype(np.float64), 0.0, np.zeros(16)
    for round_ in range(1, 5):
        rule.begin()
        for client in range(3):
            rule.add(f"{client}", update(client, round_))
        d = np.mean([flat(update(c, round_)) for c in range(3)], axis=0, dtype=np.float64)
        m = beta1 * m + (1 - beta1) * d
        rate = eta
        if name == "fedadam":
            v = beta2 * v + (1 - beta2) * d**2
            rate *= np.sqrt(1 - beta2 ** (round_ + 1)) / (1 - beta1 ** (round_ + 1))
        else:
            v = v - (1 - beta2) * d**2 * np.sign(v - d**2)
        by_hand = by_hand + rate * m / (np.sqrt(v) + tau)
        model = rule.next_model(round_, model)
        np.testing.assert_allclose(flat(model), by_hand, atol=1e-5)


# -- liars ---------------------------------------------------------------------------------------

LIES = {
    "sign-flip": lambda one: {n: -v for n, v in one.items()},
    "times-ten": lambda one: {n: 10 * v for n, v in one.items()},
    "times-minus-hundred": lambda one: {n: -100 * v for n, v in one.items()},
    "the-bound": lambda one: {n: np.full_like(v, 1000.0) for n, v in one.items()},
    "minus-the-bound": lambda one: {n: np.full_like(v, -1000.0) for n, v in one.items()},
    "zero": lambda one: {n: np.zeros_like(v) for n, v in one.items()},
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("rule", ROBUST, ids=name_of)
def test_two_liars_of_ten_cannot_move_a_robust_rule_out_of_the_honest_ones(
    rule: Aggregation, lie: str
) -> None:
    honest = matrix()
    sent = clients() | {f"liar-{i}": LIES[lie](update(40 + i)) for i in range(2)}
    result = combined(rule, sent)
    spread = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    assert np.linalg.norm(result - honest.mean(0)) <= spread


def test_a_single_liar_moves_a_mean_as_far_as_the_bound_lets_it() -> None:
    sent = clients() | {"liar": LIES["the-bound"](update(40))}
    expected = (matrix().sum(0) + 1000.0) / (HONEST + 1)
    np.testing.assert_allclose(combined(Aggregation(), sent), expected, rtol=1e-6)
    # … and a bounded one by the bound over the number of replies
    bounded = Aggregation("norm-bounded", norm_bound=2.0)
    moved = combined(bounded, sent) - combined(bounded, clients()) * HONEST / (HONEST + 1)
    assert np.linalg.norm(moved) <= 2.0 / (HONEST + 1) + 1e-6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=2, max_size=2), st.integers(0, 4))
def test_whatever_one_of_five_sends_each_coordinate_stays_within_the_honest_ones(
    lie: list[float], position: int
) -> None:
    shapes = {"w": (2,)}
    honest = np.array([[0.0, 1.0], [1.0, 2.0], [0.5, 1.5], [0.25, 1.25]], np.float32)
    rows = np.insert(honest, position, np.array(lie, np.float32), axis=0)
    for rule in (Aggregation("fedmedian"), Aggregation("trimmed-mean", trim=0.2)):
        made = rule_for(rule, shapes)
        for index, row in enumerate(rows):
            made.add(str(index), {"w": row})
        value = made.next_model(1, {"w": np.zeros(2, np.float32)})["w"]
        assert (honest.min(0) - 1e-6 <= value).all()
        assert (value <= honest.max(0) + 1e-6).all()


def test_every_permutation_of_five_gives_one_result_for_each_rule() -> None:
    for rule in ALL:
        if rule.least > 5:
            continue
        seen = set()
        for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
            made = rule_for(rule, SHAPES)
            for index in order:
                made.add(f"c{index}", update(index))
            seen.add(digest_arrays(made.next_model(1, start())))
        assert len(seen) == 1
