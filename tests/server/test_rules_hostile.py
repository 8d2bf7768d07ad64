"""All that plain federated averaging accepted or died of, sent to each rule in real messages.

One round holds five honest clients and one for each row of the table, and every row is dropped with
its code: the run goes on, and its model is that of the five alone, to the bit. The first 28 rows
are those that were sent to Flower 1.41's FedAvg, where 15 were aggregated and 13 ended the run.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from common.aggregation import AGGREGATIONS, Aggregation
from common.plan import Plan
from common.statement import RECEIPT_TYPE, Envelope
from common.wire import Arrays, RoundRequest
from tests.server import federation
from tests.server.federation import Answer, Node, World, bits, fails, honest, reply
from tests.world import PLAN, STRANGER, FakeClient, flower_identity, leaves

HONEST = tuple(f"clinic-{letter}" for letter in "abcde")


@pytest.fixture(autouse=True)
def _flower(caplog: pytest.LogCaptureFixture) -> None:
    flower_identity()
    caplog.set_level(logging.CRITICAL, "flwr")


def plan_of(name: str) -> Plan:
    """Two rounds, a quorum for every rule, and a bound that is near what honest clients send."""
    rule = Aggregation(name, server_learning_rate=0.1, selected=2)
    return replace(
        PLAN,
        rounds=2,
        cohort=replace(PLAN.cohort, clients=99, quorum=5),
        optimizer=replace(PLAN.optimizer, aggregation=rule, update_bound=4.0, proximal=0.1),
    )


# -- the table -----------------------------------------------------------------------------------


def sends(change: Callable[[Arrays], dict[str, Any]]) -> Answer:
    """Another update, with a genuine receipt for it where one can be made."""

    def answer(node: Node, message: Message) -> list[Message]:
        update, envelope = node.client.answer(node.seen[-1])
        update = change(update)
        # Where no receipt can name such arrays, the honest one will do.
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            envelope = node.client.receipt(node.seen[-1], update)
        arrays = {n: v if isinstance(v, Array) else Array(np.asarray(v)) for n, v in update.items()}
        content = {"update": ArrayRecord(arrays), "receipt": ConfigRecord({"envelope": envelope})}
        return [Message(RecordDict(content), reply_to=message)]  # type: ignore[arg-type]

    return answer


def bias(value: Any) -> Answer:
    return sends(lambda update: {**update, "bias": value})


def raw(data: bytes) -> Answer:
    return bias(Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=data))


def claims(weight: float) -> Answer:
    """The honest reply, and a weight for it."""

    def answer(node: Node, message: Message) -> list[Message]:
        (honest_one,) = honest(node, message)
        honest_one.content["metrics"] = MetricRecord({"num-examples": weight})
        return [honest_one]

    return answer


def only(record: str) -> Answer:
    def answer(node: Node, message: Message) -> list[Message]:
        (whole,) = honest(node, message)
        return [Message(RecordDict({record: whole.content[record]}), reply_to=message)]

    return answer


def answers(change: Callable[[RoundRequest], RoundRequest]) -> Answer:
    """An update with a genuine receipt for another request."""

    def answer(node: Node, message: Message) -> list[Message]:
        return [reply(message, *node.client.answer(change(node.seen[-1])))]

    return answer


def forges(node: Node, message: Message) -> list[Message]:
    """A receipt in one's own name, signed with a key that is not the enrolled one."""
    forger = FakeClient(node.client.name, leaves(9))
    update = forger.update(node.seen[-1].round)
    envelope = forger.receipt(node.seen[-1], update)
    payload = Envelope.decode(envelope).payload
    return [reply(message, update, Envelope.sign(RECEIPT_TYPE, payload, [STRANGER]).encode())]


def sends_anothers(node: Node, message: Message) -> list[Message]:
    """The genuine reply that an honest client gives to its own request."""
    other = FakeClient(HONEST[0])
    return [reply(message, *other.answer(replace(node.seen[-1], client=HONEST[0])))]


class _Exploding:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("raise SystemExit('a pickle was executed')",)


NPY = bytes(Array(np.zeros(2, np.float32)).data)
THIRTY_GIB = NPY.replace(b"(2,), }" + b" " * 10, b"(8053063680,), } ")
assert len(THIRTY_GIB) == len(NPY)
assert b"8053063680" in THIRTY_GIB

ROWS: dict[str, tuple[Answer, str]] = {
    "nan": (sends(lambda u: {n: v * np.float32("nan") for n, v in u.items()}), "not-finite"),
    "one-nan": (bias(np.array([0.5, np.nan], np.float32)), "not-finite"),
    "inf": (bias(np.array([0.5, np.inf], np.float32)), "not-finite"),
    "weight-nan": (claims(np.nan), "malformed"),
    "weight-inf": (claims(np.inf), "malformed"),
    "weight-1e9": (claims(1e9), "malformed"),
    "weight-negative": (claims(-399.0), "malformed"),
    "weight-zero": (claims(0.0), "malformed"),
    "times-10": (sends(lambda u: {n: v * np.float32(10) for n, v in u.items()}), "out-of-bound"),
    "times-minus-10": (
        sends(lambda u: {n: v * np.float32(-10) for n, v in u.items()}),
        "out-of-bound",
    ),
    "plus-1e30": (
        sends(lambda u: {n: v + np.float32(1e30) for n, v in u.items()}),
        "out-of-bound",
    ),
    "4x4": (bias(np.zeros((4, 4), np.float32)), "wrong-shape"),
    "1x1": (bias(np.zeros((1, 1), np.float32)), "wrong-shape"),
    # As many bytes as 9000 x 9000 need; nobody reads them.
    "9000x9000": (raw(bytes(128 + 4 * 9000 * 9000)), "too-large"),
    "scalar": (bias(np.zeros((), np.float32)), "wrong-shape"),
    "float16": (bias(np.zeros(2, np.float16)), "malformed"),
    "float64": (bias(np.zeros(2, np.float64)), "malformed"),
    "int64": (bias(np.zeros(2, np.int64)), "malformed"),
    "complex64": (bias(np.zeros(2, np.complex64)), "malformed"),
    "text": (bias(np.array(["a", "b"])), "malformed"),
    "missing-key": (sends(lambda u: {"weight": u["weight"]}), "wrong-names"),
    "extra-key": (sends(lambda u: {**u, "more": np.zeros(1, np.float32)}), "wrong-names"),
    "renamed-key": (sends(lambda u: {"weight": u["weight"], "b": u["bias"]}), "wrong-names"),
    "empty-record": (sends(lambda u: {}), "wrong-names"),
    # Flower's replies need metrics beside their arrays; ours need a receipt.
    "no-receipt": (only("update"), "malformed"),
    "garbage": (raw(b"\x00garbage"), "malformed"),
    "pickle": (raw(pickle.dumps(_Exploding())), "malformed"),
    "claims-30-gib": (raw(THIRTY_GIB), "malformed"),
    # … and what is about who answers what
    "replay": (answers(lambda asked: replace(asked, nonce="ab" * 16)), "wrong-request"),
    "stale-round": (answers(lambda asked: replace(asked, round=asked.round - 1)), "wrong-request"),
    "wrong-run": (answers(lambda asked: replace(asked, run="f" * 32)), "wrong-request"),
    "wrong-plan": (answers(lambda asked: replace(asked, plan="a" * 64)), "wrong-request"),
    "restored": (answers(lambda asked: replace(asked, incarnation=7)), "wrong-request"),
    "anothers-reply": (sends_anothers, "bad-receipt"),
    "forged-receipt": (forges, "bad-receipt"),
    "no-update": (only("receipt"), "malformed"),
    "raises": (fails, "client-error"),
}
CODES = {name: code for name, (_, code) in ROWS.items()}


def run(
    path: Path, plan: Plan, hostile: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> tuple[World, str]:
    monkeypatch.setattr(federation, "NAMES", (*HONEST, *hostile))
    world = World.make(path, plan)
    for name, answer in hostile.items():
        world.node(name).train = answer
    return world, bits(world.run())


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_hostile_reply_at_once_costs_its_sender_a_reply_and_the_model_not_a_bit(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(name)
    alone, expected = run(tmp_path / "alone", plan, {}, monkeypatch)
    assert [report.valid for report in alone.reports] == [5, 5]
    hostile = {row: answer for row, (answer, _) in ROWS.items()}
    world, got = run(tmp_path / "attacked", plan, hostile, monkeypatch)
    assert got == expected
    for report in world.reports:
        assert dict(report.dropped) == CODES
        assert (report.valid, report.changed, report.unchanged) == (5, True, "")
        assert report.asked == 5 + len(ROWS)


def twice(node: Node, message: Message) -> list[Message]:
    return 2 * honest(node, message)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_duplicate_counts_once_and_the_order_of_arrival_not_at_all(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(name)
    _, expected = run(tmp_path / "alone", plan, {}, monkeypatch)
    world = World.make(tmp_path / "twice", plan)
    for client in HONEST:
        world.node(client).train = twice
    world.grid.nodes = dict(reversed(world.grid.nodes.items()))
    assert bits(world.run()) == expected
    assert all(not report.dropped and report.valid == 5 for report in world.reports)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_alone_is_dropped_with_its_code(
    tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("fedavg")
    _, expected = run(tmp_path / "alone", plan, {}, monkeypatch)
    world, got = run(tmp_path / "attacked", plan, {row: ROWS[row][0]}, monkeypatch)
    assert got == expected
    assert [dict(report.dropped) for report in world.reports] == [{row: CODES[row]}] * 2


@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "fedmedian", "geometric-median"])
def test_a_round_that_is_left_with_too_few_changes_nothing_and_says_why(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that was read cannot get here: its quorum is checked. The rule checks all the same."""
    monkeypatch.setattr(federation, "NAMES", HONEST)
    world = World.make(tmp_path, plan_of(name))
    plan = replace(world.home.plan, rounds=3)
    world.home = replace(world.home, plan=replace(plan, cohort=replace(plan.cohort, quorum=1)))
    for client in HONEST[2:]:
        world.node(client).train = federation.only_in({1, 3}, fails)
    world.run()
    assert [line["unchanged"] for line in world.metrics()] == ["", "too-few-replies", ""]
    requests = world.node(HONEST[0]).seen
    assert requests[1].model == requests[2].model != requests[0].model
