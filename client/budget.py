"""What is left of a data set's budget, and for how many rounds of which plan? Pure.

The rule: it is counted as the guard counts, from the same ledger entries and the same policy, so
what is promised here is served there. A round that was begun is spent, whether or not an answer
left: of those without one the owner sees how many there are.

Epsilons do not add up, so shares are of the budget's room in Rényi terms, which do: they say how
much of it each federation used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.canonical import Json
from common.errors import PlanError
from common.ledger import Entry, Kind
from common.ledger.entry import events
from common.plan import Plan
from common.policy import Policy
from common.privacy import accountant
from common.privacy.events import Event

APPROVED, CHANGED, WITHDRAWN = "approved", "changed since", "withdrawn"


@dataclass(frozen=True)
class FederationSpend:
    """What one federation used.

    Args:
        federation: fingerprint of its coordinator's key.
        rounds: rounds begun, >= 0; each is charged in full.
        unanswered: of these, how many no answer left for: cut off, or being trained now.
        share: of the budget's room, >= 0; 1 is all of it.
    """

    federation: str
    rounds: int
    unanswered: int
    share: float


@dataclass(frozen=True)
class PlanLeft:
    """What one plan of this client's federation may still do.

    Args:
        standing: ``approved``; ``changed since`` (terms, code or model differ from what was
            approved: approve it again); or ``withdrawn`` (the policy no longer lists it).
        forbidden: why the terms admit no round of it today; empty: they do.
        rounds, spare: what the plan has, and what the owner allows for rounds that are cut off.
        begun, unanswered: rounds charged so far, and those without an answer.
        covered: rounds like this plan's that the budget still covers.
        left: rounds that would be served now: 0 unless the plan stands and is not forbidden.
    """

    plan: str
    name: str
    standing: str
    forbidden: str
    rounds: int
    spare: int
    begun: int
    unanswered: int
    covered: int
    left: int


@dataclass(frozen=True)
class BudgetReport:
    """A data set's budget. ``spent`` is ``epsilon_filter``; ``share`` is 0 to 1 of the room."""

    policy: Policy
    spent: float
    share: float
    federations: tuple[FederationSpend, ...]
    plans: tuple[PlanLeft, ...]

    @property
    def left(self) -> float:
        """Epsilon between what was spent and what is allowed, >= 0."""
        return max(0.0, self.policy.budget.epsilon - self.spent)

    def json(self) -> Json:
        """For scripts: plain JSON with floats."""
        policy = self.policy
        return {
            "dataset": policy.dataset,
            "policy_version": policy.version,
            "budget": policy.budget.epsilon,
            "delta": policy.budget.delta,
            "order": policy.budget.order,
            "epsilon_filter": self.spent,
            "share_spent": self.share,
            "spare_rounds": policy.spare_rounds,
            "valid_from": policy.valid_from.isoformat() if policy.valid_from else None,
            "valid_until": policy.valid_until.isoformat() if policy.valid_until else None,
            "simulated": policy.simulated,
            "federations": [dict(vars(one)) for one in self.federations],
            "plans": [dict(vars(one)) for one in self.plans],
        }


def budget_report(
    policy: Policy,
    entries: Sequence[Entry],
    federation: str,
    plans: Iterable[Plan],
    standing: Mapping[str, str],
    now: str,
) -> BudgetReport:
    """Count what is left.

    Args:
        policy: the terms in force.
        entries: the data set's whole ledger, of all federations.
        federation: the one whose plans are reported.
        plans: that were approved there.
        standing: by plan digest, see :class:`PlanLeft`.
        now: the effective time, UTC, ISO 8601 with a ``Z``.
    """
    spent = events(entries)
    names = dict.fromkeys(e.federation for e in entries if e.kind in (Kind.APPROVAL, Kind.INTENT))
    chains = {name: [e for e in entries if e.federation == name] for name in names}
    own = chains.get(federation, [])
    return BudgetReport(
        policy=policy,
        spent=policy.budget.spent(spent),
        share=_share(policy, spent),
        federations=tuple(_spend(policy, name, chain) for name, chain in chains.items()),
        plans=tuple(
            _left(policy, plan, own, spent, standing.get(plan.digest, WITHDRAWN), now)
            for plan in plans
        ),
    )


def _spend(policy: Policy, federation: str, chain: Sequence[Entry]) -> FederationSpend:
    begun = sum(entry.kind is Kind.INTENT for entry in chain)
    return FederationSpend(federation, begun, _unanswered(chain), _share(policy, events(chain)))


def _left(
    policy: Policy,
    plan: Plan,
    chain: Sequence[Entry],
    spent: Sequence[Event],
    standing: str,
    now: str,
) -> PlanLeft:
    begun = sum(entry.kind is Kind.INTENT and entry.body["plan"] == plan.digest for entry in chain)
    covered = policy.budget.steps_left(spent, plan.privacy.event()) // plan.privacy.steps
    forbidden = ""
    try:
        policy.check_terms(plan, now)
    except PlanError as error:
        forbidden = error.message
    left = max(0, plan.rounds + policy.spare_rounds - begun)
    if plan.central is None:  # otherwise they are paid for
        left = min(covered, left)
    return PlanLeft(
        plan=plan.digest,
        name=plan.name,
        standing=standing,
        forbidden=forbidden,
        rounds=plan.rounds,
        spare=policy.spare_rounds,
        begun=begun,
        unanswered=_unanswered(chain, plan.digest),
        covered=covered,
        left=left if standing == APPROVED and not forbidden else 0,
    )


def _unanswered(chain: Sequence[Entry], plan: str | None = None) -> int:
    """Rounds begun that no disclosure followed, of one plan or of all."""
    answered = {entry.body["intent"] for entry in chain if entry.kind is Kind.DISCLOSURE}
    return sum(
        entry.kind is Kind.INTENT
        and entry.seq not in answered
        and plan in (None, entry.body["plan"])
        for entry in chain
    )


def _share(policy: Policy, spent: Sequence[Event]) -> float:
    """How much of what the budget can hold is used, in Rényi cost at its order."""
    budget = policy.budget
    room = budget.epsilon - accountant.conversion(budget.order, budget.delta)
    cost = accountant.rdp(spent, budget.order)
    return cost / room if room > 0 else float(cost > 0)
