"""A site without a way in joins by two files, and a person who compares fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.requesting import accept, request
from client.site import read_enrolment
from common.canonical import decode, encode
from common.enrolment import SignedJoin
from common.errors import InputError, TrustError
from server.federation.doorkeeper import admit_request, approve_request
from tests.privet.test_cli import call
from tests.server.doorway import Door, door_in

Out = pytest.CaptureFixture[str]


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    with door_in(tmp_path) as door:
        monkeypatch.setenv("PRIVET_FEDERATION", str(door.federation.path))
        yield door


def ask(door: Door, name: str = "clinic-a") -> bytes:
    """A request made on a device of its own."""
    key = door.federation.signing_key()
    about = door.federation.about().sign(key)
    return request(door.site(name), name, about, key.public.fingerprint)[1]


def test_two_files_and_three_commands_enrol_a_client(
    door: Door, tmp_path: Path, capsys: Out
) -> None:
    about, asked, answer = (tmp_path / name for name in ("about.json", "asked.json", "answer.json"))
    data = tmp_path / "data.toml"
    data.write_text(
        f'[data]\nsource = "csv"\npath = "{door.site().binding.path}"\n'
        '[policy]\ndataset = "answers"\nbudget = 8.0\ndelta = 1e-5\n'
    )
    _, said = call(capsys, "server", "about", "--out", about)
    home = tmp_path / "clinic"
    code, wanted = call(
        capsys, "client", "request", "clinic-a", "--about", about, "--out", asked, "--home", home,
        "--data", data, "--federation", said["federation"],
    )  # fmt: skip
    assert code == 0
    assert not (home / "client.json").exists()
    code, seen = call(capsys, "server", "approve-request", asked, "--out", answer)
    assert (code, seen["code"]) == (4, "not-confirmed")
    assert door.registry() == b""
    code, seen = call(capsys, "server", "approve-request", asked, "--out", answer, "--yes")
    assert code == 0
    compared = ("name", "ledger_key", "node_key", "pseudonym", "federation")
    assert {key: seen[key] for key in compared} == {key: wanted[key] for key in compared}
    code, done = call(capsys, "client", "accept", answer, "--home", home)
    assert (code, done["client"], done["dataset"]) == (0, "clinic-a", "answers")
    assert not (home / "pending.json").exists()
    assert call(capsys, "client", "accept", answer, "--home", home) == (code, done)


def test_an_about_file_of_somebody_else_makes_no_keys(door: Door) -> None:
    about = door.federation.about().sign(door.federation.signing_key())
    before = door.site() and door.devices()
    with pytest.raises(TrustError) as caught:
        request(door.site(), "clinic-a", about, "0" * 64)
    assert caught.value.code == "wrong-coordinator"
    assert door.devices() == before


def test_an_answer_to_another_request_changes_nothing(door: Door) -> None:
    federation = door.federation
    first, second = ask(door), ask(door, "clinic-b")
    answers = [
        approve_request(federation, admit_request(federation, SignedJoin.decode(signed)))
        for signed in (first, second)
    ]
    before = door.devices()
    for wrong, code in (
        (answers[1], "wrong-request"),
        (
            answers[0][:-9] + (b"y" if answers[0][-9:-8] == b"x" else b"x") + answers[0][-8:],
            "malformed",
        ),
        (first, "malformed"),
    ):
        with pytest.raises(TrustError) as caught:
            accept(door.site().home, wrong)
        assert caught.value.code in (code, "bad-signature", "verification-failed")
        assert door.devices() == before
    with pytest.raises(InputError):
        accept(door.site("clinic-c").home, answers[0])
    assert read_enrolment(accept(door.site().home, answers[0])).invitation == ""


def test_a_request_without_both_proofs_or_for_another_server_is_refused(
    door: Door, tmp_path: Path
) -> None:
    signed = ask(door)
    outer = decode(signed)
    for changed in (
        {**outer, "node_proof": decode(ask(door, "clinic-b"))["node_proof"]},
        {**outer, "invitation": "0" * 32},
        {**outer, "request": decode(ask(door, "clinic-b"))["request"]},
    ):
        with pytest.raises(TrustError):
            admit_request(door.federation, SignedJoin.decode(encode(changed)))
    with door_in(tmp_path / "other") as other, pytest.raises(TrustError) as caught:
        admit_request(other.federation, SignedJoin.decode(signed))
    assert caught.value.code == "wrong-federation"


def test_an_owner_elsewhere_signs_first_and_the_device_needs_no_key_of_theirs(door: Door) -> None:
    from client.custody import OWNER
    from common.keys import KeyDirectory

    site = door.site()
    assert site.terms is not None
    owner = KeyDirectory(door.folder / "elsewhere").create(OWNER)
    site.custody.sign(site.terms, owner)
    there = replace(site, owner_keys=None, owner=owner.public, terms=None)
    key = door.federation.signing_key()
    about = door.federation.about().sign(key)
    _, signed = request(there, "clinic-a", about, key.public.fingerprint)
    join = admit_request(door.federation, SignedJoin.decode(signed))
    home = accept(site.home, approve_request(door.federation, join))
    assert home.owner == owner.public
