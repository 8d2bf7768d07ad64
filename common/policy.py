"""What does a data owner allow? One frozen policy, signed by the owner, kept beside the data.

The rule: a policy only ever narrows. It names the data set that the budget belongs to (the owner's
own id, so that adding a row does not reset the budget), the budget in the filter's terms, floors
that no plan may undercut, and the plans that the owner approved; what is not on that list is
refused. ``simulated`` is the one switch that permits repeatable noise; no plan, message or
environment variable can turn it on.

A period closes a policy and never refreshes its budget. What was learnt from a record stays learnt
when a year is over, so the same records have one budget for good; new records are a new data set.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime

from common.canonical import MAX_INTEGER, Json, digest, encode, number
from common.config import Table, open_digested
from common.errors import BudgetError, PlanError
from common.plan import UNITS, Plan
from common.privacy.filter import Budget, least_budget

SCHEMA_VERSION = 2  # 2: version, period, columns, approved plans; signed
MAX_APPROVED = 10_000

_DIGEST = re.compile(r"[0-9a-f]{64}")


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
        valid_from: the first day, UTC, on which anything is admitted; None: no such bound.
        valid_until: the last day, UTC; None: no such bound.
        columns: the only columns that a plan may read (features and target, by the plan's names);
            None: any that the data has.
        approved_plans: digests of the plans that the owner approved.
        simulated: this is not anybody's data: repeatable noise is allowed and marked.
        unit: what the budget protects. ``record``: only plans whose clients add the noise.
            ``client``: only plans with central trust, where an update leaves without noise and the
            coordinator's honesty protects. One data set has one unit for good: costs of the two
            do not add up.
        version: >= 1; an owner's later policy for the same data set has a greater one.
    """

    dataset: str
    budget: Budget
    spare_rounds: int = 0
    least_noise_multiplier: float = 0.0
    greatest_sampling_rate: float = 1.0
    most_rounds: int = 10**6
    valid_from: date | None = None
    valid_until: date | None = None
    columns: tuple[str, ...] | None = None
    approved_plans: tuple[str, ...] = ()
    simulated: bool = False
    version: int = 1
    unit: str = "record"

    def check(self, plan: Plan, now: str | None = None) -> None:
        """Refuse a plan that the owner did not approve, or that the terms forbid today.

        Args:
            plan: what a coordinator asks to run.
            now: UTC, ISO 8601 with a ``Z``; the machine's clock if omitted. Pass the later of the
                clock and the ledger's last entry, so that a clock set back revives nothing.

        Raises:
            PlanError: ``not-approved``, or as :meth:`check_terms` says.
        """
        if plan.digest not in self.approved_plans:
            raise PlanError(
                f"the policy for {self.dataset!r} does not list this plan as approved",
                hint="the data owner approves it with privet client approve",
                code="not-approved",
            )
        self.check_terms(plan, now)

    def check_terms(self, plan: Plan, now: str | None = None) -> None:
        """Refuse a plan outside of the period, the columns or the floors, whatever budget is left.

        Raises:
            PlanError: ``outside-period``, ``other-columns``, ``other-unit`` or ``below-floor``;
                names what the plan asks for and what the owner allows.
        """
        self._check_period(now)
        self._check_unit(plan)
        self._check_columns(plan)
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

    def _check_period(self, now: str | None) -> None:
        if self.valid_from is None and self.valid_until is None:
            return
        today = (now or datetime.now(UTC).isoformat())[:10]
        early = self.valid_from is not None and today < self.valid_from.isoformat()
        late = self.valid_until is not None and today > self.valid_until.isoformat()
        if early or late:
            words = f"begins on {self.valid_from}" if early else f"ended on {self.valid_until}"
            raise PlanError(
                f"the policy for {self.dataset!r} {words}, and it is {today}",
                hint="wait for it"
                if early
                else "ask the data owner for a policy of a new period; what was spent stays spent",
                code="outside-period",
            )

    def _check_unit(self, plan: Plan) -> None:
        if plan.privacy.unit == self.unit:
            return
        central = plan.privacy.trust == "central"
        raise PlanError(
            f"the policy for {self.dataset!r} does not allow this plan: it protects each "
            f"{plan.privacy.unit}, and the owner's budget is for each {self.unit}"
            + (
                "; in it the server sees each update without noise, and only the coordinator's "
                "honesty protects"
                if central
                else ""
            ),
            hint='an owner who trusts the coordinator with that says unit = "client" in the policy '
            "of a data set of its own"
            if central
            else 'this data set is for plans with trust = "central"; use another for this plan',
            code="other-unit",
        )

    def _check_columns(self, plan: Plan) -> None:
        if self.columns is None:
            return
        asked = [column.name for column in plan.schema.columns]
        asked += [plan.schema.target] if plan.schema.target else []
        others = [name for name in asked if name not in self.columns]
        if others:
            raise PlanError(
                f"the policy for {self.dataset!r} does not allow this plan: it reads "
                f"{', '.join(map(repr, others))}, and the owner allows "
                f"{', '.join(map(repr, self.columns)) or 'no column'}",
                hint="leave those columns out, or ask the data owner to allow them",
                code="other-columns",
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
        """Everything that is set; a period or columns that are not set are absent."""
        result: Json = {
            "schema_version": SCHEMA_VERSION,
            "version": self.version,
            "dataset": self.dataset,
            "budget": number(self.budget.epsilon),
            "delta": number(self.budget.delta),
            "order": self.budget.order,
            "spare_rounds": self.spare_rounds,
            "least_noise_multiplier": number(self.least_noise_multiplier),
            "greatest_sampling_rate": number(self.greatest_sampling_rate),
            "most_rounds": self.most_rounds,
            "approved_plans": list(self.approved_plans),
            "simulated": self.simulated,
        }
        if self.unit != "record":
            result["unit"] = self.unit
        if self.valid_from is not None:
            result["valid_from"] = self.valid_from.isoformat()
        if self.valid_until is not None:
            result["valid_until"] = self.valid_until.isoformat()
        if self.columns is not None:
            result["columns"] = list(self.columns)
        return result

    @classmethod
    def decode(cls, data: bytes) -> Policy:
        """Read what :meth:`encode` wrote; :class:`PlanError` on anything else."""
        policy = cls.read(open_digested(data, "policy", SCHEMA_VERSION))
        if policy.encode() != data:
            raise PlanError(
                "the policy leaves something to a default",
                hint="have the owner sign it with privet client policy sign",
            )
        return policy

    @classmethod
    def read(cls, table: Table) -> Policy:
        """Read ``[policy]`` of a TOML file, or the canonical JSON that an owner signed.

        A TOML file states terms alone: its version and the approved plans come with the signature.
        """
        epsilon = table.number("budget", above=0, high=1000)
        delta = table.number("delta", above=0, below=0.1)
        order = table.integer("order", low=2, high=512) if table.has("order") else None
        signed = table.json_numbers
        policy = cls(
            dataset=table.name("dataset"),
            budget=Budget.of(epsilon, delta, order),
            spare_rounds=table.integer("spare_rounds", 0, low=0, high=10**6),
            least_noise_multiplier=table.number("least_noise_multiplier", 0.0, low=0),
            greatest_sampling_rate=table.number("greatest_sampling_rate", 1.0, above=0, high=1),
            most_rounds=table.integer("most_rounds", 10**6, low=1, high=10**6),
            valid_from=table.day("valid_from"),
            valid_until=table.day("valid_until"),
            columns=table.texts("columns") if table.has("columns") else None,
            approved_plans=_digests(table) if signed else (),
            simulated=table.flag("simulated", False),
            version=table.integer("version", low=1, high=MAX_INTEGER) if signed else 1,
            unit=table.text("unit", "record", choices=tuple(sorted(set(UNITS.values())))),
        )
        if policy.valid_from and policy.valid_until and policy.valid_from > policy.valid_until:
            raise table.error(
                "valid_until",
                f"valid_until = {policy.valid_until} is before valid_from = {policy.valid_from}",
            )
        table.done()
        return policy


def public_terms(policy: Policy) -> Json:
    """The owner's terms as a ledger states them: enough to check a spend, no data set id."""
    terms: Json = {
        "budget": number(policy.budget.epsilon),
        "delta": number(policy.budget.delta),
        "order": policy.budget.order,
        "spare_rounds": policy.spare_rounds,
        "least_noise_multiplier": number(policy.least_noise_multiplier),
        "greatest_sampling_rate": number(policy.greatest_sampling_rate),
        "most_rounds": policy.most_rounds,
        "valid_from": policy.valid_from.isoformat() if policy.valid_from else None,
        "valid_until": policy.valid_until.isoformat() if policy.valid_until else None,
        "simulated": policy.simulated,
    }
    return terms if policy.unit == "record" else {**terms, "unit": policy.unit}


def unit_of(terms: Json) -> str:
    """What the budget in :func:`public_terms` is for: ``record`` or ``client``."""
    return str(terms.get("unit", "record"))


def _digests(table: Table) -> tuple[str, ...]:
    plans = table.texts("approved_plans", most=MAX_APPROVED)
    if not all(_DIGEST.fullmatch(plan) for plan in plans):
        raise table.error("approved_plans", "approved_plans must be SHA-256 digests")
    return plans
