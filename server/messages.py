"""Between Flower's messages and plain values: the one place on this side that knows both.

The rule: a message that arrives is read under limits, and a malformed one becomes a rejection with
a code, never an exception that ends the round. A message that is sent lives as long as an answer to
it counts, so that nobody who comes back hours later spends for a round that is over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from common.errors import TrustError
from common.wire import MAX_ENVELOPE_BYTES, Arrays, from_npy
from server.aggregation.validate import Rejected

REFUSAL = re.compile(r"[a-z-]{1,64}")


@dataclass(frozen=True)
class Reply:
    """A client's answer, decoded: an update and its receipt, neither verified yet."""

    update: Arrays
    receipt: bytes


def roll_call(envelope: bytes, nodes: Iterable[int], group: str, *, ttl: float) -> list[Message]:
    """One query for each node, to be answered within ``ttl`` seconds."""
    return [_query("roll-call", envelope, node, MessageType.QUERY, group, ttl) for node in nodes]


def closings(envelopes: Iterable[tuple[int, bytes]], group: str, *, ttl: float) -> list[Message]:
    """One last word for each (node, signed closing), to be answered within ``ttl`` seconds."""
    kind = f"{MessageType.QUERY}.close"
    return [_query("closing", envelope, node, kind, group, ttl) for node, envelope in envelopes]


def _query(name: str, envelope: bytes, node: int, kind: str, group: str, ttl: float) -> Message:
    return Message(
        RecordDict({name: ConfigRecord({"envelope": envelope})}),
        dst_node_id=node,
        message_type=kind,
        ttl=ttl,
        group_id=group,
    )


def round_requests(
    arrays: Arrays, requests: Iterable[tuple[int, bytes]], group: str, *, ttl: float
) -> list[Message]:
    """One training message for each (node, signed request), all carrying the same model.

    Args:
        ttl: seconds in which each is to be answered.
    """
    # Each array is encoded once; every message gets a record of its own, so that a client that
    # changes its copy in place cannot reach another's.
    encoded = {name: Array(value) for name, value in arrays.items()}
    return [
        Message(
            RecordDict(
                {
                    "request": ConfigRecord({"envelope": envelope}),
                    "arrays": ArrayRecord(dict(encoded)),
                }
            ),
            dst_node_id=node,
            message_type=MessageType.TRAIN,
            ttl=ttl,
            group_id=group,
        )
        for node, envelope in requests
    ]


def read_hello(message: Message) -> bytes:
    """The signed hello in an answer to a roll call; :class:`Rejected` if there is none."""
    return _envelope(message, "hello")


def read_closed(message: Message) -> bytes:
    """The signed answer to a closing; :class:`Rejected` if there is none."""
    return _envelope(message, "closed")


def read_reply(message: Message, limit: int) -> Reply:
    """The update and receipt in an answer to a round request.

    Args:
        limit: greatest number of bytes that the update's arrays may have together.

    Raises:
        Rejected: an error, a refusal (with the client's code), or malformed content.
    """
    receipt = _envelope(message, "receipt")
    record = message.content.array_records.get("update")
    if record is None:
        raise Rejected("no update", code="malformed")
    if len(message.content) > 2:
        # Such as a weight or a metric: nobody agreed to it, and no account covers it.
        raise Rejected("more than an update and a receipt", code="malformed")
    if sum(len(array.data) for array in record.values()) > limit:
        raise Rejected("the update is larger than the model", code="too-large")
    try:
        return Reply({name: from_npy(array.data) for name, array in record.items()}, receipt)
    except TrustError as error:
        raise Rejected(str(error), code="malformed") from error


def _envelope(message: Message, name: str) -> bytes:
    if message.has_error():
        raise Rejected("the client's app failed", code="client-error")
    records = message.content.config_records
    if "refusal" in records:
        code = records["refusal"].get("code")
        if isinstance(code, str) and REFUSAL.fullmatch(code):
            raise Rejected("the client refused", code=f"refused-{code}")
        raise Rejected("the client refused, in no known way", code="refused")
    value = records[name].get("envelope") if name in records else None
    if not isinstance(value, bytes) or len(value) > MAX_ENVELOPE_BYTES:
        raise Rejected(f"no {name}", code="malformed")
    return value
