"""The next model, from the mean of valid updates: by a Flower strategy that sees one reply.

The rule: Flower's own mean depends on the order of arrival and on weights that clients claim, so
ours comes first and the strategy gets its result. That keeps server optimizers usable unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from common.errors import OperationError
from common.plan import Optimizer
from common.wire import Arrays


def strategy_for(optimizer: Optimizer) -> Strategy:
    """The Flower strategy that a plan names."""
    strategies = {"fedavg": FedAvg}
    return strategies[optimizer.aggregation]()


def next_model(
    strategy: Strategy, round_: int, model: Arrays, mean: Mapping[str, NDArray[np.float64]]
) -> Arrays:
    """Apply the mean update (float64) to ``model`` (float32) through ``strategy``."""
    averaged = {
        # asarray: the sum of two scalars is no array any more.
        name: Array(np.asarray(value + mean[name], np.float32))
        for name, value in model.items()
    }
    content = RecordDict(
        {"arrays": ArrayRecord(averaged), "metrics": MetricRecord({"num-examples": 1})}
    )
    # A reply needs a message to answer; neither is sent anywhere.
    asked = Message(RecordDict(), dst_node_id=1, message_type="train")
    arrays, _ = strategy.aggregate_train(round_, [Message(content, reply_to=asked)])
    if arrays is None or set(arrays) != set(model):
        raise OperationError(f"{type(strategy).__name__} returned no model", code="no-model")
    return {name: arrays[name].numpy().astype(np.float32) for name in model}
