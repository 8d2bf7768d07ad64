"""What does the owner agree to? A plan, this code, these columns: judged locally, then recorded.

The rule: everything that depends on the data is checked here, once, before approval, and where
nobody but the owner sees the answer. From then on a round's errors depend on nothing but public
facts. An approval binds the plan's digest (privacy parameters, model, schema), the digest of the
code that will run, the names of the features, and the owner's public terms; a change to any of them
needs a new approval. A row more, or a policy that differs in nothing public, does not.

An approval has two halves, and nothing is usable with one of them: the owner signs a policy that
lists the plan, and the ledger records what was agreed to. They are written in this order: the plan
(inert), the policy (no entry yet: the guard refuses), the entry. After a kill the command is
repeated. With central trust an enrolment follows, which spends the whole plan
(:mod:`client.central`); without it the plan is not approved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from client.central import check_one_unit, enrolment_body, is_enrolled
from client.guard import is_approved, latest_approval
from client.home import Home
from client.records import check_records, records_digest
from common import durable
from common.canonical import Json, encode
from common.code import digest_of_code
from common.errors import BudgetError, InputError, PlanError, TrustError
from common.keys import Identity, SigningKey
from common.ledger import Entry, Kind, Ledger
from common.plan import Plan
from common.policy import MAX_APPROVED, Policy, public_terms
from common.privacy.events import Event
from common.statement import PLAN_TYPE, Envelope


@dataclass(frozen=True)
class Proposal:
    """What an approval of a plan would mean, after everything was judged.

    Args:
        plan: what would be approved.
        policy: the owner's terms, as they stand.
        bound: what an approval would bind; see :func:`what_is_bound`.
        before: what the last approval in this federation bound, of whichever plan; None: none yet.
        spent: events on the data set so far, across all federations.
        rounds_left: rounds that this plan may still be charged for, spare ones included, >= 0; with
            central trust none once it is approved.
        approved: exactly this is approved already.
    """

    plan: Plan
    policy: Policy
    bound: Json
    before: Json | None
    spent: tuple[Event, ...]
    rounds_left: int
    approved: bool

    @property
    def epsilon_before(self) -> float:
        """``epsilon_filter`` of what was spent so far."""
        return self.policy.budget.spent(self.spent)

    @property
    def epsilon_after(self) -> float:
        """``epsilon_filter`` once the plan used all of its rounds, spare ones included."""
        asked = [self.plan.privacy.event(self.rounds_left)] if self.rounds_left else []
        return self.policy.budget.spent([*self.spent, *asked])


def examine(home: Home, envelope: bytes, now: str | None = None) -> Proposal:
    """Judge a signed plan as :func:`approve` would, and record nothing.

    Args:
        home: the client's directory.
        envelope: the plan as the coordinator signed it.
        now: the clock, UTC, ISO 8601 with a ``Z``; the machine's if omitted.

    Raises:
        TrustError: not signed by this client's coordinator; or the policy or ledger is unusable.
        PlanError: malformed, outside of the owner's terms, or with a model that cannot be trained
            privately.
        DataError: the data does not fit the plan's schema.
        BudgetError: what is left does not cover the plan and its spare rounds.
    """
    plan = _judge_data(home, envelope, now)
    return _propose(home, plan, home.read_ledger(), now)


def approve(
    home: Home,
    envelope: bytes,
    owner: SigningKey,
    now: str | None = None,
    shown: Proposal | None = None,
) -> Plan:
    """Judge a signed plan, have the owner's policy list it, and record the approval.

    Approving what is approved already changes nothing.

    Args:
        owner: the data owner's key, whose public half the home pins.
        shown: what the owner looked at before agreeing; None: nobody was asked.

    Raises:
        TrustError: ``wrong-owner``; ``changed-meanwhile``: no longer what was shown; and whatever
            :func:`examine` raises.
        OperationError: the disk refused; the plan is not approved.
    """
    if owner.public != home.owner:
        raise TrustError(
            f"the key {owner.public.fingerprint[:16]}… is not the data owner's, "
            f"{home.owner.fingerprint[:16]}…",
            hint="name the key directory of the owner whom this client was set up for",
            code="wrong-owner",
        )
    plan = _judge_data(home, envelope, now)
    contents = records_digest(home, plan)
    ledger = home.open_ledger()
    with ledger.locked(), home.custody.held():
        proposal = _propose(home, plan, ledger, now)
        if shown and (shown.policy, shown.bound) != (proposal.policy, proposal.bound):
            raise TrustError(
                "the policy or the code changed since this was shown",
                hint="run the command again and look at what it shows now",
                code="changed-meanwhile",
            )
        if proposal.approved:
            return plan
        policy = _listing(proposal.policy, plan)
        durable.replace(home.plans / f"{plan.digest}.json", envelope)
        home.custody.write(policy, owner)
        home.custody.note(ledger, policy)
        who, chain = ledger.identity(home.federation), ledger.chain(home.federation)
        body = approval_body(proposal.bound, who, len(chain), policy, contents)
        ledger.append(home.federation, Kind.APPROVAL, body)
        if plan.central:
            body = enrolment_body(plan, policy, ledger.chain(home.federation))
            ledger.append(home.federation, Kind.ENROLMENT, body)
    return plan


def approval_body(bound: Json, who: Identity, seq: int, policy: Policy, contents: bytes) -> Json:
    """What the ledger records of an approval: what it binds, and commitments to the rest.

    Args:
        who: the client in this federation, whose salt hides what is committed to.
        seq: of the entry: two approvals of the same records do not look the same.
        contents: SHA-256 of the client's records.
    """
    data = encode([policy.dataset, contents.hex()])
    return {
        **bound,
        "policy": who.commit(f"policy/{seq}", policy.encode()),
        "data": who.commit(f"data/{seq}", data),
    }


def read_plan(home: Home, envelope: bytes) -> Plan:
    """A plan that this client's coordinator signed."""
    return Plan.decode(Envelope.decode(envelope).verify(PLAN_TYPE, [home.coordinator]))


def approved_plans(home: Home) -> dict[str, Plan]:
    """The plans in this client's directory, by digest, signatures checked again.

    Each was approved once. Whether it still is, policy and ledger say.
    """
    try:
        envelopes = [path.read_bytes() for path in sorted(home.plans.glob("*.json"))]
    except OSError as error:
        raise InputError(f"cannot read the plans in {home.plans}: {error.strerror}") from error
    plans = (read_plan(home, envelope) for envelope in envelopes)
    return {plan.digest: plan for plan in plans}


def what_is_bound(home: Home, plan: Plan, policy: Policy) -> Json:
    """What an approval given now would bind; an approval of anything else does not count."""
    return {
        "plan": plan.digest,
        "terms": public_terms(policy),
        "code": code_digest(),
        "model": home.binding.models.get(plan.model, plan.model),
        "features": [column.name for column in plan.schema.columns] or ["pixels"],
    }


def stands(chain: Sequence[Entry], policy: Policy, bound: Json) -> bool:
    """Whether exactly this is approved now: listed by the policy, and the plan's last approval."""
    return bound["plan"] in policy.approved_plans and is_approved(chain, bound)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 over the Python files that touch records: the packages ``client`` and ``common``."""
    root = Path(__file__).resolve().parent.parent
    return digest_of_code(root, ("client", "common"))


def _judge_data(home: Home, envelope: bytes, now: str | None) -> Plan:
    """What takes long, and needs no lock: the terms, the records and the model."""
    plan, policy = read_plan(home, envelope), home.terms()
    policy.check_terms(plan, now)
    policy.check_budget(plan)
    check_records(home, plan)
    return plan


def _propose(home: Home, plan: Plan, ledger: Ledger, now: str | None) -> Proposal:
    policy, chain = home.terms(), ledger.chain(home.federation)
    policy.check_terms(plan, ledger.now(now))
    policy.check_budget(plan)
    check_one_unit(ledger.entries(), policy)
    last, bound = latest_approval(chain), what_is_bound(home, plan, policy)
    asked = sum(e.kind is Kind.INTENT and e.body["plan"] == plan.digest for e in chain)
    approved = stands(chain, policy, bound) and is_enrolled(chain, plan)
    if plan.central:
        asked = plan.rounds + policy.spare_rounds if approved else 0
    proposal = Proposal(
        plan=plan,
        policy=policy,
        bound=bound,
        before={name: last.body[name] for name in bound} if last else None,
        spent=tuple(ledger.spent()),
        rounds_left=max(0, plan.rounds + policy.spare_rounds - asked),
        approved=approved,
    )
    if not proposal.approved:
        _check_left(proposal)
    return proposal


def _listing(policy: Policy, plan: Plan) -> Policy:
    """The next version of a policy, which lists the plan."""
    others = tuple(digest for digest in policy.approved_plans if digest != plan.digest)
    if len(others) >= MAX_APPROVED:
        raise PlanError(
            f"the policy lists {len(others)} approved plans, the most there can be",
            hint="end some with privet client withdraw",
        )
    approved = (*others, plan.digest)
    return replace(policy, version=policy.version + 1, approved_plans=approved)


def _check_left(proposal: Proposal) -> None:
    policy, plan = proposal.policy, proposal.plan
    if proposal.epsilon_after > policy.budget.epsilon:
        spent = proposal.spent
        left = policy.budget.steps_left(spent, plan.privacy.event()) // plan.privacy.steps
        raise BudgetError(
            f"the plan needs {proposal.rounds_left} rounds, up to {policy.spare_rounds} of them "
            f"spare; what is left of data set {policy.dataset!r} covers {left}",
            hint="plan fewer rounds, or ask the data owner for more",
        )
