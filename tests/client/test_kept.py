"""A coded update and what is kept for the next one: consistent with the ledger, killed anywhere."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.home import Home
from client.kept import KEPT_RUNS
from client.rounds import Answer, Client
from common import durable
from common.coding import RESIDUAL, Codec
from common.compression import Compression
from common.errors import OperationError, Refusal
from common.ledger import Kind
from common.wire import Arrays, Receipt, digest_update
from tests.world import (
    COORDINATOR,
    PLAN,
    POLICY,
    RUN,
    SHAPES,
    Snapshot,
    ask,
    identity,
    killed_at,
    make_client,
    make_home,
    model,
    seen,
)

LONG = replace(PLAN, rounds=40, privacy=replace(PLAN.privacy, noise_multiplier=50.0))
TOP = replace(LONG, compression=Compression("top-k", 0.34))
PLANS = [
    replace(LONG, compression=Compression("fp16")),
    replace(LONG, compression=Compression("int8")),
    TOP,
]
CODEC = Codec(TOP.compression, SHAPES, TOP.optimizer.update_bound)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")


def serve(client: Client, round_: int, plan: Any = TOP, **changes: Any) -> Answer:
    changes = {"plan": plan.digest, "nonce": round_, **changes}
    return client.answer(ask(round_, **changes).sign(COORDINATOR), model())


def kept(home: Home, run: str = RUN) -> Arrays:
    client = Client(home)
    chain = client._ledger.chain(home.federation)
    return client._kept.read(chain, TOP.digest, run)


def files(home: Home) -> list[str]:
    return sorted(file.name for file in home.kept.iterdir()) if home.kept.exists() else []


def trained(path: Path, rounds: int) -> list[Arrays]:
    """The updates of an uncompressed twin: what is trained does not depend on the coding."""
    client = make_client(path, plan=TOP)
    result: list[Arrays] = []

    def keep(self: Client, *arguments: Any) -> Arrays:
        result.append(Client._train(self, *arguments))
        return result[-1]

    client._train = keep.__get__(client)  # type: ignore[method-assign]
    for round_ in range(1, rounds + 1):
        serve(client, round_)
    return result


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.compression.method)
def test_the_receipt_is_for_the_bytes_that_leave_and_the_same_request_gets_them_again(
    tmp_path: Path, plan: Any
) -> None:
    client = make_client(tmp_path, plan=plan)
    for round_ in (1, 2):
        first = serve(client, round_, plan)
        assert isinstance(first.update, bytes)
        before = Snapshot.of(client.home.path.parent.parent)
        for again in (serve(client, round_, plan), serve(Client(client.home), round_, plan)):
            assert (again.update, again.receipt) == (first.update, first.receipt)
        assert Snapshot.of(client.home.path.parent.parent) == before
        receipt = Receipt.verify(first.receipt, identity(client.home).key.public)
        disclosure = client._ledger.chain(client.home.federation)[-1]
        assert receipt.update == disclosure.body["update"] == digest_update(first.update)
        (stored,) = client.home.outbox.iterdir()
        assert stored.read_bytes() == first.update
    assert len(files(client.home)) == (1 if plan is TOP else 0)


def test_a_coded_answer_that_was_altered_on_disk_is_not_sent(tmp_path: Path) -> None:
    client = make_client(tmp_path, plan=TOP)
    answer = serve(client, 1)
    (stored,) = client.home.outbox.iterdir()
    stored.write_bytes(bytes(len(answer.update)))
    with pytest.raises(Refusal) as caught:
        serve(client, 1)
    assert caught.value.code == "ledger-unusable"


def test_what_was_not_sent_is_in_the_next_update_over_any_number_of_restarts(
    tmp_path: Path,
) -> None:
    updates = trained(tmp_path / "twin", 6)
    home, rest = make_home(tmp_path, plan=TOP), Arrays()
    for round_, update in enumerate(updates, 1):
        expected, rest = CODEC.encode(update, rest)
        assert serve(Client(home), round_).update == expected
        assert np.array_equal(kept(home)[RESIDUAL], rest[RESIDUAL])
    assert rest[RESIDUAL].any()


def test_runs_and_plans_have_a_residual_each(tmp_path: Path) -> None:
    home = make_home(tmp_path, plan=TOP)
    alone = make_client(tmp_path / "alone", plan=TOP)
    client, other = Client(home), "f" * 32
    first = [serve(client, round_).update for round_ in (1, 2)]
    serve(client, 1, run=other, nonce=90)
    first.append(serve(client, 3).update)
    assert first == [serve(alone, round_).update for round_ in (1, 2, 3)]
    assert len(files(home)) == 2
    assert not np.array_equal(kept(home)[RESIDUAL], kept(home, other)[RESIDUAL])
    for index in range(KEPT_RUNS + 2):
        serve(client, 1, run=f"{index:032x}", nonce=100 + index)
    assert len(files(home)) == KEPT_RUNS
    assert not kept(home)


@pytest.mark.parametrize("damage", ["gone", "torn", "altered", "empty"])
def test_a_residual_that_is_gone_or_damaged_counts_as_none_and_the_round_is_answered(
    tmp_path: Path, damage: str
) -> None:
    updates = trained(tmp_path / "twin", 2)
    home = make_home(tmp_path, plan=TOP)
    serve(Client(home), 1)
    (file,) = home.kept.iterdir()
    data = file.read_bytes()
    match damage:
        case "gone":
            file.unlink()
        case "torn":
            file.write_bytes(data[:-3])
        case "altered":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "empty":
            file.write_bytes(b"")
    assert serve(Client(home), 2).update == CODEC.encode(updates[1], {})[0]


# -- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [1, 3], ids="killed-{}-times".format)
def test_killed_at_every_step_a_seeded_round_ends_in_the_same_bytes_and_residual(
    tmp_path: Path, again: int
) -> None:
    twin = make_client(tmp_path / "twin", plan=TOP)
    expected = [serve(twin, round_).update for round_ in (1, 2, 3)]
    step, died = 0, True
    while died:
        step += 1
        home = make_home(tmp_path / str(step), plan=TOP)
        serve(Client(home), 1)
        for _ in range(again):
            died = killed_at(step, lambda home=home: serve(Client(home), 2))  # type: ignore[misc]
        restarted = Client(home)
        assert len(files(home)) == 1
        assert [serve(restarted, round_).update for round_ in (2, 3)] == expected[1:]
        assert np.array_equal(kept(home)[RESIDUAL], kept(twin.home)[RESIDUAL])
        assert len(files(home)) == 1
        assert not list(home.kept.glob(".*"))
    # Two entries and their marks, what is kept, the bytes: three steps each.
    assert again > 1 or step == 18 + 1
    assert step > 6


def test_a_forfeited_round_leaves_what_was_kept_before_it(tmp_path: Path) -> None:
    """With cryptographic noise a killed round is lost, and nothing of it gets into the next."""
    step, died, forfeited = 0, True, 0
    while died:
        step += 1
        policy = replace(POLICY, simulated=False, spare_rounds=30)
        home = make_home(tmp_path / str(step), plan=TOP, policy=policy, seed=None)
        serve(Client(home), 1)
        before = kept(home)[RESIDUAL]
        died = killed_at(step, lambda home=home: serve(Client(home), 2))  # type: ignore[misc]
        client = Client(home)
        chain = client._ledger.chain(home.federation)
        disclosed = sum(entry.kind is Kind.DISCLOSURE for entry in chain)
        assert len(files(home)) == 1
        if disclosed == 1:
            assert np.array_equal(kept(home)[RESIDUAL], before)
        else:
            # What left and what was kept belong together: the same request proves it.
            again = serve(client, 2)
            assert not np.array_equal(kept(home)[RESIDUAL], before)
            assert digest_update(again.update) == chain[-1].body["update"]
        if disclosed == 1 and chain[-1].kind is Kind.INTENT:
            forfeited += 1
            with pytest.raises(Refusal) as caught:
                serve(client, 2)
            assert caught.value.code == "forfeited"
            request = {"incarnation": 0, **seen(chain[:0])}
            serve(client, 3, **request)
            assert not np.array_equal(kept(home)[RESIDUAL], before)
    assert forfeited >= 6


def test_a_disk_that_is_full_when_the_residual_is_written_discloses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(tmp_path, plan=TOP)
    serve(client, 1)
    before, right = kept(client.home)[RESIDUAL], durable.replace

    def full(path: Path, data: bytes, **options: Any) -> None:
        if path.suffix == ".kept":
            raise OperationError("full", code="disk-full")
        right(path, data, **options)

    monkeypatch.setattr(durable, "replace", full)
    with pytest.raises(OperationError):
        serve(client, 2)
    monkeypatch.undo()
    assert np.array_equal(kept(client.home)[RESIDUAL], before)
    chain = client._ledger.chain(client.home.federation)
    assert [entry.kind for entry in chain][-1] is Kind.INTENT
    twin = make_client(tmp_path / "twin", plan=TOP)
    assert [serve(twin, round_).update for round_ in (1, 2)][1] == serve(client, 2).update
