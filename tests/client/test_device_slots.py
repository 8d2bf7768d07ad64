"""The switch from one release to the next, killed at every write, and what is checked at a load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from client.device import slots
from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.status import Status
from client.device.updater import update
from common.errors import InputError, OperationError, PlanError, TrustError
from tests.client.device_fixtures import (
    FIRST,
    NOW,
    POLICY,
    SECOND,
    Recipe,
    World,
    answers,
    contents,
    is_answer_of,
    kill_at_every_write,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.updated(tmp_path)


# -- killed ----------------------------------------------------------------------------------------


def update_a_copy(number: int, folder: Path) -> None:
    """In a child: copy the device and update the copy."""
    for name in ("device", "device.keys"):
        shutil.copytree(folder / name, folder / name.replace("device", f"killed-{number}"))
    update(DeviceHome(folder / f"killed-{number}"), NOW)


def test_killed_at_any_write_of_an_update_the_old_or_the_new_release_loads(world: World) -> None:
    world.publish(SECOND)
    steps = kill_at_every_write(__name__, "update_a_copy", world.path)
    assert steps >= 3 * (3 + 1 + 1 + 5 + 1 + 1)  # metadata, log, floor, files, pointer, floor
    switched = []
    for number in range(1, steps + 1):
        home = DeviceHome(world.path / f"killed-{number}")
        found = answers(home)
        assert is_answer_of(FIRST, found) != is_answer_of(SECOND, found)
        switched.append(is_answer_of(SECOND, found))
        status = Status.of(home)
        assert not status.wrong  # the log is a chain, and the weights are whole too
        assert status.floor.version == 2 if switched[-1] else status.floor.running == 1
        assert update(home, NOW).version == 2
        assert home.floor.running == 2  # so that no older copy of the directory runs again
        assert is_answer_of(SECOND, answers(home))
        assert not [name for name in contents(home.path) if ".tmp" in name or "staging" in name]
    assert switched == sorted(switched)
    assert not switched[0]
    assert switched[-1]


def test_killed_at_any_write_of_the_first_update_the_next_one_installs(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.publish(FIRST)
    steps = kill_at_every_write(__name__, "update_a_copy", world.path)
    for number in range(1, steps + 1):
        home = DeviceHome(world.path / f"killed-{number}")
        if not home.current.exists():
            with pytest.raises(OperationError, match="no model"):
                Predictor.load(home)
        assert update(home, NOW).version == 1
        assert home.floor.running == 1
        assert is_answer_of(FIRST, answers(home))


def enrol(number: int, folder: Path) -> None:
    """In a child: enrol a new device."""
    root = (folder / "device" / "root.json").read_bytes()
    DeviceHome.init(folder / f"new-{number}", root, POLICY)


def test_killed_at_any_write_of_the_enrolment_it_can_be_done_again(world: World) -> None:
    steps = kill_at_every_write(__name__, "enrol", world.path)
    for number in range(1, steps + 1):
        path = world.path / f"new-{number}"
        home = (
            DeviceHome(path)
            if (path / "policy.json").exists()
            else DeviceHome.init(path, world.repository.root, POLICY)
        )
        assert update(home, NOW).version == 1


# -- loading ---------------------------------------------------------------------------------------


def test_updates_alternate_between_two_slots(world: World) -> None:
    assert slots.load(world.home)[0].release.slot == "a"
    world.publish(SECOND)
    update(world.home, NOW)
    assert slots.load(world.home)[0].release.slot == "b"
    world.publish(Recipe(version=3))
    update(world.home, NOW)
    assert slots.load(world.home)[0].release.slot == "a"


@pytest.mark.parametrize(
    "name", ["model.onnx.sealed", "known-answers.json", "release.json", "statement.dsse.json"]
)
def test_a_file_changed_on_disk_is_not_loaded(world: World, name: str) -> None:
    file = world.home.slots / "a" / name
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    before = contents(world.home.path, without=())
    with pytest.raises(TrustError, match="was changed since") as caught:
        Predictor.load(world.home)
    assert caught.value.exit_code == 11
    assert contents(world.home.path, without=()) == before


def test_weights_changed_on_disk_do_not_matter_to_answers_and_are_mended(world: World) -> None:
    """Answering does not read them; whoever trains on them would."""
    file = world.home.slots / "a" / "model.safetensors.sealed"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert is_answer_of(FIRST, answers(world.home))
    assert Status.of(world.home).wrong
    assert update(world.home, NOW).installed
    assert not Status.of(world.home).wrong


def test_a_pointer_rewritten_to_fit_a_changed_model_does_not_help(world: World) -> None:
    """Whoever can write the directory can write the digests, but not the signatures."""
    other = Recipe(version=9).model.onnx().SerializeToString()
    pointer = json.loads(world.home.current.read_bytes())
    pointer["release"]["digests"]["model.onnx"] = slots.digest(other)
    world.home.current.write_bytes(slots.encode(pointer))
    what = slots.Current.decode(world.home.current.read_bytes()).release.sealed_as("model.onnx")
    sealed = world.home.identity.seal(other, what)
    (world.home.slots / "a" / "model.onnx.sealed").write_bytes(sealed)
    with pytest.raises(TrustError, match="about another model"):
        Predictor.load(world.home)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff"])
def test_a_damaged_pointer_is_a_refusal_and_not_a_crash(world: World, text: bytes) -> None:
    world.home.current.write_bytes(text)
    with pytest.raises(TrustError, match=r"current\.json"):
        Predictor.load(world.home)


def test_nothing_installed_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="no model") as caught:
        Predictor.load(World.make(tmp_path).home)
    assert "update" in caught.value.hint


# -- enrolment -------------------------------------------------------------------------------------


def test_a_directory_with_something_in_it_is_not_taken_over(world: World, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    for path in (tmp_path / "full", world.home.path):
        before = contents(path, without=())
        with pytest.raises(InputError, match="not an empty directory"):
            DeviceHome.init(path, world.repository.root, POLICY)
        assert contents(path, without=()) == before


def test_a_root_that_is_none_is_not_enrolled(world: World, tmp_path: Path) -> None:
    timestamp = (world.repository.path / "metadata" / "timestamp.json").read_bytes()
    for root in (b"", b"{}", timestamp):
        with pytest.raises(TrustError):
            DeviceHome.init(tmp_path / "new", root, POLICY)
    assert not (tmp_path / "new").exists()


def test_a_policy_comes_back_as_it_was_written(world: World) -> None:
    assert world.home.policy == POLICY


def test_a_misspelt_key_of_the_policy_is_named(world: World) -> None:
    file = world.home.path / "policy.json"
    file.write_bytes(file.read_bytes().replace(b"accept_simulated", b"accept_simulatd"))
    with pytest.raises(PlanError, match="accept_simulatd"):
        update(world.home, NOW)
