"""`privet release` as the parties type it: a key directory each, and files in between."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.device.home import DeviceHome
from client.device.policy import DevicePolicy
from client.device.updater import update
from common.invitation import Address
from common.keys import KeyDirectory, PublicKey, SigningKey
from privet.cli import run
from server.federation.directory import Federation
from server.federation.publication import renew, renew_if_due
from server.release.repository import Repository
from server.release.roots import Roles, draft_root, roles_in
from server.release.succession import Change
from tests.client.device_fixtures import Recipe, contents, kill_at_every_write
from tests.privet.test_cli import call

Out = pytest.CaptureFixture[str]
NOW = datetime.now(UTC)


@dataclass
class Parties:
    """A federation with a release, an approver and a recovery key, in directories of their own."""

    path: Path
    federation: Federation

    @classmethod
    def made(cls, path: Path) -> Parties:
        address = Address("127.0.0.1", 8443)
        federation = Federation.create(path / "federation", path / "federation.keys", address)
        parties = cls(path, federation)
        keys = [parties.init(name) for name in ("approver", "recovery")]
        parties.federation = federation = federation.with_approver(keys[0].public.fingerprint)
        coordinator = federation.signing_key()
        roles = Roles(coordinator.public, keys[0].public, keys[1].public)
        Repository.create(federation.repository, [coordinator, keys[0]], roles, NOW)
        parties.first_root.write_bytes(parties.repository.root)
        parties.publish(1, coordinator, keys[0])
        return parties

    def init(self, name: str) -> SigningKey:
        return KeyDirectory(self.path / name).create("approver")

    def key(self, name: str) -> PublicKey:
        return KeyDirectory(self.path / name).load("approver").public

    @property
    def first_root(self) -> Path:
        """As each party was given it."""
        return self.path / "1.root.json"

    @property
    def repository(self) -> Repository:
        return Repository(self.federation.repository)

    def publish(self, version: int, coordinator: SigningKey, approver: SigningKey) -> None:
        signers = (self.federation.signing_key(), approver)
        files = Recipe(version=version, statement_signers=signers).files()
        self.repository.publish(files, [coordinator, approver], coordinator, NOW)

    def device(self, *signers: str) -> DeviceHome:
        repository, policy = self.federation.repository, DevicePolicy(3.0, 1e-5, signers, "")
        policy = DevicePolicy(3.0, 1e-5, signers, str(repository))
        return DeviceHome.init(self.path / "device", self.repository.root, policy)


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    return Parties.made(tmp_path)


def draft(parties: Parties, capsys: Out, *words: str, out: str = "change") -> dict[str, Any]:
    where = (parties.federation.path, "--out", parties.path / out)
    code, data = call(capsys, "release", *words, *where)
    assert code == 0, data
    return data


def sign(parties: Parties, capsys: Out, change: str, name: str, new: str, *more: str) -> str:
    """One party signs a copy; the copy's name."""
    out = f"{change}-{name}"
    words = ("--keys", parties.path / name, "--new", new, "--out", parties.path / out)
    words = (*words, "--root", parties.first_root, *more)
    code, data = call(capsys, "release", "sign", parties.path / change, *words)
    assert code == 0, data
    return out


def commit(parties: Parties, capsys: Out, *changes: str) -> tuple[int, dict[str, Any]]:
    paths = [parties.path / change for change in changes]
    return call(capsys, "release", "commit", parties.federation.path, *paths)


def test_an_approver_is_rotated_by_files_and_the_next_release_is_the_new_ones(
    parties: Parties, capsys: Out
) -> None:
    home = parties.device(parties.federation.signing_key().public.fingerprint,
                          parties.key("approver").fingerprint)  # fmt: skip
    assert update(home, NOW).version == 1
    new = parties.init("second").public
    data = draft(parties, capsys, "rotate", "approver", "--key", new.text())
    assert (data["new"], data["root"]) == (new.fingerprint, 2)
    assert "model.onnx" in data["files"]
    assert any("new approver" in who for who in data["missing"])
    first = sign(parties, capsys, "change", "approver", new.fingerprint)
    code, data = commit(parties, capsys, first)
    assert (code, data["code"]) == (11, "signatures-missing")
    whole = sign(parties, capsys, first, "second", new.fingerprint)
    code, data = commit(parties, capsys, whole)
    assert (code, data["root"], data["new"]) == (0, 2, new.fingerprint)
    assert Federation.read(parties.federation.path).approver == new.fingerprint
    assert not update(home, NOW).installed
    code, data = call(capsys, "release", "status", parties.federation.path)
    assert (code, data["problems"], "release.json" in data["files"]) == (0, [], True)
    code, data = call(capsys, "release", "keys", parties.federation.repository)
    held = [row for row in data["keys"] if row["party"] == "approver"]
    assert [(row["since"], row["until"]) for row in held] == [(2, None), (1, 1)]


def test_a_stolen_approver_key_is_revoked_by_the_two_that_remain(
    parties: Parties, capsys: Out
) -> None:
    new = parties.init("second").public
    draft(parties, capsys, "revoke", "approver", "--key", new.text())
    code, data = call(capsys, "release", "sign", parties.path / "change", "--keys",
                      parties.path / "approver", "--new", new.fingerprint,
                      "--out", parties.path / "thief", "--root", parties.first_root)  # fmt: skip
    assert (code, data["code"]) == (11, "not-asked")
    copies = [sign(parties, capsys, "change", name, new.fingerprint)
              for name in ("recovery", "second")]  # fmt: skip
    assert commit(parties, capsys, *copies)[0] == 0
    assert roles_in(parties.repository.root).approver == new


def test_a_coordinator_gets_a_key_for_releases_and_the_link_renews_with_it(
    parties: Parties, capsys: Out
) -> None:
    data = draft(parties, capsys, "rotate", "coordinator")
    assert not any("coordinator" in who for who in data["missing"])  # both of its keys are here
    copy = sign(parties, capsys, "change", "approver", data["new"])
    assert commit(parties, capsys, copy)[0] == 0
    assert (parties.federation.keys / f"release-{data['new'][:16]}").exists()
    assert renew(parties.federation, NOW) == 2
    signers = (parties.federation.signing_key().public.fingerprint,
               parties.key("approver").fingerprint)  # fmt: skip
    assert update(parties.device(*signers), NOW).version == 1  # begins with the new root


def test_a_federation_whose_key_was_stolen_hands_its_devices_to_another(
    parties: Parties, capsys: Out, tmp_path: Path
) -> None:
    home = parties.device(parties.federation.signing_key().public.fingerprint,
                          parties.key("approver").fingerprint)  # fmt: skip
    update(home, NOW)
    address = Address("127.0.0.1", 8444)
    other = Federation.create(tmp_path / "other", tmp_path / "other.keys", address)
    shutil.copytree(parties.federation.repository, other.repository)
    key, out = other.signing_key().public, tmp_path / "change"
    code, data = call(capsys, "release", "revoke", "coordinator", other.path, "--out", out)
    assert (code, data["code"]) == (4, "federation-key")
    words = ("revoke", "coordinator", other.path, "--key", key.text(), "--out", out)
    assert call(capsys, "release", *words)[0] == 0
    words = ("--keys", parties.path / "approver", "--new", key.fingerprint, "--out", out / "no")
    words = ("sign", out, *words, "--root", parties.first_root)
    code, data = call(capsys, "release", *words)
    assert (code, data["code"], (out / "no").exists()) == (11, "hands-over", False)
    copies = [sign(parties, capsys, "change", name, key.fingerprint, "--hands-over")
              for name in ("approver", "recovery")]  # fmt: skip
    paths = [tmp_path / copy for copy in copies]
    assert call(capsys, "release", "commit", other.path, *paths)[0] == 0
    assert roles_in(Repository(other.repository).root).speaker == key
    shutil.rmtree(parties.federation.repository)
    shutil.copytree(other.repository, parties.federation.repository)
    assert update(home, NOW).version == 1
    assert call(capsys, "release", "renew", parties.federation.path)[1]["code"] == (
        "wrong-coordinator"
    )


def test_a_signer_who_expected_another_key_signs_nothing(parties: Parties, capsys: Out) -> None:
    new = parties.init("second").public
    draft(parties, capsys, "rotate", "approver", "--key", new.text())
    words = ("--keys", parties.path / "approver", "--out", parties.path / "out")
    change, right = parties.path / "change", ("--root", parties.first_root)
    code, data = call(capsys, "release", "sign", change, *words, *right, "--new", "0" * 64)
    assert (code, data["code"]) == (11, "wrong-key")
    wrong = ("--root", parties.path / "none", "--new", new.fingerprint)
    assert call(capsys, "release", "sign", change, *words, *wrong)[1]["code"] == "no-such-file"
    assert not (parties.path / "out").exists()


def test_statements_are_handed_over_by_nobody_who_was_not_asked(
    parties: Parties, capsys: Out
) -> None:
    """A revocation of the coordinator's release key that takes the federation's own out too."""
    first = draft(parties, capsys, "rotate", "coordinator")
    copy = sign(parties, capsys, "change", "approver", first["new"])
    assert commit(parties, capsys, copy)[0] == 0
    data = draft(parties, capsys, "revoke", "coordinator", out="honest")
    key = parties.federation.signing_key().public.fingerprint
    assert (data["hands_over"], data["speaker"]) == (False, key)
    honest = Change.read(parties.path / "honest")
    root = draft_root(replace(honest.after, federation=None), NOW, version=3)
    replace(honest, root=root).write(parties.path / "crooked")
    words = ["sign", str(parties.path / "crooked"), "--new", data["new"]]
    words += ["--keys", str(parties.path / "recovery"), "--root", str(parties.first_root)]
    words += ["--out", str(parties.path / "out")]
    code, refused = call(capsys, "release", *words)
    assert (code, refused["code"], (parties.path / "out").exists()) == (11, "hands-over", False)
    assert run(["release", *words, "--hands-over"]) == 0
    assert f"HANDS OVER: privacy statements are signed by {data['new']}" in capsys.readouterr().out
    # Even with every signature the coordinator puts nothing in force that takes its name away.
    before = contents(parties.federation.repository)
    code, refused = commit(parties, capsys, "out")
    assert (code, refused["code"]) == (11, "other-federation")
    assert contents(parties.federation.repository) == before


def test_what_cannot_be_drafted_says_why_and_makes_nothing(parties: Parties, capsys: Out) -> None:
    out = ("--out", parties.path / "change")
    for words, code, name in [
        (("rotate", "approver", parties.federation.path), 4, "no-new-key"),
        (("rotate", "coordinator", parties.federation.repository), 4, "no-new-key"),
        (("rotate", "janitor", parties.federation.path), 4, "no-such-party"),
        (
            ("rotate", "coordinator", parties.federation.path, "--key", "x"),
            4,
            "another-federation",
        ),
        (("rotate", "recovery", parties.path / "nothing", "--key", "x"), 1, "no-repository"),
        (("rotate", "recovery", parties.federation.path, "--key", "x"), 11, "verification-failed"),
    ]:
        assert call(capsys, "release", *words, *out)[1]["code"] == name
        assert call(capsys, "release", *words, *out)[0] == code
    assert not (parties.path / "change").exists()
    assert call(capsys, "release", "status", parties.path)[1]["code"] == "no-repository"


def test_people_read_who_may_sign_and_what_ends(parties: Parties, capsys: Out) -> None:
    assert run(["release", "status", str(parties.federation.path)]) == 0
    text = capsys.readouterr().out
    assert parties.key("recovery").fingerprint in text
    assert "model.onnx" in text
    renew(parties.federation, NOW - timedelta(days=6))
    assert run(["release", "status", str(parties.federation.path)]) == 1
    assert "privet release renew" in capsys.readouterr().out
    renew(parties.federation, NOW - timedelta(days=8))
    assert run(["release", "status", str(parties.federation.path)]) == 11
    new = parties.init("second").public.text()
    words = ["rotate", "approver", str(parties.federation.path), "--key", new]
    assert run(["release", *words, "--out", str(parties.path / "change")]) == 0
    assert "still to sign: " in capsys.readouterr().out


def test_what_no_device_needs_is_told_and_then_removed(parties: Parties, capsys: Out) -> None:
    place, repository = parties.federation.path, parties.federation.repository
    old = repository / "targets" / f"{'a' * 64}.model.onnx"
    old.write_bytes(b"of a release long ago")
    before = contents(repository)
    code, data = call(capsys, "release", "prune", place, "--dry-run")
    assert (code, data["dry_run"], contents(repository)) == (0, True, before)
    assert data["removed"] == {f"targets/{old.name}": 21}
    assert run(["release", "prune", str(repository)]) == 0
    text = capsys.readouterr().out
    assert f"removed 1 of {len(before)} files, 21 bytes" in text
    del before[f"targets/{old.name}"]
    assert contents(repository) == before
    (repository / "metadata" / "timestamp.json").write_bytes(b"{}")
    before = contents(repository)
    assert call(capsys, "release", "prune", place)[0] == 11
    assert contents(repository) == before
    assert call(capsys, "release", "prune", parties.path)[1]["code"] == "no-repository"


# -- renewal -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (3.4, False), (3.6, True), (30, True)])
def test_a_timestamp_is_renewed_when_half_of_its_life_is_over(
    parties: Parties, days: float, renewed: bool
) -> None:
    assert renew_if_due(parties.federation, NOW + timedelta(days=days)) is renewed
    ends = {one.role: one.expires for one in parties.repository.signed()}["timestamp"]
    expected = NOW + timedelta(days=days if renewed else 0) + timedelta(days=7)
    assert abs(ends - expected) < timedelta(seconds=2)


def test_a_federation_that_published_nothing_has_nothing_to_renew(tmp_path: Path) -> None:
    address = Address("127.0.0.1", 8443)
    federation = Federation.create(tmp_path / "federation", tmp_path / "keys", address)
    assert renew_if_due(federation, NOW) is False


def renew_in_a_copy(number: int, folder: Path) -> None:
    """In a child: copy the federation and renew the copy's repository."""
    copy = folder / f"killed-{number}"
    shutil.copytree(folder / "federation", copy)
    later = NOW + timedelta(days=5)
    assert renew_if_due(Federation.read(copy), later)


def test_killed_at_any_write_of_a_renewal_devices_get_the_old_or_the_new(parties: Parties) -> None:
    steps = kill_at_every_write(__name__, "renew_in_a_copy", parties.path)
    assert steps == 6  # three for each of snapshot and timestamp
    ends = []
    for number in range(1, steps + 1):
        repository = Repository(parties.path / f"killed-{number}" / "repository")
        ends.append({one.role: one.expires for one in repository.signed()}["timestamp"])
    assert len(set(ends[:-1])) == 1
    assert (ends[-1] - ends[0]).days == 5


def test_a_repository_that_somebody_changed_is_not_renewed(parties: Parties) -> None:
    file = parties.federation.repository / "metadata" / "timestamp.json"
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":7'))
    before = contents(parties.federation.repository)
    with pytest.raises(Exception, match="not signed"):
        renew_if_due(parties.federation, NOW)
    assert contents(parties.federation.repository) == before
