"""What is left is counted as the guard counts; the numbers here are by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from client.budget import APPROVED, CHANGED, WITHDRAWN, BudgetReport, budget_report
from client.guard import intent_body
from common.keys import Identity
from common.ledger import Entry, Kind
from common.ledger.file import LOCAL
from common.policy import Policy
from common.privacy.filter import Budget
from tests.world import FEDERATION, PLAN, PRIVACY, STRANGER, ask

NOW = "2030-06-01T12:00:00Z"
ELSEWHERE = STRANGER.public.fingerprint
# Full batches at sigma 4: a round of 2 steps costs 2 * 4 / 32 = 0.25 at order 4. The conversion to
# (epsilon, 1e-5) at order 4 costs log(3/4) - log(4e-5) / 3 = 3.0879 (Canonne et al. 2020).
FULL = replace(PLAN, privacy=replace(PRIVACY, sampling_rate=1.0, noise_multiplier=4.0))
CONVERSION = 3.0879
TERMS = Policy("answers", Budget(8.0, 1e-5, 4), spare_rounds=2, approved_plans=(FULL.digest,))


class History:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, kind: Kind, body: dict, federation: str = FEDERATION) -> Entry:
        who = Identity.derive(b"\x05" * 32, federation)
        own = [entry for entry in self.entries if entry.federation == federation]
        entry = Entry.sign(who, federation, own[-1] if own else None, kind, body, NOW)
        self.entries.append(entry)
        return entry

    def begin(self, federation: str = FEDERATION, plan=FULL) -> Entry:
        number = len(self.entries) + 1
        request = ask(number, nonce=number, plan=plan.digest)
        own = [entry for entry in self.entries if entry.federation == federation]
        body = intent_body(request, plan, "cryptographic", 4, own)
        return self.add(Kind.INTENT, body, federation)

    def serve(self, federation: str = FEDERATION, plan=FULL) -> None:
        intent = self.begin(federation, plan)
        self.add(
            Kind.DISCLOSURE,
            {"intent": intent.seq, "update": "a" * 64, "spent": intent.body["spent"]},
            federation,
        )


def report(
    history: History, policy: Policy = TERMS, standing: str = APPROVED, now: str = NOW
) -> BudgetReport:
    return budget_report(policy, history.entries, FEDERATION, [FULL], {FULL.digest: standing}, now)


def test_nothing_is_spent_at_first() -> None:
    fresh = report(History())
    assert (fresh.spent, fresh.left, fresh.share, fresh.federations) == (0, 8.0, 0, ())
    (plan,) = fresh.plans
    assert (plan.begun, plan.left) == (0, 5)  # 3 rounds and 2 spare
    assert plan.covered == 19  # (8 - 3.0879) / 0.25 = 19.6


def test_every_round_that_was_begun_is_spent_and_those_without_an_answer_are_named() -> None:
    history = History()
    history.serve()
    history.begin()
    now = report(history)
    assert now.spent == pytest.approx(2 * 0.25 + CONVERSION, abs=1e-4)
    assert now.left == pytest.approx(8 - 2 * 0.25 - CONVERSION, abs=1e-4)
    assert now.share == pytest.approx(0.5 / (8 - CONVERSION), abs=1e-4)
    (plan,) = now.plans
    assert (plan.begun, plan.unanswered, plan.left, plan.covered) == (2, 1, 3, 17)


def test_shares_of_federations_add_up() -> None:
    history = History()
    history.add(Kind.POLICY, {"version": 1, "digest": "a" * 64}, LOCAL)
    for _ in range(3):
        history.serve()
    history.begin(ELSEWHERE)
    now = report(history)
    assert [(one.federation, one.rounds, one.unanswered) for one in now.federations] == [
        (FEDERATION, 3, 0),
        (ELSEWHERE, 1, 1),
    ]
    assert sum(one.share for one in now.federations) == pytest.approx(now.share)
    assert now.federations[0].share == pytest.approx(3 * now.federations[1].share)
    assert now.plans[0].begun == 3


def test_what_others_spent_leaves_fewer_rounds() -> None:
    history = History()
    for _ in range(17):
        history.serve(ELSEWHERE)
    (plan,) = report(history).plans
    assert (plan.covered, plan.left) == (2, 2)


def test_a_used_up_budget_covers_nothing() -> None:
    history = History()
    for _ in range(19):
        history.serve(ELSEWHERE)
    now = report(history)
    assert now.plans[0].left == 0
    assert 0 < now.left < 0.25
    assert report(history, replace(TERMS, budget=Budget(4.0, 1e-5, 4))).left == 0
    assert report(History(), replace(TERMS, budget=Budget(1.0, 1e-5, 4))).plans[0].covered == 0


@pytest.mark.parametrize("standing", [CHANGED, WITHDRAWN])
def test_a_plan_that_does_not_stand_gets_no_round(standing: str) -> None:
    (plan,) = report(History(), standing=standing).plans
    assert (plan.standing, plan.left, plan.covered) == (standing, 0, 19)


@pytest.mark.parametrize(
    "terms",
    [
        replace(TERMS, valid_until=date(2030, 5, 31)),
        replace(TERMS, valid_from=date(2030, 6, 2)),
        replace(TERMS, least_noise_multiplier=5.0),
        replace(TERMS, columns=()),
    ],
    ids=["over", "not-begun", "floor", "columns"],
)
def test_what_the_terms_forbid_today_is_said_and_leaves_no_round(terms: Policy) -> None:
    (plan,) = report(History(), terms).plans
    assert plan.forbidden
    assert plan.left == 0


def test_a_report_is_json() -> None:
    history = History()
    history.serve()
    document = json.loads(json.dumps(report(history).json(), allow_nan=False))
    assert document["dataset"] == "answers"
    assert document["plans"][0]["left"] == 4
    assert document["federations"][0]["rounds"] == 1
