"""A device joins with one token, over real TLS; and everybody else does not."""

from __future__ import annotations

import json
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.joining import Clock, join
from client.site import AUTHORITY, node_key, read_enrolment
from common.enrolment import JOIN_PATH, PATHS
from common.errors import InputError, NetworkError, OperationError, PrivetError, TrustError
from common.invitation import Invitation
from common.keys import KeyDirectory
from server.federation.authority import TLS, Authority
from server.federation.registry import Registry
from tests.privet.test_cli import call
from tests.server.doorway import DAY, Door, door_in
from tests.world import Snapshot

IMPATIENT = Clock(sleep=lambda _: None)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with door_in(tmp_path) as door:
        yield door


def refused(door: Door, invitation: Invitation, code: str, clock: Clock = IMPATIENT) -> PrivetError:
    """Joining is refused with this code, and nothing changed on any device or in the registry."""
    site = door.site()
    devices, registry = door.devices(), door.registry()
    with pytest.raises(PrivetError) as caught:
        join(invitation, site, clock)
    assert caught.value.code == code
    assert caught.value.hint
    assert door.devices() == devices
    assert door.registry() == registry
    return caught.value


# -- joining -------------------------------------------------------------------------------------


def test_one_token_binds_two_keys_that_never_left_the_device_to_one_name(door: Door) -> None:
    door.serve()
    home = join(door.invite(), door.site())
    entry = door.federation.registry.active()["clinic-a"]
    identity = home.read_ledger().identity(home.federation)
    assert home.coordinator == door.federation.signing_key().public
    assert entry.ledger_key == identity.key.public.text()
    assert entry.pseudonym == identity.pseudonym
    # What Flower's supernode loads is the key that Flower's server would know this client by.
    private = load_ssh_private_key(node_key(home).read_bytes(), password=None)
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

    assert uses_nist_ec_curve(private.public_key())  # type: ignore[arg-type]
    assert public_key_to_bytes(private.public_key()).decode() == entry.node_key  # type: ignore[arg-type]
    enrolment = read_enrolment(home)
    assert enrolment.address == str(door.federation.address)
    assert (home.path / AUTHORITY).read_text() == door.federation.authority().certificate
    for path in (home.keys, home.keys / home.policy.dataset, node_key(home)):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    secrets = [path.read_bytes() for path in home.keys.iterdir() if path.suffix != ".mark"]
    files = Snapshot.of(door.folder / "federation").files
    assert not any(secret in data for secret in secrets for data in files.values())


def test_joining_again_with_the_same_token_changes_nothing_and_needs_no_server(door: Door) -> None:
    child, invitation = door.serve(), door.invite()
    join(invitation, door.site())
    devices, registry = door.devices(), door.registry()
    door.stop(child)
    assert join(invitation, door.site()).client == "clinic-a"
    assert (door.devices(), door.registry()) == (devices, registry)


def test_a_neighbour_that_joins_or_goes_moves_no_byte_of_the_others(door: Door) -> None:
    door.serve()
    join(door.invite(), door.site())
    first, line = door.devices(), door.registry().splitlines()[0]
    join(door.invite("clinic-b"), door.site("clinic-b"))
    door.federation.registry.revoke("clinic-b")
    assert door.registry().splitlines()[0] == line
    after = {k: v for k, v in door.devices().files.items() if k.startswith("clinic-a")}
    assert after == first.files


def test_the_command_makes_everything_from_a_token_and_one_file(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    door.serve()
    monkeypatch.setenv("PRIVET_FEDERATION", str(door.federation.path))
    site = door.site()
    file = tmp_path / "data.toml"
    file.write_text(
        f'[data]\nsource = "csv"\npath = "{site.binding.path}"\n'
        '[policy]\ndataset = "answers"\nbudget = 8.0\ndelta = 1e-5\n'
    )
    code, invited = call(capsys, "server", "invite", "clinic-a", "--expires", "2h")
    assert code == 0
    here = tmp_path / "clinic"
    command = ("client", "join", invited["token"], "--home", here, "--data", file)
    code, data = call(capsys, *command)
    assert (code, data["client"], data["dataset"]) == (0, "clinic-a", "answers")
    assert sorted(p.name for p in tmp_path.glob("clinic*")) == [
        "clinic",
        "clinic.custody",
        "clinic.keys",
        "clinic.owner",
    ]
    assert call(capsys, *command) == (code, data)
    _, listed = call(capsys, "server", "nodes")
    assert [(row["name"], row["status"]) for row in listed["nodes"]] == [("clinic-a", "active")]
    assert listed["invited"] == []


# -- tokens that are not good (any more) ---------------------------------------------------------


def test_an_expired_token_is_refused_by_the_device_and_by_the_server(door: Door) -> None:
    door.serve(clock=lambda: time.time() + DAY + 1)
    invitation = door.invite()
    refused(door, invitation, "invitation-expired")
    refused(door, invitation, "invitation-expired", Clock(now=lambda: invitation.expires + 1.0))


def test_a_clock_that_is_set_back_does_not_bring_an_invitation_back(door: Door) -> None:
    now = int(time.time())
    old = door.invite(seconds=60, now=now - 120)
    door.invite("clinic-b", now=now)  # this is how late it is known to be
    door.serve(clock=lambda: now - 110)
    refused(door, old, "invitation-expired", Clock(now=lambda: now - 110.0))


def test_a_used_token_is_refused_and_whoever_used_it_hears_the_same_again(door: Door) -> None:
    door.serve()
    invitation = door.invite()
    join(invitation, door.site("first"))
    error = refused(door, invitation, "invitation-used")
    assert error.exit_code == 11


def test_a_token_for_another_name_address_or_time_does_not_hold(door: Door) -> None:
    door.serve()
    invitation = door.invite()
    refused(door, replace(invitation, name="clinic-b"), "wrong-name")
    later = replace(invitation, expires=invitation.expires + 10 * DAY)
    assert later.id == invitation.id  # only the server's own record of the end counts
    refused(door, replace(invitation, seed=b"\x05" * 32), "unknown-invitation")
    refused(door, replace(invitation, federation="5" * 64), "wrong-coordinator")
    refused(door, replace(invitation, authority="5" * 64), "wrong-authority")


def test_a_withdrawn_or_revoked_client_cannot_use_its_token(
    door: Door, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    door.serve()
    monkeypatch.setenv("PRIVET_FEDERATION", str(door.federation.path))
    invitation = door.invite()
    assert call(capsys, "server", "revoke", "clinic-a")[0] == 0
    refused(door, invitation, "unknown-invitation")
    used = door.invite()
    join(used, door.site())
    assert call(capsys, "server", "revoke", "clinic-a")[0] == 0
    (door.site().home / "client.json").unlink()  # as if a kill had come before the last write
    refused(door, used, "revoked")


# -- servers that are not the right one ----------------------------------------------------------


def recording(door: Door, file: Path) -> Any:
    """A relay that shows the real server's introduction, and writes down what it is sent."""
    from server.federation.doorkeeper import Doorkeeper

    about = Doorkeeper(door.federation).about()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        with open(file, "a") as out:
            out.write(json.dumps([scope["method"], scope["path"], body.hex()]) + "\n")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": about})

    return app


def test_whoever_stands_between_hears_nothing_but_a_question_who_it_is(
    door: Door, tmp_path: Path
) -> None:
    other = KeyDirectory(tmp_path / "other")
    Authority.create(other, "attacker").issue(["127.0.0.1"])
    heard = tmp_path / "heard"
    door.serve(recording(door, heard), tls=other.path / TLS)
    refused(door, door.invite(), "wrong-certificate")
    assert [json.loads(line) for line in heard.read_text().splitlines()] == [["GET", PATHS[0], ""]]


def test_a_certificate_for_another_name_or_another_time_is_refused(door: Door) -> None:
    authority = door.federation.authority()
    authority.issue(["other.example"])
    child = door.serve()
    refused(door, door.invite(), "wrong-certificate")
    door.stop(child)
    from datetime import UTC, datetime, timedelta

    authority.issue(["127.0.0.1"], datetime.now(UTC) + timedelta(days=2))
    door.serve()
    error = refused(door, door.invite(), "wrong-certificate")
    assert "clock" in error.hint


def test_tls_1_2_is_no_connection(door: Door) -> None:
    door.serve(newest=ssl.TLSVersion.TLSv1_2)
    assert isinstance(refused(door, door.invite(), "no-answer"), NetworkError)


def test_no_server_is_a_network_error_that_can_be_repeated(door: Door) -> None:
    invitation = door.invite()
    door.socket.close()
    assert refused(door, invitation, "no-answer").exit_code == 3


# -- devices that are not ready ------------------------------------------------------------------


def test_what_is_wrong_on_the_device_is_said_before_anybody_is_asked(door: Door) -> None:
    invitation, site = door.invite(), door.site()
    for changed, code in (
        (replace(site, terms=None), "no-policy"),
        (replace(site, owner_keys=None), "no-owner-key"),
    ):
        with pytest.raises(InputError) as caught:
            join(invitation, changed, IMPATIENT)  # nobody is listening
        assert caught.value.code == code
    door.serve()
    home = join(invitation, site)
    with pytest.raises(OperationError) as exists:
        join(door.invite("clinic-c"), site)
    assert exists.value.code == "home-exists"
    elsewhere = replace(site, home=site.home.with_name("again"))
    home.ledger.rename(home.ledger.with_name("away"))
    with pytest.raises(TrustError) as gone:
        join(door.invite("clinic-d"), elsewhere)
    assert gone.value.code == "ledger-unusable"
    home.ledger.with_name("away").rename(home.ledger)
    other = replace(elsewhere, terms=replace(site.terms, most_rounds=3))  # type: ignore[type-var]
    with pytest.raises(InputError) as terms:
        join(door.invite("clinic-e"), other)
    assert terms.value.code == "policy-in-force"
    assert set(Registry(door.federation.registry.path).active()) == {"clinic-a"}
    assert JOIN_PATH in PATHS
