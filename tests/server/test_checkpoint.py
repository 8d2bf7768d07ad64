"""A checkpoint is whole or it is not one; the newest whole one of this run is what counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common import durable
from common.canonical import decode, encode
from common.errors import OperationError, TrustError
from server.checkpoint import KEEP, Checkpoint, CheckpointStore
from server.suspension import Standing, Suspension
from tests.world import RUN, Snapshot, killed_at, model

PLAN = "a" * 64


def state(round_: int, value: float | None = None, run: str = RUN, plan: str = PLAN) -> Checkpoint:
    heads = {"clinic-a": {"root": "f" * 64, "entries": 2 * round_ + 1, "signature": "a" * 128}}
    return Checkpoint(
        run,
        plan,
        round_,
        model(round_ if value is None else value),
        round_,
        heads if round_ else {},
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, RUN, PLAN)


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    return one is not None and (
        (one.run, one.plan, one.round, one.changed, dict(one.heads))
        == (other.run, other.plan, other.round, other.changed, dict(other.heads))
        and set(one.model) == set(other.model)
        and all(np.array_equal(one.model[name], other.model[name]) for name in one.model)
    )


def files(store: CheckpointStore) -> set[str]:
    return {file.name for file in store.path.iterdir()}


def test_what_was_saved_comes_back(store: CheckpointStore) -> None:
    assert store.latest() is None
    for round_ in (1, 2):
        store.save(state(round_))
        assert same(store.latest(), state(round_))


def test_only_the_newest_are_kept(store: CheckpointStore) -> None:
    for round_ in range(1, KEEP + 4):
        store.save(state(round_))
    expected = {f"round-{round_:06d}" for round_ in range(4, KEEP + 4)}
    assert files(store) == {f"{n}.json" for n in expected} | {f"{n}.safetensors" for n in expected}


def test_a_model_without_a_manifest_is_no_checkpoint(store: CheckpointStore) -> None:
    store.save(state(1))
    (store.path / "round-000002.safetensors").write_bytes(b"\0" * 100)
    assert same(store.latest(), state(1))


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "gone", "not-text"])
def test_a_damaged_newest_one_is_passed_over(
    store: CheckpointStore, suffix: str, damage: str
) -> None:
    store.save(state(1))
    store.save(state(2))
    file = store.path / f"round-000002.{suffix}"
    data = bytearray(file.read_bytes())
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "flipped":
            position = len(data) - 3 if suffix == "safetensors" else data.index(b"model") + 10
            data[position] ^= 1
            file.write_bytes(data)
        case "gone":
            file.unlink()
        case "not-text":
            file.write_bytes(b"\xff\x00\xfe")
    assert same(store.latest(), state(1))
    store.save(state(2, 9.0))  # the round is made again
    assert same(store.latest(), state(2, 9.0))


def test_where_every_one_is_damaged_there_is_none(store: CheckpointStore) -> None:
    store.save(state(1))
    (store.path / "round-000001.safetensors").write_bytes(b"x")
    assert store.latest() is None


@pytest.mark.parametrize("foreign", [{"run": "b" * 32}, {"plan": "b" * 64}], ids=["run", "plan"])
def test_a_checkpoint_of_another_run_or_plan_is_refused(
    store: CheckpointStore, foreign: dict[str, str]
) -> None:
    store.save(state(1))
    CheckpointStore(store.path, foreign.get("run", RUN), foreign.get("plan", PLAN)).save(
        state(2, **foreign)  # type: ignore[arg-type]
    )
    before = Snapshot.of(store.path)
    with pytest.raises(TrustError) as caught:
        store.latest()
    assert caught.value.code == "bad-checkpoint"
    assert Snapshot.of(store.path) == before


def test_killed_at_any_write_there_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    outcomes = []
    for step in range(1, 40):
        store = CheckpointStore(tmp_path / str(step), RUN, PLAN)
        store.path.mkdir()
        for round_ in (1, 2, 3):
            store.save(state(round_))
        if not killed_at(step, lambda store=store: store.save(state(4))):  # type: ignore[misc]
            break
        latest = store.latest()
        assert same(latest, state(3)) or same(latest, state(4))
        assert latest is not None
        outcomes.append(latest.round)
        assert not [name for name in files(store) if name.endswith(".tmp")]
        store.save(state(4))
        assert same(store.latest(), state(4))
        assert len(files(store)) == 2 * KEEP
    assert sorted(outcomes) == outcomes
    assert set(outcomes) == {3, 4}


def test_a_full_disk_leaves_the_old_one(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(state(1))
    before = Snapshot.of(store.path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OperationError) as caught:
        store.save(state(2))
    assert caught.value.code == "disk-full"
    monkeypatch.undo()
    assert Snapshot.of(store.path) == before
    assert same(store.latest(), state(1))


# -- incarnations --------------------------------------------------------------------------------


NONCES = {"clinic-a": "ab" * 16}


def test_a_first_start_is_incarnation_0_with_nothing_under_way(store: CheckpointStore) -> None:
    assert store.start(0) == (0, {})


def test_a_killed_server_sends_the_requests_of_the_round_under_way_again(
    store: CheckpointStore,
) -> None:
    store.start(0)
    store.begin_round(0, 5, NONCES)
    for _ in range(3):
        assert CheckpointStore(store.path, RUN, PLAN).start(4) == (0, NONCES)


def test_a_server_killed_between_rounds_has_nothing_under_way(store: CheckpointStore) -> None:
    store.begin_round(0, 5, NONCES)
    assert store.start(5) == (0, {})
    assert store.start(5) == (0, {})


@pytest.mark.parametrize("completed", [0, 3, 6, 9])
def test_a_server_restored_from_another_checkpoint_is_a_new_incarnation(
    store: CheckpointStore, completed: int
) -> None:
    store.begin_round(7, 5, NONCES)
    assert store.start(completed) == (8, {})
    assert store.start(completed) == (8, {})


def test_a_server_that_lost_its_count_is_a_new_incarnation(store: CheckpointStore) -> None:
    assert store.start(4) == (1, {})


def test_killed_at_any_write_of_a_restore_a_new_incarnation_still_follows(tmp_path: Path) -> None:
    for step in range(1, 20):
        store = CheckpointStore(tmp_path / str(step), RUN, PLAN)
        store.path.mkdir()
        store.begin_round(0, 5, NONCES)
        if not killed_at(step, lambda store=store: store.start(2)):  # type: ignore[misc]
            break
        assert store.start(2) == (1, {})
    assert step == 4


@pytest.mark.parametrize("data", [b"", b"{}", b'{"incarnation":"1"}', b'{"incarnation":true}'])
def test_a_damaged_count_of_incarnations_is_refused(store: CheckpointStore, data: bytes) -> None:
    (store.path / "pending.json").write_bytes(data)
    with pytest.raises(TrustError) as caught:
        store.start(0)
    assert caught.value.code == "bad-checkpoint"
    assert (store.path / "pending.json").read_bytes() == data


# -- which ones are kept -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "every", "kept"),
    [
        (3, 0, [10, 11, 12]),
        (2, 0, [11, 12]),
        (2, 5, [5, 10, 11, 12]),
        (3, 4, [4, 8, 10, 11, 12]),
        (2, 1, list(range(1, 13))),
        (99, 0, list(range(1, 13))),
    ],
)
def test_the_newest_are_kept_and_every_nth(
    tmp_path: Path, keep: int, every: int, kept: list[int]
) -> None:
    store = CheckpointStore(tmp_path, RUN, PLAN, keep=keep, every=every)
    for round_ in range(1, 13):
        store.save(state(round_))
    expected = {f"round-{round_:06d}" for round_ in kept}
    assert files(store) == {f"{n}.json" for n in expected} | {f"{n}.safetensors" for n in expected}
    assert same(store.latest(), state(12))


def test_after_a_million_rounds_the_newest_is_still_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, RUN, PLAN, keep=2)
    for round_ in (999_998, 999_999, 1_000_000):
        store.save(state(round_))
    assert same(store.latest(), state(1_000_000))
    assert len(files(store)) == 4


def test_looking_at_the_newest_leaves_what_is_being_written_alone(store: CheckpointStore) -> None:
    store.save(state(1))
    (store.path / ".round-000002.json.x.tmp").write_bytes(b"{")
    before = Snapshot.of(store.path)
    assert same(store.peek(), state(1))
    assert Snapshot.of(store.path) == before


def test_what_decides_who_is_asked_and_when_it_ends_comes_back(store: CheckpointStore) -> None:
    standing = Standing({"clinic-b": ("", "malformed")}, {"clinic-c": Suspension(2, ("late",))})
    saved = replace(
        state(3),
        standing=standing,
        spent=frozenset({"clinic-a"}),
        best=0.1,
        waited=2,
        ended="no-improvement",
        closed=True,
    )
    store.save(saved)
    latest = store.latest()
    assert latest is not None
    assert replace(latest, model=saved.model) == saved


def test_a_checkpoint_of_version_2_is_read_and_one_of_the_future_is_refused(
    store: CheckpointStore,
) -> None:
    store.save(state(1))
    file = store.path / "round-000001.json"
    document = decode(file.read_bytes())
    new = ("standing", "spent", "best", "waited", "ended")
    old = {name: value for name, value in document.items() if name not in new}
    file.write_bytes(encode({**old, "schema_version": 2}))
    assert same(store.latest(), state(1))
    file.write_bytes(encode({**document, "schema_version": 4}))
    with pytest.raises(TrustError) as caught:
        store.latest()
    assert caught.value.code == "bad-checkpoint"
