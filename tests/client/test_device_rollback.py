"""Going back to the release before, and what a device says about itself."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.device.home import DeviceHome
from client.device.rollback import roll_back
from client.device.runtime import Predictor
from client.device.status import Status
from client.device.updater import Outcome, update
from common.errors import OperationError, TrustError
from privet.cli import run
from tests.client.device_attacks import refused, wipe
from tests.client.device_fixtures import (
    DAY,
    NOW,
    POLICY,
    RECORDS,
    Recipe,
    World,
    contents,
    decisions,
    kill_at_every_write,
)
from tests.privet.test_cli import call

NAME = "clinic-linear"
LATER = NOW + DAY
FIRST, SECOND, THIRD = (Recipe(version=number) for number in (1, 2, 3))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A device that was updated from version 1 to 2."""
    made = World.make(tmp_path)
    for number, recipe in enumerate((FIRST, SECOND)):
        made.publish(recipe)
        update(made.home, NOW + number * DAY)
    return made


def runs(home: DeviceHome) -> int:
    """The version that answers, by its answers."""
    found = Predictor.load(home).probabilities(RECORDS)
    (version,) = [
        recipe.version
        for recipe in (FIRST, SECOND, THIRD)
        if np.allclose(found, recipe.model.answer(RECORDS), atol=1e-6)
    ]
    return version


# -- going back ------------------------------------------------------------------------------------


def test_the_release_before_runs_again_and_the_log_says_who_wanted_it(world: World) -> None:
    assert roll_back(world.home, NOW + 2 * DAY) == Outcome(True, NAME, 1)
    assert runs(world.home) == 1
    last = decisions(world.home)[-1]
    assert (last["decision"], last["version"]) == ("went-back", 1)
    assert last["reason"] == "the owner went back from version 2"


def test_what_was_gone_back_from_comes_in_again_only_if_the_owner_says_so(world: World) -> None:
    roll_back(world.home, LATER)
    before = contents(world.home.path)
    outcome = update(world.home, LATER)
    assert (outcome.installed, outcome.version) == (False, 1)
    assert "--again" in outcome.notice
    assert contents(world.home.path) == before
    assert update(world.home, LATER, again=True) == Outcome(True, NAME, 2)
    assert runs(world.home) == 2
    roll_back(world.home, LATER)
    assert runs(world.home) == 1


def test_the_next_release_comes_in_after_a_rollback(world: World) -> None:
    roll_back(world.home, LATER)
    world.publish(THIRD)
    assert update(world.home, LATER) == Outcome(True, NAME, 3)
    assert runs(world.home) == 3
    roll_back(world.home, LATER)
    assert runs(world.home) == 1  # never 2, which its owner had declined


def test_going_back_lowers_no_floor(world: World) -> None:
    """The owner's own copy of version 1 runs; a repository that offers it is still refused."""
    roll_back(world.home, LATER)
    assert (world.home.floor.version, world.home.floor.running) == (2, 1)
    world.publish(FIRST)
    (world.home.slots / "a" / "model.onnx.sealed").write_bytes(b"damaged")
    assert refused(world.home).code == "rollback"


def test_a_damaged_model_is_not_mended_with_what_the_owner_declined(world: World) -> None:
    roll_back(world.home, LATER)
    (world.home.slots / "a" / "model.onnx.sealed").write_bytes(b"damaged")
    assert refused(world.home).code == "declined"
    assert update(world.home, LATER, again=True).version == 2


def test_there_is_one_way_back_and_none_before_an_update(world: World, tmp_path: Path) -> None:
    roll_back(world.home, LATER)
    (tmp_path / "new").mkdir()
    new = World.make(tmp_path / "new")
    new.publish(FIRST)
    for home in (world.home, new.home):
        with pytest.raises(OperationError) as caught:
            roll_back(home, LATER)
        assert caught.value.code == "no-previous"
        update(home, LATER)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"least_version": 2}, "too-old"), ({"greatest_epsilon": 1.5}, "policy")],
    ids=["the oldest version", "epsilon"],
)
def test_a_policy_that_became_stricter_holds_for_going_back(
    world: World, change: dict[str, object], code: str
) -> None:
    world.publish(replace(THIRD, epsilon=1.0))
    update(world.home, LATER)
    (world.home.path / "policy.json").write_bytes(
        replace(POLICY, **{"least_version": 3} if "least_version" in change else change).encode()
    )
    before = contents(world.home.path)
    with pytest.raises(TrustError) as caught:
        roll_back(world.home, LATER)
    assert caught.value.code == code
    assert contents(world.home.path) == before
    assert decisions(world.home)[-1]["code"] == code
    assert runs(world.home) == 3


def test_a_damaged_release_before_is_not_gone_back_to(world: World) -> None:
    (world.home.slots / "a" / "model.safetensors.sealed").unlink()
    with pytest.raises(TrustError, match="lacks"):
        roll_back(world.home, LATER)
    assert runs(world.home) == 2


def go_back_on_a_copy(number: int, folder: Path) -> None:
    """In a child: copy the device and its keys, and go back on the copy."""
    for name in ("device", "device.keys"):
        shutil.copytree(folder / name, folder / name.replace("device", f"killed-{number}"))
    roll_back(DeviceHome(folder / f"killed-{number}"), LATER)


def test_killed_at_any_write_of_going_back_one_of_the_two_runs(world: World) -> None:
    steps = kill_at_every_write(__name__, "go_back_on_a_copy", world.path)
    assert steps >= 3 + 3 * 3  # log, floor twice, pointer
    switched = []
    for number in range(1, steps + 1):
        home = DeviceHome(world.path / f"killed-{number}")
        switched.append(runs(home) == 1)
        if not switched[-1]:
            roll_back(home, LATER)
        assert runs(home) == 1
        assert not Status.of(home).wrong
        assert (home.floor.version, home.floor.running) == (2, 1)
        assert not update(home, LATER).installed
        assert home.floor.running == 1
    assert switched == sorted(switched)
    assert not switched[0]
    assert switched[-1]


# -- what it says ----------------------------------------------------------------------------------


def test_a_device_says_in_words_what_it_runs_and_what_that_claims(world: World) -> None:
    status = Status.of(world.home)
    lines = status.lines()
    assert lines[0] == f"runs      {NAME} version 2, since 2030-05-18T12:00:00+00:00"
    assert lines[1] == (
        "claims    epsilon 2 at delta 1e-05 for each record, signed by 2 of the 2 signers that you "
        "trust"
    )
    assert lines[2] == (
        "accepts   epsilon up to 3, delta up to 1e-05, version 1 or newer, no simulated models"
    )
    assert lines[3] == (
        "floor     from a repository, nothing older than version 2; version 1 is kept, to roll "
        "back to"
    )
    assert lines[4] == "contact   2030-05-18T12:00:00+00:00"
    assert lines[5].startswith("log       whole: 2 decisions, signed by device ")
    assert len(lines) == 6
    assert status.json()["model"]["claims"]["epsilon"] == 2.0
    assert status.wrong == ()


def test_it_says_what_was_refused_and_why(world: World) -> None:
    world.publish(replace(THIRD, epsilon=3.5))
    refused(world.home, now=NOW + 2 * DAY)
    last = Status.of(world.home).lines()[-1]
    assert last.startswith("refused   2030-05-19T12:00:00+00:00  policy: ")
    assert "states epsilon 3.5" in last


def test_it_says_that_its_log_was_changed_and_its_model_damaged(world: World) -> None:
    lines = world.home.decisions.read_bytes().splitlines(keepends=True)
    world.home.decisions.write_bytes(lines[1])
    (world.home.slots / "b" / "model.onnx.sealed").write_bytes(b"damaged")
    status = Status.of(world.home)
    text = "\n".join(status.lines())
    assert "LOG       was changed: decision 1 is missing" in text
    assert "DAMAGED   the installed model cannot be trusted" in text
    assert "claims" not in text
    assert status.json()["log"]["whole"] is False
    assert status.json()["model"]["verified"] is False
    assert len(status.wrong) == 2


def test_a_wiped_device_says_that_what_came_before_is_gone(world: World) -> None:
    wipe(world)
    for _ in range(2):
        status = Status.of(world.home)
        assert "; the first 2 were in a directory that is gone" in "\n".join(status.lines())
        assert status.wrong == ()
        update(world.home, NOW + DAY)


def test_a_new_device_says_that_it_has_nothing_yet(tmp_path: Path) -> None:
    lines = Status.of(World.make(tmp_path).home).lines()
    assert lines[0] == "runs      no model yet"
    assert lines[-2:] != lines[:2]
    assert "contact   no repository was believed yet" in lines


def test_a_directory_of_the_same_version_does_not_bring_an_older_policy_back_unnoticed(
    world: World,
) -> None:
    old = world.path / "old"
    shutil.copytree(world.home.path, old)
    world.home.set_policy(replace(POLICY, greatest_epsilon=1.0, least_version=2))
    assert world.home.policy_changes() == ()
    shutil.rmtree(world.home.path)
    shutil.copytree(old, world.home.path)
    status = Status.of(DeviceHome(world.home.path))
    assert status.edited == (
        "greatest_epsilon is 3.0, and was set to 1.0",
        "least_version is 1, and was set to 2",
    )
    assert len(status.wrong) == 2
    assert f"POLICY    was changed since it was set: {status.edited[0]}" in status.lines()


def test_an_owner_who_edits_the_policy_confirms_it_and_nothing_else_does(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    device = world.home.path
    (device / "policy.json").write_bytes(replace(POLICY, greatest_epsilon=2.5).encode())
    assert runs(world.home) == 2  # what the owner's file says holds at once
    assert run(["device", "status", str(device)]) == 11
    before = contents(world.path, without=())
    code, data = call(capsys, "device", "trust", device, "--follow-root")
    assert (code, data["code"]) == (11, "policy-changed")
    assert len(call(capsys, "device", "trust", device)[1]["policy_changes"]) == 1
    assert contents(world.path, without=()) == before
    code, data = call(capsys, "device", "trust", device, "--confirm")
    assert (code, data["policy_changes"]) == (0, [])
    assert call(capsys, "device", "status", device)[0] == 0
    assert world.home.policy.greatest_epsilon == 2.5
