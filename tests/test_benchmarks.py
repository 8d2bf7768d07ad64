"""Benchmarks print what they measured; here is only whether they still run and how they count."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from benchmarks import harness
from benchmarks.dpsgd_models import FALLBACK, NATIVE, A, B, Subject
from benchmarks.dpsgd_peers import our_steps, plain_steps
from benchmarks.harness import Turns, at_least, at_most, in_blocks, in_turn, plain
from benchmarks.http2 import Connection, Table
from benchmarks.load import load
from client.device.serving.core import Call, CoreServer


def test_a_benchmark_prints_one_object_with_the_machine_and_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--format", "json"])
    harness.main(
        "bench",
        lambda quick: [at_most("a", 2.0, "x", 1.5), at_least("b", 2, "x", 2), plain("c", 1, "s")],
    )
    printed = json.loads(capsys.readouterr().out)
    assert {"processor", "cores", "torch"} <= set(printed["machine"])
    assert [(row["figure"], row["goal"], row["met"]) for row in printed["rows"]] == [
        ("a", "<= 1.5", False),
        ("b", ">= 2", True),
        ("c", "", None),
    ]


def test_a_slow_spell_of_the_machine_does_not_move_a_ratio() -> None:
    turns = Turns({"ours": [1.0, 2.0, 30.0, 1.0], "theirs": [2.0, 4.0, 60.0, 2.0]})
    assert turns.ratio("ours", "theirs") == 0.5


def test_variants_take_turns_after_one_turn_that_does_not_count() -> None:
    called: list[str] = []
    works = {name: lambda name=name: called.append(name) for name in "abc"}
    turns = in_turn(works, seconds=0.0, least=5)
    assert [sorted(called[i : i + 3]) for i in range(0, len(called), 3)] == [["a", "b", "c"]] * 6
    assert {name: len(taken) for name, taken in turns.taken.items()} == {"a": 5, "b": 5, "c": 5}


def test_short_calls_are_made_one_after_the_other_in_blocks() -> None:
    called: list[str] = []
    works = {name: lambda name=name: called.append(name) for name in "ab"}
    turns = in_blocks(works, seconds=0.0, least=3, calls=4)
    blocks = [called[i : i + 4] for i in range(0, len(called), 4)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert [len(turns.taken[name]) for name in "ab"] == [3, 3]
    assert len(blocks) == 2 * (3 + 1)  # one turn warms up


@contextmanager
def echo(folder: Path) -> Iterator[str]:
    """A server that sends back what it gets, but refuses ``no``; gives its socket."""

    def answer(call: Call, message: bytes) -> None:
        if message == b"no":
            call.refuse(grpc.StatusCode.UNAVAILABLE, "not now")
        else:
            call.answer(message)

    def work() -> None:
        while not stopping.is_set():
            server.turn()
        server.stop(0.0)

    server = CoreServer(
        {"/a.B/C": answer}, options=[], most=16, pending=lambda: False, idle=lambda: None
    )
    server.listen(f"unix:{folder}/socket")
    server.start()
    stopping, thread = threading.Event(), threading.Thread(target=work)
    thread.start()
    try:
        yield f"{folder}/socket"
    finally:
        stopping.set()
        thread.join()


def test_the_lean_client_makes_the_calls_that_it_counts(tmp_path: Path) -> None:
    seen: list[bytes] = []
    message = b"x" * 1000  # in all more than a window holds
    with echo(tmp_path) as path:
        found = load(path, "/a.B/C", message, seen.append, connections=3, calls=100)
    assert found.calls == 300
    assert found.rate == 300 / found.seconds
    assert seen == [message]


def test_a_wrong_answer_or_a_failed_call_ends_a_measurement(tmp_path: Path) -> None:
    def wrong(answer: bytes) -> None:
        raise ValueError(answer)

    with echo(tmp_path) as path:
        with pytest.raises(ValueError, match="yes"):
            load(path, "/a.B/C", b"yes", wrong, connections=2, calls=10)
        with pytest.raises(RuntimeError, match="not now"):
            load(path, "/a.B/C", b"no", lambda _: None, connections=2, calls=10)
        with pytest.raises(RuntimeError, match="failed"):
            load(path, "/a.B/D", b"yes", lambda _: None, connections=2, calls=10)
    with pytest.raises(ValueError, match="one frame"):
        Connection("", "/a.B/C", b"x" * 2**14)


def test_header_fields_are_read_as_the_standard_writes_them() -> None:
    """RFC 7541, appendix C.3: three requests on one connection, pseudo-header fields by number."""
    table = Table()
    blocks = (
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    )
    first, second, third = (table.read(bytes.fromhex(block)) for block in blocks)
    always = {b"2": b"", b"4": b"", b"6": b""}
    assert first == (always | {b"1": b"www.example.com"}, True)
    assert second == (always | {b"1": b"www.example.com", b"24": b"no-cache"}, True)
    assert third == (
        {b"2": b"", b"7": b"", b"5": b"", b"1": b"www.example.com", b"custom-key": b"custom-value"},
        True,
    )
    assert table.read(b"\xbe") == ({b"custom-key": b"custom-value"}, False)


def test_a_and_b_are_the_networks_of_the_notes() -> None:
    counts = [sum(p.numel() for p in subject.network().parameters()) for subject in (A, B)]
    assert counts == [26_010, 119_722]


@pytest.mark.slow
@pytest.mark.parametrize("subject", [A, B, *NATIVE, *FALLBACK], ids=lambda subject: subject.name)
def test_the_engine_trains_every_network_that_is_measured(subject: Subject) -> None:
    plain_steps(subject)()
    our_steps(subject)()
