"""What does central trust cost a client, and may this round be served under it? Pure.

The rules: with central trust the whole client is the unit, and what protects it is the server's
noise and that it is drawn by chance. So a plan's cost falls on a client whether it is drawn or not,
and it is charged before any coin is thrown: when the owner approves, the ledger records an
*enrolment* that spends the whole plan, spare rounds included. A charge at the first round that asks
for this client would depend on the draw, and a filter that depends on what the guarantee hides is
none. The rounds of the run that an enrolment has paid for cost nothing more. An enrolment is for
one run; another run of the same plan needs another approval.

Within a client nothing is noised: its update goes to the coordinator as it is, clipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from common.canonical import Json
from common.errors import PlanError, Refusal
from common.ledger import Entry, Kind
from common.ledger.entry import spent_json
from common.plan import Plan
from common.policy import Policy, unit_of
from common.privacy.events import Event
from common.wire import RoundRequest

NO_NOISE = "none"  # what an intent says of the noise that a client draws here


def cost(plan: Plan, policy: Policy) -> Event:
    """What an enrolment spends: the declared plan and the owner's spare rounds."""
    return plan.privacy.event(plan.rounds + policy.spare_rounds)


def enrolment_body(plan: Plan, policy: Policy, chain: Sequence[Entry]) -> Json:
    """The entry that spends a plan with central trust."""
    event = cost(plan, policy)
    return {
        "plan": plan.digest,
        "event": event.json(),
        "spent": spent_json(chain, policy.budget.order, event),
    }


def is_enrolled(chain: Iterable[Entry], plan: Plan) -> bool:
    """Whether an enrolment follows the last approval of a plan; always with other trust."""
    if plan.central is None:
        return True
    kinds = [
        entry.kind
        for entry in chain
        if entry.kind in (Kind.APPROVAL, Kind.ENROLMENT) and entry.body["plan"] == plan.digest
    ]
    return bool(kinds) and kinds[-1] is Kind.ENROLMENT


def check_paid(request: RoundRequest, plan: Plan, chain: Sequence[Entry]) -> None:
    """Whether an enrolment has paid for the run that asks.

    Raises:
        Refusal: none has: this is another run than those that the owner enrolled in.
    """
    enrolments = sum(
        entry.kind is Kind.ENROLMENT and entry.body["plan"] == plan.digest for entry in chain
    )
    runs = {
        entry.body["run"]
        for entry in chain
        if entry.kind is Kind.INTENT and entry.body["plan"] == plan.digest
    }
    if len(runs | {request.run}) > enrolments:
        raise Refusal(
            "another run of this plan than the owner enrolled in",
            hint="withdraw the plan and approve it again: that is charged once more",
            code="no-rounds-left",
        )


def check_one_unit(entries: Iterable[Entry], policy: Policy) -> None:
    """Refuse a data set whose budget was for another unit once: the two do not add up.

    Raises:
        PlanError: ``other-unit``.
    """
    for entry in entries:
        if entry.kind is Kind.APPROVAL and unit_of(entry.body["terms"]) != policy.unit:
            raise PlanError(
                f"data set {policy.dataset!r} had a budget for each "
                f"{unit_of(entry.body['terms'])} when a plan was approved, and now one for each "
                f"{policy.unit}",
                hint="costs of the two do not add up: one data set keeps its unit for good",
                code="other-unit",
            )
