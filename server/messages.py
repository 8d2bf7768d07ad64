"""Between Flower's messages and plain values: the one place on this side that knows both.

The rule: a message that arrives is read under limits, and a malformed one becomes a rejection with
a code, never an exception that ends the round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from common.errors import TrustError
from common.wire import MAX_ENVELOPE_BYTES, Arrays, Update, from_npy
from server.aggregation.validate import Rejected

REFUSAL = re.compile(r"[a-z-]{1,64}")


@dataclass(frozen=True)
class Reply:
    """A client's answer: an update and its receipt, neither verified yet.

    Args:
        update: arrays, or the bytes of a coded update, of the right number.
        receipt: the envelope.
        size: bytes that the update came in.
    """

    update: Update
    receipt: bytes
    size: int


def roll_call(envelope: bytes, nodes: Iterable[int], group: str, *, ttl: float) -> list[Message]:
    """One query for each node; nobody is asked it later than in ``ttl`` seconds."""
    kind = MessageType.QUERY
    return [_query("roll-call", envelope, node, kind, group, ttl) for node in nodes]


def closings(envelopes: Iterable[tuple[int, bytes]], group: str, *, ttl: float) -> list[Message]:
    """One last word for each (node, signed closing), good for ``ttl`` seconds."""
    kind = f"{MessageType.QUERY}.close"
    return [_query("closing", envelope, node, kind, group, ttl) for node, envelope in envelopes]


def ledger_calls(
    envelopes: Iterable[tuple[int, bytes]], group: str, *, ttl: float
) -> list[Message]:
    """A call for its ledger to each (node, signed call), good for ``ttl`` seconds."""
    kind = f"{MessageType.QUERY}.ledger"
    return [_query("ledger-call", envelope, node, kind, group, ttl) for node, envelope in envelopes]


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

    Flower delivers none after ``ttl`` seconds: a client that comes back when the round is long over
    must not spend its budget on it.
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


def read_ledger_lines(message: Message, limit: int) -> bytes:
    """The ledger lines in an answer to a call for them, at most ``limit`` bytes.

    Raises:
        Rejected: an error, a refusal, or malformed content.
    """
    _check_served(message)
    record = message.content.config_records.get("ledger")
    value = record.get("lines") if record is not None else None
    if not isinstance(value, bytes):
        raise Rejected("no ledger", code="malformed")
    if len(value) > limit:
        raise Rejected(f"a ledger of {len(value)} bytes", code="too-large")
    return value


def read_reply(message: Message, limit: int, *, coded: bool = False) -> Reply:
    """The update and receipt in an answer to a round request.

    Args:
        limit: greatest number of bytes that the update's arrays may have together; the very
            number of bytes of a coded one.
        coded: whether the plan has updates coded.

    Raises:
        Rejected: an error, a refusal (with the client's code), or malformed content.
    """
    receipt = _envelope(message, "receipt")
    if len(message.content) > 2:
        # Such as a weight or a metric: nobody agreed to it, and no account covers it.
        raise Rejected("more than an update and a receipt", code="malformed")
    if coded:
        data = _coded(message, limit)
        return Reply(data, receipt, len(data))
    record = message.content.array_records.get("update")
    if record is None:
        raise Rejected("no update", code="malformed")
    size = sum(len(array.data) for array in record.values())
    if size > limit:
        raise Rejected("the update is larger than the model", code="too-large")
    try:
        return Reply({name: from_npy(array.data) for name, array in record.items()}, receipt, size)
    except TrustError as error:
        raise Rejected(str(error), code="malformed") from error


def _coded(message: Message, size: int) -> bytes:
    """The bytes of a coded update, of which nothing is read before their number is right."""
    record = message.content.config_records.get("update")
    value = record.get("coded") if record is not None and len(record) == 1 else None
    if not isinstance(value, bytes):
        raise Rejected("no coded update", code="malformed")
    if len(value) != size:
        code = "too-large" if len(value) > size else "malformed"
        raise Rejected(f"a coded update of {len(value)} bytes, not {size}", code=code)
    return value


def bytes_of(arrays: Arrays) -> int:
    """How many bytes an update like these arrays travels in when it is not coded."""
    return sum(len(Array(value).data) for value in arrays.values())


def _envelope(message: Message, name: str) -> bytes:
    _check_served(message)
    records = message.content.config_records
    value = records[name].get("envelope") if name in records else None
    if not isinstance(value, bytes) or len(value) > MAX_ENVELOPE_BYTES:
        raise Rejected(f"no {name}", code="malformed")
    return value


def _check_served(message: Message) -> None:
    """Refuse an answer that is an error or a refusal."""
    if message.has_error():
        raise Rejected("the client's app failed", code="client-error")
    records = message.content.config_records
    if "refusal" in records:
        code = records["refusal"].get("code")
        if isinstance(code, str) and REFUSAL.fullmatch(code):
            raise Rejected("the client refused", code=f"refused-{code}")
        raise Rejected("the client refused, in no known way", code="refused")
