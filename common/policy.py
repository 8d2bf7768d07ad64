"""What does a data owner allow? One frozen policy, kept beside the data.

The rule: a policy only ever narrows. It names the data set that the budget belongs to (the owner's
own id, so that adding a row does not reset the budget), the budget in the filter's terms, and
floors that no plan may undercut. ``simulated`` is the one switch that permits repeatable noise; no
plan, message or environment variable can turn it on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.canonical import Json, digest, encode, number
from common.config import Table, open_digested
from common.errors import BudgetError, PlanError
from common.plan import Plan
from common.privacy.filter import Budget, least_budget

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Policy:
    """The data owner's terms.

    Args:
        dataset: the owner's id of the data set; its budget is spent across runs and federations.
        budget: (epsilon, delta) for the data set's whole life, at the filter's order.
        spare_rounds: rounds beyond the plan that the budget must cover before a plan is approved,
            because a round that is cut off stays charged; >= 0.
        least_noise_multiplier: floor, >= 0.
        greatest_sampling_rate: ceiling, in (0, 1].
        most_rounds: ceiling, >= 1.
        simulated: this is not anybody's data: repeatable noise is allowed and marked.
    """

    dataset: str
    budget: Budget
    spare_rounds: int = 0
    least_noise_multiplier: float = 0.0
    greatest_sampling_rate: float = 1.0
    most_rounds: int = 10**6
    simulated: bool = False

    def check(self, plan: Plan) -> None:
        """Refuse a plan that undercuts a floor, whatever budget is left.

        Raises:
            PlanError: names the floor, what the plan asks for, and what the owner allows.
        """
        privacy = plan.privacy
        broken = [
            (
                privacy.noise_multiplier < self.least_noise_multiplier,
                f"noise_multiplier {privacy.noise_multiplier:g} is below the owner's least "
                f"{self.least_noise_multiplier:g}",
            ),
            (
                privacy.sampling_rate > self.greatest_sampling_rate,
                f"sampling_rate {privacy.sampling_rate:g} is over the owner's greatest "
                f"{self.greatest_sampling_rate:g}",
            ),
            (
                plan.rounds > self.most_rounds,
                f"{plan.rounds} rounds are over the owner's most {self.most_rounds}",
            ),
            (
                privacy.delta > self.budget.delta,
                f"delta {privacy.delta:g} is over the owner's {self.budget.delta:g}",
            ),
        ]
        for is_broken, message in broken:
            if is_broken:
                raise PlanError(
                    f"the policy for {self.dataset!r} does not allow this plan: {message}",
                    hint="change the plan, or ask the data owner to change the policy",
                    code="below-floor",
                )

    def check_budget(self, plan: Plan) -> None:
        """Refuse a plan that, with its spare rounds, would not fit a fresh budget.

        Raises:
            BudgetError: says what it needs and what there is.
        """
        events = [plan.privacy.event(plan.rounds + self.spare_rounds)]
        needed = self.budget.spent(events)
        if needed > self.budget.epsilon:
            spare = f" and {self.spare_rounds} spare" if self.spare_rounds else ""
            least = least_budget(events, self.budget.delta)
            if math.isinf(least.epsilon):
                hint = "plan more noise: with this little, no budget admits it"
            else:
                enough = math.ceil(least.epsilon * 1e4) / 1e4
                hint = (
                    f"the least budget that admits it is {enough:.4f} with policy.order = "
                    f"{least.order}; or plan fewer rounds or more noise"
                )
            raise BudgetError(
                f"{plan.rounds} rounds{spare} would use epsilon_filter {needed:.4g} of data set "
                f"{self.dataset!r}, whose policy.budget is {self.budget.epsilon:g} (delta "
                f"{self.budget.delta:g}, order {self.budget.order})",
                hint=hint,
            )

    def encode(self) -> bytes:
        return encode(self.json())

    @property
    def digest(self) -> str:
        return digest(self.encode())

    def json(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "dataset": self.dataset,
            "budget": number(self.budget.epsilon),
            "delta": number(self.budget.delta),
            "order": self.budget.order,
            "spare_rounds": self.spare_rounds,
            "least_noise_multiplier": number(self.least_noise_multiplier),
            "greatest_sampling_rate": number(self.greatest_sampling_rate),
            "most_rounds": self.most_rounds,
            "simulated": self.simulated,
        }

    @classmethod
    def decode(cls, data: bytes) -> Policy:
        """Read what :meth:`encode` wrote; :class:`PlanError` on anything else."""
        return cls.read(open_digested(data, "policy", SCHEMA_VERSION))

    @classmethod
    def read(cls, table: Table) -> Policy:
        """Read ``[policy]`` of an experiment file, or a client's policy file."""
        epsilon = table.number("budget", above=0, high=1000)
        delta = table.number("delta", above=0, below=0.1)
        order = table.integer("order", low=2, high=512) if table.has("order") else None
        policy = cls(
            dataset=table.name("dataset"),
            budget=Budget.of(epsilon, delta, order),
            spare_rounds=table.integer("spare_rounds", 0, low=0, high=10**6),
            least_noise_multiplier=table.number("least_noise_multiplier", 0.0, low=0),
            greatest_sampling_rate=table.number("greatest_sampling_rate", 1.0, above=0, high=1),
            most_rounds=table.integer("most_rounds", 10**6, low=1, high=10**6),
            simulated=table.flag("simulated", False),
        )
        table.done()
        return policy
