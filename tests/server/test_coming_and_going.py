"""Clients come, go, move, hang and answer late; rounds go on, and end when they should."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Error, Message

from common.errors import InputError
from common.plan import Plan, Stopping
from server.checkpoint import CheckpointStore
from tests.server.federation import (
    NAMES,
    Answer,
    Node,
    World,
    bits,
    expected_model,
    fails,
    honest,
    only_in,
    refuse,
    with_receipt,
)
from tests.world import PLAN, RUN, FakeClient, flower_identity, killed_at, leaves

HOUR = replace(PLAN, rounds=5, cohort=replace(PLAN.cohort, deadline=3600.0))


@pytest.fixture(autouse=True)
def _flower(caplog: pytest.LogCaptureFixture) -> None:
    flower_identity()
    caplog.set_level(logging.CRITICAL, "flwr")


def in_round(world: World, round_: int, act: Callable[[], None]) -> None:
    """Do something once when the requests of a round have gone out."""

    def look() -> None:
        if any(r.round == round_ - 1 for node in world.grid.nodes.values() for r in node.seen):
            world.grid.on_push = lambda: None
            act()

    world.grid.on_push = look


def asked(world: World, name: str) -> list[int]:
    return [request.round for request in world.node(name).seen]


# -- who is there --------------------------------------------------------------------------------


def test_a_client_that_arrives_later_takes_part_from_the_next_round_on(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    late = world.grid.nodes.pop(102)
    in_round(world, 2, lambda: world.grid.nodes.update({102: late}))
    world.run()
    assert [report.asked for report in world.reports] == [2, 2, 3, 3, 3]
    assert asked(world, "clinic-c") == [3, 4, 5]


def test_a_client_that_is_gone_is_not_asked_and_takes_part_when_it_is_back(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    gone: dict[int, Node] = {}

    def goes() -> None:
        gone[102] = world.grid.nodes.pop(102)
        in_round(world, 4, lambda: world.grid.nodes.update({102: gone[102]}))

    in_round(world, 2, goes)
    started = world.time.seconds
    world.run()
    assert [report.asked for report in world.reports] == [3, 3, 2, 2, 3]
    assert world.reports[1].dropped == {"clinic-c": "silent"}  # it went while it was asked
    # Only the round in which it went has waited for it.
    assert world.time.seconds - started < 3600 + 5


def test_a_client_that_comes_back_as_another_node_is_asked_there(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    in_round(world, 3, lambda: world.grid.nodes.update({500: world.grid.nodes.pop(102)}))
    world.run()
    nodes = [event["node"] for event in world.events("reply") if event["client"] == "clinic-c"]
    assert nodes == ["102", "102", "102", "500", "500"]


def test_of_two_nodes_of_one_client_the_one_that_was_proven_last_counts(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    twin = Node(FakeClient("clinic-c", leaves(1000)), world.node("clinic-c").coordinator)
    in_round(world, 2, lambda: world.grid.nodes.update({500: twin}))
    old = world.grid.nodes[102]
    world.run()
    assert [request.round for request in old.seen] == [1, 2]
    assert [request.round for request in twin.seen] == [3, 4, 5]


def test_when_the_newer_of_two_nodes_goes_the_older_is_asked_again(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    twin = Node(FakeClient("clinic-c", leaves(1000)), world.node("clinic-c").coordinator)

    def comes() -> None:
        world.grid.nodes[500] = twin
        in_round(world, 4, goes)

    def goes() -> None:
        world.grid.nodes.pop(500)
        old.client.leaves = leaves(2000)

    in_round(world, 2, comes)
    old = world.grid.nodes[102]
    world.run()
    assert [request.round for request in old.seen] == [1, 2, 5]


def test_nobody_waits_at_a_rounds_start_where_a_quorum_is_there(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    stranger = Node(FakeClient("stranger"), world.node("clinic-a").coordinator)
    stranger.query = lambda *_: []  # never says who it is
    in_round(world, 2, lambda: world.grid.nodes.update({900: stranger}))
    began = world.time.seconds
    world.run()
    assert world.time.seconds - began < 5
    assert not stranger.seen


def test_a_round_whose_quorum_does_not_come_asks_nobody(tmp_path: Path) -> None:
    """Whoever was asked would spend for nothing."""
    world = World.make(tmp_path, HOUR)
    nodes = dict(world.grid.nodes)

    def all_but_one_go() -> None:
        for node in (101, 102):
            world.grid.nodes.pop(node)

    in_round(world, 2, all_but_one_go)

    def back(seconds: float) -> None:
        world.time.seconds += seconds
        if world.time.seconds > 1000 + 3600 * 2.5:
            world.grid.nodes.update(nodes)

    world.time.sleep = back  # type: ignore[method-assign]
    world.run()
    assert [report.asked for report in world.reports] == [3, 3, 0, 3, 3]
    assert [report.changed for report in world.reports] == [True, False, False, True, True]
    assert asked(world, "clinic-a") == [1, 2, 4, 5]


# -- hanging, gone, killed -----------------------------------------------------------------------


def hangs(node: Node, message: Message) -> list[Message]:
    return []


def unavailable(node: Node, message: Message) -> list[Message]:
    """What Flower itself says in a node's stead."""
    error = Message(Error(code=3, reason="Node Unavailable"), reply_to=message)
    error.metadata.__dict__["_src_node_id"] = 1
    return [error]


@pytest.mark.parametrize("bad", [hangs, fails, unavailable], ids=lambda bad: bad.__name__)
@pytest.mark.parametrize("many", [1, 2, 3])
@pytest.mark.parametrize("deadline", [0.2, 3600.0])
def test_a_round_ends_within_a_second_of_its_deadline_whoever_is_gone(
    tmp_path: Path, bad: Answer, many: int, deadline: float
) -> None:
    plan = replace(PLAN, cohort=replace(PLAN.cohort, deadline=deadline))
    world = World.make(tmp_path, plan)
    for name in NAMES[:many]:
        world.node(name).train = only_in({1}, bad)
    world.run()
    assert all(report.seconds <= deadline + 1 for report in world.reports)
    assert [report.valid for report in world.reports] == [3, 3 - many, 3 - many]
    if bad is not hangs:  # whoever is known to be gone is not waited for
        assert all(report.seconds < 0.2 for report in world.reports)


# -- late and twice ------------------------------------------------------------------------------


def test_a_late_reply_is_counted_in_the_round_it_comes_in_and_changes_nothing(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path, HOUR)
    held: list[Message] = []

    def slow(node: Node, message: Message) -> list[Message]:
        answer = honest(node, message)
        if node.seen[-1].round == 2:
            held.extend(answer)
            return []
        return [*answer, *held]

    world.node("clinic-c").train = slow
    world.run()
    assert [report.dropped for report in world.reports] == [{}, {"clinic-c": "silent"}, {}, {}, {}]
    assert [report.late for report in world.reports] == [0, 0, 1, 0, 0]
    assert world.events("stray-replies") == [
        {"event": "stray-replies", "round": 3, "code": "late", "count": 1}
    ]


def test_a_duplicate_is_counted(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.node("clinic-b").train = lambda node, message: 3 * honest(node, message)
    assert bits(world.run()) == bits(expected_model(NAMES))
    assert [report.duplicates for report in world.reports] == [2, 2, 2]


# -- over-selection ------------------------------------------------------------------------------

MORE = replace(HOUR, rounds=3, cohort=replace(HOUR.cohort, clients=2, quorum=2, over_selection=1))


def test_a_round_that_asked_for_more_ends_with_as_many_valid_replies_as_it_needs(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path, MORE)
    world.node("clinic-b").train = hangs
    began = world.time.seconds
    assert bits(world.run()) == bits(expected_model(["clinic-a", "clinic-c"]))
    assert world.time.seconds - began < 5  # nobody waited an hour for the one that hangs
    assert [(report.asked, report.valid) for report in world.reports] == [(3, 2)] * 3
    assert [dict(report.dropped) for report in world.reports] == [{"clinic-b": "late"}] * 3


def test_what_comes_after_enough_is_dropped_as_late_and_one_bad_reply_is_made_up_for(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path / "good", MORE)
    assert bits(world.run()) == bits(expected_model(NAMES[:2]))
    assert [dict(report.dropped) for report in world.reports] == [{"clinic-c": "late"}] * 3
    world = World.make(tmp_path / "bad", MORE)
    world.node("clinic-a").train = with_receipt(update="0" * 64)
    assert bits(world.run()) == bits(expected_model(NAMES[1:]))
    assert {report.valid for report in world.reports} == {2}


# -- early ends ----------------------------------------------------------------------------------


def stopping(patience: int, rounds: int = 8) -> Plan:
    return replace(PLAN, rounds=rounds, stopping=Stopping(patience, 0.01))


def scores(world: World, *values: float) -> None:
    """The k-th model that differs from the ones before scores the k-th value."""
    seen: dict[str, float] = {}
    world.score = lambda arrays: seen.setdefault(bits(arrays), values[len(seen)])


def ended(world: World) -> str:
    checkpoint = CheckpointStore(world.home.checkpoints, RUN, world.home.plan.digest).latest()
    assert checkpoint is not None
    return checkpoint.ended


def test_a_run_ends_when_its_score_has_not_improved_for_so_many_rounds(tmp_path: Path) -> None:
    world = World.make(tmp_path, stopping(2))
    scores(world, 0.5, 0.6, 0.605, 0.609, 0.9)
    assert bits(world.run()) == bits(expected_model(NAMES, rounds=4))
    assert ended(world) == "no-improvement"
    world.grid.nodes = {}
    assert bits(world.run()) == bits(expected_model(NAMES, rounds=4))  # the end is the end


def test_rounds_that_changed_nothing_do_not_try_its_patience(tmp_path: Path) -> None:
    world = World.make(tmp_path, stopping(1, rounds=5))
    scores(world, 0.5, 0.6, 0.7, 0.8)
    for name in NAMES:
        world.node(name).train = only_in({1, 4, 5}, fails)
    world.run()
    assert [report.changed for report in world.reports] == [True, False, False, True, True]
    assert ended(world) == "all-rounds"


def test_a_killed_run_remembers_how_long_nothing_got_better(tmp_path: Path) -> None:
    def make(entries: int = 1) -> World:
        world = World.make(tmp_path, stopping(2), entries)
        known = {
            bits(expected_model(NAMES, rounds=number)): score
            for number, score in enumerate((0.0, 0.5, 0.6, 0.605, 0.609, 0.9, 0.9, 0.9, 0.9))
        }
        world.score = lambda arrays: known[bits(arrays)]
        return world

    lives = 1
    while killed_at(27, make(1000 * lives).run):
        lives += 1
    assert lives > 3
    world = make(1000 * lives)
    assert bits(world.run()) == bits(expected_model(NAMES, rounds=4))
    assert ended(world) == "no-improvement"


@pytest.mark.parametrize(
    ("test", "seed", "code"),
    [(None, 5, "no-validation-set"), ("held-out", None, "private-validation-set")],
)
def test_a_run_stops_early_by_public_records_only(
    tmp_path: Path, test: str | None, seed: int | None, code: str
) -> None:
    world = World.make(tmp_path, stopping(2))
    binding = replace(world.home.binding, test=test)
    world.home = replace(world.home, binding=binding, seed=seed)
    world.score = (lambda _: 0.5) if test else None
    with pytest.raises(InputError) as caught:
        world.run()
    assert caught.value.code == code
    assert not world.grid.pushed


def test_a_run_whose_budget_is_used_ends_and_keeps_what_was_learnt(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    for name in NAMES[:2]:
        world.node(name).train = only_in({1, 2}, refuse("no-rounds-left"))
    assert bits(world.run()) == bits(expected_model(NAMES, rounds=2))
    assert (len(world.reports), ended(world)) == (3, "budget-used")
    assert world.events("run-ended")[0]["code"] == "budget-used"


def test_one_client_whose_budget_is_used_does_not_end_the_run(tmp_path: Path) -> None:
    world = World.make(tmp_path, HOUR)
    world.node("clinic-c").train = only_in({1, 4}, refuse("budget-exhausted"))
    world.run()
    assert (len(world.reports), ended(world)) == (5, "all-rounds")
