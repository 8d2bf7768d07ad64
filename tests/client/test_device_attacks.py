"""Every attack on a device that is known here, in one list, and what comes of it.

Each begins with a device that runs version 1. Nearly all of them end in the same way: an update is
refused with the code that the list names, exit code 11 and a hint; the refusal is in the signed
log; no file but TUF's own verified metadata differs by a byte; and version 1 answers as before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import hostile
from client.device import slots
from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.updater import update
from common.errors import TrustError
from server.release.repository import Repository
from server.release.roots import Roles
from tests.client.device_attacks import (
    AnyName,
    Endless,
    force,
    keep,
    other_timestamp,
    publish_as,
    quiet_write,
    refused,
    rotate,
    swap,
    target_of,
    wipe,
)
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    DAY,
    FIRST,
    NOW,
    POLICY,
    RECORDS,
    RECOVERY,
    SECOND,
    STRANGER,
    Recipe,
    World,
    answers,
    contents,
    decisions,
)

Conditions = dict[str, Any]  # what the update is called with, besides the device


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.updated(tmp_path)


# -- what is sent is not what was signed -----------------------------------------------------------


def a_bit_of_the_model_is_flipped(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def the_model_is_cut_short(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    file.write_bytes(file.read_bytes()[:-1])


def the_weights_are_cut_short(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])


def a_byte_follows_the_model(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    file.write_bytes(file.read_bytes() + b"\0")


def the_weights_never_end(world: World) -> Conditions:
    world.publish(SECOND)
    return {"fetcher": Endless(world.repository.path, "model.safetensors")}


def the_timestamp_never_ends(world: World) -> Conditions:
    return {"fetcher": Endless(world.repository.path, "timestamp.json")}


def the_snapshot_is_that_of_another_release(world: World) -> None:
    """Mix and match: version 2's timestamp over version 1's snapshot and targets."""
    old = (world.repository.path / "metadata" / "1.snapshot.json").read_bytes()
    world.publish(SECOND)
    (world.repository.path / "metadata" / "2.snapshot.json").write_bytes(old)


def one_file_is_that_of_another_release(world: World) -> None:
    old = target_of(world, "model.onnx").read_bytes()
    world.publish(SECOND)
    target_of(world, "model.onnx").write_bytes(old)


def the_statement_is_that_of_another_release(world: World) -> None:
    """Both parties sign, as TUF targets, the model of one and the statement of the other."""
    other = Recipe(version=3).files()["statement.dsse.json"]
    files = SECOND.files() | {"statement.dsse.json": other}
    world.repository.publish(files, [COORDINATOR, APPROVER], COORDINATOR, NOW)


# -- it is old -------------------------------------------------------------------------------------


def an_older_repository_is_replayed(world: World) -> None:
    old = keep(world)
    world.publish(SECOND)
    update(world.home, NOW)
    swap(world, old)


def an_older_repository_is_replayed_to_a_wiped_device(world: World) -> None:
    """It is unexpired: TUF alone would take it."""
    an_older_repository_is_replayed(world)
    wipe(world)


def an_older_repository_is_replayed_to_a_device_without_its_keys(world: World) -> None:
    """Nothing is left that remembers: the owner says again what is too old."""
    an_older_repository_is_replayed(world)
    wipe(world, replace(POLICY, least_version=2), keys=True)


def an_older_timestamp_of_the_same_release_is_replayed_to_a_wiped_device(world: World) -> None:
    old = keep(world)
    world.repository.renew(COORDINATOR, NOW)
    update(world.home, NOW)
    swap(world, old)
    wipe(world)


def an_older_release_comes_in_newer_metadata(world: World) -> None:
    """Both signers can be wrong together about TUF's version, not about the release's."""
    world.publish(SECOND)
    update(world.home, NOW)
    world.publish(FIRST)


def an_older_release_comes_to_a_wiped_device_in_newer_metadata(world: World) -> None:
    an_older_release_comes_in_newer_metadata(world)
    wipe(world)


def an_older_release_comes_after_the_pointer_was_deleted(world: World) -> None:
    an_older_release_comes_in_newer_metadata(world)
    world.home.current.unlink()


def the_repository_is_frozen(world: World) -> Conditions:
    return {"now": NOW + 8 * DAY}


def a_newer_release_is_held_back_until_it_expired(world: World) -> Conditions:
    world.publish(SECOND)
    return {"now": NOW + 8 * DAY}


def the_clock_is_set_back(world: World) -> Conditions:
    """Expired at NOW + 5 days, offered to a device that has seen NOW + 6 days."""
    update(world.home, NOW + 6 * DAY)
    world.repository.publish(SECOND.files(), [COORDINATOR, APPROVER], COORDINATOR, NOW - 2 * DAY)
    return {"now": NOW - 100 * DAY}


def the_clock_of_a_wiped_device_is_set_back(world: World) -> Conditions:
    conditions = the_clock_is_set_back(world)
    wipe(world)
    return conditions


# -- it is signed by too few, or by others ---------------------------------------------------------


def the_repository_is_another_partys(world: World) -> None:
    roles = Roles(STRANGER.public, APPROVER.public, RECOVERY.public)
    other = Repository.create(world.path / "other", [STRANGER, RECOVERY], roles, NOW)
    for _ in range(2):
        other.publish(SECOND.files(), [STRANGER, APPROVER], STRANGER, NOW)
    swap(world, world.path / "other")


def one_of_two_signs_the_targets(world: World) -> None:
    repository = world.repository
    force(world, repository.sign(repository.draft(SECOND.files(), NOW), COORDINATOR), SECOND)


def one_of_two_signs_the_targets_twice(world: World) -> None:
    repository = world.repository
    draft = repository.sign(repository.draft(SECOND.files(), NOW), COORDINATOR)
    entry = draft[draft.index(b'{"keyid"') : draft.index(b"}", draft.index(b'{"keyid"')) + 1]
    force(world, draft.replace(entry, entry + b"," + entry), SECOND)


def one_of_two_signs_the_statement(world: World) -> None:
    world.publish(replace(SECOND, statement_signers=(COORDINATOR,)))


def a_revoked_key_signs(world: World) -> None:
    """The coordinator's key was stolen and replaced; its thief and the approver's sign on."""
    rotate(world, [RECOVERY, APPROVER], coordinator=STRANGER)
    publish_as(world, FIRST, STRANGER)
    update(world.home, NOW)
    publish_as(world, SECOND, COORDINATOR)


def a_revoked_key_is_played_to_a_wiped_device_with_its_old_root(world: World) -> None:
    old = keep(world)
    rotate(world, [RECOVERY, APPROVER], coordinator=STRANGER)
    publish_as(world, FIRST, STRANGER)
    update(world.home, NOW)
    swap(world, old)
    wipe(world)


# -- two are signed under one number ---------------------------------------------------------------


def another_release_has_the_same_version(world: World) -> None:
    world.publish(replace(FIRST, epsilon=1.5))


def another_release_of_the_same_version_comes_to_a_wiped_device(world: World) -> None:
    world.publish(replace(FIRST, epsilon=1.5))
    wipe(world)


def another_timestamp_has_the_same_version(world: World) -> None:
    other_timestamp(world)


def another_timestamp_of_the_same_version_comes_to_a_wiped_device(world: World) -> None:
    other_timestamp(world)
    wipe(world)


# -- names that lead elsewhere, and things that are no files ---------------------------------------


def a_target_is_called_dot_dot_slash(world: World) -> None:
    """Both parties sign ../../model.onnx: the device asks for the names of its own alone."""
    renamed = {n: d for n, d in SECOND.files().items() if n != "model.onnx"}
    targets = {**renamed, "../../model.onnx": b"evil"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.release.repository.NAME", AnyName())
        evil = world.repository.draft(targets, NOW)
    for key in (COORDINATOR, APPROVER):
        evil = world.repository.sign(evil, key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "_write", quiet_write(Repository._write))
        world.repository.commit(targets, evil, COORDINATOR, NOW)


def the_model_is_a_symbolic_link(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    file.rename(world.path / "moved")
    file.symlink_to(world.path / "moved")


def the_metadata_are_behind_a_symbolic_link(world: World) -> None:
    moved = world.path / "moved"
    (world.repository.path / "metadata").rename(moved)
    (world.repository.path / "metadata").symlink_to(moved)


def the_model_is_a_pipe_that_nobody_writes_to(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    file.unlink()
    os.mkfifo(file)


# -- both parties sign something harmful, or not what the owner allows -----------------------------


def the_model_keeps_its_weights_in_a_second_file(world: World) -> None:
    world.publish(replace(SECOND, onnx_file=hostile.models()["weights in a second file"]))


def the_model_has_an_operator_of_somebodys_own(world: World) -> None:
    world.publish(replace(SECOND, onnx_file=hostile.models()["an operator of somebody's own"]))


def the_model_is_a_zip_bomb(world: World) -> None:
    world.publish(replace(SECOND, onnx_file=hostile.archives()["a zip bomb"]))


def the_weights_are_not_numbers(world: World) -> None:
    world.publish(replace(SECOND, weights=hostile.weights()["not a number"]))


def the_model_is_another(world: World) -> None:
    plan = replace(SECOND.plan, release=replace(SECOND.plan.release, name="other-model"))
    world.publish(replace(SECOND, plan=plan))


def a_wiped_device_is_offered_another_model(world: World) -> None:
    the_model_is_another(world)
    wipe(world)


def the_model_claims_more_epsilon_than_the_owner_allows(world: World) -> None:
    world.publish(replace(SECOND, epsilon=3.01))


def the_model_is_simulated(world: World) -> None:
    world.publish(replace(SECOND, simulated=True))


ATTACKS: list[tuple[Callable[[World], Conditions | None], str]] = [
    (a_bit_of_the_model_is_flipped, "wrong-digest"),
    (the_model_is_cut_short, "wrong-digest"),
    (the_weights_are_cut_short, "wrong-digest"),
    (a_byte_follows_the_model, "wrong-length"),
    (the_weights_never_end, "wrong-length"),
    (the_timestamp_never_ends, "wrong-length"),
    (the_snapshot_is_that_of_another_release, "wrong-digest"),
    (one_file_is_that_of_another_release, "wrong-digest"),
    (the_statement_is_that_of_another_release, "wrong-digest"),
    (an_older_repository_is_replayed, "rollback"),
    (an_older_repository_is_replayed_to_a_wiped_device, "rollback"),
    (an_older_repository_is_replayed_to_a_device_without_its_keys, "too-old"),
    (an_older_timestamp_of_the_same_release_is_replayed_to_a_wiped_device, "rollback"),
    (an_older_release_comes_in_newer_metadata, "rollback"),
    (an_older_release_comes_to_a_wiped_device_in_newer_metadata, "rollback"),
    (an_older_release_comes_after_the_pointer_was_deleted, "rollback"),
    (the_repository_is_frozen, "expired"),
    (a_newer_release_is_held_back_until_it_expired, "expired"),
    (the_clock_is_set_back, "expired"),
    (the_clock_of_a_wiped_device_is_set_back, "expired"),
    (the_repository_is_another_partys, "bad-signature"),
    (one_of_two_signs_the_targets, "bad-signature"),
    (one_of_two_signs_the_targets_twice, "bad-metadata"),
    (one_of_two_signs_the_statement, "bad-signature"),
    (a_revoked_key_signs, "bad-signature"),
    (a_revoked_key_is_played_to_a_wiped_device_with_its_old_root, "rollback"),
    (another_release_has_the_same_version, "equivocation"),
    (another_release_of_the_same_version_comes_to_a_wiped_device, "equivocation"),
    (another_timestamp_has_the_same_version, "equivocation"),
    (another_timestamp_of_the_same_version_comes_to_a_wiped_device, "equivocation"),
    (a_target_is_called_dot_dot_slash, "incomplete-release"),
    (the_model_is_a_symbolic_link, "wrong-length"),
    (the_metadata_are_behind_a_symbolic_link, "wrong-length"),
    (the_model_is_a_pipe_that_nobody_writes_to, "wrong-length"),
    (the_model_keeps_its_weights_in_a_second_file, "external-data"),
    (the_model_has_an_operator_of_somebodys_own, "unknown-operator"),
    (the_model_is_a_zip_bomb, "bad-model"),
    (the_weights_are_not_numbers, "bad-weights"),
    (the_model_is_another, "other-model"),
    (a_wiped_device_is_offered_another_model, "other-model"),
    (the_model_claims_more_epsilon_than_the_owner_allows, "policy"),
    (the_model_is_simulated, "simulated"),
]


@pytest.mark.parametrize(("attack", "code"), ATTACKS, ids=[act.__name__ for act, _ in ATTACKS])
def test_is_refused_and_changes_nothing(
    world: World, attack: Callable[[World], Conditions | None], code: str
) -> None:
    conditions = attack(world) or {}
    installed = world.home.current.exists()
    expected = answers(world.home) if installed else None
    outside = contents(world.path, without=()).keys()
    assert refused(world.home, **conditions).code == code
    assert contents(world.path, without=()).keys() - outside <= {
        "device/decisions.jsonl",
        "device.keys/floor.json",  # counts the refusal
        *(f"device/tuf/{name}" for name in contents(world.home.tuf)),
    }
    if installed:
        np.testing.assert_array_equal(answers(world.home), expected)
    else:
        assert not world.home.current.exists()
    if isinstance(conditions.get("fetcher"), Endless):
        assert conditions["fetcher"].served < 10**6


def test_the_control_is_accepted(world: World) -> None:
    """A legitimate newer release, after a legitimate new key: the list above refuses attacks."""
    rotate(world, [RECOVERY, APPROVER], coordinator=STRANGER)
    publish_as(world, SECOND, STRANGER)
    assert update(world.home, NOW).version == 2
    wipe(world)
    assert update(world.home, NOW).version == 2
    np.testing.assert_allclose(answers(world.home), SECOND.model.answer(RECORDS), atol=1e-6)


def test_timestamps_count_anew_under_a_new_key(world: World) -> None:
    """A thief of the old key may have counted to any number: TUF's recovery (5.3.11)."""
    for _ in range(3):
        world.repository.renew(COORDINATOR, NOW)
    update(world.home, NOW)
    assert world.home.floor.timestamp == 4
    rotate(world, [RECOVERY, APPROVER], coordinator=STRANGER)
    for name in ("timestamp.json", "1.targets.json"):
        (world.repository.path / "metadata" / name).unlink()
    publish_as(world, SECOND, STRANGER)
    assert update(world.home, NOW).version == 2
    assert world.home.floor.timestamp == 1


# -- what a refusal leaves for others to see -------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "what"),
    [
        (another_release_of_the_same_version_comes_to_a_wiped_device, "release"),
        (another_timestamp_of_the_same_version_comes_to_a_wiped_device, "timestamp"),
        (another_timestamp_has_the_same_version, "timestamp"),
    ],
)
def test_two_under_one_number_are_logged_with_both_digests(
    world: World, attack: Callable[[World], None], what: str
) -> None:
    attack(world)
    had = world.home.floor
    refused(world.home)
    evidence = decisions(world.home)[-1]["evidence"]
    kept = {"release": had.digest, "timestamp": had.timestamp_digest}[what]
    assert (evidence["what"], evidence["version"], evidence["had"]) == (what, "1", kept)
    assert len(evidence["offered"]) == 64
    assert evidence["offered"] != kept


def test_a_clock_behind_the_last_contact_is_told(world: World) -> None:
    outcome = update(world.home, NOW - 3 * DAY)
    assert not outcome.installed
    assert "clock is behind its last contact of 2030-05-17" in outcome.notice


# -- the disk --------------------------------------------------------------------------------------


def a_bit_of_a_sealed_file_is_flipped(world: World) -> DeviceHome:
    file = world.home.slots / "a" / "model.onnx.sealed"
    data = bytearray(file.read_bytes())
    data[60] ^= 1
    file.write_bytes(data)
    return world.home


def the_model_is_put_there_unsealed(world: World) -> DeviceHome:
    file = world.home.slots / "a" / "model.onnx.sealed"
    file.write_bytes(FIRST.files()["model.onnx"])
    return world.home


def another_model_is_sealed_with_the_devices_key(world: World) -> DeviceHome:
    """By whoever has both directories: the pointer says so too, and the signatures do not."""
    other = SECOND.files()["model.onnx"]
    pointer = json.loads(world.home.current.read_bytes())
    pointer["release"]["digests"]["model.onnx"] = slots.digest(other)
    world.home.current.write_bytes(slots.encode(pointer))
    what = slots.Current.decode(world.home.current.read_bytes()).release.sealed_as("model.onnx")
    sealed = world.home.identity.seal(other, what)
    (world.home.slots / "a" / "model.onnx.sealed").write_bytes(sealed)
    return world.home


def the_version_is_changed(world: World) -> DeviceHome:
    """A sealed model opens as its own version alone."""
    file = world.home.current
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":2'))
    return world.home


def the_directory_is_put_back_to_an_older_copy(world: World) -> DeviceHome:
    shutil.copytree(world.home.path, world.path / "backup")
    world.publish(SECOND)
    update(world.home, NOW)
    shutil.rmtree(world.home.path)
    shutil.copytree(world.path / "backup", world.home.path)
    return DeviceHome(world.home.path)


def the_directory_is_copied_to_another_device(world: World) -> DeviceHome:
    other = world.device("other")
    file = world.home.path / "device.json"
    shutil.rmtree(other.path)
    shutil.copytree(world.home.path, other.path)
    assert json.loads(file.read_bytes())["keys"] is None
    return DeviceHome(other.path)


def the_slots_are_copied_to_another_device(world: World) -> DeviceHome:
    other = world.device("other")
    shutil.rmtree(other.slots)
    shutil.copytree(world.home.slots, other.slots)
    shutil.copy(world.home.current, other.current)
    return other


DISK = [
    (a_bit_of_a_sealed_file_is_flipped, "damaged"),
    (the_model_is_put_there_unsealed, "damaged"),
    (another_model_is_sealed_with_the_devices_key, "wrong-digest"),
    (the_version_is_changed, "damaged"),
    (the_directory_is_put_back_to_an_older_copy, "rolled-back"),
    (the_directory_is_copied_to_another_device, "another-device"),
    (the_slots_are_copied_to_another_device, "damaged"),
]


@pytest.mark.parametrize(("attack", "code"), DISK, ids=[act.__name__ for act, _ in DISK])
def test_on_the_disk_is_refused_at_the_next_start(
    world: World, attack: Callable[[World], DeviceHome], code: str
) -> None:
    home = attack(world)
    before = contents(world.path, without=())
    with pytest.raises(TrustError) as caught:
        Predictor.load(home)
    assert (caught.value.code, caught.value.exit_code) == (code, 11)
    assert contents(world.path, without=()) == before


def test_a_stolen_directory_does_not_show_the_model(world: World) -> None:
    """Neither file of it, nor a long piece of one, lies anywhere in the device's directory."""
    files = FIRST.files()
    for data in contents(world.home.path, without=()).values():
        for name in ("model.onnx", "model.safetensors"):
            assert files[name][-48:] not in data
    assert not [file for file in world.home.path.rglob("*") if "key" in file.name]
