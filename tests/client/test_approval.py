"""An owner approves a plan, this code and these columns, after everything was judged locally."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from client import approval
from client.approval import approve, approved_plans, code_digest
from client.home import Home
from client.records import records_digest
from client.rounds import Client
from common.canonical import decode, encode
from common.data.schema import Column, Schema
from common.errors import (
    BudgetError,
    DataError,
    PlanError,
    PrivetError,
    Refusal,
    TrustError,
)
from common.ledger import Kind
from common.plan import Plan
from common.privacy.filter import Budget
from common.statement import PLAN_TYPE, REQUEST_TYPE, Envelope
from tests.world import (
    COORDINATOR,
    OWNER,
    PLAN,
    POLICY,
    STRANGER,
    Snapshot,
    ask,
    make_home,
    model,
    signed,
    write_rows,
)


def with_batch_norm(schema: Schema) -> nn.Module:
    """A user's own model that mixes the records of a batch."""
    return nn.Sequential(nn.Linear(schema.size, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def with_dropout(schema: Schema) -> nn.Module:
    return nn.Sequential(nn.Linear(schema.size, 4), nn.Dropout(0.1), nn.Linear(4, 2))


def refuses(home: Home, envelope: bytes, error: type[PrivetError]) -> PrivetError:
    """The error of an approval that is refused; nothing on disk changed."""
    before = Snapshot.of(home.path.parent.parent)
    with pytest.raises(error) as caught:
        approve(home, envelope, OWNER)
    assert Snapshot.of(home.path.parent.parent) == before
    return caught.value


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path, plan=None)


def test_an_approval_records_what_it_binds(home: Home) -> None:
    assert approve(home, signed(PLAN), OWNER) == PLAN
    (entry,) = home.open_ledger().chain(home.federation)
    assert entry.kind is Kind.APPROVAL
    who = home.open_ledger().identity(home.federation)
    contents = records_digest(home, PLAN)
    assert entry.body == {
        "plan": PLAN.digest,
        "terms": {
            "budget": "20.0",
            "delta": "1e-05",
            "order": POLICY.budget.order,
            "spare_rounds": 2,
            "least_noise_multiplier": "0.0",
            "greatest_sampling_rate": "1.0",
            "most_rounds": 10**6,
            "valid_from": None,
            "valid_until": None,
            "simulated": True,
        },
        "code": code_digest(),
        "model": "softmax",
        "features": ["height", "weight"],
        "policy": who.commit("policy/0", home.terms().encode()),
        "data": who.commit("data/0", encode([home.policy.dataset, contents.hex()])),
    }
    assert approved_plans(home) == {PLAN.digest: PLAN}


def test_an_approval_names_neither_the_data_set_nor_a_path(home: Home) -> None:
    approve(home, signed(PLAN), OWNER)
    line = home.ledger.read_text()
    assert POLICY.dataset not in line
    assert str(home.path.parent) not in line
    assert home.client not in line


def test_approving_twice_records_once(home: Home) -> None:
    approve(home, signed(PLAN), OWNER)
    before = home.ledger.read_bytes()
    approve(home, signed(PLAN), OWNER)
    assert home.ledger.read_bytes() == before


def test_code_that_changed_since_needs_a_new_approval(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    approve(home, signed(PLAN), OWNER)
    monkeypatch.setattr(approval, "code_digest", lambda: "0" * 64)
    before = home.ledger.read_bytes()
    with pytest.raises(Refusal) as caught:
        Client(home).answer(ask().sign(COORDINATOR), model())
    assert caught.value.code == "not-approved"
    assert home.ledger.read_bytes() == before

    approve(home, signed(PLAN), OWNER)
    Client(home).answer(ask().sign(COORDINATOR), model())
    kinds = [entry.kind for entry in home.open_ledger().chain(home.federation)]
    assert kinds == [Kind.APPROVAL, Kind.APPROVAL, Kind.INTENT, Kind.DISCLOSURE]


def test_the_code_digest_covers_every_module_that_touches_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "installed"
    for name in ("client/a.py", "client/training/b.py", "common/c.py", "server/d.py"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    monkeypatch.setattr(approval, "__file__", str(root / "client" / "approval.py"))
    digest = code_digest.__wrapped__
    first = digest()
    for name, counts in (
        ("client/a.py", True),
        ("client/training/b.py", True),
        ("common/c.py", True),
        ("server/d.py", False),
    ):
        (root / name).write_text("x = 2\n")
        assert (digest() != first) == counts, name
        (root / name).write_text("x = 1\n")
    (root / "client" / "more.py").write_text("")
    assert digest() != first


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "envelope",
    [
        signed(PLAN, STRANGER),
        Envelope.sign(REQUEST_TYPE, PLAN.encode(), [COORDINATOR]).encode(),
        replace(Envelope.decode(signed(PLAN)), payload=replace(PLAN, rounds=2).encode()).encode(),
        b"{}",
    ],
    ids=["another-coordinator", "signed-as-a-request", "changed-after-signing", "not-an-envelope"],
)
def test_a_plan_that_its_coordinator_did_not_sign_is_refused(home: Home, envelope: bytes) -> None:
    refuses(home, envelope, TrustError)


def test_a_signed_document_that_is_no_plan_is_refused(home: Home) -> None:
    refuses(home, Envelope.sign(PLAN_TYPE, encode({"a": 1}), [COORDINATOR]).encode(), PlanError)


@pytest.mark.parametrize(
    "terms",
    [
        {"least_noise_multiplier": 2.01},
        {"greatest_sampling_rate": 0.49},
        {"most_rounds": 2},
        {"budget": Budget.of(20.0, 1e-6)},
    ],
    ids=lambda terms: next(iter(terms)),
)
def test_a_plan_below_an_owners_floor_is_refused(tmp_path: Path, terms: dict[str, object]) -> None:
    home = make_home(tmp_path, plan=None, policy=replace(POLICY, **terms))  # type: ignore[arg-type]
    assert refuses(home, signed(PLAN), PlanError).code == "below-floor"


def test_spare_rounds_must_fit_the_budget_too(tmp_path: Path) -> None:
    need = Budget.of(20.0, 1e-5).spent([PLAN.privacy.event(PLAN.rounds)])
    tight = replace(POLICY, budget=Budget(need * 1.0001, 1e-5, POLICY.budget.order))
    refuses(make_home(tmp_path / "a", plan=None, policy=tight), signed(PLAN), BudgetError)
    exact = replace(tight, spare_rounds=0)
    approve(make_home(tmp_path / "b", plan=None, policy=exact), signed(PLAN), OWNER)


def test_what_was_spent_on_another_plan_leaves_less(tmp_path: Path) -> None:
    need = Budget.of(20.0, 1e-5).spent([PLAN.privacy.event(PLAN.rounds + 1)])
    policy = replace(
        POLICY, budget=Budget(need * 1.0001, 1e-5, POLICY.budget.order), spare_rounds=0
    )
    home = make_home(tmp_path, policy=policy)
    client = Client(home)
    for round_ in (1, 2):
        client.answer(ask(round_, nonce=round_).sign(COORDINATOR), model())
    another = replace(PLAN, name="more-answers")
    error = refuses(home, signed(another), BudgetError)
    assert "covers 2" in error.message


def test_two_federations_share_one_data_sets_budget(tmp_path: Path) -> None:
    """The ledger is the data set's, so a second coordinator meets what the first one spent."""
    need = Budget.of(20.0, 1e-5).spent([PLAN.privacy.event(PLAN.rounds + 1)])
    policy = replace(
        POLICY, budget=Budget(need * 1.0001, 1e-5, POLICY.budget.order), spare_rounds=0
    )
    home = make_home(tmp_path, policy=policy)
    client = Client(home)
    for round_ in (1, 2, 3):
        client.answer(ask(round_, nonce=round_).sign(COORDINATOR), model())
    elsewhere = replace(home, coordinator=STRANGER.public)
    refuses(elsewhere, signed(PLAN, STRANGER), BudgetError)


@pytest.mark.parametrize(
    "rows",
    [["0.5,2.5,yes"], ["0.5,nan,yes"], ["0.5,,yes"], ["0.5,0.5,maybe"], ["0.5,0.5"], []],
    ids=["out-of-bounds", "not-finite", "empty-cell", "unknown-class", "short-row", "no-rows"],
)
def test_data_that_does_not_fit_the_schema_is_refused_before_approval(
    tmp_path: Path, rows: list[str]
) -> None:
    refuses(make_home(tmp_path, plan=None, rows=rows), signed(PLAN), DataError)


def test_a_file_that_was_mended_is_read_again(tmp_path: Path) -> None:
    home = make_home(tmp_path, plan=None, rows=["9,9,yes"])
    refuses(home, signed(PLAN), DataError)
    write_rows(tmp_path / "clinic-a.csv", ["0.5,0.5,yes"])
    approve(home, signed(PLAN), OWNER)
    write_rows(tmp_path / "clinic-a.csv", ["9,9,yes", "9,9,yes"])
    refuses(home, signed(replace(PLAN, name="later")), DataError)


@pytest.mark.parametrize(
    ("name", "word"), [("with_batch_norm", "BatchNorm1d"), ("with_dropout", "Dropout")]
)
def test_a_model_that_cannot_be_trained_privately_is_refused_naming_the_layer(
    tmp_path: Path, name: str, word: str
) -> None:
    plan = replace(PLAN, model="theirs")
    home = make_home(tmp_path, plan=None)
    bound = replace(home.binding, models={"theirs": f"tests.client.test_approval:{name}"})
    error = refuses(replace(home, binding=bound), signed(plan), PlanError)
    assert word in error.message


def test_a_model_that_is_not_installed_here_is_refused(home: Home) -> None:
    assert refuses(home, signed(replace(PLAN, model="theirs")), PlanError).code == "unknown-model"


def test_a_plan_with_other_columns_is_another_plan(home: Home) -> None:
    columns = (Column("height", -1.0, 1.0), Column("income", -1.0, 1.0))
    approve(home, signed(PLAN), OWNER)
    schema = replace(PLAN.schema, columns=columns)
    refuses(home, signed(replace(PLAN, schema=schema)), DataError)


def test_a_seed_on_data_that_is_not_simulated_cannot_even_be_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        make_home(tmp_path, plan=None, policy=replace(POLICY, simulated=False))
    assert caught.value.code == "seed-without-simulation"
    assert not (tmp_path / "clients").exists()
    assert not (tmp_path / "keys").exists()
    assert not (tmp_path / "custody" / "clinic-a" / "ledger.jsonl").exists()


def test_a_seed_slipped_into_a_clients_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    home = make_home(tmp_path, plan=None, seed=None, policy=replace(POLICY, simulated=False))
    file = home.path / "client.json"
    Home.read(home.path)
    file.write_bytes(encode({**decode(file.read_bytes()), "seed": 1}))
    with pytest.raises(PlanError) as caught:
        Home.read(home.path)
    assert caught.value.code == "seed-without-simulation"


def test_a_plan_file_that_was_swapped_makes_the_client_unusable(home: Home) -> None:
    approve(home, signed(PLAN), OWNER)
    (home.plans / f"{PLAN.digest}.json").write_bytes(signed(PLAN, STRANGER))
    with pytest.raises(TrustError):
        Client(home)


def test_a_plan_cannot_ask_for_a_seed() -> None:
    with pytest.raises(PlanError, match="seed"):
        Plan.decode(encode({**PLAN.json(), "seed": 1}))
    document = PLAN.json()
    document["privacy"]["noise"] = "simulated"
    with pytest.raises(PlanError, match="noise"):
        Plan.decode(encode(document))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")
