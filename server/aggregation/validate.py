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

from common.errors import TrustError
from common.keys import PublicKey
from common.wire import Arrays, Receipt, RoundRequest, digest_arrays


class Rejected(TrustError):
    """A reply that does not count; ``code`` goes into the round's record."""

    code = "rejected"


@dataclass(frozen=True)
class Expected:
    """What the server asked one client for.

    Args:
        client: its enrolled name.
        key: its ledger key in this federation.
        request: what was sent.
        shapes: the model's parameter shapes by name.
        bound: greatest absolute value of a coordinate.
        entries: how many ledger entries its last receipt named; a smaller ledger was rolled back.
    """

    client: str
    key: PublicKey
    request: RoundRequest
    shapes: Mapping[str, tuple[int, ...]]
    bound: float
    entries: int


def check_reply(expected: Expected, update: Arrays, envelope: bytes) -> Receipt:
    """The receipt of a reply that counts.

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
    if receipt.entries <= expected.entries:
        raise Rejected("the client's ledger is shorter than it was", code="ledger-rolled-back")
    check_update(update, expected.shapes, expected.bound)
    if digest_arrays(update) != receipt.update:
        raise Rejected("the receipt is for other bytes", code="wrong-update")
    return receipt


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
