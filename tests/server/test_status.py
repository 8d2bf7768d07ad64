"""An operator sees how a run stands, from its directory alone, and looking changes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privet.cli import run as privet
from server.checkpoint import CheckpointStore
from server.status import status
from server.stopping import Stopped
from tests.server.federation import (
    NAMES,
    World,
    bits,
    expected_model,
    fails,
    only_in,
    refuse,
    with_receipt,
)
from tests.world import PLAN, RUN, Snapshot, flower_identity

LONG = replace(PLAN, rounds=6)
BAD = with_receipt(update="0" * 64)


@pytest.fixture(autouse=True)
def _flower(caplog: pytest.LogCaptureFixture) -> None:
    flower_identity()
    caplog.set_level(logging.CRITICAL, "flwr")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Six rounds in which one client lies, and another fails once and refuses once."""
    world = World.make(tmp_path, LONG)
    world.node("clinic-c").train = BAD
    world.node("clinic-b").train = only_in({1, 2, 3, 6}, fails)
    world.run()
    return world


def command(*arguments: object) -> tuple[int, dict[str, Any]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = privet([*map(str, arguments), "--format", "json"])
    return code, json.loads(out.getvalue())


def text(*arguments: object) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert privet([*map(str, arguments)]) == 0
    return out.getvalue()


def test_a_run_that_has_not_begun_has_a_status(tmp_path: Path) -> None:
    told = status(World.make(tmp_path).home)
    assert (told["state"], told["rounds"]["done"], told["replies"]["asked"]) == ("new", 0, 0)
    assert told["rates"] == dict.fromkeys(("rounds_per_hour", "seconds_per_round", "valid_share"))
    assert {client["ledger_entries"] for client in told["clients"].values()} == {0}


def test_status_tells_who_took_part_who_was_dropped_and_why(world: World) -> None:
    told = status(world.home)
    assert (told["state"], told["ended"]) == ("ended", "all-rounds")
    assert told["rounds"] == {"done": 6, "changed": 4, "planned": 6, "asked_now": []}
    assert told["replies"]["asked"] == 3 + 3 + 3 + 2 + 2 + 2
    assert told["replies"]["valid"] == 6 + 4
    assert told["replies"]["dropped"] == {"client-error": 2, "wrong-update": 3}
    assert told["rates"]["valid_share"] == round(10 / 15, 4)
    assert told["clients"]["clinic-c"] == {
        "asked": 3,
        "valid": 0,
        "dropped": {"wrong-update": 3},
        "node": "102",
        "ledger_entries": 0,
    }
    assert told["clients"]["clinic-b"]["dropped"] == {"client-error": 2}
    # One entry to begin with, two for each round that it served, one for the closing.
    assert told["clients"]["clinic-a"]["ledger_entries"] == 1 + 2 * 6 + 1
    assert told["suspended"] == [
        {"client": "clinic-c", "round": 3, "codes": ["wrong-update"] * 3, "lifted": False}
    ]


def test_looking_changes_nothing_and_leaves_a_writers_files_alone(world: World) -> None:
    (world.home.checkpoints / ".round-000007.json.x.tmp").write_bytes(b"being written")
    with open(world.home.metrics, "ab") as file:
        file.write(b'{"round": 7, "to')
    with open(world.home.events, "ab") as file:
        file.write(b'{"event": "rep')
    before = Snapshot.of(world.home.path)
    told = status(world.home)
    assert command("server", "status", world.home.path)[1]["data"] == told
    assert command("server", "suspended", world.home.path)[0] == 0
    assert text("server", "status", world.home.path)
    assert Snapshot.of(world.home.path) == before


def test_a_client_that_was_asked_and_has_not_answered_yet_is_seen(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    store = CheckpointStore(world.home.checkpoints, RUN, PLAN.digest)
    store.begin_round(0, 1, {"clinic-b": "ab" * 16})
    told = status(world.home)
    assert (told["state"], told["rounds"]["asked_now"]) == ("under-way", ["clinic-b"])


def test_a_clients_own_words_are_told_to_nobody(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.node("clinic-c").train = refuse("my-name-is-ann")
    world.run()
    assert status(world.home)["replies"]["dropped"] == {"refused-other": 3}
    assert b"ann" not in world.home.events.read_bytes()


def test_the_text_says_what_the_json_says(world: World) -> None:
    told = text("server", "status", world.home.path)
    assert "6 of 6, 4 changed the model" in told
    assert (
        "clinic-c             0 valid of 3, ledger of 0 entries; dropped: wrong-update x 3" in told
    )
    assert "since round 3: wrong-update, wrong-update, wrong-update" in told


# -- commands that change something --------------------------------------------------------------


def test_a_suspension_is_listed_and_lifted_by_commands(world: World) -> None:
    assert "clinic-c" in text("server", "suspended", world.home.path)
    code, document = command("server", "lift", world.home.path, "clinic-c")
    assert (code, document["data"]) == (0, {"client": "clinic-c", "round": 3})
    _, document = command("server", "suspended", world.home.path)
    assert document["data"]["suspended"][0]["lifted"] is True
    assert world.home.read_lifts() == {"clinic-c": 3}


@pytest.mark.parametrize("client", ["clinic-a", "nobody"])
def test_whoever_is_not_suspended_cannot_be_lifted(world: World, client: str) -> None:
    before = Snapshot.of(world.home.path)
    code, document = command("server", "lift", world.home.path, client)
    assert (code, document["error"]["code"]) == (4, "not-suspended")
    assert Snapshot.of(world.home.path) == before


def test_a_directory_without_a_run_is_an_error(tmp_path: Path) -> None:
    for name in ("status", "suspended", "stop"):
        code, document = command("server", name, tmp_path)
        assert (code, document["error"]["code"]) == (4, "no-run")
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_asked_to_stop_ends_its_round_and_goes_on_when_resumed(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path, LONG)

    def ask_in_round_two() -> None:
        if any(request.round == 1 for request in world.node("clinic-a").seen):
            world.grid.on_push = lambda: None
            assert command("server", "stop", world.home.path)[0] == 0
            assert status(world.home)["stop_requested"]

    world.grid.on_push = ask_in_round_two
    with pytest.raises(Stopped) as caught:
        world.run()
    assert (caught.value.code, caught.value.exit_code) == ("stopped", 130)
    assert [report.round for report in world.reports] == [1, 2]
    told = status(world.home)
    assert (told["state"], told["stop_requested"]) == ("under-way", False)
    # Everybody heard the last word, which is an entry in its ledger.
    assert {client["ledger_entries"] for client in told["clients"].values()} == {1 + 2 * 2 + 1}
    assert world.events()[-1] == {"event": "server-stopped", "round": 2}
    assert bits(world.run()) == bits(expected_model(NAMES, rounds=6))
    told = status(world.home)
    assert {client["ledger_entries"] for client in told["clients"].values()} == {1 + 2 * 6 + 2}
    assert told["server_starts"] == 2


def test_a_server_that_is_to_stop_does_not_wait_long_for_the_last_word(tmp_path: Path) -> None:
    plan = replace(LONG, cohort=replace(PLAN.cohort, deadline=3600.0))
    world = World.make(tmp_path, plan)
    world.node("clinic-b").close = lambda *_: []
    world.run_stopped_after(1)
    assert world.time.seconds < 1000 + 35
    told = status(world.home)
    assert [told["clients"][name]["ledger_entries"] for name in NAMES] == [4, 3, 4]
    assert bits(World.make(tmp_path, plan, entries=1000).run()) == bits(
        expected_model(NAMES, rounds=6)
    )


def test_a_server_that_is_to_stop_does_not_wait_for_clients_to_come(tmp_path: Path) -> None:
    world = World.make(tmp_path, replace(LONG, cohort=replace(PLAN.cohort, deadline=3600.0)))
    world.grid.nodes.clear()
    assert command("server", "stop", world.home.path)[0] == 0
    with pytest.raises(Stopped):
        world.run()
    assert world.time.seconds < 1000 + 1
    assert not world.home.stop.exists()
