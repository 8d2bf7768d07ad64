"""Coded updates at the server: every malformed one is dropped, the model stays equal to the bit.

One round holds five honest clients and one for each row of a method's table, with each aggregation
rule; a row's receipt is genuine, for the very bytes that it sends, unless the row is about that.
"""

from __future__ import annotations

import json
import logging
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from common.aggregation import AGGREGATIONS
from common.coding import Codec
from common.compression import Compression
from common.plan import Plan
from common.wire import Arrays, RoundRequest, Update
from server.aggregation.mean import ExactMean
from server.aggregation.validate import Rejected
from server.messages import bytes_of, read_reply
from server.metrics import Metrics
from server.status import status
from tests.server import federation
from tests.server.federation import Answer, Node, World, bits, honest, reply
from tests.server.test_rules_hostile import HONEST, plan_of
from tests.world import PLAN, RUN, SHAPES, FakeClient, flower_identity, model

METHODS = {
    "fp16": Compression("fp16"),
    "int8": Compression("int8"),
    "top-k": Compression("top-k", 0.34),  # 3 of 6 values
}
BOUND = 4.0
CODECS = {name: Codec(method, SHAPES, BOUND) for name, method in METHODS.items()}
SIZES = {"fp16": 12, "int8": 14, "top-k": 24}


@pytest.fixture(autouse=True)
def _flower(caplog: pytest.LogCaptureFixture) -> None:
    flower_identity()
    caplog.set_level(logging.CRITICAL, "flwr")


def plan(rule: str, method: str) -> Plan:
    return replace(plan_of(rule), compression=METHODS[method])


def coded(method: str, change: Callable[[bytes], Update] = lambda data: data) -> Answer:
    """A coded update, changed, with a genuine receipt for what is sent."""

    def answer(node: Node, message: Message) -> list[Message]:
        update, _ = node.client.answer(node.seen[-1])
        data = change(CODECS[method].encode(update, {})[0])
        return [reply(message, data, node.client.receipt(node.seen[-1], data))]

    return answer


def record(method: str, change: Callable[[bytes], dict[str, Any]]) -> Answer:
    """An honest answer whose record of the update is another one."""

    def answer(node: Node, message: Message) -> list[Message]:
        (whole,) = coded(method)(node, message)
        data = whole.content.config_records["update"]["coded"]
        assert isinstance(data, bytes)
        whole.content["update"] = ConfigRecord(change(data))
        return [whole]

    return answer


def vouches_for(other: Callable[[str, Node, RoundRequest, bytes], Update], method: str) -> Answer:
    """An honest coded update, and a receipt for something else."""

    def answer(node: Node, message: Message) -> list[Message]:
        request = node.seen[-1]
        update, _ = node.client.answer(request)
        data = CODECS[method].encode(update, {})[0]
        receipt = node.client.receipt(request, other(method, node, request, data))
        return [reply(message, data, receipt)]

    return answer


def with_weight(method: str) -> Answer:
    def answer(node: Node, message: Message) -> list[Message]:
        (whole,) = coded(method)(node, message)
        whole.content["metrics"] = MetricRecord({"num-examples": 1e9})
        return [whole]

    return answer


def decoded(method: str, _node: Node, _request: RoundRequest, data: bytes) -> Update:
    return CODECS[method].decode(data)


def flipped(_method: str, _node: Node, _request: RoundRequest, data: bytes) -> Update:
    return bytes([data[0] ^ 1]) + data[1:]


def put(offset: int, value: object, kind: str) -> Callable[[bytes], bytes]:
    raw = np.array(value, kind).tobytes()
    return lambda data: data[:offset] + raw + data[offset + len(raw) :]


def swapped(data: bytes) -> bytes:
    return data[4:8] + data[:4] + data[8:]


OF_ALL: dict[str, tuple[Callable[[str], Answer], str]] = {
    "plain-arrays": (lambda _: honest, "malformed"),
    "empty": (lambda m: coded(m, lambda _: b""), "malformed"),
    "truncated": (lambda m: coded(m, lambda data: data[:-1]), "malformed"),
    "one-byte-more": (lambda m: coded(m, lambda data: data + b"\0"), "too-large"),
    "twice": (lambda m: coded(m, lambda data: data * 2), "too-large"),
    "16-mib": (lambda m: coded(m, lambda _: bytes(2**24)), "too-large"),
    "no-field": (lambda m: record(m, lambda _: {}), "malformed"),
    "text": (lambda m: record(m, lambda _: {"coded": "x" * SIZES[m]}), "malformed"),
    "numbers": (lambda m: record(m, lambda data: {"coded": list(data)}), "malformed"),
    "more-fields": (
        lambda m: record(m, lambda data: {"coded": data, "shape": [2**40, 2**40]}),
        "malformed",
    ),
    "a-weight": (with_weight, "malformed"),
    "receipt-for-decoded-arrays": (lambda m: vouches_for(decoded, m), "wrong-update"),
    "receipt-for-other-bytes": (lambda m: vouches_for(flipped, m), "wrong-update"),
}
OF: dict[str, dict[str, tuple[Callable[[bytes], bytes], str]]] = {
    "fp16": {
        "inf": (put(0, np.inf, "<f2"), "not-finite"),
        "minus-inf": (put(10, -np.inf, "<f2"), "not-finite"),
        "nan": (put(4, np.nan, "<f2"), "not-finite"),
        "signalling-nan": (put(4, 0xFC01, "<u2"), "not-finite"),
        "greatest": (put(0, 65504, "<f2"), "out-of-bound"),
        "just-over": (put(0, np.nextafter(np.float16(4), np.float16(9)), "<f2"), "out-of-bound"),
    },
    "int8": {
        "nan-scale": (put(0, np.nan, "<f4"), "not-finite"),
        "inf-scale": (put(4, np.inf, "<f4"), "not-finite"),
        "huge-scale": (put(0, 3e38, "<f4"), "malformed"),
        "greatest-scale": (put(0, 2e36, "<f4"), "out-of-bound"),
        "negative-scale": (put(0, -0.01, "<f4"), "malformed"),
        "zero-scale": (put(0, 0.0, "<f4"), "malformed"),
        "minus-zero-scale": (put(0, -0.0, "<f4"), "malformed"),
        "denormal-scale": (put(0, 1e-42, "<f4"), "malformed"),
        "minus-128": (put(8, -128, "<i1"), "malformed"),
        "no-127": (lambda data: data[:8] + bytes(6), "malformed"),
        "over": (put(0, 4.01 / 127, "<f4"), "out-of-bound"),
    },
    "top-k": {
        "beyond": (put(8, 6, "<u4"), "malformed"),
        "far-beyond": (put(8, 2**32 - 1, "<u4"), "malformed"),
        "negative-index": (put(0, -1, "<i4"), "malformed"),
        "duplicate": (lambda data: data[:4] * 2 + data[8:], "malformed"),
        "unsorted": (swapped, "malformed"),
        "all-zero": (lambda data: bytes(len(data)), "malformed"),
        "one-less": (lambda data: data[:8] + data[12:20], "malformed"),
        "one-more": (lambda data: data + bytes(8), "too-large"),
        "nan": (put(12, np.nan, "<f4"), "not-finite"),
        "inf": (put(20, -np.inf, "<f4"), "not-finite"),
        "over": (put(16, 4.01, "<f4"), "out-of-bound"),
        "1e30": (put(12, -1e30, "<f4"), "out-of-bound"),
    },
}


def rows(method: str) -> dict[str, tuple[Answer, str]]:
    found = {name: (make(method), code) for name, (make, code) in OF_ALL.items()}
    return found | {name: (coded(method, how), code) for name, (how, code) in OF[method].items()}


def run(
    path: Path, plan: Plan, method: str, hostile: dict[str, Answer], patch: pytest.MonkeyPatch
) -> tuple[World, str]:
    patch.setattr(federation, "NAMES", (*HONEST, *hostile))
    world = World.make(path, plan)
    for name in HONEST:
        world.node(name).train = coded(method)
    for name, answer in hostile.items():
        world.node(name).train = answer
    return world, bits(world.run())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", AGGREGATIONS)
def test_every_malformed_coded_update_at_once_costs_its_sender_a_reply_and_the_model_not_a_bit(
    tmp_path: Path, rule: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, expected = run(tmp_path / "alone", plan(rule, method), method, {}, monkeypatch)
    assert [report.valid for report in alone.reports] == [5, 5]
    table = rows(method)
    hostile = {row: answer for row, (answer, _) in table.items()}
    world, got = run(tmp_path / "attacked", plan(rule, method), method, hostile, monkeypatch)
    assert got == expected
    for report in world.reports:
        assert dict(report.dropped) == {row: code for row, (_, code) in table.items()}
        assert (report.valid, report.changed) == (5, True)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_the_exact_mean_of_what_the_bytes_say(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, got = run(tmp_path, plan("fedavg", method), method, {}, monkeypatch)
    result: Arrays = model()
    for round_ in (1, 2):
        mean = ExactMean(SHAPES)
        for name in HONEST:
            data, _ = CODECS[method].encode(FakeClient(name).update(round_), {})
            mean.add(CODECS[method].decode(data))
        result = {n: (v + mean.mean()[n]).astype(np.float32) for n, v in result.items()}
    assert got == bits(result)


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_without_compression_takes_no_coded_update(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation, "NAMES", HONEST)
    plain = plan_of("fedavg")
    world = World.make(tmp_path, replace(plain, cohort=replace(plain.cohort, quorum=4)))
    world.node(HONEST[0]).train = coded(method)
    world.run()
    dropped = [(line["valid"], line["dropped"]) for line in world.metrics()]
    assert dropped == [(4, {HONEST[0]: "malformed"})] * 2


# -- what it saves is reported -------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, None])
def test_bytes_are_counted_as_they_came_and_as_they_would_have_come(
    tmp_path: Path, method: str | None
) -> None:
    chosen = replace(PLAN, compression=METHODS[method] if method else None)
    world = World.make(tmp_path, chosen)
    world.metrics_shown = metrics = Metrics(RUN, PLAN.rounds, 3)
    for node in world.grid.nodes.values():
        node.train = coded(method) if method else honest
    world.node("clinic-c").train = coded(method or "fp16", lambda data: data + b"\0" * 9)
    world.run()
    plain = bytes_of(model())
    one = SIZES[method] if method else plain
    assert plain == 4 * 6 + 2 * 128  # values, and numpy's headers
    for line in world.metrics():
        assert line["valid"] == 2  # what was dropped is not counted
        assert (line["update_bytes"], line["uncompressed_bytes"]) == (2 * one, 2 * plain)
    told = status(world.home)["traffic"]
    assert told == {
        "update_bytes": 6 * one,
        "uncompressed_bytes": 6 * plain,
        "bytes_per_reply": one,
        "uncompressed_per_reply": plain,
        "ratio": round(plain / one, 3),
    }
    assert f'privet_update_bytes_total{{kind="coded"}} {6 * one}\n' in metrics.text()
    assert f'privet_update_bytes_total{{kind="uncompressed"}} {6 * plain}\n' in metrics.text()


def test_lines_of_earlier_versions_have_no_bytes_and_a_status_all_the_same(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.run()
    lines = [{k: v for k, v in line.items() if "bytes" not in k} for line in world.metrics()]
    world.home.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert status(world.home)["traffic"]["bytes_per_reply"] is None


# -- memory --------------------------------------------------------------------------------------

MILLION = {"w": (1000, 1000)}


@pytest.mark.parametrize("method", METHODS)
def test_reading_a_coded_update_takes_the_models_size_a_few_times_and_a_wrong_one_nothing(
    method: str,
) -> None:
    codec = Codec(METHODS[method], MILLION, BOUND)
    update = {"w": np.random.default_rng(1).normal(size=(1000, 1000)).astype(np.float32)}
    data, _ = codec.encode(update, {})
    wrong = reply(Message(RecordDict(), 1, "train"), data + bytes(2**25), b"")
    tracemalloc.start()
    try:
        with pytest.raises(Rejected):
            read_reply(wrong, codec.size, coded=True)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.reset_peak()
        codec.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * 4_000_000
    finally:
        tracemalloc.stop()
