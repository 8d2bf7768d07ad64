"""Whose signature counts after a key changed is the owner's to say, and no repository's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.device.home import DeviceHome
from client.device.rollback import roll_back
from client.device.runtime import Predictor
from client.device.status import Status
from client.device.succession import successors
from client.device.updater import update
from common.bundle import Trust
from common.errors import TrustError
from common.keys import SigningKey
from server.release.repository import Repository
from server.release.roots import draft_root, roles_in, sign_root
from server.release.succession import draft
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    NOW,
    POLICY,
    RECOVERY,
    STRANGER,
    Recipe,
    World,
    contents,
)
from tests.privet.test_cli import call

NEW, NEWER = (SigningKey.from_seed(bytes([number]) * 32) for number in (8, 9))
Key = SigningKey


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A device with version 1, and a repository whose approver's key was replaced since."""
    world = World.make(tmp_path)
    world.publish(Recipe(version=1))
    update(world.home, NOW)
    rotate(world, "approver", [COORDINATOR, APPROVER, NEW], NEW)
    return world


def rotate(world: World, party: str, signers: list[Key], new: Key, **options: Any) -> None:
    change = draft(world.repository, party, new.public, NOW, **options)
    for signer in signers:
        change = change.signed_by(signer, NOW)
    change.commit(world.repository, signers, NOW)
    world.repository = Repository(world.repository.path)


def publish(world: World, version: int, signers: tuple[Key, ...], targets: list[Key]) -> None:
    files = Recipe(version=version, statement_signers=signers).files()
    world.repository.publish(files, targets, targets[0], NOW)


def follow(home: DeviceHome) -> None:
    home.set_policy(replace(home.policy, follow_root=True))


def test_a_successors_statement_is_refused_and_the_refusal_says_who_took_whose_place(
    world: World,
) -> None:
    publish(world, 3, (COORDINATOR, NEW), [COORDINATOR, NEW])
    before = contents(world.home.slots)
    with pytest.raises(TrustError) as caught:
        update(world.home, NOW)
    assert caught.value.code == "successor"
    assert NEW.public.fingerprint in caught.value.message
    assert APPROVER.public.fingerprint in caught.value.message
    assert "privet device trust" in caught.value.hint
    assert contents(world.home.slots) == before
    assert Predictor.load(world.home).version == 1


def test_an_owner_who_follows_the_root_gets_the_successors_release(world: World) -> None:
    publish(world, 3, (COORDINATOR, NEW), [COORDINATOR, NEW])
    follow(world.home)
    assert update(world.home, NOW).version == 3
    assert Predictor.load(world.home).version == 3
    rotate(world, "approver", [COORDINATOR, NEW, NEWER], NEWER)
    publish(world, 5, (COORDINATOR, NEWER), [COORDINATOR, NEWER])
    assert update(world.home, NOW).version == 5
    world.home.set_policy(POLICY)  # the owner changes their mind: what is installed stops too
    with pytest.raises(TrustError) as caught:
        Predictor.load(world.home)
    assert caught.value.code == "successor"


def test_a_device_that_follows_the_root_is_whole_and_can_go_back_to_a_successors_release(
    world: World,
) -> None:
    follow(world.home)
    for version in (3, 4):
        publish(world, version, (COORDINATOR, NEW), [COORDINATOR, NEW])
        assert update(world.home, NOW).version == version
    assert Status.of(world.home).wrong == ()
    assert roll_back(world.home, NOW).version == 3
    assert Predictor.load(world.home).version == 3
    assert Status.of(world.home).wrong == ()


def test_an_owner_who_names_the_new_key_needs_no_root_for_it(world: World) -> None:
    publish(world, 3, (COORDINATOR, NEW), [COORDINATOR, NEW])
    signers = (COORDINATOR.public.fingerprint, NEW.public.fingerprint)
    world.home.set_policy(replace(POLICY, signers=signers))
    assert update(world.home, NOW).version == 3


def test_a_key_and_its_successor_are_one_party(world: World) -> None:
    publish(world, 3, (APPROVER, NEW), [COORDINATOR, NEW])
    follow(world.home)
    with pytest.raises(TrustError) as caught:
        update(world.home, NOW)
    assert caught.value.code == "bad-signature"


def test_who_succeeded_nobody_that_is_named_signs_for_nobody(world: World) -> None:
    publish(world, 3, (COORDINATOR, RECOVERY, STRANGER), [COORDINATOR, NEW])
    follow(world.home)
    with pytest.raises(TrustError) as caught:
        update(world.home, NOW)
    assert caught.value.code == "bad-signature"


def test_another_federations_key_takes_the_place_of_a_stolen_one(world: World) -> None:
    rotate(world, "coordinator", [NEW, RECOVERY, NEWER], NEWER, revoked=True, speaks=True)
    publish(world, 4, (NEWER, NEW), [NEWER, NEW])
    with pytest.raises(TrustError) as caught:
        update(world.home, NOW)
    assert caught.value.code == "successor"
    follow(world.home)
    assert update(world.home, NOW).version == 4


def test_a_coordinators_key_for_releases_alone_makes_nobody_a_successor(world: World) -> None:
    rotate(world, "coordinator", [COORDINATOR, NEW, NEWER], NEWER)
    publish(world, 4, (NEWER, NEW), [NEWER, NEW])
    follow(world.home)
    with pytest.raises(TrustError) as caught:
        update(world.home, NOW)
    assert caught.value.code == "bad-signature"  # it signs metadata, and no statement
    publish(world, 5, (COORDINATOR, NEW), [NEWER, NEW])
    assert update(world.home, NOW).version == 5


def test_a_root_counts_for_successors_only_if_it_follows(world: World) -> None:
    first = (world.home.path / "root.json").read_bytes()
    roles = roles_in(first)
    forged = draft_root(replace(roles, approver=STRANGER.public), NOW, version=2)
    signers = POLICY.signers
    for keys in ([], [STRANGER], [STRANGER, APPROVER]):
        root = forged
        for key in keys:
            root = sign_root(root, key)
        assert successors([first, root], signers) == {}
    for key in (COORDINATOR, RECOVERY):
        forged = sign_root(forged, key)
    expected = {STRANGER.public.fingerprint: APPROVER.public.fingerprint}
    assert successors([forged, first], signers) == expected
    skipped = draft_root(replace(roles, approver=STRANGER.public), NOW, version=3)
    for key in (COORDINATOR, RECOVERY):
        skipped = sign_root(skipped, key)
    assert successors([first, skipped, b"{}", b"nothing"], signers) == {}


def test_an_owner_sees_and_says_whom_a_device_trusts(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(world, 3, (COORDINATOR, NEW), [COORDINATOR, NEW])
    device = world.home.path
    assert call(capsys, "device", "update", device)[1]["code"] == "successor"
    code, data = call(capsys, "device", "trust", device)
    assert (code, data["follow_root"]) == (0, False)
    assert data["successors"] == {NEW.public.fingerprint: APPROVER.public.fingerprint}
    before = (device / "policy.json").read_bytes()
    assert before == world.home.policy.encode()
    code, data = call(capsys, "device", "trust", device, "--follow-root")
    assert (code, data["follow_root"]) == (0, True)
    assert call(capsys, "device", "trust", device, "--no-follow-root")[0] == 0
    assert (device / "policy.json").read_bytes() == before
    signers = {"coordinator": COORDINATOR.public.fingerprint, "approver": NEW.public.fingerprint}
    Trust(signers, {}).write(tmp_path / "trust.json")
    code, data = call(capsys, "device", "trust", device, "--signers", tmp_path / "trust.json")
    assert (code, set(data["signers"])) == (0, set(signers.values()))
    assert data["successors"] == {}
    assert call(capsys, "device", "trust", device, "--signers", tmp_path / "no.json")[0] == 4
