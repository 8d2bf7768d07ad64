"""One bad reply costs one reply: every hostile one is dropped with its code, whatever it tries.

The list is what plain federated averaging accepted, or died of, when it was sent to it: values that
are not finite, wrong shapes and types, weights that clients claim, and a ledger that went back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.ledger import Head, merkle
from common.wire import Arrays, RoundRequest
from server.aggregation.mean import ExactMean
from server.aggregation.validate import Expected, Rejected, check_reply, check_update
from tests.world import FEDERATION, PLAN, SHAPES, STRANGER, FakeClient, ask, leaves

BOUND = PLAN.optimizer.update_bound
A, B, MALLORY = FakeClient("clinic-a"), FakeClient("clinic-b"), FakeClient("mallory")


def expected(client: FakeClient, **changes: Any) -> Expected:
    fields = {"client": client.name, "key": client.key.public, "request": asked()}
    fields |= {"seen": Head(FEDERATION, client.pseudonym, 1, merkle.root(leaves(1)).hex())}
    return Expected(**{**fields, "shapes": SHAPES, "bound": BOUND, **changes})


def asked(**changes: Any) -> RoundRequest:
    """A request that carries the head that every fake client begins with."""
    return ask(2, nonce=7, entries=1, root=merkle.root(leaves(1)).hex(), **changes)


def anew(client: FakeClient, entries: int = 1) -> FakeClient:
    return FakeClient(client.name, leaves(entries))


def grown(client: FakeClient) -> FakeClient:
    """The same client after a round."""
    return anew(client, 3)


def code(update: Arrays, receipt: bytes, **changes: Any) -> str:
    with pytest.raises(Rejected) as caught:
        check_reply(expected(MALLORY, **changes), update, receipt)
    return caught.value.code


def honest() -> tuple[Arrays, bytes]:
    return anew(MALLORY).answer(asked())


def test_an_honest_reply_counts() -> None:
    update, envelope = honest()
    receipt = check_reply(expected(MALLORY), update, envelope)
    assert (receipt.client, receipt.entries) == ("mallory", 3)


# -- what the update may be ----------------------------------------------------------------------


def changed(change: Callable[[Arrays], object]) -> Arrays:
    update = MALLORY.update(2)
    result = change(update)
    return update if result is None else result  # type: ignore[return-value]


def put(value: object, where: object = ...) -> Callable[[Arrays], None]:
    def change(update: Arrays) -> None:
        update["weight"][where] = value  # type: ignore[call-overload]

    return change


def swap(value: Any) -> Callable[[Arrays], None]:
    return lambda update: update.update(bias=value)


HOSTILE: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "nan": (put(np.nan), "not-finite"),
    "one-nan": (put(np.nan, (1, 1)), "not-finite"),
    "inf": (put(np.inf), "not-finite"),
    "minus-inf": (put(-np.inf, (0, 1)), "not-finite"),
    "1e30": (put(1e30), "out-of-bound"),
    "minus-1e30": (put(-1e30, (0, 0)), "out-of-bound"),
    "just-over": (put(np.nextafter(np.float32(BOUND), np.float32(np.inf))), "out-of-bound"),
    "wrong-shape": (swap(np.zeros((4, 4), np.float32)), "wrong-shape"),
    "one-by-one": (swap(np.zeros((1, 1), np.float32)), "wrong-shape"),
    "transposed": (swap(np.zeros((2, 1), np.float32)), "wrong-shape"),
    "huge": (swap(np.broadcast_to(np.float32(0), (9000, 9000))), "wrong-shape"),
    "scalar": (swap(np.zeros((), np.float32)), "wrong-shape"),
    "empty-array": (swap(np.zeros((0,), np.float32)), "wrong-shape"),
    "float16": (swap(np.zeros(2, np.float16)), "wrong-dtype"),
    "float64": (swap(np.zeros(2, np.float64)), "wrong-dtype"),
    "int64": (swap(np.zeros(2, np.int64)), "wrong-dtype"),
    "complex64": (swap(np.zeros(2, np.complex64)), "wrong-dtype"),
    "text": (swap(np.array(["a", "b"])), "wrong-dtype"),
    "object": (swap(np.array([None, {}], dtype=object)), "wrong-dtype"),
    "missing-key": (lambda update: update.pop("bias") and None, "wrong-names"),
    "extra-key": (lambda update: update.update(more=np.zeros(1, np.float32)), "wrong-names"),
    "renamed-key": (lambda update: update.update(b=update.pop("bias")), "wrong-names"),
    "no-keys": (lambda update: update.clear(), "wrong-names"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_update_is_dropped_with_its_code_even_with_a_receipt_for_it(name: str) -> None:
    change, why = HOSTILE[name]
    update = changed(change) if name != "missing-key" else {"weight": MALLORY.update(2)["weight"]}
    with pytest.raises(Rejected) as caught:
        check_update(update, SHAPES, BOUND)
    assert caught.value.code == why
    try:
        receipt = grown(MALLORY).receipt(asked(), update)
    except (TypeError, ValueError):
        receipt = grown(MALLORY).receipt(asked(), MALLORY.update(2))
    assert code(update, receipt) == why


@pytest.mark.parametrize("name", HOSTILE)
def test_the_mean_of_the_honest_ones_is_the_same_to_the_bit(name: str) -> None:
    def mean_of(replies: list[tuple[FakeClient, Arrays, bytes]]) -> bytes:
        mean = ExactMean(SHAPES)
        for client, update, receipt in replies:
            try:
                check_reply(expected(client), update, receipt)
            except Rejected:
                continue
            mean.add(update)
        return b"".join(value.tobytes() for value in mean.mean().values())

    request = asked()
    good = [(client, *anew(client).answer(request)) for client in (A, B)]
    update = changed(HOSTILE[name][0]) if name != "missing-key" else {}
    bad = (MALLORY, update, grown(MALLORY).receipt(request, MALLORY.update(2)))
    alone = mean_of(good)
    for position in range(3):
        assert mean_of([*good[:position], bad, *good[position:]]) == alone


def test_the_bound_itself_is_allowed_and_bounds_what_one_client_can_do() -> None:
    update = {name: np.full(shape, BOUND, np.float32) for name, shape in SHAPES.items()}
    check_update(update, SHAPES, BOUND)
    ten_times = {name: 10 * value for name, value in MALLORY.update(2).items()}
    check_update(ten_times, SHAPES, BOUND)  # within the bound: one vote among equals, no more


# -- who may answer what -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (ask(1, nonce=7), "wrong-request"),  # a replay of the round before
        (ask(3, nonce=7), "wrong-request"),
        (ask(2, nonce=8), "wrong-request"),  # the same round, asked another time
        (ask(2, nonce=7, incarnation=1), "wrong-request"),
        (ask(2, nonce=7, run="f" * 32), "wrong-request"),
        (ask(2, nonce=7, plan="a" * 64), "wrong-request"),
    ],
    ids=["earlier-round", "later-round", "nonce", "incarnation", "run", "plan"],
)
def test_an_answer_to_another_request_is_dropped(asked: Any, why: str) -> None:
    update, envelope = anew(MALLORY).answer(asked)
    assert code(update, envelope) == why


def test_another_clients_receipt_is_dropped() -> None:
    update, envelope = anew(A).answer(asked())
    assert code(update, envelope) == "bad-receipt"
    # … also when it is signed by oneself in the other's name
    assert code(update, MALLORY.receipt(asked(), update, client="clinic-a")) == "wrong-request"


def test_a_receipt_that_somebody_else_signed_is_dropped() -> None:
    update, _ = honest()
    request = asked()
    forged = replace(expected(MALLORY), key=STRANGER.public)
    with pytest.raises(Rejected) as caught:
        check_reply(forged, update, MALLORY.receipt(request, update))
    assert caught.value.code == "bad-receipt"


@pytest.mark.parametrize("envelope", [b"", b"{}", b"\x80\x04.", b"\x00" * 20_000], ids=range(4))
def test_a_receipt_that_is_none_is_dropped(envelope: bytes) -> None:
    assert code(honest()[0], envelope) == "bad-receipt"


def test_a_receipt_for_other_bytes_is_dropped() -> None:
    update, envelope = honest()
    update["bias"] = np.nextafter(update["bias"], np.float32(1))
    assert code(update, envelope) == "wrong-update"


def seen_at(entries: int) -> dict[str, Any]:
    """Mallory's ledger as it was last seen, and a request that says so."""
    head = anew(MALLORY, entries).head(0)
    seen = Head(FEDERATION, MALLORY.pseudonym, entries, head["root"])
    return {"seen": seen, "request": ask(2, nonce=7, entries=entries, root=seen.root)}


@pytest.mark.parametrize("entries", [0, 1, 2, 3])
def test_a_ledger_that_did_not_grow_was_rolled_back(entries: int) -> None:
    update, last = MALLORY.update(2), seen_at(3)
    receipt = anew(MALLORY, entries).receipt(last["request"], update)
    assert code(update, receipt, **last) == "ledger-rolled-back"
    honest = anew(MALLORY, 5).receipt(last["request"], update)
    assert check_reply(expected(MALLORY, **last), update, honest).entries == 5


def test_a_ledger_that_was_written_anew_is_a_fork_however_long_it_is() -> None:
    update, last = MALLORY.update(2), seen_at(3)
    anew_ = FakeClient("mallory", [bytes([i]) * 32 for i in range(9, 20)])
    assert code(update, anew_.receipt(last["request"], update), **last) == "ledger-forked"
    for proof in ((), ("a" * 64,), ("a" * 64,) * 4):
        receipt = anew(MALLORY, 5).receipt(last["request"], update, consistency=proof)
        assert code(update, receipt, **last) == "ledger-forked"


def test_a_head_that_the_client_did_not_sign_does_not_count() -> None:
    update = MALLORY.update(2)
    receipt = grown(MALLORY).receipt(asked(), update, root="a" * 64)
    assert code(update, receipt) == "bad-receipt"


def test_a_rejected_reply_changes_nothing_that_was_passed_in() -> None:
    update, envelope = honest()
    update["bias"][0] = np.nan
    before = {name: value.copy() for name, value in update.items()}
    code(update, envelope)
    assert all(np.array_equal(update[n], before[n], equal_nan=True) for n in update)
