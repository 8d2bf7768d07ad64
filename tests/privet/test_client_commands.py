"""``privet client``: an owner signs terms, looks at plans, agrees or not, and sees what is left."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.home import Home
from client.rounds import Client
from common.errors import OperationError
from common.ledger import Head
from common.plan import Plan
from common.statement import PLAN_TYPE, Envelope
from common.wire import RoundRequest, digest_arrays
from privet.cli import run
from privet.owning import Change, _differences
from server.home import COORDINATOR
from simulations.experiment import Experiment
from simulations.population import Run, prepare
from tests.privet.test_cli import call
from tests.world import Snapshot, write_experiment

Out = pytest.CaptureFixture[str]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PRIVET_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PRIVET_CLIENT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return prepare(Experiment.read(write_experiment(tmp_path)), tmp_path / "run")


@pytest.fixture
def where(prepared: Run) -> list[str]:
    """The options that name one client and its owner."""
    owner = prepared.owner("client-0").path
    return ["--home", str(prepared.clients / "client-0"), "--owner-keys", str(owner)]


def home_of(prepared: Run) -> Home:
    return Home.read(prepared.clients / "client-0")


def propose(prepared: Run, **changes: Any) -> Path:
    """Another plan of the same coordinator."""
    plan = Plan.decode(Envelope.decode(prepared.plan_envelope.read_bytes()).payload)
    privacy = replace(plan.privacy, **changes.pop("privacy", {}))
    later = replace(plan, privacy=privacy, **changes)
    key = prepared.party(COORDINATOR).load(COORDINATOR)
    file = prepared.path / "later.dsse.json"
    file.write_bytes(Envelope.sign(PLAN_TYPE, later.encode(), [key]).encode())
    return file


def unchanged(folder: Path, work: Callable[[], Any]) -> Any:
    before = Snapshot.of(folder)
    result = work()
    assert Snapshot.of(folder) == before
    return result


# -- approving -----------------------------------------------------------------------------------


def test_a_dry_run_shows_a_plan_and_what_differs_and_needs_no_key(
    prepared: Run, tmp_path: Path, capsys: Out
) -> None:
    file = propose(
        prepared, name="later", rounds=3, privacy={"noise_multiplier": 3.5, "clipping_norm": 2.0}
    )
    home = ["--home", prepared.clients / "client-0"]
    code, data = unchanged(
        tmp_path, lambda: call(capsys, "client", "approve", file, *home, "--dry-run")
    )
    assert code == 0
    assert (data["approved"], data["already_approved"]) == (False, False)
    changed = {change["field"]: change for change in data["changes"]}
    assert set(changed) == {
        "name",
        "rounds",
        "privacy: noise multiplier",
        "privacy: clipping norm",
    }
    assert (changed["rounds"]["was"], changed["rounds"]["now"]) == ("2", "3")
    assert changed["privacy: noise multiplier"]["remark"] == "costs more of the budget"
    assert changed["privacy: clipping norm"]["remark"] == ""
    charged = [data["privacy"]["epsilon_filter"], data["epsilon_filter_after"]]
    assert data["privacy"]["epsilon"] < charged[0] < charged[1]
    assert data["data"] == "digits"

    capsys.readouterr()
    assert run(["client", "approve", str(file), *map(str, home), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "  rounds: 2 -> 3   (costs more of the budget)\n" in text
    assert "optimizer" not in text
    assert text.endswith("not approved: this only shows what would be\n")


def test_yes_approves_and_the_client_serves_the_plan(
    prepared: Run, where: list[str], capsys: Out
) -> None:
    file = propose(prepared, name="later")
    plan = Plan.decode(Envelope.decode(file.read_bytes()).payload)
    assert plan.digest not in home_of(prepared).policy.approved_plans
    code, data = call(capsys, "client", "approve", file, *where, "--yes")
    assert (code, data["approved"]) == (0, True)
    assert plan.digest in home_of(prepared).policy.approved_plans

    client = Client(home_of(prepared))
    key = prepared.party(COORDINATOR).load(COORDINATOR)
    arrays = {name: value * 0 for name, value in _zeros(client, plan).items()}
    who = client.identity.pseudonym
    head = Head.of(key.public.fingerprint, who, ())
    request = RoundRequest(
        client="client-0",
        plan=plan.digest,
        run="a" * 32,
        incarnation=0,
        round=1,
        model=digest_arrays(arrays),
        nonce="b" * 32,
        entries=0,
        root=head.root,
        signature=head.sign(key),
    )
    assert client.answer(request.sign(key), arrays).update

    code, data = call(capsys, "client", "budget", *where[:2])
    assert code == 0
    (spending,) = [one for one in data["plans"] if one["name"] == "later"]
    assert (spending["standing"], spending["begun"], spending["left"]) == ("approved", 1, 2)


def _zeros(client: Client, plan: Plan) -> dict[str, Any]:
    import numpy as np

    return {name: np.zeros(shape, np.float32) for name, shape in client._shapes(plan).items()}


def test_approving_again_says_so_and_changes_nothing(
    prepared: Run, where: list[str], tmp_path: Path, capsys: Out
) -> None:
    file = prepared.plan_envelope
    code, data = unchanged(
        tmp_path, lambda: call(capsys, "client", "approve", file, *where, "--yes")
    )
    assert (code, data["already_approved"], data["changes"]) == (0, True, [])


@pytest.mark.parametrize("answer", [None, "n\n", "\n"])
def test_without_a_yes_nothing_is_approved(
    prepared: Run,
    where: list[str],
    tmp_path: Path,
    capsys: Out,
    monkeypatch: pytest.MonkeyPatch,
    answer: str | None,
) -> None:
    file = propose(prepared, rounds=3)
    if answer is not None:
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", terminal)
    else:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # a script's: nobody is there
    code = unchanged(tmp_path, lambda: run(["client", "approve", str(file), *where]))
    captured = capsys.readouterr()
    assert code == 4
    assert "rounds: 2 -> 3" in captured.out
    assert "not approved, and nothing was changed" in captured.err
    code, error = call(capsys, "client", "approve", file, *where)
    assert (code, error["code"]) == (4, "not-confirmed")


def test_a_yes_at_a_terminal_approves(
    prepared: Run, where: list[str], capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = propose(prepared, rounds=3)
    terminal = io.StringIO("y\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert run(["client", "approve", str(file), *where]) == 0
    assert capsys.readouterr().out.endswith("approved\n")
    assert len(home_of(prepared).policy.approved_plans) == 2


def test_other_terms_since_are_part_of_what_is_shown(
    prepared: Run, where: list[str], tmp_path: Path, capsys: Out
) -> None:
    small = str(tmp_path / "small.toml")
    custody = str(prepared.custody("client-0").path)
    changes = ["--set", "policy.dataset=digits.client-0", "--set", "policy.spare_rounds=4"]
    assert run(["client", "policy", "sign", small, "--custody", custody, *where[2:], *changes]) == 0
    capsys.readouterr()
    _, budget = call(capsys, "client", "budget", *where[:2])
    assert [plan["standing"] for plan in budget["plans"]] == ["changed since"]
    _, data = call(capsys, "client", "approve", prepared.plan_envelope, *where, "--dry-run")
    assert data["changes"] == [
        {"field": "your terms: spare rounds", "was": "1", "now": "4", "remark": ""}
    ]
    assert call(capsys, "client", "approve", prepared.plan_envelope, *where, "--yes")[0] == 0
    _, budget = call(capsys, "client", "budget", *where[:2])
    assert [plan["standing"] for plan in budget["plans"]] == ["approved"]


def test_a_withdrawn_plan_is_approved_no_longer(
    prepared: Run, where: list[str], tmp_path: Path, capsys: Out
) -> None:
    (plan,) = home_of(prepared).policy.approved_plans
    for wrong in ("", "zz", plan + "0"):
        arguments = ["client", "withdraw", wrong, *where]
        code, error = unchanged(tmp_path, lambda given=arguments: call(capsys, *given))
        assert (code, error["code"]) == (4, "no-such-plan")
    assert call(capsys, "client", "withdraw", plan[:12], *where)[0] == 0
    _, budget = call(capsys, "client", "budget", *where[:2])
    assert [(one["standing"], one["left"]) for one in budget["plans"]] == [("withdrawn", 0)]


# -- terms and budget in words -------------------------------------------------------------------


def test_an_owner_makes_a_key_and_signs_terms(prepared: Run, tmp_path: Path, capsys: Out) -> None:
    keys, custody = tmp_path / "mine", tmp_path / "custody"
    code, made = call(capsys, "client", "owner", keys)
    assert (code, made["made"]) == (0, True)
    code, again = call(capsys, "client", "owner", keys)
    assert (again["owner"], again["made"]) == (made["owner"], False)
    file = tmp_path / "terms.toml"
    file.write_text(
        '[policy]\ndataset = "patients"\nbudget = 4.0\ndelta = 1e-6\nspare_rounds = 2\n'
        'valid_from = 2030-01-01\nvalid_until = "2030-12-31"\ncolumns = ["age", "sick"]\n'
    )
    where = ["--custody", str(custody), "--owner-keys", str(keys)]
    code, policy = call(capsys, "client", "policy", "sign", file, *where)
    assert (code, policy["version"], policy["owner"]) == (0, 1, made["owner"])
    assert run(["client", "policy", "sign", str(file), *where]) == 0
    text = capsys.readouterr().out
    assert "patients, policy version 2" in text
    assert "from 2030-01-01 until the end of 2030-12-31, UTC" in text
    assert "epsilon 4 at delta 1e-06 (order" in text
    assert "age, sick" in text


def test_the_budget_and_the_terms_in_words(prepared: Run, where: list[str], capsys: Out) -> None:
    assert run(["client", "budget", *where[:2]]) == 0
    text = capsys.readouterr().out
    assert "epsilon_filter 0.0000 of policy.budget 8 at delta 1e-05" in text
    assert "  rounds begun      0 of 2 and 1 spare\n  rounds left       3; the budget" in text
    assert run(["client", "policy", "show", *where[:2]]) == 0
    text = capsys.readouterr().out
    assert "digits.client-0, policy version 2" in text
    assert "columns             any" in text


def test_the_environment_may_name_the_client(
    prepared: Run, where: list[str], capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(capsys, "client", "budget")[0] == 4
    monkeypatch.setenv("PRIVET_CLIENT_HOME", where[1])
    assert call(capsys, "client", "budget")[1]["dataset"] == "digits.client-0"


# -- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_with_its_exit_code_and_nothing_changes(
    prepared: Run, where: list[str], tmp_path: Path, capsys: Out
) -> None:
    file, other = propose(prepared, rounds=3), prepared.owner("client-1").path
    garbage = tmp_path / "garbage.json"
    garbage.write_bytes(b"\xff" * 1000)
    much = tmp_path / "much.dsse.json"
    much.write_bytes(propose(prepared, rounds=900).read_bytes())
    propose(prepared, rounds=3)
    home, custody = where[:2], ["--custody", str(prepared.custody("client-0").path)]
    small, mine = tmp_path / "small.toml", where[2:]
    cases: list[tuple[list[object], int, str]] = [
        (["approve", file, *home, "--owner-keys", other, "--yes"], 11, "wrong-owner"),
        (["approve", file, *home, "--owner-keys", tmp_path / "no", "--yes"], 1, "key-missing"),
        (["approve", file, *home, "--yes"], 4, "no-owner-key"),
        (["approve", garbage, *where, "--yes"], 11, "verification-failed"),
        (["approve", tmp_path / "nothing", *where, "--yes"], 4, "no-such-file"),
        (["approve", tmp_path, *where, "--yes"], 4, "no-such-file"),
        (["approve", much, *where, "--yes"], 10, "budget-exhausted"),
        (["approve", file, "--home", tmp_path, "--dry-run"], 4, "bad-input"),
        (["budget", "--home", tmp_path / "no"], 4, "bad-input"),
        (["policy", "show", "--home", garbage], 4, "bad-input"),
        (["policy", "sign", small, *custody, *mine], 4, "another-data-set"),
        (["policy", "sign", small, *custody], 4, "no-owner-key"),
        (["policy", "sign", small, *custody, "--owner-keys", other], 11, "policy-not-the-owners"),
        (["policy", "sign", garbage, *custody, *mine], 4, "unreadable-file"),
        (["policy", "sign", small, *custody, *mine, "--set", "policy.x=1"], 4, "bad-plan"),
        (["policy", "sign", small, "--custody", garbage, *mine], 1, "cannot-write"),
        (["owner", garbage], 1, "cannot-write"),
    ]
    for arguments, exit_code, name in cases:
        code, error = unchanged(tmp_path, lambda given=arguments: call(capsys, "client", *given))
        assert (code, error["code"]) == (exit_code, name), arguments


@pytest.mark.parametrize("place", ["policy.dsse.json", "ledger.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "cut", "garbage"])
def test_a_damaged_custody_is_told_and_left_as_it_is(
    prepared: Run, where: list[str], tmp_path: Path, capsys: Out, place: str, damage: str
) -> None:
    file = prepared.custody("client-0").path / place
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[200:] if damage == "cut" else b"\xff\x00\n" * 100)
    plan = propose(prepared, rounds=3)
    for arguments in (
        ["budget", *where[:2]],
        ["approve", plan, *where[:2], "--dry-run"],
        ["approve", plan, *where, "--yes"],
    ):
        code, error = unchanged(tmp_path, lambda given=arguments: call(capsys, "client", *given))
        assert code in (4, 11), error
        assert error["hint"]


def test_a_full_disk_approves_nothing(
    prepared: Run,
    where: list[str],
    tmp_path: Path,
    capsys: Out,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from common import durable

    def full(*_: object, **__: object) -> None:
        raise OperationError("cannot write: no space", hint="free some", code="disk-full")

    plan = propose(prepared, rounds=3)
    monkeypatch.setattr(durable, "replace", full)
    code, error = unchanged(
        tmp_path, lambda: call(capsys, "client", "approve", plan, *where, "--yes")
    )
    assert (code, error["code"]) == (1, "disk-full")


def test_of_two_lists_only_what_differs_is_shown() -> None:
    columns = [{"name": name, "lower": "0.0", "upper": "1.0"} for name in ("age", "weight")]
    wider = [columns[0], {**columns[1], "upper": "2.0"}]
    for old, new, was, now in (
        (columns, columns[:1], "weight (lower 0.0 upper 1.0)", "none"),
        (columns, wider, "weight (lower 0.0 upper 1.0)", "weight (lower 0.0 upper 2.0)"),
        (["no", "yes"], ["yes", "no"], "no, yes", "yes, no"),
    ):
        (change,) = _differences({"schema": {"x": old}}, {"schema": {"x": new}})
        assert change == Change("schema: x", was, now)
    assert not list(_differences({"schema": {"x": columns}}, {"schema": {"x": list(columns)}}))
