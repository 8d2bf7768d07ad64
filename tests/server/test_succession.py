"""Keys change, and devices go on: nobody is replaced but by those who may."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.updater import update
from common.errors import InputError, TrustError
from common.keys import SigningKey
from server.release.published import Published
from server.release.repository import Repository
from server.release.roots import Expiry, Roles, draft_root, roles_in, sign_root
from server.release.standing import keys_of, standing
from server.release.succession import MAX_BYTES, Change, draft
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    DAY,
    NOW,
    POLICY,
    RECORDS,
    RECOVERY,
    ROLES,
    STRANGER,
    Recipe,
    World,
    contents,
    kill_at_every_write,
)
from tests.server.test_release_repository import TARGETS_WITH_MORE, add_to

NEW, NEWER = (SigningKey.from_seed(bytes([number]) * 32) for number in (8, 9))
FIRST = Recipe(version=1)
FORMER = {"coordinator": COORDINATOR, "approver": APPROVER, "recovery": RECOVERY}
ROTATIONS = [
    ("coordinator", [COORDINATOR, NEW, APPROVER]),
    ("approver", [COORDINATOR, APPROVER, NEW]),
    ("recovery", [COORDINATOR, APPROVER, NEW]),
]
REVOCATIONS = [
    ("coordinator", [APPROVER, RECOVERY, NEW]),
    ("approver", [COORDINATOR, RECOVERY, NEW]),
    ("recovery", [COORDINATOR, APPROVER, NEW]),
]
CASES = [(*case, False) for case in ROTATIONS] + [(*case, True) for case in REVOCATIONS]
every_change = pytest.mark.parametrize(("party", "signers", "revoked"), CASES)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A repository with version 1, and a device that has it."""
    made = World.make(tmp_path)
    made.publish(FIRST)
    update(made.home, NOW)
    return made


def changed(
    repository: Published,
    party: str,
    signers: Sequence[SigningKey],
    *,
    new: SigningKey = NEW,
    revoked: bool = False,
) -> Change:
    """A change that these have signed, each where its key is. A coordinator whose key is the
    federation's can only be revoked in favour of another federation."""
    speaks = revoked and party == "coordinator"
    change = draft(repository, party, new.public, NOW, revoked=revoked, speaks=speaks)
    for signer in signers:
        change = change.signed_by(signer, NOW)
    return change


def put_in_force(world: World, change: Change, keys: Sequence[SigningKey]) -> None:
    change.commit(world.repository, keys, NOW)
    world.repository = Repository(world.repository.path)


def keys_after(party: str, new: SigningKey = NEW) -> list[SigningKey]:
    """Who signs targets once ``party`` has a new key: coordinator and approver."""
    now = {**FORMER, party: new}
    return [now["coordinator"], now["approver"]]


# -- what works ----------------------------------------------------------------------------------


@every_change
def test_a_new_key_takes_its_place_and_devices_old_and_new_go_on(
    world: World, party: str, signers: list[SigningKey], revoked: bool
) -> None:
    put_in_force(world, changed(world.repository, party, signers, revoked=revoked), [
        COORDINATOR, NEW])  # fmt: skip
    assert roles_in(world.repository.root).keys == {**ROLES.keys, party: NEW.public}
    assert not update(world.home, NOW).installed  # the release that it has is the one that is there
    fresh = DeviceHome.init(world.path / "fresh", world.repository.root, POLICY)
    old = world.device("old")
    (old.path / "root.json").write_bytes((world.home.path / "root.json").read_bytes())
    assert update(old, NOW).version == 1
    # A signer of the statement whom the new root lists no more is unknown to who begins with it.
    if set(POLICY.signers) <= {key.fingerprint for key in roles_in(world.repository.root).known}:
        assert update(fresh, NOW).version == 1
    else:
        with pytest.raises(TrustError, match="required signatures"):
            update(fresh, NOW)
    both = keys_after(party)
    world.repository.publish(Recipe(version=3).files(), both, both[0], NOW)
    assert update(world.home, NOW).version == 3


def test_a_device_that_was_away_for_two_rotations_follows_both(world: World) -> None:
    put_in_force(world, changed(world.repository, *ROTATIONS[1]), [COORDINATOR])
    second = changed(world.repository, "coordinator", [COORDINATOR, NEWER, NEW], new=NEWER)
    put_in_force(world, second, [COORDINATOR, NEWER])
    world.repository.publish(Recipe(version=4).files(), [NEWER, NEW], NEWER, NOW)
    assert update(world.home, NOW).version == 4
    assert {"root_history/2.root.json", "root_history/3.root.json"} <= set(contents(world.home.tuf))


def test_a_coordinator_with_a_key_for_releases_alone_goes_on_signing_statements_with_its_first(
    world: World,
) -> None:
    put_in_force(world, changed(world.repository, *ROTATIONS[0]), [COORDINATOR, NEW])
    roles = roles_in(world.repository.root)
    assert (roles.coordinator, roles.speaker) == (NEW.public, COORDINATOR.public)
    with pytest.raises(TrustError, match="not signed as the root requires"):
        world.repository.publish(Recipe(version=3).files(), [COORDINATOR, APPROVER], NEW, NOW)
    fresh = DeviceHome.init(world.path / "fresh", world.repository.root, POLICY)
    assert update(fresh, NOW).version == 1  # the root lists the first key, so its bytes are known
    # The one for releases is stolen: the federation's own is not, and stays.
    signers = [APPROVER, RECOVERY, NEWER]
    change = draft(world.repository, "coordinator", NEWER.public, NOW, revoked=True)
    for signer in signers:
        change = change.signed_by(signer, NOW)
    put_in_force(world, change, [COORDINATOR, NEWER])
    assert roles_in(world.repository.root).speaker == COORDINATOR.public
    assert update(world.home, NOW).version == 1


def test_nothing_is_published_yet_and_a_key_changes_all_the_same(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    change = changed(world.repository, "approver", [COORDINATOR, RECOVERY, NEW], revoked=True)
    assert change.targets is None
    put_in_force(world, change, [])
    world.repository.publish(FIRST.files(), [COORDINATOR, NEW], COORDINATOR, NOW)
    assert update(world.home, NOW).version == 1


def test_copies_that_parties_signed_apart_are_one_change(world: World, tmp_path: Path) -> None:
    unsigned = changed(world.repository, "approver", [])
    copies = []
    for number, signer in enumerate([COORDINATOR, APPROVER, NEW]):
        unsigned.write(tmp_path / f"{number}")
        Change.read(tmp_path / f"{number}").signed_by(signer, NOW).write(tmp_path / f"{number}s")
        copies.append(Change.read(tmp_path / f"{number}s"))
    assert all(copy.missing() for copy in copies)
    whole = copies[0].joined(copies[1]).joined(copies[2])
    assert whole.missing() == []
    put_in_force(world, whole, [COORDINATOR])
    assert update(world.home, NOW).version == 1


# -- what is refused -----------------------------------------------------------------------------


@every_change
def test_a_change_that_lacks_any_signature_is_refused_and_nothing_is_written(
    world: World, party: str, signers: list[SigningKey], revoked: bool
) -> None:
    before = contents(world.repository.path)
    for missing in signers:
        some = [signer for signer in signers if signer is not missing]
        change = changed(world.repository, party, some, revoked=revoked)
        with pytest.raises(TrustError) as caught:
            change.commit(world.repository, [COORDINATOR, NEW], NOW)
        assert caught.value.code == "signatures-missing"
        assert missing.public.fingerprint[:16] in caught.value.message
    assert contents(world.repository.path) == before


@pytest.mark.parametrize("party", ["coordinator", "approver"])
def test_a_stolen_key_publishes_nothing_after_it_was_revoked(world: World, party: str) -> None:
    (case,) = [case for case in REVOCATIONS if case[0] == party]
    # What was drafted and signed before, and what the thief signs afterwards with the other one.
    early = world.repository.draft(Recipe(version=2).files(), NOW)
    for key in (COORDINATOR, APPROVER):
        early = world.repository.sign(early, key)
    put_in_force(world, changed(world.repository, *case, revoked=True), [COORDINATOR, NEW])
    before = contents(world.repository.path)
    for targets in (early, world.repository.draft(Recipe(version=3).files(), NOW)):
        signed = targets
        for key in (COORDINATOR, APPROVER):
            signed = world.repository.sign(signed, key)
        with pytest.raises(TrustError, match="not signed as the root requires"):
            world.repository.commit(Recipe(version=3).files(), signed, COORDINATOR, NOW)
    assert contents(world.repository.path) == before
    update(world.home, NOW)
    _force(world, Recipe(version=3), [COORDINATOR, APPROVER])
    kept = contents(world.home.path)
    with pytest.raises(TrustError) as caught:
        update(world.home, NOW)
    assert caught.value.code == "bad-signature"
    assert contents(world.home.path) == kept


def _force(world: World, recipe: Recipe, signers: list[SigningKey]) -> None:
    """Publish as the thief of a repository's disk would, past the publisher's own checks."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("published", "repository"):
            patch.setattr(f"server.release.{module}.require", lambda root, metadata: None)
        world.repository.publish(recipe.files(), signers, signers[0], NOW)


def test_a_thief_with_one_key_cannot_replace_another(world: World) -> None:
    """The stolen key and one that the thief made: two of the new root's keys, one of the old."""
    change = changed(world.repository, "recovery", [APPROVER, NEW])
    with pytest.raises(TrustError) as caught:
        change.commit(world.repository, [], NOW)
    assert caught.value.code == "signatures-missing"
    (world.repository.path / "metadata" / "2.root.json").write_bytes(change.root)
    kept = contents(world.home.path)
    with pytest.raises(TrustError):
        update(world.home, NOW)
    assert contents(world.home.path) == kept


def test_a_draft_of_a_release_from_before_a_rotation_is_refused_after_it(world: World) -> None:
    files = Recipe(version=2).files()
    early = world.repository.sign(
        world.repository.sign(world.repository.draft(files, NOW), COORDINATOR), APPROVER
    )
    put_in_force(world, changed(world.repository, *ROTATIONS[1]), [COORDINATOR])
    before = contents(world.repository.path)
    with pytest.raises(TrustError):
        world.repository.commit(files, early, COORDINATOR, NOW)
    assert contents(world.repository.path) == before


def test_a_change_that_was_drafted_before_something_else_happened_is_refused(world: World) -> None:
    early = changed(world.repository, *ROTATIONS[1])
    world.publish(Recipe(version=2))
    before = contents(world.repository.path)
    with pytest.raises(TrustError) as caught:
        early.commit(world.repository, [COORDINATOR], NOW)
    assert caught.value.code == "root-moved"
    late = changed(world.repository, *ROTATIONS[1])
    other = changed(world.repository, "recovery", [COORDINATOR, APPROVER, NEWER], new=NEWER)
    assert contents(world.repository.path) == before
    put_in_force(world, other, [])
    with pytest.raises(TrustError) as caught:
        late.commit(world.repository, [COORDINATOR], NOW)
    assert caught.value.code == "root-moved"


def test_a_key_that_is_known_already_is_no_new_one(world: World) -> None:
    for key in FORMER.values():
        with pytest.raises(InputError) as caught:
            draft(world.repository, "approver", key.public, NOW)
        assert caught.value.code == "same-key"


def test_the_federations_own_key_is_revoked_by_another_federation_alone(world: World) -> None:
    with pytest.raises(InputError) as caught:
        draft(world.repository, "coordinator", NEW.public, NOW, revoked=True)
    assert caught.value.code == "federation-key"


@pytest.mark.parametrize("signer", [STRANGER, APPROVER])
def test_whose_signature_would_not_count_is_told_so(world: World, signer: SigningKey) -> None:
    change = changed(world.repository, "approver", [], revoked=True)
    with pytest.raises(TrustError) as caught:
        change.signed_by(signer, NOW)
    assert caught.value.code == "not-asked"


def test_a_change_that_does_something_else_than_it_says_is_not_read(
    world: World, tmp_path: Path
) -> None:
    change = changed(world.repository, "approver", [])
    roles = roles_in(change.former)
    two = replace(roles, approver=NEW.public, recovery=NEWER.public)
    listed = replace(roles, approver=NEW.public, federation=APPROVER.public)
    targets = Metadata[Targets].from_bytes(change.targets)
    targets.signed.targets["more"] = TargetFile.from_data("more", b"more")
    skipped = Metadata[Root].from_bytes(change.root)
    skipped.signed.version = 3
    weak = Metadata[Root].from_bytes(change.root)
    weak.signed.roles["targets"].threshold = 1
    crooked = [
        replace_files(change, root=draft_root(two, NOW, version=2)),
        replace_files(change, root=draft_root(roles, NOW, version=2)),
        replace_files(change, root=draft_root(listed, NOW, version=2)),
        replace_files(change, root=skipped.to_bytes()),
        replace_files(change, root=weak.to_bytes()),
        replace_files(change, targets=targets.to_bytes()),
        replace_files(change, targets=b"{}"),
        replace_files(change, former=draft_root(roles, NOW)),
        replace_files(change, former=b"{}"),
    ]
    for number, files in enumerate(crooked):
        folder = tmp_path / str(number)
        change.write(folder)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        with pytest.raises(TrustError):
            Change.read(folder)
    (tmp_path / "0" / "former-targets.json").unlink()
    with pytest.raises(TrustError):
        Change.read(tmp_path / "0")
    (tmp_path / "1" / "1.root.json").unlink()
    with pytest.raises(TrustError):
        Change.read(tmp_path / "1")
    with pytest.raises(InputError):
        Change.read(tmp_path / "nothing")


def test_a_thief_of_one_key_cannot_have_the_others_signed_away(
    world: World, tmp_path: Path
) -> None:
    """The approver's rotation that everybody expects, drafted in a repository of the thief's own
    making, whose other keys are the thief's: with the stolen key real devices would follow it."""
    mine = SigningKey.from_seed(b"\x0a" * 32)
    roles = Roles(STRANGER.public, APPROVER.public, mine.public)
    fake = Repository.create(tmp_path / "fake", [STRANGER, mine], roles, NOW)
    crafted = draft(fake, "approver", NEW.public, NOW)
    crafted.signed_by(APPROVER, NOW)  # by itself nothing is wrong with it
    genuine = draft(world.repository, "approver", NEW.public, NOW)
    trusted = (world.home.path / "root.json").read_bytes()
    with pytest.raises(TrustError) as caught:
        crafted.check_began(trusted)
    assert caught.value.code == "another-repository"
    genuine.check_began(trusted)
    put_in_force(world, changed(world.repository, *ROTATIONS[1]), [COORDINATOR])
    later = draft(world.repository, "recovery", NEWER.public, NOW)
    for root in (trusted, world.repository.root):
        later.check_began(root)
    with pytest.raises(TrustError):
        genuine.check_began(world.repository.root)  # drafted before the root that is trusted


def replace_files(
    change: Change, root: bytes = b"", targets: bytes = b"", former: bytes = b""
) -> dict[str, bytes]:
    files = {"root.json": root, "targets.json": targets, "1.root.json": former}
    return {name: data for name, data in files.items() if data}


@pytest.mark.parametrize("party", ["coordinator", "approver"])
def test_a_change_that_was_drafted_without_what_is_published_is_not_put_in_force(
    world: World, party: str
) -> None:
    """On a copy of the roots alone: under the new root nothing that is published would verify."""
    copy = world.path / "copy" / "metadata"
    copy.mkdir(parents=True)
    shutil.copy(world.repository.path / "metadata" / "1.root.json", copy)
    signers = dict(REVOCATIONS)[party]
    change = changed(Published(copy.parent), party, signers, revoked=True)
    assert (change.targets, change.missing()) == (None, [])
    before = contents(world.repository.path)
    with pytest.raises(TrustError) as caught:
        change.commit(world.repository, [COORDINATOR, NEW], NOW)
    assert caught.value.code == "root-moved"
    assert contents(world.repository.path) == before
    # The recovery key signs no targets, so a change of it needs none.
    other = changed(Published(copy.parent), *ROTATIONS[2])
    put_in_force(world, other, [COORDINATOR])
    assert not update(world.home, NOW).installed


def test_more_than_the_next_version_of_what_is_published_is_not_read(world: World) -> None:
    change = changed(world.repository, "approver", [])
    for what in TARGETS_WITH_MORE:
        targets = Metadata[Targets].from_bytes(change.targets)
        add_to(targets, what)
        with pytest.raises(TrustError, match="something else"):
            replace(change, targets=targets.to_bytes())


@pytest.mark.parametrize("days", [-1, 0, 3 * 365 + 2])
def test_a_root_or_targets_that_end_at_another_time_are_not_signed(world: World, days: int) -> None:
    drafted = changed(world.repository, "approver", [COORDINATOR, APPROVER, NEW])
    early = Expiry(root=days * DAY)
    crooked = replace(drafted, root=draft_root(drafted.after, NOW, early, version=2))
    targets = Metadata[Targets].from_bytes(drafted.targets)
    targets.signed.expires = NOW + days * DAY
    before = contents(world.repository.path)
    for change in (crooked, replace(drafted, targets=targets.to_bytes())):
        with pytest.raises(TrustError) as caught:
            change.signed_by(APPROVER, NOW)
        assert caught.value.code == "wrong-expiry"
    for key in (COORDINATOR, APPROVER, NEW):
        crooked = replace(crooked, root=sign_root(crooked.root, key))
    with pytest.raises(TrustError) as caught:
        crooked.commit(world.repository, [COORDINATOR], NOW)
    assert caught.value.code == "wrong-expiry"
    assert contents(world.repository.path) == before


def test_a_copys_invalid_signature_takes_no_valid_ones_place(world: World) -> None:
    whole = changed(world.repository, *ROTATIONS[1])
    root = Metadata[Root].from_bytes(whole.root)
    for signature in root.signatures.values():
        signature.signature = "00" * 64
    spoilt = replace(whole, root=root.to_bytes())
    assert spoilt.missing()
    for joined in (whole.joined(spoilt), spoilt.joined(whole)):
        assert joined.missing() == []


@pytest.mark.parametrize("name", ["change.json", "1.root.json", "targets.json"])
def test_a_pipe_a_link_or_a_giant_in_a_change_is_refused_at_once(
    world: World, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "carried"
    changed(world.repository, "approver", []).write(folder)
    whole = (folder / name).read_bytes()
    (tmp_path / "elsewhere").write_bytes(whole)
    for spoil in (
        os.mkfifo,
        Path.mkdir,
        lambda file: file.symlink_to(tmp_path / "elsewhere"),
        lambda file: (file.touch(), os.truncate(file, MAX_BYTES)),
    ):
        (folder / name).unlink(missing_ok=True)
        spoil(folder / name)
        with pytest.raises(InputError):
            Change.read(folder)
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            (folder / name).rmdir()


def test_copies_of_different_changes_are_not_joined(world: World) -> None:
    one = changed(world.repository, "approver", [])
    for other in (
        changed(world.repository, "approver", [], new=NEWER),
        changed(world.repository, "approver", [], revoked=True),
        changed(world.repository, "recovery", []),
    ):
        with pytest.raises(TrustError) as caught:
            one.joined(other)
        assert caught.value.code == "another-change"


def test_devices_recover_from_a_thief_who_counted_far_ahead(world: World) -> None:
    """TUF 5.3.11: versions that a revoked timestamp key signed bind nobody."""
    honest = world.path / "honest"
    shutil.copytree(world.repository.path, honest)
    for _ in range(20):
        world.repository.renew(COORDINATOR, NOW)
    assert not update(world.home, NOW).installed  # it has seen timestamp and snapshot 21
    shutil.rmtree(world.repository.path)
    shutil.copytree(honest, world.repository.path)
    with pytest.raises(TrustError) as caught:
        update(world.home, NOW)
    assert caught.value.code == "rollback"
    put_in_force(world, changed(world.repository, *REVOCATIONS[0], revoked=True), [NEW])
    assert {one.version for one in world.repository.signed()} == {2}
    assert update(world.home, NOW).version == 1
    world.repository.publish(Recipe(version=3).files(), [NEW, APPROVER], NEW, NOW)
    assert update(world.home, NOW).version == 3


# -- killed --------------------------------------------------------------------------------------


def commit_in_a_copy(number: int, folder: Path) -> None:
    """In a child: copy the repository and put the change in force in the copy."""
    copy = folder / f"killed-{number}" / "repository"
    shutil.copytree(folder / "repository", copy)
    Change.read(folder / "change").commit(Repository(copy), [COORDINATOR, NEW], NOW)


def mostly_figures(cases: list[tuple[str, list[SigningKey]]]) -> pytest.MarkDecorator:
    """Every third write of the approver's change in CI; each write of each with the full counts."""
    (short,) = [pytest.param(*case, 3) for case in cases if case[0] == "approver"]
    full = [pytest.param(*case, 1, marks=pytest.mark.figures) for case in cases]
    return pytest.mark.parametrize(("party", "signers", "every"), [short, *full])


def chosen(steps: int, every: int) -> list[int]:
    """Every so many of the writes, and the last, after which nothing is left to do."""
    return sorted({*range(1, steps + 1, every), steps})


@mostly_figures(ROTATIONS)
def test_killed_at_any_write_of_a_rotation_devices_old_and_new_are_served(
    world: World, tmp_path: Path, party: str, signers: list[SigningKey], every: int
) -> None:
    changed(world.repository, party, signers).write(tmp_path / "change")
    steps = kill_at_every_write(__name__, "commit_in_a_copy", tmp_path)
    assert steps == (3 if party == "recovery" else 12)  # root; targets, snapshot, timestamp
    roots = []
    for number in chosen(steps, every):
        folder = tmp_path / f"killed-{number}"
        home = world.device(f"killed-{number}/device")
        (home.path / "root.json").write_bytes((world.home.path / "root.json").read_bytes())
        assert update(home, NOW).version == 1
        repository = Repository(folder / "repository")
        roots.append(len(repository.roots()))
        Change.read(tmp_path / "change").commit(repository, [COORDINATOR, NEW], NOW)
        both = keys_after(party)
        Repository(repository.path).publish(Recipe(version=9).files(), both, both[0], NOW)
        assert update(home, NOW).version == 9
    assert roots == [1] * (len(roots) - 1) + [2]


@mostly_figures(REVOCATIONS)
def test_killed_at_any_write_of_a_revocation_devices_keep_what_they_have_and_it_is_finished(
    world: World, tmp_path: Path, party: str, signers: list[SigningKey], every: int
) -> None:
    changed(world.repository, party, signers, revoked=True).write(tmp_path / "change")
    steps = kill_at_every_write(__name__, "commit_in_a_copy", tmp_path)
    expected = FIRST.model.answer(RECORDS)
    for number in chosen(steps, every):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(world.home.identity.path, folder / "device.keys")
        home = DeviceHome(shutil.copytree(world.home.path, folder / "device"))
        try:
            assert update(home, NOW).version == 1
        except TrustError as error:
            assert error.code == "bad-signature"  # the new root is there, its timestamp is not
        np.testing.assert_allclose(Predictor.load(home).probabilities(RECORDS), expected, atol=1e-6)
        repository = Repository(folder / "repository")
        Change.read(tmp_path / "change").commit(repository, [COORDINATOR, NEW], NOW)
        both = keys_after(party)
        Repository(repository.path).publish(Recipe(version=9).files(), both, both[0], NOW)
        assert update(home, NOW).version == 9


def test_a_change_that_is_put_in_force_twice_is_put_in_force_once(world: World) -> None:
    change = changed(world.repository, *ROTATIONS[1])
    for _ in range(2):
        put_in_force(world, change, [COORDINATOR])
    assert len(world.repository.roots()) == 2
    assert world.repository.version == 2


# -- how it stands -------------------------------------------------------------------------------


def test_keys_say_who_counts_since_when_and_who_counted(world: World) -> None:
    put_in_force(world, changed(world.repository, *REVOCATIONS[1], revoked=True), [COORDINATOR])
    rows = {row["fingerprint"]: row for row in keys_of(world.repository)}
    new, old = rows[NEW.public.fingerprint], rows[APPROVER.public.fingerprint]
    assert (new["party"], new["since"], new["until"]) == ("approver", 2, None)
    assert (old["party"], old["since"], old["until"], old["may"]) == (
        "approver", 1, 1, "nothing any more")  # fmt: skip
    assert rows[COORDINATOR.public.fingerprint]["since"] == 1
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("days", "code", "what"),
    [
        (0, 0, []),
        (5.5, 1, ["timestamp-soon"]),
        (8, 11, ["timestamp-past"]),
        (24, 11, ["timestamp-past", "snapshot-soon"]),
        (366, 11, ["timestamp-past", "snapshot-past", "targets-past"]),
        (3 * 365 - 60, 11, ["root-soon", "timestamp-past", "snapshot-past", "targets-past"]),
    ],
)
def test_what_ends_soon_or_has_ended_is_said(
    world: World, days: float, code: int, what: list[str]
) -> None:
    found = standing(world.repository, NOW + days * DAY)
    assert (found.exit_code, [one["code"] for one in found.problems]) == (code, what)
    assert set(found.files) == set(FIRST.files())


def test_a_file_that_somebody_changed_is_said(world: World) -> None:
    (file,) = world.repository.path.glob("targets/*.model.onnx")
    file.write_bytes(file.read_bytes()[:-1])
    found = standing(world.repository, NOW)
    assert (found.exit_code, found.files) == (11, {})
    assert "model.onnx" in found.problems[0]["what"]


def test_a_root_that_does_not_follow_is_said(world: World) -> None:
    forged = draft_root(Roles(STRANGER.public, NEW.public, NEWER.public), NOW, version=2)
    metadata = Metadata[Root].from_bytes(forged)
    (world.repository.path / "metadata" / "2.root.json").write_bytes(metadata.to_bytes())
    with pytest.raises(TrustError):
        world.repository.roots()
