"""What will a plan cost, before anything runs? Three numbers called epsilon, and what admits it.

The rule: the numbers are computed by the code that will charge and state them, so a check cannot
promise what a run does not keep.
"""

from __future__ import annotations

from typing import Any

from audit.recompute import accountants
from common.plan import Plan
from common.policy import Policy
from common.privacy.filter import least_budget


def check_plan(plan: Plan, policy: Policy) -> dict[str, Any]:
    """The cost of a plan under a policy, as ``privet plan check`` prints it.

    Raises:
        PlanError: the policy's floors forbid the plan.
    """
    policy.check_terms(plan)
    privacy, budget = plan.privacy, policy.budget
    declared = accountants(plan.event(), privacy.delta)
    with_spare = [privacy.event(plan.rounds + policy.spare_rounds)]
    needed = budget.spent(with_spare)
    least = least_budget(with_spare, budget.delta)
    return {
        "plan": plan.digest,
        "name": plan.name,
        "model": plan.model,
        "rounds": plan.rounds,
        "privacy": {
            "trust": privacy.trust,
            "unit": privacy.unit,
            "adjacency": privacy.json()["adjacency"],
            "delta": privacy.delta,
            "noise_multiplier": privacy.noise_multiplier,
            "sampling_rate": privacy.sampling_rate,
            "clipping_norm": privacy.clipping_norm,
            "steps": plan.event().steps,
            "epsilon": declared["pld (dp-accounting)"],
            "epsilon_filter": budget.spent([plan.event()]),
            "budget": budget.epsilon,
            "order": budget.order,
            "spare_rounds": policy.spare_rounds,
            "epsilon_with_spare": needed,
            "least_budget": least.epsilon,
            "least_budget_order": least.order,
            "accountants": declared,
        },
        "admitted": needed <= budget.epsilon,
    }
