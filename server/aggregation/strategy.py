"""Between updates and a Flower strategy: the one place that knows how its aggregation is called.

The rules: a strategy sees only replies that were checked, all float32 of the same names and shapes,
in the order of the client ids, each with the weight 1. It sees updates, not models: a distance or
a median is the same for both, but float32 keeps more of the digits of small numbers, and the model
is added once, in float64, afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from common.errors import OperationError
from common.wire import Arrays


class CannotCombine(OperationError):
    """A rule has no next model for this round's replies; ``code`` goes into the round's record."""

    code = "cannot-combine"


def aggregate(
    strategy: Strategy, round_: int, updates: Iterable[Arrays], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """What ``strategy`` makes of ``updates``, in its own types; its parameters in our order.

    Args:
        round_: 1 … plan.rounds.
        updates: checked updates in the order of their clients' ids; each is let go when it is read.
        names: of the parameters, in the order that the strategy gets them in.

    Raises:
        CannotCombine: the strategy returned nothing, or something else than these parameters.
    """
    replies = [_reply(update, names) for update in updates]
    arrays, _ = strategy.aggregate_train(round_, replies)
    if arrays is None or set(arrays) != set(names):
        raise CannotCombine(f"{type(strategy).__name__} returned no model", code="no-model")
    return {name: arrays[name].numpy() for name in names}


def _reply(update: Arrays, names: Sequence[str]) -> Message:
    arrays = {name: Array(np.asarray(update[name], np.float32)) for name in names}
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
    )
    # A reply needs a message to answer; neither is sent anywhere.
    asked = Message(RecordDict(), dst_node_id=1, message_type="train")
    return Message(content, reply_to=asked)
