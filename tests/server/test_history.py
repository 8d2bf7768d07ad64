"""A party's key signs one content under one version, whatever it is asked and whenever it dies."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Root, Targets

from common import durable
from common.canonical import decode, encode
from common.errors import InputError, OperationError, PrivetError, TrustError
from common.keys import KeyDirectory, SigningKey
from server.release.history import FILE, Content, History, contents_signed
from server.release.repository import Repository
from server.release.roots import Expiry, draft_root, parse, sign_root
from tests.client.device_fixtures import COORDINATOR, NOW, ROLES
from tests.world import Snapshot, killed_at

US, OTHERS, HEIR = "aa" * 32, "bb" * 32, "cc" * 32
A, B = {"model": b"one"}, {"model": b"another"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    KeyDirectory(tmp_path / "approver").create("approver")
    return tmp_path / "approver"


def key_of(keys: Path) -> SigningKey:
    return KeyDirectory(keys).load("approver")


def history(keys: Path) -> History:
    return History(keys, key_of(keys))


def targets(files: Mapping[str, bytes], version: int, days: int = 365) -> bytes:
    return Repository.draft_targets(files, version, NOW, Expiry(targets=timedelta(days=days)))


def release(
    keys: Path, files: Mapping[str, bytes], version: int, named: int | None = None, who: str = US
) -> None:
    contents = [Content.of(parse(targets(files, version), Targets))]
    history(keys).release(who, contents, NOW, named)


def refused(keys: Path, work: Callable[[], None], code: str) -> PrivetError:
    """The error; nothing on disk changed, and it says what to do."""
    before = Snapshot.of(keys)
    with pytest.raises(PrivetError) as caught:
        work()
    assert Snapshot.of(keys) == before
    assert (caught.value.code, bool(caught.value.hint)) == (code, True)
    return caught.value


# -- releases ------------------------------------------------------------------------------------


def test_each_release_follows_the_last_one_that_was_signed(keys: Path) -> None:
    for version in (1, 2, 3):
        release(keys, A, version)
    assert history(keys).line(US).last == 3
    assert stat.S_IMODE((keys / FILE).stat().st_mode) == 0o600


def test_two_contents_of_one_version_are_never_signed(keys: Path) -> None:
    release(keys, A, 1)
    error = refused(keys, lambda: release(keys, B, 1), "signed-before")
    for files in (A, B):
        assert Content.of(parse(targets(files, 1), Targets)).sha256 in error.message
    release(keys, B, 2)
    refused(keys, lambda: release(keys, B, 1, named=1), "signed-before")


def test_the_same_content_is_signed_again_for_whoever_lost_it(keys: Path) -> None:
    release(keys, A, 1)
    release(keys, A, 2)
    before = Snapshot.of(keys)
    for version in (1, 2):
        again = [Content.of(parse(targets(A, version, days=200), Targets))]  # drawn on another day
        history(keys).release(US, again, NOW + timedelta(days=1))
    assert Snapshot.of(keys) == before


@pytest.mark.parametrize("version", [3, 2**31, 2**53 - 1])
def test_a_version_that_is_not_the_next_one_is_signed_if_a_person_names_it(
    keys: Path, version: int
) -> None:
    release(keys, A, 1)
    error = refused(keys, lambda: release(keys, B, version), "version-jump")
    assert f"--version {version}" in error.hint
    caught = refused(keys, lambda: release(keys, B, version, named=2), "wrong-version")
    assert isinstance(caught, InputError)
    release(keys, B, version, named=version)
    refused(keys, lambda: release(keys, A, 2), "version-jump")  # older, and never signed


def test_a_key_that_signed_nothing_for_a_federation_takes_nobodys_word_for_the_version(
    keys: Path,
) -> None:
    refused(keys, lambda: release(keys, A, 7), "version-jump")
    release(keys, A, 7, named=7)
    release(keys, A, 8)


def test_federations_count_apart(keys: Path) -> None:
    release(keys, A, 1)
    release(keys, B, 1, who=OTHERS)
    release(keys, B, 2, who=OTHERS)
    refused(keys, lambda: release(keys, A, 3), "version-jump")
    assert (history(keys).line(US).last, history(keys).line(OTHERS).last) == (1, 2)


def test_statement_and_first_root_are_held_to_one_content_as_well(keys: Path) -> None:
    contents = [
        Content("statement", 1, "0" * 64),
        Content.of(parse(targets(A, 1), Targets)),
        Content.of(parse(draft_root(ROLES, NOW), Root)),
    ]
    history(keys).release(US, contents, NOW)
    later = draft_root(ROLES, NOW, Expiry(root=timedelta(days=9)))
    history(keys).release(US, [*contents[:2], Content.of(parse(later, Root))], NOW)
    other = draft_root(replace(ROLES, recovery=key_of(keys).public), NOW)
    for number, crooked in [(0, replace(contents[0], sha256="1" * 64)),
                            (2, Content.of(parse(other, Root)))]:  # fmt: skip
        asked = [crooked if place == number else one for place, one in enumerate(contents)]
        refused(keys, lambda a=asked: history(keys).release(US, a, NOW), "signed-before")  # type: ignore[misc]


def test_metadata_that_no_record_could_hold_is_not_signed() -> None:
    metadata = parse(targets(A, 1), Targets)
    metadata.signed.version = 2**60
    with pytest.raises(TrustError, match="not ours"):
        Content.of(metadata)


# -- changes of keys -----------------------------------------------------------------------------


def root(version: int, signer: SigningKey = COORDINATOR) -> bytes:
    return draft_root(replace(ROLES, coordinator=signer.public), NOW, version=version)


def test_another_root_of_one_version_is_signed_if_a_person_says_that_the_first_is_void(
    keys: Path,
) -> None:
    first, second, third = (
        [Content.of(parse(root(2, SigningKey.from_seed(bytes([n]) * 32)), Root))] for n in (1, 8, 9)
    )
    history(keys).change(US, first, NOW)
    refused(keys, lambda: history(keys).change(US, second, NOW), "signed-before")
    wrong = [second[0].sha256]
    refused(keys, lambda: history(keys).change(US, second, NOW, instead=wrong), "signed-before")
    history(keys).change(US, second, NOW, instead=[first[0].sha256])
    history(keys).change(US, second, NOW)
    refused(keys, lambda: history(keys).change(US, first, NOW), "signed-before")
    instead = [first[0].sha256]
    refused(keys, lambda: history(keys).change(US, third, NOW, instead=instead), "signed-before")


def test_what_is_signed_anew_at_a_change_of_keys_counts_as_a_release(keys: Path) -> None:
    """A new approver's first signature: the next release follows it."""
    contents = [Content.of(parse(root(2), Root)), Content.of(parse(targets(A, 6), Targets))]
    history(keys).change(US, contents, NOW)
    refused(keys, lambda: release(keys, B, 6), "signed-before")
    release(keys, B, 7)


def test_a_repository_that_is_handed_over_keeps_its_record_under_both_names(keys: Path) -> None:
    release(keys, A, 1)
    contents = [Content.of(parse(root(2), Root)), Content.of(parse(targets(A, 2), Targets))]
    history(keys).change(US, contents, NOW, heir=HEIR)
    for who in (US, HEIR):
        refused(keys, lambda w=who: release(keys, B, 2, who=w), "signed-before")  # type: ignore[misc]
    release(keys, B, 3, who=HEIR)
    assert history(keys).line(US) == history(keys).line(HEIR)
    release(keys, B, 1, who=OTHERS)
    later = [Content.of(parse(root(3), Root))]
    work = lambda: history(keys).change(HEIR, later, NOW, heir=OTHERS)  # noqa: E731
    refused(keys, work, "other-federation")


def test_only_what_bears_this_partys_signature_is_recorded(keys: Path) -> None:
    key, drafted = key_of(keys), root(2)
    assert contents_signed(key.public, drafted, targets(A, 2)) == []
    signed = sign_root(drafted, key)
    assert [one.role for one in contents_signed(key.public, signed, targets(A, 2))] == ["root"]
    both = contents_signed(key.public, signed, Repository.sign(targets(A, 2), key))
    assert [(one.role, one.version) for one in both] == [("root", 2), ("targets", 2)]


# -- the file ------------------------------------------------------------------------------------


def damages(file: Path) -> list[bytes]:
    data = file.read_bytes()
    document = decode(data)
    document["repositories"][0]["signed"] = []
    more = {**decode(data), "more": 1}
    flipped = data.replace(b'"version":2', b'"version":3')
    return [b"", b"{}", data[:-1], data + b"\n", flipped, encode(document), encode(more)]


def test_a_damaged_record_signs_nothing(keys: Path) -> None:
    for version in (1, 2):
        release(keys, A, version)
    file = keys / FILE
    for data in damages(file):
        whole = file.read_bytes()
        file.write_bytes(data)
        error = refused(keys, lambda: release(keys, A, 3), "history-damaged")
        assert isinstance(error, TrustError)
        refused(keys, lambda: release(keys, A, 3, named=3), "history-damaged")
        file.write_bytes(whole)
    release(keys, A, 3)


def test_another_keys_record_is_not_this_ones(keys: Path, tmp_path: Path) -> None:
    release(keys, A, 1)
    KeyDirectory(tmp_path / "other").create("approver")
    shutil.copy(keys / FILE, tmp_path / "other" / FILE)
    refused(tmp_path / "other", lambda: release(tmp_path / "other", A, 2), "history-damaged")


def test_a_record_that_others_can_write_is_not_believed(keys: Path) -> None:
    release(keys, A, 1)
    (keys / FILE).chmod(0o620)
    refused(keys, lambda: release(keys, A, 2), "key-exposed")


def test_a_disk_that_is_full_signs_nothing(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    error = refused(keys, lambda: release(keys, A, 1), "disk-full")
    assert isinstance(error, OperationError)


def test_killed_at_any_write_no_version_gets_two_contents(keys: Path, tmp_path: Path) -> None:
    """Whatever left the process was recorded: after the kill another content is signed only if
    none did."""

    def sign(files: Mapping[str, bytes], out: Path) -> None:
        release(keys, files, 1)
        durable.replace(out, Repository.sign(targets(files, 1), key_of(keys)))

    step, died, seen = 0, True, set()
    while died:
        step += 1
        (keys / FILE).unlink(missing_ok=True)
        first, second = tmp_path / f"{step}-a", tmp_path / f"{step}-b"
        died = killed_at(step, lambda first=first: sign(A, first))  # type: ignore[misc]
        left = first.exists()
        try:
            sign(B, second)
        except TrustError as error:
            assert error.code == "signed-before"
            sign(A, first)  # asked again, it is given what it was about to be given
        assert (left and second.exists()) is False
        assert first.exists() is not second.exists()
        seen.add((left, second.exists()))
    assert seen == {(False, True), (False, False), (True, False)}
