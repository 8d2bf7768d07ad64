"""What central trust costs a client: the whole plan, once, at approval; and what it sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client import budget
from client.approval import approve, examine
from client.home import Home
from client.rounds import Client
from client.training.plain import PlainEngine, clipped
from common.central import Adaptive, Central
from common.cohort import Cohort
from common.errors import BudgetError, PlanError, Refusal
from common.ledger import Entry, Kind
from common.plan import Optimizer
from common.privacy.events import Event
from common.privacy.filter import Budget
from common.privacy.noise import Stream
from common.wire import Arrays, digest_arrays
from privet.cli import run
from privet.owning import budget_of
from tests.world import (
    COORDINATOR,
    OWNER,
    POLICY,
    Snapshot,
    ask,
    killed_at,
    make_home,
    model,
    put_in_force,
    seen,
    signed,
    write_rows,
)
from tests.world import PLAN as LOCAL

PLAN = replace(
    LOCAL,
    cohort=Cohort(clients=3, quorum=1, deadline=5.0),
    privacy=replace(LOCAL.privacy, trust="central", steps=1, noise_multiplier=2.0),
    central=Central(local_steps=2, local_sampling_rate=1.0),
)
TRUSTING = replace(POLICY, unit="client", approved_plans=())
WHOLE = Event(0.5, 2.0, PLAN.rounds + POLICY.spare_rounds)


def home_of(path: Path, plan: object = PLAN, **options: object) -> Home:
    return make_home(path, plan=plan, policy=TRUSTING, **options)  # type: ignore[arg-type]


def chain(home: Home) -> tuple[Entry, ...]:
    return home.read_ledger().chain(home.federation)


def serve(client: Client, round_: int = 1, **changes: object) -> Arrays:
    entries = chain(client.home)
    request = ask(round_, plan=PLAN.digest, nonce=round_, **{**seen(entries), **changes})
    return client.answer(request.sign(COORDINATOR), model()).update


def length(update: Arrays) -> float:
    flat = np.concatenate([value.ravel() for value in update.values()]).astype(np.float64)
    return float(np.linalg.norm(flat))


# -- charged once, and before anybody is drawn ---------------------------------------------------


def test_an_approval_spends_the_whole_plan_and_its_spare_rounds_at_once(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    assert [entry.kind for entry in chain(home)] == [Kind.APPROVAL, Kind.ENROLMENT]
    assert home.read_ledger().spent() == [WHOLE]


def test_the_rounds_of_the_run_cost_nothing_more(tmp_path: Path) -> None:
    client = Client(home_of(tmp_path))
    serve(client, 1)
    serve(client, 3)
    assert client.home.read_ledger().spent() == [WHOLE]
    assert [e.body["event"] for e in chain(client.home) if e.kind is Kind.INTENT] == [None, None]
    report = budget_of(client.home)
    assert report.spent == TRUSTING.budget.spent([WHOLE])
    assert [(one.begun, one.left) for one in report.plans] == [(2, 3)]
    assert [one.standing for one in report.plans] == [budget.APPROVED]


def test_an_intent_is_on_disk_before_an_update_leaves(tmp_path: Path) -> None:
    client = Client(home_of(tmp_path))
    update = serve(client)
    *_, intent, disclosure = chain(client.home)
    assert (intent.kind, disclosure.kind) == (Kind.INTENT, Kind.DISCLOSURE)
    assert disclosure.body["update"] == digest_arrays(update)
    assert intent.body["noise"] == "none"


def test_the_same_request_gets_the_same_bytes_again(tmp_path: Path) -> None:
    client = Client(home_of(tmp_path))
    head = seen(chain(client.home))
    first, again = serve(client, **head), serve(client, **head)
    assert digest_arrays(first) == digest_arrays(again)
    assert sum(entry.kind is Kind.INTENT for entry in chain(client.home)) == 1


def test_another_run_of_the_plan_is_refused_until_it_is_approved_again(tmp_path: Path) -> None:
    client = Client(home_of(tmp_path))
    serve(client)
    with pytest.raises(Refusal) as caught:
        serve(client, run="f" * 32)
    assert caught.value.code == "no-rounds-left"
    home = client.home
    home.custody.sign(home.terms(), OWNER, withdraw=[PLAN.digest])
    enough_once = home.terms().budget.spent([WHOLE]) * 1.05
    put_in_force(home, budget=replace(home.terms().budget, epsilon=enough_once))
    with pytest.raises(BudgetError):
        approve(home, signed(PLAN), OWNER)
    put_in_force(home, budget=Budget.of(60.0, 1e-5))
    approve(home, signed(PLAN), OWNER)
    again = Client(home)
    serve(again, run="f" * 32)
    serve(again, 2)  # the first run goes on
    assert home.read_ledger().spent() == [WHOLE, WHOLE]
    with pytest.raises(Refusal):
        serve(again, run="e" * 32)


def test_an_approval_that_a_kill_cut_off_from_its_enrolment_is_none(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    ledger = home.read_ledger()
    body = chain(home)[0].body
    with ledger.locked():
        ledger.append(home.federation, Kind.APPROVAL, body)  # as if the enrolment were to follow
    assert not examine(home, signed(PLAN)).approved


def test_showing_a_plan_counts_its_cost_once_before_and_not_again_after(tmp_path: Path) -> None:
    home = home_of(tmp_path, plan=None)
    before = examine(home, signed(PLAN))
    assert before.epsilon_after == TRUSTING.budget.spent([WHOLE])
    approve(home, signed(PLAN), OWNER)
    after = examine(home, signed(PLAN))
    assert (after.approved, after.epsilon_after) == (True, before.epsilon_after)


# -- who allows it -------------------------------------------------------------------------------


def test_an_owner_who_did_not_allow_central_trust_approves_none_and_nothing_changes(
    tmp_path: Path,
) -> None:
    home = make_home(tmp_path, plan=None)
    before = Snapshot.of(tmp_path)
    with pytest.raises(PlanError, match="only the coordinator's honesty protects") as caught:
        approve(home, signed(PLAN), OWNER)
    assert caught.value.code == "other-unit"
    assert Snapshot.of(tmp_path) == before


def test_the_unit_of_a_data_set_does_not_change(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    with pytest.raises(PlanError, match="is for each client") as caught:
        put_in_force(home, unit="record")
    assert caught.value.code == "other-unit"


def test_nor_by_a_policy_that_was_removed_and_signed_anew(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    terms = home.terms()
    home.custody.policy_file.unlink()
    home.custody.sign(replace(terms, unit="record", approved_plans=()), OWNER)
    with pytest.raises(PlanError, match="and now one for each record"):
        approve(home, signed(LOCAL), OWNER)


def test_a_request_under_a_policy_of_another_unit_is_refused(tmp_path: Path) -> None:
    client = Client(home_of(tmp_path))
    terms = client.home.terms()
    client.home.custody.policy_file.unlink()
    client.home.custody.sign(replace(terms, unit="record"), OWNER)
    with pytest.raises(Refusal):
        serve(client)


def test_the_approve_command_says_what_the_coordinator_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = home_of(tmp_path, plan=None)
    (tmp_path / "plan.dsse.json").write_bytes(signed(PLAN))
    plan = str(tmp_path / "plan.dsse.json")
    assert run(["client", "approve", plan, "--home", str(home.path), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The coordinator sees its update, clipped, as it is" in said
    assert "only the coordinator's honesty protects" in said
    assert "whether this client is drawn or not" in said


# -- what is sent --------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def start() -> Arrays:
    return {n: p.detach().numpy() for n, p in network().named_parameters()}


RECORDS = torch.tensor([[0.5, -0.25], [-0.5, 0.75], [1.0, 1.0]]), torch.tensor([1, 0, 1])


def trained(plan: object = PLAN, records: object = RECORDS) -> Arrays:
    engine = PlainEngine(network(), plan)  # type: ignore[arg-type]
    return engine.round(start(), *records, Stream.simulated(1))  # type: ignore[misc]


def test_local_steps_are_those_of_plain_sgd(tmp_path: Path) -> None:
    plan = replace(
        PLAN,
        privacy=replace(PLAN.privacy, clipping_norm=100.0),
        optimizer=Optimizer(learning_rate=0.5),
    )
    reference = network()
    steps = torch.optim.SGD(reference.parameters(), lr=0.5)
    for _ in range(2):
        steps.zero_grad()
        nn.functional.cross_entropy(reference(RECORDS[0]), RECORDS[1]).backward()
        steps.step()
    for name, parameter in reference.named_parameters():
        moved = parameter.detach().numpy() - start()[name]
        assert trained(plan)[name] == pytest.approx(moved, abs=1e-6)


@pytest.mark.parametrize("norm", [0.1, 1e-5, 0.7])
def test_a_client_clips_its_whole_update_itself(norm: float) -> None:
    plan = replace(
        PLAN,
        privacy=replace(PLAN.privacy, clipping_norm=norm),
        optimizer=Optimizer(learning_rate=50.0),
    )
    assert 0.99 * norm < length(trained(plan)) <= norm


def test_with_an_adaptive_norm_it_clips_to_the_greatest_so_that_the_server_can_count() -> None:
    adaptive = Central(2, 1.0, Adaptive(0.5, 0.2, 5.0, 0.1, 2.0))
    plan = replace(PLAN, optimizer=Optimizer(learning_rate=50.0), central=adaptive)
    assert 1.99 < length(trained(plan)) <= 2.0


def test_a_client_without_records_sends_zeros(tmp_path: Path) -> None:
    empty = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    assert length(trained(records=empty)) == 0.0
    client = Client(home_of(tmp_path))
    write_rows(tmp_path / "clinic-a.csv", [])  # since it was approved
    assert length(serve(client)) == 0.0


def test_what_is_not_finite_is_sent_as_zeros() -> None:
    assert clipped(np.array([np.inf, 1.0]), 1.0).tolist() == [0.0, 0.0]
    assert clipped(np.array([np.nan, 1.0]), 1.0).tolist() == [0.0, 0.0]
    assert clipped(np.zeros(2), 1.0).tolist() == [0.0, 0.0]


def test_a_local_step_uses_records_at_the_local_rate_and_not_the_clients() -> None:
    rates: list[float] = []

    class Counting(Stream):
        def poisson_sample(self, records: int, rate: float):  # type: ignore[no-untyped-def]
            rates.append(rate)
            return super().poisson_sample(records, rate)

    plan = replace(PLAN, central=Central(local_steps=3, local_sampling_rate=0.25))
    PlainEngine(network(), plan).round(start(), *RECORDS, Counting(bytes(32), "simulated"))
    assert rates == [0.25] * 3


@pytest.mark.slow
def test_an_approval_killed_at_any_write_is_finished_and_charged_once(tmp_path: Path) -> None:
    points = 0
    for step in range(1, 200):
        home = home_of(tmp_path / str(step), plan=None)
        if not killed_at(step, lambda home=home: approve(home, signed(PLAN), OWNER)):
            break
        points += 1
        again = Home.read(home.path)
        approve(again, signed(PLAN), OWNER)
        assert again.read_ledger().spent() == [WHOLE], step
        serve(Client(again))
    assert points >= 20


@pytest.mark.slow
def test_a_client_killed_at_any_write_of_a_round_answers_it_and_is_charged_once(
    tmp_path: Path,
) -> None:
    points = 0
    for step in range(1, 200):
        home = home_of(tmp_path / str(step), seed=None)
        head = seen(chain(home))
        if not killed_at(step, lambda home=home, head=head: serve(Client(home), **head)):
            break
        points += 1
        again = Client(Home.read(home.path))
        assert length(serve(again, **head)) > 0, step
        assert again.home.read_ledger().spent() == [WHOLE], step
    assert points >= 10
