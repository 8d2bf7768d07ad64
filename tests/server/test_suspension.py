"""A client is suspended for its own faults, by rule, until somebody lifts that."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import NetworkError, PlanError, TrustError
from server.checkpoint import CheckpointStore
from server.settings import Settings
from server.suspension import VALID, Rule, Standing, Suspension, is_fault
from tests.server.federation import (
    NAMES,
    World,
    bits,
    expected_model,
    fails,
    only_in,
    refuse,
    with_receipt,
)
from tests.world import PLAN, RUN, flower_identity, killed_at

LONG = replace(PLAN, rounds=6)
BAD = with_receipt(update="0" * 64)


@pytest.fixture(autouse=True)
def _flower(caplog: pytest.LogCaptureFixture) -> None:
    flower_identity()
    caplog.set_level(logging.CRITICAL, "flwr")


def after(rule: Rule, codes: list[str]) -> Standing:
    standing = Standing()
    for round_, code in enumerate(codes, start=1):
        if "clinic-a" not in standing.suspended:
            standing = standing.after(rule, round_, {"clinic-a": code})
    return standing


# -- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        *((code, True) for code in ("malformed", "too-large", "bad-receipt", "wrong-request")),
        *((code, True) for code in ("wrong-update", "wrong-names", "wrong-shape", "not-finite")),
        *((code, True) for code in ("out-of-bound", "ledger-rolled-back", "ledger-forked")),
        *((code, False) for code in (VALID, "silent", "late", "client-error", "refused")),
        *((code, False) for code in ("refused-below-floor", "refused-ledger-rolled-back")),
    ],
)
def test_a_fault_is_what_the_sender_alone_answers_for(code: str, fault: bool) -> None:
    assert is_fault(code) is fault


def test_the_rule_is_so_many_faults_in_so_many_rounds_asked() -> None:
    """Against a count by hand, for every record of seven rounds."""
    rule = Rule(3, 5)
    for pattern in itertools.product(("", "not-finite", "silent"), repeat=7):
        by_hand = None
        for end in range(1, 8):
            window = pattern[max(0, end - 5) : end]
            if window.count("not-finite") >= 3 and pattern[end - 1] == "not-finite":
                by_hand = end
                break
        suspended = after(rule, list(pattern)).suspended
        assert suspended.get("clinic-a") == (
            None if by_hand is None else Suspension(by_hand, ("not-finite",) * 3)
        )


def test_faults_of_none_are_ever_enough_where_the_rule_is_off() -> None:
    assert not after(Rule(0, 5), ["malformed"] * 50).suspended


def test_only_those_with_a_fault_are_kept_on_record() -> None:
    assert after(Rule(3, 5), ["", "", "silent"]).records == {}
    assert after(Rule(3, 5), ["", "malformed", ""]).records == {"clinic-a": ("malformed", "")}
    assert after(Rule(3, 5), ["malformed", "", "", "", "", ""]).records == {}


def test_a_lift_is_for_one_suspension_and_gives_a_clean_record() -> None:
    suspended = after(Rule(2, 5), ["malformed", "not-finite"])
    assert suspended.suspended == {"clinic-a": Suspension(2, ("malformed", "not-finite"))}
    assert suspended.lifted({"clinic-a": 1, "clinic-b": 2}) == suspended
    free = suspended.lifted({"clinic-a": 2})
    assert free == Standing()
    again = free.after(Rule(2, 5), 3, {"clinic-a": "malformed"})
    assert not again.suspended
    again = again.after(Rule(2, 5), 4, {"clinic-a": "malformed"})
    assert again.lifted({"clinic-a": 2}).suspended  # the old lift does not lift a new one


def test_a_standing_comes_back_from_json() -> None:
    standing = after(Rule(2, 5), ["malformed", "not-finite"])
    standing = standing.after(Rule(2, 5), 3, {"clinic-b": "wrong-shape"})
    assert Standing.of(standing.json()) == standing


# -- in a run ------------------------------------------------------------------------------------


def asked(world: World, name: str) -> list[int]:
    return [request.round for request in world.node(name).seen]


def latest(world: World) -> Standing:
    store = CheckpointStore(world.home.checkpoints, RUN, world.home.plan.digest)
    checkpoint = store.latest()
    assert checkpoint is not None
    return checkpoint.standing


def test_a_repeat_offender_is_not_asked_any_more_and_the_reasons_are_on_record(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path, LONG)
    world.node("clinic-c").train = BAD
    assert bits(world.run()) == bits(expected_model(NAMES[:2], rounds=6))
    assert asked(world, "clinic-c") == [1, 2, 3]
    assert asked(world, "clinic-a") == [1, 2, 3, 4, 5, 6]
    assert latest(world).suspended == {"clinic-c": Suspension(3, ("wrong-update",) * 3)}
    assert world.events("suspended") == [
        {"event": "suspended", "round": 3, "client": "clinic-c", "codes": ["wrong-update"] * 3}
    ]


@pytest.mark.parametrize(
    "harmless",
    [fails, refuse("below-floor"), refuse("In my own words"), lambda *_: []],
    ids=["fails", "refuses", "refuses-oddly", "silent"],
)
def test_nobody_is_suspended_for_what_may_not_be_its_fault(
    tmp_path: Path, harmless: object
) -> None:
    world = World.make(tmp_path, LONG)
    world.node("clinic-c").train = harmless  # type: ignore[assignment]
    world.run()
    assert not latest(world).suspended
    assert asked(world, "clinic-c") == [1, 2, 3, 4, 5, 6]


def test_the_rule_is_a_setting_of_the_server(tmp_path: Path) -> None:
    world = World.make(tmp_path, LONG)
    (world.home.path / "server.toml").write_text("[suspension]\nfaults = 1\nwindow = 4\n")
    world.node("clinic-c").train = BAD
    world.run()
    assert asked(world, "clinic-c") == [1]


def test_whoever_is_lifted_is_asked_again_in_the_next_round(tmp_path: Path) -> None:
    world = World.make(tmp_path, LONG)
    world.node("clinic-c").train = only_in({5, 6}, BAD)

    def report(given: object) -> None:
        if len(world.reports) == 4:
            world.home.lift("clinic-c", 3)
            world.home.lift("clinic-c", 3)  # once more changes nothing

    world.reports = Reports(report)
    world.run()
    assert asked(world, "clinic-c") == [1, 2, 3, 5, 6]
    assert not latest(world).suspended
    assert [event["client"] for event in world.events("suspension-lifted")] == ["clinic-c"]


class Reports(list):  # type: ignore[type-arg]
    """A list that tells of each report."""

    def __init__(self, tell: object) -> None:
        super().__init__()
        self._tell = tell

    def append(self, item: object) -> None:
        super().append(item)
        self._tell(item)  # type: ignore[operator]


def test_when_too_many_are_suspended_the_run_says_so_and_asks_nobody(tmp_path: Path) -> None:
    world = World.make(tmp_path, LONG)
    for name in NAMES[:2]:
        world.node(name).train = BAD
    with pytest.raises(NetworkError) as caught:
        world.run()
    assert caught.value.code == "too-few-clients"
    assert "privet server suspended" in caught.value.hint
    assert [asked(world, name) for name in NAMES] == [[1, 2, 3]] * 3
    pushed, before = len(world.grid.pushed), latest(world)
    with pytest.raises(NetworkError):
        world.run()
    assert (len(world.grid.pushed), latest(world)) == (pushed, before)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.figures)])
def test_a_run_with_a_suspension_killed_at_any_write_ends_in_the_same_bits(
    tmp_path: Path, stride: int
) -> None:
    plan = replace(PLAN, rounds=4)

    def make(path: Path, entries: int = 1) -> World:
        world = World.make(path, plan, entries)
        world.node("clinic-c").train = only_in({4}, BAD)  # round 4 would count, but is not asked
        toml = "[suspension]\nfaults = 2\nwindow = 3\n[checkpoints]\nkeep = 2\nevery = 2\n"
        (world.home.path / "server.toml").write_text(toml)
        return world

    undisturbed = make(tmp_path / "undisturbed")
    expected = bits(undisturbed.run())
    assert expected == bits(expected_model(NAMES[:2], rounds=4))
    points = same = 0
    for step in range(1, 500, stride):
        world = make(tmp_path / str(step))
        if not killed_at(step, world.run):
            break
        points += 1
        again = make(tmp_path / str(step), entries=1000)  # clients' ledgers went on
        assert bits(again.run()) == expected, step
        assert latest(again) == latest(undisturbed), step
        assert max(asked(again, "clinic-c"), default=0) <= 2
        assert [line["round"] for line in again.metrics()] == [1, 2, 3, 4]
        ended = [event["round"] for event in again.events("round-ended")]
        assert sorted(set(ended)) == [1, 2, 3, 4]
        same += 1
    print(f"server killed at every durable write: {same} of {points} resumed to the same model")
    assert same == points
    assert points * stride >= 60


# -- what an operator writes ---------------------------------------------------------------------


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    settings = Settings.read(tmp_path / "server.toml")
    assert (settings.rule, settings.keep, settings.every) == (Rule(3, 5), 3, 0)
    assert settings.metrics_port is None


@pytest.mark.parametrize(
    "text",
    [
        "[suspension]\nfaults = 6",
        "[suspension]\nwindow = 0",
        "[checkpoints]\nkeep = 1",
        "[metrics]\nport = 80",
        "[metrics]\nadress = 9000",
        "[other]",
        "faults = 3",
        "[",
    ],
)
def test_a_setting_that_means_nothing_is_an_error_before_anything_is_asked(
    tmp_path: Path, text: str
) -> None:
    world = World.make(tmp_path)
    (world.home.path / "server.toml").write_text(text)
    with pytest.raises(PlanError):
        world.run()
    assert not world.grid.pushed


@pytest.mark.parametrize("data", [b"", b"{}", b'{"lifts":[]}', b'{"lifts":{"a":"x"}}'])
def test_damaged_lifts_are_refused(tmp_path: Path, data: bytes) -> None:
    world = World.make(tmp_path)
    world.home.lifts.write_bytes(data)
    with pytest.raises(TrustError) as caught:
        world.run()
    assert caught.value.code == "bad-lifts"
    assert not world.grid.pushed
