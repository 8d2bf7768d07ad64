"""What does the owner agree to? A plan, this code, these columns: judged locally, then recorded.

The rule: everything that depends on the data is checked here, once, before approval, and where
nobody but the owner sees the answer. From then on a round's errors depend on nothing but public
facts. An approval binds the plan's digest (privacy parameters, model, schema), the digest of the
code that will run, and the names of the features; a change to any of them needs a new approval.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from client.guard import is_approved
from client.home import Home
from client.records import check_records
from common import durable
from common.canonical import Json, number
from common.errors import BudgetError
from common.ledger import Kind
from common.plan import Plan
from common.policy import Policy
from common.privacy.events import Event
from common.statement import PLAN_TYPE, Envelope


def approve(home: Home, envelope: bytes) -> Plan:
    """Check a signed plan against policy, budget, code and data; then record the owner's approval.

    Args:
        home: the client's directory.
        envelope: the plan as the coordinator signed it.

    Raises:
        TrustError: not signed by this client's coordinator.
        PlanError: malformed, below a floor, or with a model that cannot be trained privately.
        DataError: the data does not fit the plan's schema.
        BudgetError: what is left does not cover the plan and its spare rounds.
    """
    plan = read_plan(home, envelope)
    home.policy.check(plan)
    home.policy.check_budget(plan)
    check_records(home, plan)
    ledger = home.open_ledger()
    with ledger.locked():
        chain = ledger.chain(home.federation)
        bound = what_is_bound(home, plan)
        if is_approved(chain, bound):
            return plan
        _check_left(home, plan, ledger.spent())
        durable.replace(home.plans / f"{plan.digest}.json", envelope)
        body = {**bound, "terms": public_terms(home.policy), "policy": "0" * 64, "data": "0" * 64}
        ledger.append(home.federation, Kind.APPROVAL, body)
    return plan


def read_plan(home: Home, envelope: bytes) -> Plan:
    """A plan that this client's coordinator signed."""
    return Plan.decode(Envelope.decode(envelope).verify(PLAN_TYPE, [home.coordinator]))


def approved_plans(home: Home) -> dict[str, Plan]:
    """The plans in this client's directory, by digest, signatures checked again."""
    plans = (read_plan(home, path.read_bytes()) for path in sorted(home.plans.glob("*.json")))
    return {plan.digest: plan for plan in plans}


def what_is_bound(home: Home, plan: Plan) -> Json:
    """What an approval given now would bind; an approval of anything else does not count."""
    return {
        "plan": plan.digest,
        "code": code_digest(),
        "model": home.binding.models.get(plan.model, plan.model),
        "features": [column.name for column in plan.schema.columns] or ["pixels"],
    }


def public_terms(policy: Policy) -> Json:
    """The owner's terms as the ledger states them: enough to check a spend, no data set id."""
    return {
        "budget": number(policy.budget.epsilon),
        "delta": number(policy.budget.delta),
        "order": policy.budget.order,
        "spare_rounds": policy.spare_rounds,
        "simulated": policy.simulated,
        "least_noise_multiplier": number(policy.least_noise_multiplier),
        "greatest_sampling_rate": number(policy.greatest_sampling_rate),
        "most_rounds": policy.most_rounds,
    }


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 over the Python files that touch records: the packages ``client`` and ``common``."""
    root = Path(__file__).resolve().parent.parent
    hasher = hashlib.sha256()
    for package in ("client", "common"):
        for path in sorted((root / package).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            hasher.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return hasher.hexdigest()


def _check_left(home: Home, plan: Plan, spent: list[Event]) -> None:
    policy = home.policy
    whole = plan.privacy.event(plan.rounds + policy.spare_rounds)
    if not policy.budget.admits(spent, whole):
        left = policy.budget.steps_left(spent, plan.privacy.event()) // plan.privacy.steps
        raise BudgetError(
            f"the plan needs {plan.rounds} rounds and {policy.spare_rounds} spare; what is left of "
            f"data set {policy.dataset!r} covers {left}",
            hint="plan fewer rounds, or ask the data owner for more",
        )
