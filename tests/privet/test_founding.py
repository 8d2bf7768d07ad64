"""A federation is founded once, keeps its parties apart, and makes runs of who is enrolled."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.approval import approve
from client.home import HOME_VARIABLE, Home
from client.joining import join
from common.canonical import decode
from common.errors import InputError, TrustError
from common.invitation import Address
from common.keys import KeyDirectory
from common.plan import Plan
from common.statement import PLAN_TYPE, Envelope
from server.app import coordinate
from server.federation.authority import TLS
from server.federation.directory import APPROVER, Federation, approver_key
from server.federation.lasting import HEADS
from server.home import COORDINATOR, ServerHome
from simulations.grid import InProcessGrid
from tests.privet.test_cli import call
from tests.server.doorway import Door, door_in
from tests.world import Snapshot, killed_at

Out = pytest.CaptureFixture[str]
ADDRESS = Address("127.0.0.1", 8443)
PLAN = """\
[plan]
name = "answers"
model = "softmax"
rounds = 2

[plan.schema]
kind = "table"
classes = ["no", "yes"]
target = "answer"
columns = [
  {name = "height", lower = -1.0, upper = 1.0},
  {name = "weight", lower = -1.0, upper = 1.0},
]

[plan.cohort]
clients = 2
quorum = 2
deadline = 60

[plan.optimizer]
learning_rate = 0.5

[plan.privacy]
trust = "local"
noise_multiplier = 4.0
delta = 1e-5
clipping_norm = 1.0
sampling_rate = 0.5
steps = 2
divisor = 4

[plan.release]
name = "answers"
"""


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    with door_in(tmp_path) as door:
        monkeypatch.setenv("PRIVET_FEDERATION", str(door.federation.path))
        yield door


def test_killed_at_any_write_the_same_command_founds_one_federation(tmp_path: Path) -> None:
    path, keys, step = tmp_path / "federation", tmp_path / "keys", 1
    seen: dict[str, bytes] = {}
    while killed_at(step, lambda: Federation.create(path, keys, ADDRESS)):
        made = {n: d for n, d in Snapshot.of(keys).files.items() if not n.endswith(".tmp")}
        assert all(made[name] == data for name, data in seen.items())  # nothing is made twice
        seen = made
        if (path / "federation.json").exists():
            break
        step += 1
    assert step >= 3
    with pytest.raises(InputError) as caught:
        Federation.create(path, keys, ADDRESS)
    assert caught.value.code == "federation-exists"
    assert Federation.read(path).about().address == str(ADDRESS)
    assert {stat.S_IMODE(p.stat().st_mode) for p in keys.iterdir()} == {0o600}


def test_keys_inside_of_what_is_copied_and_backed_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Federation.create(tmp_path / "f", tmp_path / "f" / "keys", ADDRESS)
    assert caught.value.code == "keys-inside"
    assert not (tmp_path / "f").exists()


def test_coordinator_and_approver_are_two_directories_or_nothing(
    door: Door, tmp_path: Path, capsys: Out
) -> None:
    code, data = call(capsys, "approver", "init", door.federation.keys)
    assert (code, data["code"]) == (11, "keys-together")
    code, data = call(capsys, "approver", "init", tmp_path / "approver")
    assert code == 0
    assert call(capsys, "server", "approver", data["approver"])[0] == 0
    assert Federation.read(door.federation.path).about().approver == data["approver"]
    own = door.federation.signing_key().public.fingerprint
    assert call(capsys, "server", "approver", own)[1]["code"] == "keys-together"
    KeyDirectory(door.federation.keys).create(APPROVER)  # somebody copies a key over
    with pytest.raises(TrustError) as caught:
        Federation.read(door.federation.path).signing_key()
    assert caught.value.code == "keys-together"
    KeyDirectory(tmp_path / "approver").create(COORDINATOR)
    with pytest.raises(TrustError):
        approver_key(tmp_path / "approver")
    assert call(capsys, "server", "invite", "clinic-a")[1]["code"] == "keys-together"


def test_rotating_the_certificate_is_not_noticed_by_a_client(door: Door, capsys: Out) -> None:
    invitation = door.invite()
    before = KeyDirectory(door.federation.keys).read(TLS)
    code, data = call(capsys, "server", "rotate", "--name", "fl.example")
    assert (code, data["names"]) == (0, ["127.0.0.1", "fl.example"])
    assert KeyDirectory(door.federation.keys).read(TLS) != before
    door.serve()
    assert join(invitation, door.site()).client == "clinic-a"


def test_a_run_is_made_of_those_who_are_enrolled_and_its_plan_can_be_approved(
    door: Door, tmp_path: Path, capsys: Out
) -> None:
    file, run = tmp_path / "plan.toml", tmp_path / "run"
    file.write_text(PLAN)
    code, data = call(capsys, "server", "create", run, file)
    assert (code, data["code"]) == (4, "too-few-clients")
    door.serve()
    homes = {n: join(door.invite(n), door.site(n)) for n in ("clinic-a", "clinic-b", "clinic-c")}
    door.federation.registry.revoke("clinic-c")
    code, data = call(capsys, "server", "create", run, file)
    assert (code, data["clients"]) == (0, ["clinic-a", "clinic-b"])
    assert call(capsys, "server", "create", run, file)[1]["code"] == "directory-in-use"
    home = ServerHome.read(run)
    assert home.members == door.federation.registry.members()
    assert home.signing_key().public.fingerprint == homes["clinic-a"].federation
    envelope = Path(data["signed_plan"]).read_bytes()
    plan = Plan.decode(Envelope.decode(envelope).verify(PLAN_TYPE, [home.signing_key().public]))
    assert plan == home.plan
    here = Home.read(homes["clinic-a"].path)
    owner = KeyDirectory(door.site().owner_keys or tmp_path).load("owner")
    assert approve(here, envelope, owner).digest == data["plan"]
    assert home.counts("clinic-b")
    assert call(capsys, "server", "revoke", "clinic-b")[0] == 0
    assert not home.counts("clinic-b")
    assert call(capsys, "server", "status", run)[0] == 0


def play(run: Path, clients: Path, nodes: int, monkeypatch: pytest.MonkeyPatch) -> ServerHome:
    """The run's rounds, with as many nodes as there are clients' directories in ``clients``."""
    monkeypatch.setenv(HOME_VARIABLE, str(clients))
    with InProcessGrid("client.app:app", nodes) as grid:
        coordinate(grid, run)
    return ServerHome.read(run)


def test_clients_that_joined_by_token_train_a_run_and_a_revoked_one_is_not_in_the_next(
    door: Door, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clients = tmp_path / "plan.toml", tmp_path / "clients"
    file.write_text(PLAN)
    door.serve()
    for name in ("clinic-a", "clinic-b", "clinic-c"):
        join(door.invite(name), replace(door.site(name), home=clients / name))

    def begin(run: str) -> Path:
        code, data = call(capsys, "server", "create", tmp_path / run, file)
        assert code == 0
        for name in data["clients"]:
            owner = KeyDirectory(door.folder / "devices" / name / "owner").load("owner")
            approve(Home.read(clients / name), Path(data["signed_plan"]).read_bytes(), owner)
        return tmp_path / run

    def last_round(home: ServerHome) -> dict[str, Any]:
        line = json.loads(home.metrics.read_bytes().splitlines()[-1])
        assert isinstance(line, dict)
        return line

    first = play(begin("first"), clients, 3, monkeypatch)
    assert (last_round(first)["round"], last_round(first)["valid"]) == (2, 2)
    ends = {
        member.pseudonym: len(Home.read(clients / name).read_ledger().chain(_fp(first)))
        for name, member in first.members.items()
    }
    seen = decode((door.federation.path / HEADS).read_bytes())["heads"]
    asked = [name for name, member in first.members.items() if member.pseudonym in seen]
    assert len(asked) >= 2
    for pseudonym, head in seen.items():
        assert 0 < head["entries"] <= ends[pseudonym]

    assert call(capsys, "server", "revoke", asked[0])[0] == 0
    file.write_text(PLAN.replace("rounds = 2", "rounds = 1"))
    second = play(begin("second"), clients, 3, monkeypatch)
    assert asked[0] not in second.members
    assert (last_round(second)["round"], last_round(second)["valid"]) == (1, 2)


def _fp(home: ServerHome) -> str:
    return home.signing_key().public.fingerprint


def test_what_is_no_plan_for_a_coordinator_makes_no_run(
    door: Door, tmp_path: Path, capsys: Out
) -> None:
    file = tmp_path / "plan.toml"
    for text, code in (
        (PLAN + '[data]\nsource = "digits"\ntest = "held-out"\n', "held-out-on-server"),
        (PLAN.replace('model = "softmax"', 'model = "nonsense"'), "unknown-model"),
        ("[plan]\n", "bad-plan"),
    ):
        file.write_text(text)
        assert call(capsys, "server", "create", tmp_path / "run", file)[1]["code"] == code
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("duration", ["", "0h", "1", "31d", "59s", "24 h", "-1h"])
def test_an_invitation_lasts_from_a_minute_to_a_month(
    door: Door, duration: str, capsys: Out
) -> None:
    code, data = call(capsys, "server", "invite", "clinic-a", "--expires", duration)
    assert (code, data["code"]) == (4, "bad-duration")
    assert not (door.federation.path / "invitations.json").exists()
