"""The doctor finds what is wrong on either side, says how to mend it, and changes nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.approval import approve
from client.home import Home
from client.joining import join
from client.site import node_key
from common.keys import KeyDirectory
from common.nodekey import NodeKey
from privet.cli import run
from privet.doctoring import machine
from privet.doctoring.findings import Finding, exit_code
from server.federation.authority import TLS
from server.federation.directory import APPROVER
from server.federation.lasting import HEADS
from tests.server.doorway import Door, door_in
from tests.world import PLAN, ROWS, Snapshot, signed, write_rows

Out = pytest.CaptureFixture[str]


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with door_in(tmp_path) as door:
        yield door


@pytest.fixture
def home(door: Door) -> Home:
    """A client that joined, and whose owner approved a plan."""
    door.serve()
    home = join(door.invite(), door.site())
    owner = KeyDirectory(door.site().owner_keys or home.path).load("owner")
    approve(home, signed(PLAN, door.federation.signing_key()), owner)
    return home


def examined(
    capsys: Out, side: str, path: Path, folder: Path
) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and by check its state and how to mend it; nothing on disk changed."""
    option = {"client": "--home", "server": "--federation"}[side]
    before = Snapshot.of(folder)
    capsys.readouterr()
    code = run([side, "doctor", option, str(path), "--format", "json"])
    document = json.loads(capsys.readouterr().out)
    assert Snapshot.of(folder) == before
    assert document["status"] == ("error" if code else "ok")
    assert ("error" in document) == bool(code)
    rows = document["data"]["findings"]
    assert all(row["what"] for row in rows)
    assert all(row["mend"] for row in rows if row["state"] == "wrong")
    return code, {row["check"]: (row["state"], row["mend"]) for row in rows}


def wrong(found: dict[str, tuple[str, str]]) -> set[str]:
    return {check for check, (state, _) in found.items() if state == "wrong"}


# -- a client ------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_client_that_joined(door: Door, home: Home, capsys: Out) -> None:
    code, found = examined(capsys, "client", home.path, door.folder)
    assert (code, wrong(found)) == (0, set())
    assert set(found) >= {
        "versions", "disk", "clock", "home", "key directory", "ledger", "budget", "plans",
        f"plan {PLAN.name}", "enrolment", "node key", "ledger key", "authority dates", "server",
    }  # fmt: skip
    assert found["server"][0] == "ok"


def write_over(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "check", "code"),
    [
        (lambda h: h.keys.chmod(0o755), "key directory", 11),
        (lambda h: write_over(node_key(h), NodeKey.generate().encode()), "node key", 11),
        (lambda h: write_over(h.ledger, h.ledger.read_bytes()[:-2]), "ledger", 11),
        (lambda h: write_over(h.path / "enrolment.dsse.json", b"{}"), "enrolment", 11),
        (lambda h: write_over(h.path / "client.json", b"{}"), "home", 4),
        (
            lambda h: write_rows(Path(str(h.binding.path)), [*ROWS, "tall,1,yes"]),
            f"plan {PLAN.name}",
            4,
        ),
        (lambda h: os.utime(h.path / "client.json", (time.time() + 9000,) * 2), "clock", 1),
    ],
)
def test_each_harm_to_a_client_is_found_with_its_class(
    door: Door, home: Home, capsys: Out, harm: Callable[[Home], Any], check: str, code: int
) -> None:
    harm(home)
    found_code, found = examined(capsys, "client", home.path, door.folder)
    assert check in wrong(found)
    assert found_code == code


def test_a_server_that_is_away_is_a_network_finding(door: Door, home: Home, capsys: Out) -> None:
    door.stop(door.running[0])
    door.socket.close()
    code, found = examined(capsys, "client", home.path, door.folder)
    assert (code, wrong(found)) == (3, {"server"})


def test_what_is_not_there_is_said(tmp_path: Path, capsys: Out) -> None:
    code, found = examined(capsys, "client", tmp_path / "none", tmp_path)
    assert (code, wrong(found)) == (4, {"directory", "home"})
    code, found = examined(capsys, "server", tmp_path / "none", tmp_path)
    assert (code, wrong(found)) == (4, {"directory", "federation"})


# -- a server ------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_new_federation(door: Door, capsys: Out) -> None:
    door.serve()
    code, found = examined(capsys, "server", door.federation.path, door.folder)
    assert (code, wrong(found)) == (0, set())
    assert found["port"][0] == "ok"
    assert found["approver"] == (
        "warning",
        "privet approver init on another machine, then privet server approver FINGERPRINT",
    )
    door.stop(door.running[0])
    door.socket.close()
    code, found = examined(capsys, "server", door.federation.path, door.folder)
    assert (code, found["port"][0]) == (0, "warning")


def expired(door: Door) -> None:
    authority = door.federation.authority()
    authority.issue(["127.0.0.1"], datetime.now(UTC) - timedelta(days=60))


def write_over_all(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "1.root.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    ("harm", "check", "code"),
    [
        (expired, "certificate dates", 11),
        (lambda d: d.federation.authority().issue(["other.example"]), "certificate names", 4),
        (lambda d: (d.federation.keys / TLS).chmod(0o644), "key directory", 11),
        (lambda d: KeyDirectory(d.federation.keys).create(APPROVER), "coordinator", 11),
        (lambda d: d.federation.registry.path.write_bytes(b"x\n"), "registry", 11),
        (lambda d: (d.federation.path / HEADS).write_bytes(b"{}"), "heads", 11),
        (lambda d: (d.federation.path / "invitations.json").write_bytes(b""), "invitations", 11),
        (lambda d: (d.federation.path / "federation.json").write_bytes(b"{}"), "federation", 4),
        (lambda d: write_over_all(d.federation.repository / "metadata"), "repository", 11),
    ],
)
def test_each_harm_to_a_federation_is_found_with_its_class(
    door: Door, capsys: Out, harm: Callable[[Door], Any], check: str, code: int
) -> None:
    door.socket.close()
    harm(door)
    found_code, found = examined(capsys, "server", door.federation.path, door.folder)
    assert check in wrong(found)
    assert found_code == code


def test_a_stranger_at_the_address_is_found(door: Door, tmp_path: Path, capsys: Out) -> None:
    with door_in(tmp_path / "other") as other:
        door.serve(tls=other.federation.keys / TLS)
        code, found = examined(capsys, "server", door.federation.path, door.folder)
    assert (code, wrong(found)) == (11, {"port"})


def test_a_full_disk_and_the_gravest_class_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    findings = list(machine.machine(tmp_path, ()))
    assert exit_code(findings) == 1
    more = [Finding("a", "wrong", "b", "c", code) for code in (3, 10, 4)]
    assert exit_code([*findings, *more]) == 10
    assert exit_code([]) == 0
