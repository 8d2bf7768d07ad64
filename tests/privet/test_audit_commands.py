"""``privet audit``: one rule of trust for every command, and what each of them makes."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from common.canonical import digest
from common.keys import KeyDirectory
from privet.cli import run
from tests.audit.bundle_fixtures import World, files, read_attestation, trust_in

Capture = pytest.CaptureFixture[str]
FIRST = World().identity(0).pseudonym
COMMANDS = ["verify", "recompute", "explain", "report"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, the fingerprints that came by another way, and nothing else."""
    monkeypatch.chdir(tmp_path)
    bundle = World().bundle()
    bundle.write(tmp_path / "bundle")
    trust_in(bundle).write(tmp_path / "trust.json")
    return tmp_path


def call(capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(["audit", *arguments, "--format", "json"])
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    document = json.loads(text)
    assert document["status"] == ("ok" if code == 0 else "error")
    return code, document["data" if code == 0 else "error"]


def said(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["audit", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


TRUST = ("--trust", "trust.json")


@pytest.mark.parametrize("command", COMMANDS)
def test_with_fingerprints_from_outside_a_bundle_passes(
    capsys: Capture, folder: Path, command: str
) -> None:
    before = files(folder / "bundle")
    assert call(capsys, command, "bundle", *TRUST)[0] == 0
    assert said(capsys, command, "bundle", *TRUST)[0] == 0
    assert files(folder / "bundle") == before


@pytest.mark.parametrize("command", COMMANDS)
def test_without_fingerprints_it_is_exit_code_twelve_for_people_and_scripts(
    capsys: Capture, folder: Path, command: str
) -> None:
    code, error = call(capsys, command, "bundle")
    assert (code, error["code"]) == (12, "unauthenticated")
    assert "--trust" in error["hint"]
    code, out, err = said(capsys, command, "bundle")
    assert code == 12
    assert out  # a person sees what was found, and that nobody vouched for it
    assert "unauthenticated" in err
    assert "\nverified" not in f"\n{out}"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_altered_byte_is_exit_code_eleven_and_makes_nothing(
    capsys: Capture, folder: Path, command: str
) -> None:
    for path in sorted(path for path in (folder / "bundle").rglob("*") if path.is_file()):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + b"!" + data[len(data) // 2 + 1 :])
        before = files(folder)
        for trust in ((), TRUST):
            assert call(capsys, command, "bundle", *trust)[0] == 11, path
        assert files(folder) == before
        path.write_bytes(data)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_bundle_and_no_trust_file_are_bad_input(
    capsys: Capture, folder: Path, command: str
) -> None:
    assert call(capsys, command, "nowhere", *TRUST)[0] == 4
    assert call(capsys, command, "bundle", "--trust", "nowhere.json")[0] == 4


def test_recompute_prints_every_client_by_both_codes_and_that_they_agree(
    capsys: Capture, folder: Path
) -> None:
    _, text, _ = said(capsys, "recompute", "bundle", *TRUST)
    _, data = call(capsys, "recompute", "bundle", *TRUST)
    for client in data["clients"]:
        assert text.count(client["pseudonym"][:8]) == 2
        assert f"{client['epsilon_filter']['rdp (dp-accounting)']:.9f}" in text
    assert "agree: 5 pairs of Rényi numbers" in text
    assert data["agree"] is True


def test_explain_prints_the_page_that_its_json_holds(capsys: Capture, folder: Path) -> None:
    _, text, _ = said(capsys, "explain", "bundle", *TRUST)
    _, data = call(capsys, "explain", "bundle", *TRUST)
    words = " ".join(text.split())
    for section in data["sections"]:
        assert section["heading"].upper() in text
        for paragraph in section["paragraphs"]:
            assert paragraph in words
    assert f"finds at most {data['whole_curve']['found_of_100']}." in words


def test_a_report_is_the_same_bytes_each_time_and_its_json_has_the_checklist(
    capsys: Capture, folder: Path
) -> None:
    _, data = call(capsys, "report", "bundle", *TRUST, "--out", "one.html")
    call(capsys, "report", "bundle", *TRUST, "--out", "two.html")
    page = (folder / "one.html").read_text()
    assert page == (folder / "two.html").read_text()
    assert "<h1>Verified</h1>" in page
    assert [item["item"] for item in data["checklist"]] == list(range(1, 16))
    assert all(item["title"] in page for item in data["checklist"])
    assert "d" * 64 in page  # the code that the owners approved


def test_an_unauthenticated_report_is_written_and_says_so_and_nothing_is_signed(
    capsys: Capture, folder: Path
) -> None:
    options = ("--out", "page.html", "--statement", "audit.json", "--keys", "keys")
    assert said(capsys, "report", "bundle", *options)[0] == 12
    assert "<h1>Self-consistent, unauthenticated</h1>" in (folder / "page.html").read_text()
    assert not (folder / "audit.json").exists()
    assert not (folder / "keys").exists()


def test_an_auditor_signs_with_their_own_key_and_again_with_the_same(
    capsys: Capture, folder: Path
) -> None:
    options = ("--statement", "audit.json", "--keys", "keys")
    code, text, _ = said(capsys, "report", "bundle", *TRUST, *options)
    assert code == 0
    assert "(a new key)" in text
    signed = (folder / "audit.json").read_bytes()
    key = KeyDirectory(folder / "keys").load("auditor")
    subjects, claims = read_attestation(signed, key.public)
    assert subjects == {"model.onnx": "ab" * 32}
    assert claims["statement"] == digest((folder / "bundle" / "statement.dsse.json").read_bytes())
    assert stat.S_IMODE((folder / "keys").stat().st_mode) == 0o700
    code, data = call(capsys, "report", "bundle", *TRUST, *options)
    assert (code, data["auditor"]) == (0, key.public.fingerprint)
    assert (folder / "audit.json").read_bytes() == signed


def test_a_key_that_others_can_read_signs_nothing(capsys: Capture, folder: Path) -> None:
    options = ("--statement", "audit.json", "--keys", "keys")
    assert call(capsys, "report", "bundle", *TRUST, *options)[0] == 0
    (folder / "audit.json").unlink()
    (folder / "keys" / "auditor").chmod(0o644)
    code, error = call(capsys, "report", "bundle", *TRUST, *options)
    assert (code, error["code"]) == (11, "key-exposed")
    assert not (folder / "audit.json").exists()


@pytest.mark.parametrize("alone", [("--statement", "audit.json"), ("--keys", "keys")])
def test_where_to_sign_and_with_which_key_go_together(
    capsys: Capture, folder: Path, alone: tuple[str, str]
) -> None:
    code, error = call(capsys, "report", "bundle", *TRUST, *alone)
    assert code == 4
    assert "go together" in error["message"]
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "trust.json"]


def test_a_page_that_cannot_be_written_is_an_error_and_not_a_bug(
    capsys: Capture, folder: Path
) -> None:
    shutil.copy(folder / "trust.json", folder / "file")
    assert call(capsys, "report", "bundle", *TRUST, "--out", "file/page.html")[0] == 1


# -- receipts ------------------------------------------------------------------------------------


def test_a_receipt_is_written_and_checked_by_the_fingerprints_alone(
    capsys: Capture, folder: Path
) -> None:
    code, written = call(capsys, "receipt", "bundle", "--client", FIRST, *TRUST)
    assert (code, written["client"], written["entries"]) == (0, FIRST, 6)
    file = folder / "spend.receipt"
    assert file.stat().st_size == written["bytes"] <= 1024
    shutil.rmtree(folder / "bundle")
    code, checked = call(capsys, "check-receipt", "spend.receipt", *TRUST)
    assert (code, checked["verdict"]) == (0, "verified")
    assert checked["epsilon_filter"] == written["epsilon_filter"] > 0
    code, text, _ = said(capsys, "check-receipt", "spend.receipt", *TRUST)
    assert code == 0
    assert "signed by the client and the coordinator" in text


def test_a_receipt_by_keys_of_its_own_is_unauthenticated_and_a_damaged_one_wrong(
    capsys: Capture, folder: Path
) -> None:
    assert call(capsys, "receipt", "bundle", "--client", FIRST)[0] == 12
    code, text, _ = said(capsys, "check-receipt", "spend.receipt")
    assert (code, text.splitlines()[0]) == (12, "self-consistent, unauthenticated")
    data = (folder / "spend.receipt").read_bytes()
    (folder / "spend.receipt").write_bytes(data[:-1])
    assert call(capsys, "check-receipt", "spend.receipt", *TRUST)[0] == 11
    assert call(capsys, "check-receipt", "absent", *TRUST)[0] == 4
    assert call(capsys, "check-receipt", "spend.receipt", "--delta", "1")[0] == 4


def test_a_client_that_the_bundle_does_not_hold_has_no_receipt(
    capsys: Capture, folder: Path
) -> None:
    code, error = call(capsys, "receipt", "bundle", "--client", "nobody", *TRUST)
    assert (code, error["code"]) == (4, "no-such-client")
    assert not (folder / "spend.receipt").exists()
