"""What no device needs is removed, and nothing that any device may still ask for."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from client.device.home import DeviceHome
from client.device.updater import update
from common.canonical import digest
from common.errors import OperationError, TrustError
from common.keys import SigningKey
from server.release.pruning import Pruned, prune
from server.release.repository import Repository
from server.release.succession import draft
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    DAY,
    NOW,
    POLICY,
    ROLES,
    Recipe,
    World,
    contents,
)
from tests.world import killed_at

BOTH = [COORDINATOR, APPROVER]
NEW = SigningKey.from_seed(b"\x08" * 32)
killed_often = pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.figures)])
LATER = NOW + 60 * DAY  # every snapshot but the newest has ended


def release(version: int) -> dict[str, bytes]:
    return {"model": b"model %d" % version, "card": b"the same in each"}


def published(path: Path, releases: int) -> Repository:
    """So many releases, a month after one another, the last one just before ``LATER``."""
    repository = Repository.create(path / "repository", BOTH, ROLES, NOW - 400 * DAY)
    for version in range(1, releases + 1):
        then = LATER - (releases - version) * 31 * DAY - timedelta(hours=1)
        repository.publish(release(version), BOTH, COORDINATOR, then)
    return repository


def names(*versions: int) -> set[str]:
    """The published files of these releases, as they lie in a repository."""
    files = [item for version in versions for item in release(version).items()]
    return {f"targets/{digest(data)}.{name}" for name, data in files}


def rotated(repository: Repository) -> None:
    change = draft(repository, "approver", NEW.public, NOW)
    for signer in (COORDINATOR, APPROVER, NEW):
        change = change.signed_by(signer, NOW)
    change.commit(repository, [COORDINATOR], NOW)


def whole(repository: Repository) -> None:
    """Whatever metadata lies here names nothing that is missing."""
    there = set(contents(repository.path))
    for name, data in contents(repository.path / "metadata").items():
        signed = json.loads(data)["signed"]
        if signed["_type"] == "targets":
            files = {f"targets/{file['hashes']['sha256']}.{target}"
                     for target, file in signed["targets"].items()}  # fmt: skip
            assert files <= there, name
        elif signed["_type"] == "snapshot":
            version = signed["meta"]["targets.json"]["version"]
            assert f"metadata/{version}.targets.json" in there, name


# -- what stays ----------------------------------------------------------------------------------


def test_what_is_published_the_release_before_and_every_root_stay(tmp_path: Path) -> None:
    repository = published(tmp_path, releases=5)
    pruned = prune(repository, LATER)
    assert set(contents(repository.path)) == names(4, 5) | {
        "metadata/1.root.json", "metadata/4.targets.json", "metadata/5.targets.json",
        "metadata/4.snapshot.json", "metadata/5.snapshot.json", "metadata/timestamp.json",
    }  # fmt: skip
    gone = {f"metadata/{n}.{kind}.json" for n in (1, 2, 3) for kind in ("snapshot", "targets")}
    assert set(pruned.removed) == gone | (names(1, 2, 3) - names(4))
    assert pruned.kept == len(contents(repository.path))
    assert prune(repository, LATER) == Pruned({}, pruned.kept)


def test_the_release_before_stays_where_no_snapshot_names_it_any_more(tmp_path: Path) -> None:
    repository = published(tmp_path, releases=4)
    (repository.path / "metadata" / "3.snapshot.json").unlink()
    prune(repository, LATER)
    assert names(3) <= set(contents(repository.path))
    assert [version for version, _ in repository.versions("targets")] == [3, 4]


def test_a_root_that_does_not_follow_keeps_everything(tmp_path: Path) -> None:
    repository = published(tmp_path, releases=3)
    rotated(repository)
    (repository.path / "metadata" / "1.root.json").write_bytes(repository.root)
    before = contents(repository.path)
    with pytest.raises(TrustError):
        prune(repository, LATER)
    assert contents(repository.path) == before


def test_a_file_that_releases_share_stays_while_one_of_them_does(tmp_path: Path) -> None:
    repository = published(tmp_path, releases=3)
    prune(repository, LATER)
    assert set(repository.files()) == {"model", "card"}


@pytest.mark.parametrize(("days", "left"), [(0, 12), (30, 12), (31, 11), (50, 5), (90, 2)])
def test_a_snapshot_stays_until_it_ends_by_every_clock(
    tmp_path: Path, days: int, left: int
) -> None:
    """Two releases, and the second one renewed every third day for a month. A snapshot holds for
    30 days, and a device's clock may be a day behind; the first one names the release before."""
    repository = Repository.create(tmp_path / "repository", BOTH, ROLES, NOW)
    for version in (1, 2):
        repository.publish(release(version), BOTH, COORDINATOR, NOW)
    for day in range(3, 31, 3):
        repository.renew(COORDINATOR, NOW + day * DAY)
    prune(repository, NOW + days * DAY)
    signed = {1: 0, 2: 0, **{3 + number: 3 + 3 * number for number in range(10)}}
    stay = {number for number, day in signed.items() if day + 30 + 1 > days} | {1, 12}
    assert {number for number, _ in repository.versions("snapshot")} == stay
    assert len(stay) == left
    whole(repository)


def test_after_a_rotation_the_release_before_is_the_one_with_other_files(tmp_path: Path) -> None:
    """The rotation signs the same files once more, as a version of its own."""
    repository = published(tmp_path, releases=3)
    rotated(repository)
    prune(repository, LATER + 90 * DAY)
    assert [version for version, _ in repository.versions("targets")] == [2, 4]
    assert {name for name in contents(repository.path) if "targets/" in name} == names(2, 3)


@killed_often
def test_what_was_begun_stays_and_can_be_finished(tmp_path: Path, every: int) -> None:
    repository, files = published(tmp_path, releases=3), release(4)
    signed = repository.draft(files, NOW)
    for key in BOTH:
        signed = repository.sign(signed, key)
    step, died = 1 - every, True
    while died:
        step += every
        copy = tmp_path / str(step)
        shutil.copytree(repository.path, copy)
        died = killed_at(
            step, lambda c=copy: Repository(c).commit(files, signed, COORDINATOR, NOW)  # type: ignore[misc]
        )  # fmt: skip
        here = Repository(copy)
        begun = [name for name in here.begun() if not name.startswith(".")]
        prune(here, LATER)
        assert (here.begun(), bool(here.files())) == (begun, True)
        if not here.holds(files, signed):
            assert here.commit(files, signed, COORDINATOR, NOW) == 4
        assert not here.begun()
    assert step > 5 * 3  # two files, and three of metadata


def test_what_is_no_part_of_a_repository_is_left_alone(tmp_path: Path) -> None:
    repository = published(tmp_path, releases=4)
    strangers = ["index.html", "metadata/notes.json", "metadata/x.targets.json",
                 f"targets/{'G' * 64}.model", "targets/model", f"targets/{'a' * 64}"]  # fmt: skip
    for name in strangers:
        (repository.path / name).write_bytes(b"mine")
    left = repository.path / "targets" / ".model.x.tmp"
    left.write_bytes(b"torn")
    prune(repository, LATER)
    assert all((repository.path / name).read_bytes() == b"mine" for name in strangers)
    assert not left.exists()  # what a killed write left


# -- devices -------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three releases, of which a device has the first; then the approver's key changed."""
    made = World.make(tmp_path)
    made.publish(Recipe(version=1))
    update(made.home, NOW)
    made.publish(Recipe(version=2))
    made.publish(Recipe(version=3))
    rotated(made.repository)
    return made


def first_enrolled(world: World, name: str, repository: str) -> DeviceHome:
    """A device that was given the first root, and has to walk to the newest one."""
    root = (world.repository.path / "metadata" / "1.root.json").read_bytes()
    return DeviceHome.init(world.path / name, root, replace(POLICY, repository=repository))


def test_devices_old_and_new_are_served_after_it(world: World) -> None:
    repository = Repository(world.repository.path)
    repository.renew(COORDINATOR, LATER)
    assert prune(repository, LATER).removed
    for home in (world.home, first_enrolled(world, "fresh", "../repository")):
        assert update(home, LATER).version == 3
        assert "root_history/2.root.json" in contents(home.tuf)


@killed_often
def test_killed_at_any_removal_devices_are_served_and_the_same_call_goes_on(
    world: World, every: int
) -> None:
    repository = Repository(world.repository.path)
    repository.renew(COORDINATOR, LATER)
    expected = world.path / "expected"
    shutil.copytree(repository.path, expected)
    count = len(prune(Repository(expected), LATER).removed)
    before, step, died = contents(repository.path), 1 - every, True
    while died:
        step += every
        copy = world.path / f"killed-{step}" / "repository"
        shutil.copytree(repository.path, copy)
        died = killed_at(step, lambda c=copy: prune(Repository(c), LATER))  # type: ignore[misc]
        here = Repository(copy)
        assert set(here.files()) == set(repository.files())
        whole(here)
        if step % (6 * every) == 1:
            home = first_enrolled(world, f"device-{step}", str(copy))
            assert update(home, LATER).version == 3
        prune(here, LATER)
        assert contents(copy) == contents(expected)
    assert step > 2 * count  # one before and one after each removal
    assert contents(repository.path) == before


# -- what is refused -----------------------------------------------------------------------------


def test_a_dry_run_tells_the_same_and_removes_nothing(tmp_path: Path) -> None:
    repository = published(tmp_path, releases=4)
    before = contents(repository.path)
    told = prune(repository, LATER, dry_run=True)
    assert contents(repository.path) == before
    assert told == prune(repository, LATER)
    assert (
        told.removed.items()
        == {name: len(data) for name, data in before.items() if name in told.removed}.items()
    )


@pytest.mark.parametrize(
    "name",
    ["1.root.json", "timestamp.json", "4.snapshot.json", "4.targets.json", "3.targets.json",
     "1.targets.json", "1.snapshot.json", "model"],
)  # fmt: skip
def test_where_something_does_not_verify_nothing_is_removed(tmp_path: Path, name: str) -> None:
    repository = published(tmp_path, releases=4)
    (file,) = repository.path.glob(f"metadata/{name}") if "." in name else [
        repository.path / "targets" / f"{digest(release(4)[name])}.{name}"]  # fmt: skip
    file.write_bytes(file.read_bytes().replace(b"4", b"5").replace(b'"version":', b'"version":1'))
    before = contents(repository.path)
    with pytest.raises(TrustError):
        prune(repository, LATER)
    assert contents(repository.path) == before


def test_an_interrupted_revocation_is_finished_before_anything_is_removed(tmp_path: Path) -> None:
    repository = published(tmp_path, releases=3)
    change = draft(repository, "coordinator", NEW.public, NOW, revoked=True, speaks=True)
    (repository.path / "metadata" / "2.root.json").write_bytes(change.root)
    before = contents(repository.path)
    with pytest.raises(TrustError):
        prune(repository, LATER)
    assert contents(repository.path) == before


def test_a_disk_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = published(tmp_path, releases=3)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = contents(repository.path)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OperationError) as caught:
        prune(repository, LATER)
    assert (caught.value.code, bool(caught.value.hint)) == ("cannot-write", True)
    assert contents(repository.path) == before


def test_a_repository_without_a_release_has_nothing_to_remove(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "repository", BOTH, ROLES, NOW)
    assert prune(repository, LATER) == Pruned({}, 1)
    with pytest.raises(OperationError):
        prune(Repository(tmp_path / "none"), LATER)
