"""Does this reply count? Pure checks on one reply, all of them before it can touch the model.

The rule: a reply counts if the client that was asked answered the request that was sent, with a
signed receipt for exactly these bytes, and the bytes are a finite update of the model's names,
types and shapes within the plan's bound. Anything else is dropped with a code and costs that one
reply. No weight is taken from a client: every valid reply counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.coding import Codec
from common.errors import TrustError
from common.keys import PublicKey
from common.ledger import Head, merkle
from common.wire import Arrays, Closed, Receipt, RoundRequest, Update, digest_update, head_in


class Rejected(TrustError):
    """A reply that does not count; ``code`` goes into the round's record."""

    code = "rejected"


@dataclass(frozen=True)
class Expected:
    """What the server asked one client for.

    Args:
        client: its enrolled name.
        key: its ledger key in this federation.
        seen: its ledger's head as it was last seen, which the request carries.
        request: what was sent.
        shapes: the model's parameter shapes by name.
        bound: greatest absolute value of a coordinate.
        codec: of the plan's compression; None: updates travel as they are.
    """

    client: str
    key: PublicKey
    seen: Head
    request: RoundRequest
    shapes: Mapping[str, tuple[int, ...]]
    bound: float
    codec: Codec | None = None


def open_reply(expected: Expected, update: Update, envelope: bytes) -> tuple[Receipt, Arrays]:
    """The receipt and the update of a reply that counts, coded or not.

    A receipt is for the bytes that left, so those of a coded update are compared with it before any
    of them is decoded; what comes out passes the same checks as an update that was never coded.

    Raises:
        Rejected: as :func:`check_reply`.
    """
    codec = expected.codec
    if codec is None or not isinstance(update, bytes):
        if codec is not None or isinstance(update, bytes):
            raise Rejected("not in the plan's coding", code="malformed")
        return check_reply(expected, update, envelope), update
    receipt = check_receipt(expected, envelope)
    if digest_update(update) != receipt.update:
        raise Rejected("the receipt is for other bytes", code="wrong-update")
    try:
        decoded = codec.decode(update)
    except TrustError as error:
        raise Rejected(str(error), code=error.code) from error
    check_update(decoded, expected.shapes, expected.bound)
    return receipt, decoded


def check_reply(expected: Expected, update: Arrays, envelope: bytes) -> Receipt:
    """The receipt of a reply that counts, with an update that is not coded.

    Raises:
        Rejected: says which check failed, first one first.
    """
    receipt = check_receipt(expected, envelope)
    check_update(update, expected.shapes, expected.bound)
    if digest_update(update) != receipt.update:
        raise Rejected("the receipt is for other bytes", code="wrong-update")
    return receipt


def check_receipt(expected: Expected, envelope: bytes) -> Receipt:
    """A receipt by the client that was asked, for what it was asked, from the ledger it had.

    Raises:
        Rejected: says which check failed, first one first.
    """
    try:
        receipt = Receipt.verify(envelope, expected.key)
    except TrustError as error:
        raise Rejected(str(error), code="bad-receipt") from error
    request = expected.request
    answered = (receipt.client, receipt.plan, receipt.round, receipt.request)
    if answered != (expected.client, request.plan, request.round, request.digest):
        raise Rejected("the receipt answers another request", code="wrong-request")
    check_head(receipt, expected.seen, expected.key)
    return receipt


def check_head(document: Receipt | Closed, seen: Head, key: PublicKey) -> Head:
    """The client's new head, once it continues the one that was last seen of it.

    Raises:
        Rejected: it is unsigned, does not go on, or is the head of another history.
    """
    head = head_in(document, seen.federation, seen.client)
    if not head.signed_by(key, document.signature):
        raise Rejected("the head of the ledger is not signed", code="bad-receipt")
    if head.entries <= seen.entries:
        raise Rejected("the client's ledger is shorter than it was", code="ledger-rolled-back")
    roots = bytes.fromhex(seen.root), bytes.fromhex(head.root)
    proof = [bytes.fromhex(hash_) for hash_ in document.consistency]
    if not merkle.is_consistent(seen.entries, head.entries, *roots, proof):
        raise Rejected("the client's ledger is not the one it was", code="ledger-forked")
    return head


def check_update(update: Arrays, shapes: Mapping[str, tuple[int, ...]], bound: float) -> None:
    """Names, types, shapes, finiteness and range of an update; :class:`Rejected` otherwise."""
    if set(update) != set(shapes):
        raise Rejected("the update has other parameters than the model", code="wrong-names")
    for name, array in update.items():
        if array.dtype != np.float32:
            raise Rejected(f"{name} is {array.dtype}, not float32", code="wrong-dtype")
        if array.shape != tuple(shapes[name]):
            raise Rejected(f"{name} has shape {array.shape}", code="wrong-shape")
        if not np.isfinite(array).all():
            raise Rejected(f"{name} is not finite", code="not-finite")
        if array.size and float(np.abs(array).max()) > bound:
            raise Rejected(f"{name} exceeds the plan's update_bound", code="out-of-bound")
