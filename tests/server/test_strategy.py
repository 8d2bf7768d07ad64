"""A Flower strategy gets checked float32 replies and gives its own result, whatever its types."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Bulyan, FedAdam, FedAvg, FedMedian, Krum

from common.wire import Arrays
from server.aggregation.strategy import CannotCombine, aggregate
from tests.world import flower_identity

NAMES = ("weight", "bias", "scale")


@pytest.fixture(autouse=True)
def _flower() -> None:
    flower_identity()


def update(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "weight": generator.normal(size=(7, 5)).astype(np.float32),
        "bias": generator.normal(size=5).astype(np.float32),
        "scale": np.array(0.1, np.float32),
    }


@pytest.mark.parametrize("round_", [1, 2, 17])
def test_one_reply_comes_back_from_fedavg_bit_for_bit(round_: int) -> None:
    given = update(round_)
    before = {name: value.copy() for name, value in given.items()}
    result = aggregate(FedAvg(), round_, [given], NAMES)
    for name, value in before.items():
        assert result[name].dtype == np.float32
        assert result[name].tobytes() == value.tobytes() == given[name].tobytes()


def test_every_reply_has_the_same_weight_and_parameters_keep_their_names() -> None:
    shuffled = [dict(reversed(update(i).items())) if i % 2 else update(i) for i in range(5)]
    result = aggregate(FedMedian(), 1, shuffled, NAMES)
    for name in NAMES:
        expected = np.median([update(i)[name] for i in range(5)], axis=0)
        np.testing.assert_array_equal(result[name], expected)
    mean = aggregate(FedAvg(), 1, shuffled, NAMES)["weight"]
    np.testing.assert_allclose(mean, np.mean([update(i)["weight"] for i in range(5)], 0), atol=1e-6)


class _Silent(FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None


class _Renames(FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        return ArrayRecord({"other": arrays["bias"]}), metrics


@pytest.mark.parametrize("strategy", [_Silent(), _Renames()])
def test_a_strategy_that_returns_no_model_is_told_and_not_taken_for_the_old_one(
    strategy: FedAvg,
) -> None:
    with pytest.raises(CannotCombine) as caught:
        aggregate(strategy, 1, [update(1)], NAMES)
    assert caught.value.code == "no-model"


# -- what the rules above this module are for: Flower 1.41 as it is -------------------------------


def test_flowers_fedadam_turns_float32_into_float64() -> None:
    strategy = FedAdam(eta=0.1)
    strategy.current_arrays = {name: np.zeros_like(value) for name, value in update(1).items()}
    result = aggregate(strategy, 1, [update(1)], NAMES)
    assert {value.dtype.name for value in result.values()} == {"float64"}


def test_flowers_median_of_a_nan_is_a_nan_and_its_fedadam_keeps_it_for_ever() -> None:
    bad = update(9) | {"bias": np.full(5, np.nan, np.float32)}
    assert np.isnan(aggregate(FedMedian(), 1, [update(1), update(2), bad], NAMES)["bias"]).all()
    strategy = FedAdam(eta=0.1)
    for round_, reply in enumerate([update(1), bad, update(2), update(3)], start=1):
        strategy.current_arrays = {name: np.zeros_like(value) for name, value in reply.items()}
        last = aggregate(strategy, round_, [reply], NAMES)
    assert np.isnan(last["bias"]).all()


def test_flowers_bulyan_of_too_few_returns_no_model_and_no_error() -> None:
    """Five replies with one liar; its theory needs 4 f + 3 = 7. Here that has a code."""
    with pytest.raises(CannotCombine) as caught:
        aggregate(Bulyan(num_malicious_nodes=1), 1, [update(i) for i in range(5)], NAMES)
    assert caught.value.code == "no-model"


def test_flowers_krum_answers_below_its_own_least_number() -> None:
    """Blanchard et al. need 2 f + 2 < n. Of 2 f + 2 the liars, who agree, are chosen."""
    honest = [{"w": np.array([float(i), 10.0 * i], np.float32)} for i in range(1, 3)]
    liars = [{"w": np.array([900.0, 900.0], np.float32)} for _ in range(2)]
    result = aggregate(Krum(num_malicious_nodes=2), 1, honest + liars, ("w",))
    assert result["w"].tolist() == [900.0, 900.0]
