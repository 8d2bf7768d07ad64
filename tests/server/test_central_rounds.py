"""Rounds where the server adds the noise: who is drawn, what is charged first, what is released."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.aggregation import Aggregation
from common.errors import BudgetError, PlanError, TrustError
from common.ledger import Kind
from common.ledger.entry import events, verify_chain
from common.plan import Plan
from common.privacy.events import Event
from common.privacy.filter import Budget
from common.privacy.noise import Stream
from server.central import rounds as central_rounds
from server.central.books import Books, open_books
from server.central.bounded import BoundedSum
from server.central.release import noised
from server.central.rounds import CentralRounds
from server.home import ServerHome
from tests.server.central_fixtures import ADAPTIVE, PLAN, by_arithmetic, chain, kinds
from tests.server.federation import (
    NAMES,
    OPERATOR,
    World,
    bits,
    fails,
    refuse,
    with_receipt,
    with_update,
)
from tests.world import SHAPES, FakeClient, flower_identity


@pytest.fixture(autouse=True)
def _identity() -> None:
    flower_identity()


@pytest.mark.parametrize("plan", [PLAN, ADAPTIVE])
def test_a_run_is_the_noised_sums_of_the_clipped_updates_over_the_divisor(
    tmp_path: Path, plan: Plan
) -> None:
    world = World.make(tmp_path, plan)
    assert bits(world.run()) == bits(by_arithmetic(world, lambda _: NAMES))


def test_every_round_is_an_intent_and_then_a_disclosure(tmp_path: Path) -> None:
    world = World.make(tmp_path, PLAN)
    world.run()
    assert kinds(world) == ["approval", *["intent", "disclosure"] * 3]
    verify_chain(chain(world), open_books(world.home).identity.key.public)
    assert sum(event.steps for event in events(chain(world))) == 3
    assert {(e.sampling_rate, e.noise_multiplier) for e in events(chain(world))} == {(1.0, 2.0)}


def test_the_charge_is_on_disk_before_any_noise_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, seen = World.make(tmp_path, PLAN), list[list[str]]()
    ledger = tmp_path / "books" / "ledger.jsonl"

    def watched(*arguments: object) -> object:
        seen.append(
            [json.loads(line)["entry"]["kind"] for line in ledger.read_bytes().splitlines()]
        )
        return noised(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(central_rounds, "noised", watched)
    world.run()
    assert [kinds_[-1] for kinds_ in seen] == ["intent"] * 3
    assert [len(kinds_) for kinds_ in seen] == [2, 4, 6]


def test_no_entry_depends_on_who_or_how_many_answered(tmp_path: Path) -> None:
    def entries(world: World) -> list[dict[str, object]]:
        told = {"plan", "event", "clipping_norm", "divisor", "noise", "round", "incarnation"}
        return [{k: v for k, v in e.body.items() if k in told} for e in chain(world)]

    everybody, nobody = World.make(tmp_path / "a", PLAN), World.make(tmp_path / "b", PLAN)
    for name in NAMES:
        nobody.node(name).train = lambda *_: []
    everybody.run()
    nobody.run()
    assert entries(everybody) == entries(nobody)
    text = b"".join(entry.line for entry in chain(everybody)).decode()
    for name in NAMES:
        assert name not in text
        assert FakeClient(name).pseudonym not in text


@pytest.mark.parametrize(
    "answer", [lambda *_: [], fails, refuse("not-approved"), refuse("refused-budget-exhausted")]
)
def test_rounds_that_nobody_answers_are_noised_charged_and_change_the_model(
    tmp_path: Path, answer: object
) -> None:
    world = World.make(tmp_path, PLAN)
    for name in NAMES:
        world.node(name).train = answer  # type: ignore[assignment]
    assert bits(world.run()) == bits(by_arithmetic(world, lambda _: ()))
    assert all(report.changed for report in world.reports)
    assert kinds(world).count("intent") == 3


HOSTILE = {
    "not finite": with_update(lambda u: {n: np.full_like(v, np.nan) for n, v in u.items()}),
    "too large": with_update(lambda u: {n: np.full_like(v, 1e6) for n, v in u.items()}),
    "another shape": with_update(lambda u: {n: v[:1] for n, v in u.items()}),
    "a foreign receipt": with_receipt(request="0" * 64),
    "an error": fails,
    "a refusal": refuse("stale-round"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_reply_costs_itself_and_leaves_the_honest_result(
    tmp_path: Path, what: str
) -> None:
    world = World.make(tmp_path, PLAN)
    world.node("clinic-b").train = HOSTILE[what]
    assert bits(world.run()) == bits(by_arithmetic(world, lambda _: ("clinic-a", "clinic-c")))


def test_one_client_that_sends_a_thousand_times_its_update_moves_the_mean_by_the_norm(
    tmp_path: Path,
) -> None:
    plan = replace(PLAN, rounds=1)
    honest, boosted = World.make(tmp_path / "a", plan), World.make(tmp_path / "b", plan)
    boosted.node("clinic-b").train = with_update(lambda u: {n: v * 300 for n, v in u.items()})
    moved = [a - b for a, b in zip(honest.run().values(), boosted.run().values(), strict=True)]
    length = math.sqrt(sum(float(np.square(part).sum()) for part in moved))
    assert length <= 2 * PLAN.privacy.clipping_norm / PLAN.privacy.divisor * (1 + 1e-5)


def test_a_server_optimizer_takes_the_noised_mean_for_its_gradient(tmp_path: Path) -> None:
    rule = Aggregation("fedavgm", server_momentum=0.5)
    plan = replace(PLAN, optimizer=replace(PLAN.optimizer, aggregation=rule))
    world = World.make(tmp_path, plan)
    world.run()
    assert [report.unchanged for report in world.reports] == ["", "", ""]


# -- who is drawn --------------------------------------------------------------------------------


def rounds_of(world: World, **home: object) -> CentralRounds:
    return CentralRounds(replace(world.home, **home), dict(SHAPES), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [5, None])
def test_each_client_is_drawn_independently_with_the_plans_rate(
    tmp_path: Path, seed: int | None
) -> None:
    world = World.make(tmp_path, replace(PLAN, privacy=replace(PLAN.privacy, sampling_rate=0.3)))
    central = rounds_of(world, seed=seed)
    names = [f"c{i}" for i in range(100)]
    drawn = np.array(
        [[n in set(central.draw(r, 0, names)) for n in names] for r in range(1, 101)], np.float64
    )
    # 10,000 coins: five standard deviations are 0.023; of a pair's agreement, of 4,950 pairs, less.
    assert drawn.mean() == pytest.approx(0.3, abs=0.023)
    assert drawn.mean(0).std() == pytest.approx(math.sqrt(0.21 / 100), rel=0.4)
    assert drawn.mean(1).std() == pytest.approx(math.sqrt(0.21 / 100), rel=0.4)


def test_a_draw_depends_on_no_other_client_and_is_the_same_again(tmp_path: Path) -> None:
    world = World.make(tmp_path, replace(PLAN, privacy=replace(PLAN.privacy, sampling_rate=0.5)))
    central, names = rounds_of(world), [f"c{i}" for i in range(200)]
    drawn = central.draw(1, 0, names)
    assert set(central.draw(1, 0, names[::2])) == set(drawn) & set(names[::2])
    assert central.draw(1, 0, names[::-1]) == drawn
    assert central.draw(2, 0, names) != drawn
    secret = rounds_of(world, seed=None)
    assert secret.draw(1, 0, names) == rounds_of(world, seed=None).draw(1, 0, names) != drawn
    assert secret.draw(1, 1, names) != secret.draw(1, 0, names)


def test_a_run_asks_whom_it_drew_and_waits_for_all_of_them(tmp_path: Path) -> None:
    plan = replace(
        PLAN,
        rounds=8,
        cohort=replace(PLAN.cohort, clients=1),
        privacy=replace(PLAN.privacy, sampling_rate=0.5),
    )
    world = World.make(tmp_path, plan)
    drawn = {r: tuple(rounds_of(world).draw(r, 0, NAMES)) for r in range(1, 9)}
    assert len(set(drawn.values())) > 2
    assert bits(world.run()) == bits(by_arithmetic(world, lambda round_: drawn[round_]))
    asked = {n: [r.round for r in world.node(n).seen] for n in NAMES}
    assert asked == {n: [r for r in drawn if n in drawn[r]] for n in NAMES}


# -- what the operator allows --------------------------------------------------------------------


def with_operator(world: World, **changes: object) -> ServerHome:
    return replace(world.home, operator=replace(OPERATOR, **changes))  # type: ignore[arg-type]


def test_a_run_ends_where_the_operators_budget_ends_and_keeps_what_it_learnt(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path, PLAN)
    # An earlier plan of the same coordinator has used all but two rounds of the budget.
    event = PLAN.privacy.event()
    two_left = Budget.of(20.0, 1e-5)
    room = two_left.steps_left([], event) - 2
    assert room > 3
    books = open_books(world.home)
    books.approve(replace(PLAN, rounds=room))
    for round_ in range(1, room + 1):
        named = {"run": "e" * 32, "incarnation": 0, "round": round_, "model": "0" * 64}
        books.intend(replace(PLAN, rounds=room), named, 1.0, "simulated")
    world.run()
    assert [report.round for report in world.reports] == [1, 2]
    assert world.run() is not None  # and again: it has ended
    assert len(events(chain(world))) == room + 2


def test_a_plan_that_a_fresh_budget_does_not_cover_starts_nothing(tmp_path: Path) -> None:
    world = World.make(tmp_path, PLAN)
    world.home = with_operator(world, budget=Budget.of(0.5, 1e-5))
    with pytest.raises(BudgetError):
        world.run()
    assert kinds(world) == []


def test_floors_units_and_seeds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    world = World.make(tmp_path, PLAN)
    for changes in ({"least_noise_multiplier": 3.0}, {"unit": "record"}, {"most_rounds": 2}):
        with pytest.raises(PlanError):
            CentralRounds(with_operator(world, **changes), dict(SHAPES), None)
    with pytest.raises(TrustError, match="repeatable"):
        CentralRounds(with_operator(world, simulated=False), dict(SHAPES), None)
    with pytest.raises(TrustError, match="no operator"):
        CentralRounds(replace(world.home, operator=None), dict(SHAPES), None)
    assert kinds(world) == []


def test_the_ledger_outlives_the_run_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    world = World.make(tmp_path, PLAN)
    world.run()
    before = chain(world)
    Books.create(world.home.ledger, world.home.keys)  # type: ignore[arg-type]
    assert chain(world) == before
    world.home.ledger.unlink()  # type: ignore[union-attr]
    with pytest.raises(TrustError):
        open_books(world.home)
    with pytest.raises(TrustError):
        Books.create(world.home.ledger, world.home.keys)  # type: ignore[arg-type]


# -- bugs that must be seen ------------------------------------------------------------------------


def forgets_noise(total: BoundedSum, plan: object, _: Stream) -> object:
    quiet = replace(PLAN, privacy=replace(PLAN.privacy, noise_multiplier=1e-6))
    return noised(total, quiet, Stream.simulated(1))


def divides_by_the_count(total: BoundedSum, _: object, stream: Stream) -> object:
    counted = replace(PLAN, privacy=replace(PLAN.privacy, divisor=float(max(1, total.count))))
    return noised(total, counted, stream)


@pytest.mark.parametrize("bug", [forgets_noise, divides_by_the_count])
def test_a_planted_bug_is_seen_by_the_arithmetic(
    tmp_path: Path, bug: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.make(tmp_path, PLAN)
    expected = by_arithmetic(world, lambda _: NAMES)
    monkeypatch.setattr(central_rounds, "noised", bug)
    assert bits(world.run()) != bits(expected)


def test_a_planted_bug_that_forgets_the_clip_is_seen_by_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.make(tmp_path, PLAN)
    expected = by_arithmetic(world, lambda _: NAMES)
    monkeypatch.setattr("server.central.bounded.HEADROOM", -1e9)
    assert bits(world.run()) != bits(expected)


def test_the_events_are_the_plans(tmp_path: Path) -> None:
    world = World.make(tmp_path, ADAPTIVE)
    world.run()
    assert sum(e.steps for e in events(chain(world))) == ADAPTIVE.event().steps
    intents = [e for e in chain(world) if e.kind is Kind.INTENT]
    assert {e.body["divisor"] for e in intents} == {"4.0"}
    assert ADAPTIVE.event() == Event(1.0, 2.0, 3)
