"""Every epsilon twice, by codes that share nothing; and what happens when they do not agree."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from audit.recompute import LIBRARY_RDP, OWN_RDP, PLD, RDP_TOLERANCE, Pair, recompute_all
from audit.verify import Verdict, check, verify
from common.canonical import number
from common.errors import TrustError
from common.plan import Plan
from common.privacy import accountant, reference
from common.privacy.events import Event
from common.privacy.filter import Budget

from .bundle_fixtures import (
    BUDGET,
    DELTA,
    ORDER,
    PLAN,
    ROUNDS,
    SIGMA,
    STEPS,
    Json,
    World,
    exact_epsilon,
    filter_epsilon,
    renyi_epsilon,
    trust_in,
)


def verdict(*histories: int) -> Verdict:
    world = World()
    bundle = world.bundle([world.history(rounds) for rounds in histories or (ROUNDS, 1)])
    return check(bundle, trust_in(bundle), signatures=2)


def test_every_number_is_its_closed_form_by_both_codes() -> None:
    # Full batches: Mironov 2017, corollary 3; Balle and Wang 2018, theorem 8, for the headline.
    again = recompute_all(verdict())
    steps = ROUNDS * STEPS
    assert again.summary.declared[PLD] == pytest.approx(exact_epsilon(steps), abs=1e-6)
    for name in (OWN_RDP, LIBRARY_RDP):
        assert again.summary.declared[name] == pytest.approx(renyi_epsilon(steps), abs=1e-9)
    for client, rounds in zip(again.clients, (ROUNDS, 1), strict=True):
        assert client.rounds == rounds
        for code in (client.epsilon_filter.own, client.epsilon_filter.library):
            assert code == pytest.approx(filter_epsilon(rounds * STEPS), abs=1e-9)
        for code in (client.epsilon_rdp.own, client.epsilon_rdp.library):
            assert code == pytest.approx(renyi_epsilon(rounds * STEPS), abs=1e-9)
    assert again.worst <= RDP_TOLERANCE


def test_replace_one_is_shown_to_compare_and_is_that_of_twice_the_distance() -> None:
    # A record exchanged moves a full batch's sum by 2C: four times the steps, at distance C.
    again = recompute_all(verdict())
    assert again.replace_one == pytest.approx(exact_epsilon(4 * ROUNDS * STEPS), rel=1e-4)


def test_the_clients_are_in_the_order_of_what_they_spent() -> None:
    again = recompute_all(verdict(1, 2, 1))
    assert [client.rounds for client in again.clients] == [2, 1, 1]


def test_a_client_that_was_never_charged_costs_nothing_by_both() -> None:
    world = World()
    bundle = world.bundle([world.history(), world.history(0)])
    again = recompute_all(check(bundle, trust_in(bundle), signatures=2))
    assert again.clients[-1].epsilon_filter == Pair(0.0, 0.0)
    assert again.clients[-1].epsilon_rdp == Pair(0.0, 0.0)


@pytest.mark.parametrize("name", ["epsilon_filter", "epsilon_rdp"])
def test_a_client_s_number_that_the_library_does_not_give_is_refused_by_name(name: str) -> None:
    genuine = verdict()
    first, *rest = genuine.clients
    wrong = replace(first, **{name: getattr(first, name) * (1 + 1e-6)})
    with pytest.raises(TrustError, match=first.pseudonym[:12]):
        recompute_all(replace(genuine, clients=[wrong, *rest]))


def test_a_headline_that_pld_does_not_give_is_refused() -> None:
    def lower(claims: Json) -> Json:
        return {**claims, "epsilon": number(exact_epsilon(ROUNDS * STEPS) * (1 + 1e-5))}

    world = World()
    bundle = world.bundle(claim=lower)
    with pytest.raises(TrustError, match="headline"):
        recompute_all(check(bundle, trust_in(bundle), signatures=2))


def test_accountants_that_disagree_are_both_distrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = verdict()
    monkeypatch.setattr(reference, "rdp_epsilon", lambda *_, **__: math.nan)
    with pytest.raises(TrustError, match="disagree for the declared plan") as caught:
        recompute_all(genuine)
    assert caught.value.hint


def test_a_difference_is_relative_only_above_one() -> None:
    assert Pair(0.5, 0.25).difference == 0.25
    assert Pair(1000.0, 1001.0).difference == pytest.approx(1 / 1001)
    assert Pair(math.inf, math.inf).difference == 0
    assert Pair(math.inf, 1.0).difference == math.inf


def test_what_delta_alone_pays_for_is_no_disagreement() -> None:
    # dp-accounting says 0 where the total variation is below delta; a filter never does.
    faint = Event(5e-4, 15.0, 1)
    spend = verdict().clients[0]
    budget = Budget(BUDGET, 7e-5, ORDER)
    client = replace(
        spend,
        events=(faint,),
        delta=budget.delta,
        epsilon_filter=budget.spent([faint]),
        epsilon_rdp=accountant.epsilon([faint], DELTA),
    )
    assert (
        reference.rdp_epsilon([faint], budget.delta, orders=(ORDER,)) == 0 < client.epsilon_filter
    )
    again = recompute_all(replace(verdict(), clients=[client]))
    assert again.clients[0].epsilon_filter.difference == 0


def test_the_json_says_what_agreed_and_how_well() -> None:
    data = json.loads(json.dumps(recompute_all(verdict()).json()))
    assert data["agree"] is True
    assert data["greatest_difference"] <= data["tolerance"] == 1e-9
    assert data["epsilon"] == pytest.approx(data["epsilon_as_stated"], abs=1e-6)
    assert data["epsilon"] < data["epsilon_replace_one"]
    assert set(data["declared"]) == {PLD, LIBRARY_RDP, OWN_RDP}
    assert set(data["clients"][0]["epsilon_filter"]) == {OWN_RDP, LIBRARY_RDP, "difference"}
    assert data["clients"][0]["pseudonym"] in {c.pseudonym for c in verdict().clients}


def long_bundle(path: Path, rounds: int) -> World:
    """One client, ``rounds`` rounds that two entries each record; noise that the budget covers."""
    privacy = replace(PLAN.privacy, sampling_rate=0.5, noise_multiplier=40 * SIGMA)
    plan: Plan = replace(PLAN, rounds=rounds, privacy=privacy)
    world = World(plan=plan)
    own = number(accountant.epsilon([plan.event()], DELTA))
    charged = number(Budget(BUDGET, DELTA, ORDER).spent([plan.event()]))

    def claim(claims: Json) -> Json:
        named = {**claims["accountants"], OWN_RDP: own}
        return {**claims, "epsilon": own, "epsilon_filter": charged, "accountants": named}

    world.bundle([world.history(rounds)], claim=claim).write(path)
    return world


def test_a_long_ledger_is_verified_with_our_own_accountant(tmp_path: Path) -> None:
    world = long_bundle(tmp_path / "bundle", 100)
    found = verify(tmp_path / "bundle", trust_in(world.bundle([world.history(100)])))
    assert found.clients[0].rounds == 100
