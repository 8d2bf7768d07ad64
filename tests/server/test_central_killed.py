"""A server with central trust killed at any write: what it charged stays charged, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BudgetError, TrustError
from common.plan import Plan
from server.central.books import open_books
from tests.server.central_fixtures import ADAPTIVE, PLAN, kinds
from tests.server.federation import (
    OPERATOR,
    World,
    bits,
)
from tests.world import flower_identity, killed_at


@pytest.fixture(autouse=True)
def _identity() -> None:
    flower_identity()


# Every write, or every so manieth, from the first on.
STRIDES = [pytest.param(6, id="some"), pytest.param(1, id="all", marks=pytest.mark.figures)]


@pytest.mark.slow
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("plan", [PLAN, ADAPTIVE], ids=["fixed", "adaptive"])
def test_a_seeded_run_killed_at_any_write_ends_in_the_same_bits_and_is_charged_once(
    tmp_path: Path, plan: Plan, stride: int
) -> None:
    world = World.make(tmp_path / "undisturbed", plan)
    expected, wanted = bits(world.run()), kinds(world)
    points = 0
    for step in range(1, 500, stride):
        world = World.make(tmp_path / str(step), plan)
        if not killed_at(step, world.run):
            break
        points += 1
        again = World.make(tmp_path / str(step), plan, entries=1000)
        assert bits(again.run()) == expected, step
        assert kinds(again) == wanted, step
    print(f"killed at every {stride}. durable write: {points} of {points} ended in the same model")
    assert points * stride >= 60


@pytest.mark.slow
@pytest.mark.parametrize("stride", STRIDES)
def test_with_cryptographic_noise_a_kill_between_intent_and_disclosure_forfeits_the_charge(
    tmp_path: Path, stride: int
) -> None:
    forfeited = points = 0
    for step in range(1, 500, stride):
        world = World.make(tmp_path / str(step), PLAN, seed=None)
        if not killed_at(step, world.run):
            break
        points += 1
        before = kinds(world)
        cut_off = before.count("intent") - before.count("disclosure")
        again = World.make(tmp_path / str(step), PLAN, entries=1000)
        again.run()
        after = kinds(again)
        assert after[: len(before)] == before
        assert after.count("disclosure") == 3
        assert after.count("intent") == 3 + cut_off
        forfeited += cut_off
    assert points * stride >= 60
    assert forfeited * stride >= 9  # three rounds, several writes between the two entries


def test_spare_rounds_bound_how_often_a_round_may_be_forfeited(tmp_path: Path) -> None:
    world = World.make(tmp_path, PLAN, seed=None)
    books = open_books(world.home)
    books.approve(PLAN)
    for attempt in range(PLAN.rounds + OPERATOR.spare_rounds):
        named = {"run": "e" * 32, "incarnation": attempt, "round": 1, "model": "0" * 64}
        books.intend(PLAN, named, 1.0, "cryptographic")
    with pytest.raises(BudgetError):
        books.intend(PLAN, {**named, "incarnation": 99}, 1.0, "cryptographic")
    with pytest.raises(BudgetError):
        world.run()


def test_a_disclosed_sum_that_was_changed_on_disk_is_not_used(tmp_path: Path) -> None:
    world = World.make(tmp_path, replace(PLAN, rounds=1))
    world.run()
    for file in world.home.checkpoints.glob("*round-*"):
        file.unlink()
    stored = world.home.checkpoints / "central.noised"
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x7f")
    (world.home.checkpoints / "pending.json").write_bytes(
        b'{"incarnation":0,"nonces":{},"round":0}'
    )
    again = World.make(tmp_path, replace(PLAN, rounds=1), entries=1000)
    with pytest.raises(TrustError, match="not what the coordinator's ledger disclosed"):
        again.run()
