"""The doctor looks at what a federation publishes: whole, signed, fresh, and nothing half done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.bundle import Bundle
from common.invitation import Address
from common.keys import SigningKey
from privet.doctoring import repository as doctoring
from privet.doctoring.findings import Finding, exit_code
from privet.proposal import Proposal
from server.federation.directory import Federation
from server.release.published import Published
from server.release.repository import Repository
from server.release.roots import Roles
from server.release.succession import draft
from tests.world import Snapshot, killed_at

NOW = datetime.now(UTC)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return made(tmp_path / "all")


def made(path: Path) -> Federation:
    return Federation.create(path / "federation", path / "keys", Address("127.0.0.1", 8443))


def examined(federation: Federation) -> tuple[int, dict[str, Finding]]:
    """Exit code and findings by check; nothing on disk changed, and what is wrong can be mended."""
    before = Snapshot.of(federation.path.parent)
    found = list(doctoring.check(federation, NOW))
    assert Snapshot.of(federation.path.parent) == before
    assert all(one.what and (one.state == "ok" or one.mend) for one in found)
    assert len({one.check for one in found}) == len(found)
    return exit_code(found), {one.check: one for one in found}


def having(found: dict[str, Finding], state: str) -> set[str]:
    return {check for check, one in found.items() if one.state == state}


def published(federation: Federation, now: datetime = NOW, *, releases: int = 1) -> Path:
    """The federation's repository, with so many releases that were signed at ``now``."""
    approver = SigningKey.from_seed(b"\x02" * 32)
    coordinator = federation.signing_key()
    roles = Roles(coordinator.public, approver.public, SigningKey.from_seed(b"\x03" * 32).public)
    here = Repository.create(federation.repository, [coordinator, approver], roles, now)
    for version in range(1, releases + 1):
        files = {"model": b"%d" % version, "card": b"the same"}
        here.publish(files, [coordinator, approver], coordinator, now)
    return federation.repository


def test_a_repository_that_is_whole_and_fresh_is_well(federation: Federation) -> None:
    published(federation, releases=2)
    code, found = examined(federation)
    assert (code, having(found, "wrong")) == (0, set())
    names = {"repository", "roots", "root's keys", "root's speaker", "release key", "metadata",
             "published files"}  # fmt: skip
    names |= {f"{role} expiry" for role in ("root", "targets", "snapshot", "timestamp")}
    assert {check: found[check].state for check in names} == dict.fromkeys(names, "ok")
    assert not {"release", "unfinished"} & set(found)


@pytest.mark.parametrize(
    ("days", "soon", "past"),
    [
        (4, set(), set()),
        (6, {"timestamp"}, set()),
        (8, set(), {"timestamp"}),
        (24, {"snapshot"}, {"timestamp"}),
        (340, {"targets"}, {"timestamp", "snapshot"}),
        (1010, {"root"}, {"timestamp", "snapshot", "targets"}),
        (1100, set(), {"timestamp", "snapshot", "targets", "root"}),
    ],
)
def test_what_ends_soon_is_a_warning_and_what_ended_is_wrong(
    federation: Federation, days: int, soon: set[str], past: set[str]
) -> None:
    published(federation, NOW - timedelta(days=days))
    code, found = examined(federation)
    assert having(found, "warning") == {f"{role} expiry" for role in soon}
    assert having(found, "wrong") == {f"{role} expiry" for role in past}
    assert code == (11 if past else 0)


def cut(path: Path, pattern: str) -> None:
    (file, *_) = path.glob(pattern)
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        (lambda r: next((r / "targets").iterdir()).unlink(), "published files"),
        (lambda r: cut(r, "targets/*"), "published files"),
        (lambda r: cut(r, "metadata/timestamp.json"), "metadata"),
        (lambda r: (r / "metadata" / "1.snapshot.json").unlink(), "metadata"),
        (lambda r: (r / "metadata" / "1.targets.json").write_bytes(b"{}"), "metadata"),
        (lambda r: cut(r, "metadata/1.root.json"), "repository"),
        (lambda r: (r / "metadata" / "1.root.json").unlink(), "repository"),
    ],
)
def test_each_harm_to_a_repository_is_found(
    federation: Federation, harm: Callable[[Path], Any], check: str
) -> None:
    harm(published(federation))
    code, found = examined(federation)
    assert having(found, "wrong") == {check}
    assert code == (1 if check == "repository" and "create" in found[check].mend else 11)


def test_another_federations_repository_and_a_key_that_is_away_are_found(
    federation: Federation, tmp_path: Path
) -> None:
    shutil.copytree(published(made(tmp_path / "other")), federation.repository)
    code, found = examined(federation)
    assert (code, having(found, "wrong")) == (11, {"root's speaker", "release key"})


def test_what_was_begun_and_not_finished_is_a_warning(federation: Federation) -> None:
    def warned() -> dict[str, str]:
        code, found = examined(federation)
        assert (code, having(found, "wrong")) == (0, set())
        names = ("release", "unfinished", "proposal", "change of keys")
        return {check: found[check].mend for check in names if check in found}

    repository = published(federation, releases=0)
    assert "the same command finishes it" in warned()["release"]
    shutil.rmtree(repository)
    published(federation)
    assert warned() == {}
    (repository / "metadata" / "2.targets.json").write_bytes(b"")
    assert "finishes it" in warned()["unfinished"]
    (repository / "metadata" / "2.targets.json").unlink()
    (repository / "targets" / ".card.x.tmp").write_bytes(b"")
    assert "privet release prune" in warned()["unfinished"]


def test_each_half_written_proposal_and_change_of_keys_is_found(
    federation: Federation, tmp_path: Path
) -> None:
    repository = published(federation)
    key = SigningKey.from_seed(b"\x04" * 32).public
    bundle = Bundle(b"{}", b"{}", {"coordinator": key}, {}, {}, {})
    proposal = Proposal(1, False, bundle, b"w", b"m", b"a", b"r", {"00": b"p"})
    change = draft(Published(repository), "recovery", key, NOW)
    for what, work in (("proposal", proposal.write), ("change of keys", change.write)):
        step, died, seen = 0, True, set()
        while died:
            step += 4
            out = federation.path.parent / "out"
            died = killed_at(step, lambda w=work, o=out: (o.mkdir(), w(o)))  # type: ignore[misc]
            found = {one.check: one.state for one in doctoring.check(federation, NOW)}
            half = bool(list(out.rglob("*.json"))) and died
            assert (found.get(what) == "warning") >= half, step
            assert (what in found) <= died
            seen.add(what in found)
            shutil.rmtree(out)
        assert True in seen


def test_a_repository_without_room_for_one_more_release_is_found(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(federation)
    monkeypatch.setattr(doctoring.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 8}))
    found = {one.check: one for one in doctoring.check(federation, NOW)}
    assert (found["release room"].state, found["release room"].exit_code) == ("wrong", 1)
