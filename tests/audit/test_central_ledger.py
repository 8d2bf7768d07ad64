"""Lies in a coordinator's own ledger, and clients' ledgers that have no place in a bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from audit.recompute import accountants
from audit.verify import check
from common.canonical import number
from common.central import Adaptive, Central
from common.cohort import Cohort
from common.errors import TrustError
from common.ledger import Kind
from common.ledger.entry import spent_json
from common.plan import Plan
from common.privacy.filter import Budget

from .bundle_fixtures import ORDER, World, trust_in
from .bundle_fixtures import PLAN as LOCAL

Json = dict[str, Any]
PLAN = replace(
    LOCAL,
    cohort=Cohort(clients=2, quorum=1, deadline=60.0),
    privacy=replace(LOCAL.privacy, trust="central", steps=1),
    central=Central(1, 1.0),
)
ADAPTIVE = replace(PLAN, central=Central(1, 1.0, Adaptive(0.5, 0.2, 50.0, 0.5, 2.0)))


def central(claims: Json) -> Json:
    """What an honest coordinator states; costs are those of the fixture's own arithmetic."""
    said = {name: number(value) for name, value in accountants(PLAN.event(), 1e-5).items()}
    kept = {name: value for name, value in claims.items() if name != "clients"}
    return {
        **kept,
        "trust": "central",
        "unit": "client",
        "epsilon": said["pld (dp-accounting)"],
        "accountants": said,
    }


def checked(
    plan: Plan = PLAN, bodies: list[tuple[Kind, Json]] | None = None, **terms: Any
) -> list[str]:
    world = World(plan=plan)
    bodies = bodies or world.history(**{"unit": "client", **terms})[:-1]

    def claim(claims: Json) -> Json:
        rounds = sum(kind is Kind.INTENT for kind, _ in bodies)
        spent = Budget(1.0, 1e-5, ORDER).spent([plan.privacy.event(rounds)])
        return {**central(claims), "epsilon_filter": number(spent)}

    bundle = world.bundle([bodies], claim)
    return list(check(bundle, trust_in(bundle), signatures=2).checks)


def test_an_honest_ledger_of_the_coordinator_verifies() -> None:
    said = checked()
    assert any("the coordinator's own ledger" in line for line in said)
    assert any("names no client" in line for line in said)


def test_a_budget_for_records_covers_no_plan_for_clients() -> None:
    with pytest.raises(TrustError, match="budgets are for record"):
        checked(unit="record")


def test_two_ledgers_are_clients_ledgers_and_are_refused() -> None:
    world = World(plan=PLAN)
    bodies = world.history(unit="client")[:-1]
    bundle = world.bundle([bodies, bodies], central)
    with pytest.raises(TrustError, match="coordinator's ledger alone"):
        check(bundle, trust_in(bundle), signatures=2)


def test_a_clients_enrolment_has_no_place_in_a_bundle() -> None:
    world = World(plan=PLAN)
    first, *rest = world.history(unit="client")[:-1]
    event = PLAN.event()
    enrolment = {"plan": PLAN.digest, "event": event.json(), "spent": spent_json([], ORDER, event)}
    rest = [
        (kind, {**body, "intent": body["intent"] + 1} if kind is Kind.DISCLOSURE else body)
        for kind, body in rest
    ]
    with pytest.raises(TrustError, match="enrolment is never published"):
        checked(bodies=[first, (Kind.ENROLMENT, enrolment), *rest])


@pytest.mark.parametrize(
    ("plan", "norm", "good"),
    [(PLAN, 1.25, False), (ADAPTIVE, 1.25, True), (ADAPTIVE, 0.4, False), (ADAPTIVE, 2.1, False)],
)
def test_a_rounds_norm_is_the_plans_or_within_its_bounds_where_it_adapts(
    plan: Plan, norm: float, good: bool
) -> None:
    world = World(plan=plan)
    bodies = [
        (kind, {**body, "clipping_norm": number(norm)} if kind is Kind.INTENT else body)
        for kind, body in world.history(unit="client")[:-1]
    ]
    if good:
        assert checked(plan, bodies)
        return
    with pytest.raises(TrustError, match="clipping_norm is not"):
        checked(plan, bodies)
