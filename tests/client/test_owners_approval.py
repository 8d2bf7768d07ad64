"""An owner's key approves what was shown, under the terms of the day, and nothing half."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.approval import approve, examine
from client.home import Home
from client.rounds import Client
from common.errors import OperationError, PlanError, Refusal, TrustError
from common.ledger import Entry, Kind
from common.privacy.filter import Budget
from tests.client.test_approval import refuses
from tests.world import (
    COORDINATOR,
    OWNER,
    PLAN,
    POLICY,
    STRANGER,
    Snapshot,
    ask,
    killed_at,
    make_home,
    model,
    put_in_force,
    signed,
    write_rows,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path, plan=None)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")


def approvals(home: Home) -> list[Entry]:
    chain = home.read_ledger().chain(home.federation)
    return [entry for entry in chain if entry.kind is Kind.APPROVAL]


def serve(home: Home, round_: int) -> None:
    Client(home).answer(ask(round_, nonce=round_).sign(COORDINATOR), model())


def test_approving_signs_a_policy_that_lists_the_plan(home: Home) -> None:
    assert home.terms().approved_plans == ()
    approve(home, signed(PLAN), OWNER)
    assert home.terms() == replace(home.policy, version=2, approved_plans=(PLAN.digest,))


def test_only_the_owners_key_approves(home: Home) -> None:
    before = Snapshot.of(home.path.parent.parent)
    with pytest.raises(TrustError) as caught:
        approve(home, signed(PLAN), STRANGER)
    assert caught.value.code == "wrong-owner"
    assert Snapshot.of(home.path.parent.parent) == before


def test_looking_at_a_plan_changes_nothing(home: Home) -> None:
    before = Snapshot.of(home.path.parent.parent)
    proposal = examine(home, signed(PLAN))
    assert Snapshot.of(home.path.parent.parent) == before
    assert (proposal.plan, proposal.before, proposal.approved) == (PLAN, None, False)
    assert proposal.rounds_left == 5  # 3 and 2 spare
    whole = [PLAN.privacy.event(5)]
    assert proposal.epsilon_before == 0
    assert proposal.epsilon_after == home.policy.budget.spent(whole)


def test_what_was_not_shown_is_not_approved(home: Home) -> None:
    shown = examine(home, signed(PLAN))
    put_in_force(home, spare_rounds=1)
    before = Snapshot.of(home.path.parent)
    with pytest.raises(TrustError) as caught:
        approve(home, signed(PLAN), OWNER, shown=shown)
    assert caught.value.code == "changed-meanwhile"
    assert Snapshot.of(home.path.parent) == before
    assert not approvals(home)


def test_a_kill_at_any_write_leaves_a_plan_approved_or_not_at_all(tmp_path: Path) -> None:
    step, outcomes = 0, set()
    while True:
        step += 1
        home = make_home(tmp_path / str(step), plan=None)
        died = killed_at(step, lambda home=home: approve(home, signed(PLAN), OWNER))
        listed = PLAN.digest in home.terms().approved_plans
        whole = listed and len(approvals(home)) == 1
        outcomes.add((listed, bool(approvals(home))))
        try:
            serve(home, 1)
            served = True
        except Refusal as refusal:
            served = False
            assert refusal.code == "not-approved"
        assert served == whole
        approve(home, signed(PLAN), OWNER)
        serve(home, 2)
        assert len(approvals(home)) == 1
        if not died:
            break
    assert step > 10
    assert outcomes == {(False, False), (True, False), (True, True)}


def test_a_plan_is_approved_again_under_new_terms(home: Home) -> None:
    """The latest approval before an intent states the terms that it was begun under."""
    approve(home, signed(PLAN), OWNER)
    serve(home, 1)
    put_in_force(home, budget=Budget.of(30.0, 1e-5, POLICY.budget.order))
    with pytest.raises(Refusal) as caught:
        serve(home, 2)
    assert caught.value.code == "not-approved"
    approve(home, signed(PLAN), OWNER)
    serve(home, 2)
    budgets, in_force = [], {}
    for entry in home.read_ledger().chain(home.federation):
        if entry.kind is Kind.APPROVAL:
            in_force = entry.body["terms"]
        elif entry.kind is Kind.INTENT:
            budgets.append(in_force["budget"])
    assert budgets == ["20.0", "30.0"]


def test_a_plan_that_is_half_done_needs_only_its_other_half_again(tmp_path: Path) -> None:
    need = Budget.of(20.0, 1e-5).spent([PLAN.privacy.event(PLAN.rounds)])
    policy = replace(
        POLICY, budget=Budget(need * 1.0001, 1e-5, POLICY.budget.order), spare_rounds=0
    )
    home = make_home(tmp_path, policy=policy)
    serve(home, 1)
    put_in_force(home, most_rounds=10)
    assert examine(home, signed(PLAN)).rounds_left == 2
    approve(home, signed(PLAN), OWNER)
    serve(home, 2)
    serve(home, 3)


@pytest.mark.parametrize("changes", [{"columns": ("height", "weight", "answer")}, {}], ids=str)
def test_a_policy_that_differs_in_nothing_public_keeps_approvals(
    home: Home, changes: dict[str, Any]
) -> None:
    approve(home, signed(PLAN), OWNER)
    put_in_force(home, **changes)
    serve(home, 1)


def test_a_row_more_keeps_the_approval_and_changes_only_a_salted_commitment(home: Home) -> None:
    approve(home, signed(PLAN), OWNER)
    write_rows(Path(str(home.binding.path)), ["0.5,0.5,yes"] * 6)
    serve(home, 1)
    put_in_force(home, most_rounds=10)
    approve(home, signed(PLAN), OWNER)
    first, second = (entry.body for entry in approvals(home))
    assert first["data"] != second["data"]
    assert first["policy"] != second["policy"]


def test_columns_that_the_owner_does_not_allow_are_refused(tmp_path: Path) -> None:
    for number, columns in enumerate([("height", "answer"), ("height", "weight"), ()]):
        policy = replace(POLICY, columns=columns)
        home = make_home(tmp_path / str(number), plan=None, policy=policy)
        assert refuses(home, signed(PLAN), PlanError).code == "other-columns"


def test_two_federations_commitments_cannot_be_linked(home: Home) -> None:
    other = replace(home, coordinator=STRANGER.public, path=home.path.parent / "other")
    other.create()
    approve(home, signed(PLAN), OWNER)
    approve(other, signed(PLAN, STRANGER), OWNER)
    bodies = [approvals(home)[0].body, approvals(other)[0].body]
    assert bodies[0]["data"] != bodies[1]["data"]
    assert bodies[0]["policy"] != bodies[1]["policy"]
    assert bodies[0]["plan"] == bodies[1]["plan"]


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_cannot_be_written_approves_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    caught = refuses(home, signed(PLAN), OperationError)
    assert caught.code in ("cannot-write", "disk-full")
    assert caught.hint
