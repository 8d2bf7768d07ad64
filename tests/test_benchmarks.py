"""Benchmarks print what they measured; here is only whether they still run and how they count."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import harness
from benchmarks.dpsgd_models import FALLBACK, NATIVE, A, B, Subject
from benchmarks.dpsgd_peers import our_steps, plain_steps
from benchmarks.harness import Turns, at_least, at_most, in_blocks, in_turn, plain


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


def test_a_and_b_are_the_networks_of_the_notes() -> None:
    counts = [sum(p.numel() for p in subject.network().parameters()) for subject in (A, B)]
    assert counts == [26_010, 119_722]


@pytest.mark.slow
@pytest.mark.parametrize("subject", [A, B, *NATIVE, *FALLBACK], ids=lambda subject: subject.name)
def test_the_engine_trains_every_network_that_is_measured(subject: Subject) -> None:
    plain_steps(subject)()
    our_steps(subject)()
