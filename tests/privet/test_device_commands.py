"""The device's commands: what they print, what they end with, and what they leave."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.bundle import Trust
from privet.cli import run
from server.release.repository import Repository
from tests.client.device_fixtures import APPROVER, COORDINATOR, ROLES, Recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Version 1, published now: a command has the machine's own clock."""
    now = datetime.now(UTC)
    made = Repository.create(tmp_path / "repository", [COORDINATOR, APPROVER], ROLES, now)
    publish(made, 1)
    signers = {
        "coordinator": COORDINATOR.public.fingerprint,
        "approver": APPROVER.public.fingerprint,
    }
    Trust(signers, {}).write(tmp_path / "trust.json")
    return made


def publish(repository: Repository, version: int, **changes: Any) -> None:
    files = Recipe(version=version, **changes).files()
    repository.publish(files, [COORDINATOR, APPROVER], COORDINATOR, datetime.now(UTC))


def enrol(repository: Repository, *options: object) -> list[str]:
    folder = repository.path.parent
    root = repository.path / "metadata" / "1.root.json"
    words = ["device", "init", folder / "edge", "--root", root, "--trust", folder / "trust.json"]
    words += ["--repository", repository.path, "--greatest-epsilon", 3, *options]
    return [*map(str, words), "--format", "json"]


def call(capsys: Capture, *words: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*map(str, words), *([] if "--format" in words else ["--format", "json"])])
    return code, json.loads(capsys.readouterr().out)


def test_a_device_is_enrolled_updated_rolled_back_and_explained(
    repository: Repository, capsys: Capture
) -> None:
    edge = repository.path.parent / "edge"
    code, made = call(capsys, *enrol(repository))
    assert code == 0
    assert made["data"]["keys"] == f"{edge}.keys"
    assert call(capsys, "device", "update", edge)[1]["data"]["version"] == 1
    publish(repository, 2)
    assert call(capsys, "device", "update", edge)[1]["data"]["installed"] is True
    code, back = call(capsys, "device", "rollback", edge)
    assert (code, back["data"]["version"]) == (0, 1)
    again = call(capsys, "device", "update", edge)[1]["data"]
    assert (again["installed"], again["version"]) == (False, 1)
    assert "--again" in again["notice"]
    assert call(capsys, "device", "update", edge, "--again")[1]["data"]["version"] == 2
    status = call(capsys, "device", "status", edge)[1]["data"]
    assert status["device"] == made["data"]["device"]
    assert (status["model"]["version"], status["model"]["previous"], status["floor"]) == (2, 1, 2)
    assert status["log"]["whole"] is True
    assert [line["decision"] for line in status["decisions"]] == [
        "accepted",
        "accepted",
        "went-back",
        "accepted",
    ]


def test_a_wiped_device_says_at_enrolment_that_it_remembers(
    repository: Repository, capsys: Capture
) -> None:
    edge = repository.path.parent / "edge"
    call(capsys, *enrol(repository))
    publish(repository, 2)
    call(capsys, "device", "update", edge)
    shutil.rmtree(edge)
    assert call(capsys, *enrol(repository))[1]["data"]["floor"] == 2
    shutil.rmtree(edge)
    other = call(capsys, *enrol(repository, "--keys", edge.parent / "other-keys"))[1]["data"]
    assert (other["floor"], other["keys"]) == (None, str(edge.parent / "other-keys"))


def test_a_least_version_holds_for_the_first_release_too(
    repository: Repository, capsys: Capture
) -> None:
    edge = repository.path.parent / "edge"
    call(capsys, *enrol(repository, "--least-version", 2))
    code, refused = call(capsys, "device", "update", edge)
    assert (code, refused["error"]["code"]) == (11, "too-old")
    code, status = call(capsys, "device", "status", edge)
    assert code == 0
    assert status["data"]["model"] is None
    assert status["data"]["decisions"][-1]["code"] == "too-old"
    publish(repository, 2)
    assert call(capsys, "device", "update", edge)[0] == 0


def test_a_changed_log_ends_with_exit_code_11_and_is_shown_all_the_same(
    repository: Repository, capsys: Capture
) -> None:
    edge = repository.path.parent / "edge"
    call(capsys, *enrol(repository))
    call(capsys, "device", "update", edge)
    file = edge / "decisions.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":7'))
    code, shown = call(capsys, "device", "status", edge)
    assert (code, shown["status"], shown["error"]["code"]) == (11, "error", "damaged")
    assert "is not this device's" in shown["data"]["log"]["wrong"][0]
    capsys.readouterr()
    assert run(["device", "status", str(edge)]) == 11
    assert "LOG       was changed" in capsys.readouterr().out


def test_going_back_without_a_release_before_is_told(
    repository: Repository, capsys: Capture
) -> None:
    edge = repository.path.parent / "edge"
    call(capsys, *enrol(repository))
    code, refused = call(capsys, "device", "rollback", edge)
    assert (code, refused["error"]["code"]) == (1, "no-previous")
