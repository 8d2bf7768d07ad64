"""A Flower strategy sees one averaged reply, and gives it back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg

from common.errors import OperationError
from common.plan import AGGREGATIONS, Optimizer
from common.wire import Arrays
from server.aggregation.strategy import next_model, strategy_for
from tests.world import flower_identity


@pytest.fixture(autouse=True)
def _flower() -> None:
    flower_identity()


def model(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "weight": (1000 * generator.normal(size=(7, 5))).astype(np.float32),
        "bias": generator.normal(size=5).astype(np.float32),
        "scale": np.array(0.1, np.float32),
    }


@pytest.mark.parametrize("round_", [1, 2, 17])
def test_fedavg_returns_the_one_reply_bit_for_bit(round_: int) -> None:
    start = model(round_)
    generator = np.random.default_rng(99)
    mean = {name: generator.normal(size=value.shape) for name, value in start.items()}
    before = {name: value.copy() for name, value in start.items()}
    result = next_model(strategy_for(Optimizer(1.0)), round_, start, mean)
    for name, value in start.items():
        expected = (value.astype(np.float64) + mean[name]).astype(np.float32)
        assert result[name].dtype == np.float32
        assert result[name].tobytes() == expected.tobytes()
        assert value.tobytes() == before[name].tobytes()


def test_a_mean_of_zero_changes_nothing() -> None:
    start = model(1)
    zero = {name: np.zeros(value.shape) for name, value in start.items()}
    result = next_model(strategy_for(Optimizer(1.0)), 1, start, zero)
    assert all(result[name].tobytes() == start[name].tobytes() for name in start)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_aggregation_that_a_plan_may_name_exists(name: str) -> None:
    assert strategy_for(Optimizer(1.0, aggregation=name)) is not None


def test_a_server_optimizer_that_keeps_state_works_on_the_one_reply_too() -> None:
    start = model(2)
    strategy: Any = FedAdam(eta=0.1)
    strategy.current_arrays = dict(start)
    mean = {name: np.full(value.shape, 0.5) for name, value in start.items()}
    result = next_model(strategy, 1, start, mean)
    assert {name: value.dtype.name for name, value in result.items()} == dict.fromkeys(
        start, "float32"
    )
    assert all((result[name] > start[name]).all() for name in start)


class _Silent(FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None


def test_a_strategy_that_returns_no_model_is_an_error() -> None:
    start = model(3)
    with pytest.raises(OperationError) as caught:
        next_model(_Silent(), 1, start, {n: np.zeros(v.shape) for n, v in start.items()})
    assert caught.value.code == "no-model"
