"""Our round loop against clients that lie, fall silent or die, over a Grid in memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from common.aggregation import Aggregation
from common.canonical import decode
from common.errors import BudgetError, NetworkError, TrustError
from common.ledger import merkle
from common.wire import RoundRequest, digest_arrays, head_in
from server.checkpoint import CheckpointStore
from server.rounds import RoundLoop
from tests.server.federation import (
    NAMES,
    Answer,
    Node,
    World,
    bits,
    closing_of,
    expected_model,
    fails,
    honest,
    nonce_of,
    only_in,
    refuse,
    reply,
    say_closed,
    say_hello,
    with_ledger,
    with_receipt,
    with_update,
)
from tests.world import (
    FEDERATION,
    PLAN,
    RUN,
    SHAPES,
    FakeClient,
    Snapshot,
    flower_identity,
    killed_at,
    leaves,
    model,
)

QUICK = replace(PLAN, cohort=replace(PLAN.cohort, deadline=0.3))


@pytest.fixture(autouse=True)
def _flower(caplog: pytest.LogCaptureFixture) -> None:
    flower_identity()
    caplog.set_level(logging.CRITICAL, "flwr")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


def test_the_model_is_the_sum_of_the_mean_updates(world: World) -> None:
    final = world.run()
    assert bits(final) == bits(expected_model(NAMES))
    updates = [FakeClient(n).update(r)["weight"] for n in NAMES for r in (1, 2, 3)]
    np.testing.assert_allclose(final["weight"], np.sum(updates, axis=0) / 3, atol=1e-6)
    assert [(r.round, r.asked, r.valid, r.changed) for r in world.reports] == [
        (round_, 3, 3, True) for round_ in (1, 2, 3)
    ]


def test_a_report_holds_counts_and_codes_only(world: World) -> None:
    world.run()
    assert set(world.metrics()[0]) == {
        "round",
        "asked",
        "valid",
        "changed",
        "unchanged",
        "dropped",
        "late",
        "duplicates",
        "accuracy",
        "seconds",
        "update_bytes",
        "uncompressed_bytes",
    }


# -- one bad client ------------------------------------------------------------------------------


def replay(node: Node, message: Message) -> list[Message]:
    """The honest answer to the first request, again and again."""
    first = node.seen[0]
    update = node.client.update(first.round)
    node.client.leaves = leaves(len(node.client.leaves) + 2)
    return [reply(message, update, node.client.receipt(first, update))]


def somebody_elses(node: Node, message: Message) -> list[Message]:
    other = FakeClient("clinic-a", leaves(99))
    return [reply(message, *other.answer(node.seen[-1]))]


def nothing_in_it(node: Node, message: Message) -> list[Message]:
    return [Message(RecordDict(), reply_to=message)]


BAD: dict[str, tuple[Answer, str]] = {
    "silent": (lambda *_: [], "silent"),
    "raises": (fails, "client-error"),
    "empty": (nothing_in_it, "malformed"),
    "refuses": (refuse("stale-round"), "refused-stale-round"),
    "refuses-oddly": (refuse("Record 7 is odd"), "refused"),
    "nan": (with_update(lambda u: {**u, "bias": u["bias"] * np.float32("nan")}), "not-finite"),
    "too-large": (
        with_update(lambda u: {**u, "bias": u["bias"] + np.float32(2e3)}),
        "out-of-bound",
    ),
    "shape": (with_update(lambda u: {**u, "bias": np.zeros((1, 2), np.float32)}), "wrong-shape"),
    "names": (with_update(lambda u: {"weight": u["weight"]}), "wrong-names"),
    "float64": (with_update(lambda u: {**u, "bias": u["bias"].astype(np.float64)}), "malformed"),  # type: ignore[dict-item]
    "huge": (with_update(lambda u: {**u, "x": np.zeros(9999, np.float32)}), "too-large"),
    "other-bytes": (with_receipt(update="0" * 64), "wrong-update"),
    "other-round": (with_receipt(round=9), "wrong-request"),
    "rolled-back": (with_ledger(0), "ledger-rolled-back"),
    "unsigned-head": (with_receipt(root="0" * 64), "bad-receipt"),
    "anothers-receipt": (somebody_elses, "bad-receipt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_client_costs_its_own_reply_and_not_a_bit_of_the_model(
    tmp_path: Path, name: str
) -> None:
    world = World.make(tmp_path, QUICK)
    world.node("clinic-c").train, code = BAD[name]
    final = world.run()
    assert bits(final) == bits(expected_model(NAMES[:2]))
    assert [dict(report.dropped) for report in world.reports] == [{"clinic-c": code}] * 3
    assert [report.valid for report in world.reports] == [2, 2, 2]
    stored = "".join(str(file) for file in Snapshot.of(world.home.path).files.values())
    assert "traceback" not in stored
    assert "Record 7" not in stored


def test_a_replayed_reply_counts_once(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.node("clinic-c").train = replay
    world.run()
    assert [report.dropped for report in world.reports] == [
        {},
        {"clinic-c": "wrong-request"},
        {"clinic-c": "wrong-request"},
    ]


def test_a_ledger_that_goes_back_is_noticed_in_the_next_round(world: World) -> None:
    def forgets(node: Node, message: Message) -> list[Message]:
        node.client.leaves = []
        return honest(node, message)

    world.node("clinic-c").train = forgets
    world.run()
    assert [dict(report.dropped) for report in world.reports] == [
        {},
        {"clinic-c": "ledger-rolled-back"},
        {"clinic-c": "ledger-rolled-back"},
    ]


def test_a_reply_that_comes_twice_counts_once(world: World) -> None:
    world.node("clinic-c").train = lambda node, message: 2 * honest(node, message)
    assert bits(world.run()) == bits(expected_model(NAMES))
    assert all(report.valid == 3 for report in world.reports)


def test_the_first_of_two_different_replies_decides(world: World) -> None:
    def both(node: Node, message: Message) -> list[Message]:
        return [*fails(node, message), *honest(node, message)]

    world.node("clinic-c").train = both
    assert bits(world.run()) == bits(expected_model(NAMES[:2]))


def test_replies_from_nodes_that_were_not_asked_are_ignored(world: World) -> None:
    asked = Message(RecordDict(), dst_node_id=666, message_type="train")
    stranger = FakeClient("stranger")
    head = {"entries": 0, "root": "0" * 64, "signature": "0" * 128}
    request = RoundRequest(
        "stranger", PLAN.digest, RUN, 0, 1, digest_arrays(model()), "ab" * 16, **head
    )
    world.grid.extra = [reply(asked, *stranger.answer(request))]
    assert bits(world.run()) == bits(expected_model(NAMES))
    assert all(not report.dropped for report in world.reports)


def test_the_order_of_arrival_does_not_change_a_bit(tmp_path: Path) -> None:
    forwards, backwards = World.make(tmp_path / "one"), World.make(tmp_path / "two")
    backwards.grid.nodes = dict(reversed(backwards.grid.nodes.items()))
    assert bits(forwards.run()) == bits(backwards.run())


# -- roll call -----------------------------------------------------------------------------------

MALLORY = FakeClient("mallory")


def unknown(node: Node, message: Message) -> list[Message]:
    return [say_hello(message, MALLORY, nonce_of(node, message))]


def pretends(node: Node, message: Message) -> list[Message]:
    return [say_hello(message, MALLORY, nonce_of(node, message), "clinic-c")]


def other_name(node: Node, message: Message) -> list[Message]:
    return [say_hello(message, node.client, nonce_of(node, message), "clinic-a")]


def old_nonce(node: Node, message: Message) -> list[Message]:
    return [say_hello(message, node.client, "00" * 16)]


def odd(node: Node, message: Message) -> list[Message]:
    content = RecordDict({"hello": ConfigRecord({"envelope": b"{}"})})
    return [Message(content, reply_to=message)]


@pytest.mark.parametrize(
    "query",
    [unknown, pretends, other_name, old_nonce, odd, fails, nothing_in_it, refuse("bad-signature")],
    ids=lambda query: query.__name__,
)
def test_a_node_that_does_not_prove_who_it_is_takes_no_part(tmp_path: Path, query: Answer) -> None:
    world = World.make(tmp_path, QUICK)
    world.node("clinic-c").query = query
    assert bits(world.run()) == bits(expected_model(NAMES[:2]))
    assert all(report.asked == 2 and not report.dropped for report in world.reports)
    assert not world.node("clinic-c").seen


def test_too_few_clients_is_an_error_that_changes_nothing(tmp_path: Path) -> None:
    world = World.make(tmp_path, QUICK)
    for name in NAMES[1:]:
        world.node(name).query = unknown
    with pytest.raises(NetworkError) as caught:
        world.run()
    assert caught.value.code == "too-few-clients"
    assert caught.value.exit_code == 3
    assert not world.reports
    assert not any(node.seen for node in world.grid.nodes.values())


def test_clients_that_come_later_are_waited_for(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    nodes, polls = dict(world.grid.nodes), []

    def later() -> list[int]:
        polls.append(1)
        world.grid.nodes = nodes if len(polls) > 2 else {100: nodes[100]}
        return list(world.grid.nodes)

    world.grid.get_node_ids = later  # type: ignore[method-assign]
    assert bits(world.run()) == bits(expected_model(NAMES))


# -- quorum and budget ---------------------------------------------------------------------------


def test_a_round_without_a_quorum_changes_nothing_and_says_so(world: World) -> None:
    for name in NAMES[1:]:
        world.node(name).train = only_in({1, 3}, fails)
    world.run()
    one, two, three = world.metrics()
    assert (one["changed"], two["changed"], three["changed"]) == (True, False, True)
    assert (one["unchanged"], two["unchanged"], three["unchanged"]) == ("", "no-quorum", "")
    assert two["dropped"] == dict.fromkeys(NAMES[1:], "client-error")
    assert world.node("clinic-a").seen[1].model == world.node("clinic-a").seen[2].model
    assert world.node("clinic-a").seen[0].model != world.node("clinic-a").seen[1].model


def test_a_run_in_which_no_round_had_a_quorum_says_why(world: World) -> None:
    world.node("clinic-a").train = refuse("below-floor")
    world.node("clinic-b").train = fails
    with pytest.raises(NetworkError) as caught:
        world.run()
    assert caught.value.code == "no-quorum"
    assert "refused-below-floor x 3" in caught.value.message
    assert "client-error x 3" in caught.value.message
    latest = CheckpointStore(world.home.checkpoints, RUN, PLAN.digest).latest()
    assert latest is not None
    assert bits(latest.model) == bits(model())


def test_clients_that_all_refuse_for_their_budget_are_a_budget_error(world: World) -> None:
    for name in NAMES:
        world.node(name).train = refuse("budget-exhausted")
    with pytest.raises(BudgetError) as caught:
        world.run()
    assert caught.value.exit_code == 10
    assert [report.changed for report in world.reports] == [False]  # nobody is asked again


def test_a_budget_that_ends_halfway_keeps_what_was_learnt(world: World) -> None:
    for name in NAMES:
        world.node(name).train = only_in({1, 2}, refuse("budget-exhausted"))
    assert bits(world.run()) == bits(expected_model(NAMES, rounds=2))
    assert world.metrics()[-1]["dropped"] == dict.fromkeys(NAMES, "refused-budget-exhausted")


# -- requests ------------------------------------------------------------------------------------


def test_every_request_has_a_nonce_of_its_own_that_was_stored_before_it_was_sent(
    world: World,
) -> None:
    stored: list[dict[str, Any]] = []

    def look() -> None:
        stored.append(decode((world.home.checkpoints / "pending.json").read_bytes()))

    world.grid.on_push = look
    world.run()
    requests = [request for node in world.grid.nodes.values() for request in node.seen]
    assert len({request.nonce for request in requests}) == len(requests) == 9
    for name in NAMES:
        for request in world.node(name).seen:
            pending = stored[request.round]  # the first push is the roll call
            assert pending["nonces"][name] == request.nonce
            assert (pending["round"], pending["incarnation"]) == (request.round, 0)


def test_a_cohort_is_drawn_by_stable_names_and_the_same_for_a_seed(tmp_path: Path) -> None:
    plan = replace(PLAN, cohort=replace(PLAN.cohort, clients=2), rounds=12)

    def drawn(path: str, seed: int | None = 5) -> list[list[str]]:
        world = World.make(tmp_path / path, plan, seed=seed)
        if path == "moved":
            renumbered = {900 - node: it for node, it in world.grid.nodes.items()}
            world.grid.nodes = renumbered
        world.run()
        return [
            [n for n in NAMES if any(r.round == round_ for r in world.node(n).seen)]
            for round_ in range(1, 13)
        ]

    first = drawn("first")
    assert all(len(cohort) == 2 for cohort in first)
    assert len({tuple(cohort) for cohort in first}) == 3
    assert drawn("again") == drawn("moved") == first
    assert drawn("another", 6) != first
    assert drawn("secret", None) != drawn("secret-too", None)


# -- the ledgers' heads ---------------------------------------------------------------------------


def heads(world: World) -> dict[str, int]:
    checkpoint = CheckpointStore(world.home.checkpoints, RUN, PLAN.digest).latest()
    assert checkpoint is not None
    return {name: head["entries"] for name, head in checkpoint.heads.items()}


def test_each_request_hands_back_the_head_that_was_seen_last_countersigned(world: World) -> None:
    world.run()
    for node in world.grid.nodes.values():
        assert [request.entries for request in node.seen] == [0, 3, 5]
        for request in node.seen:
            head = head_in(request, FEDERATION, node.client.pseudonym)
            assert head.signed_by(node.coordinator, request.signature)
            assert head.root == merkle.root(leaves(request.entries)).hex()


def test_the_last_word_of_a_run_is_said_once_and_answered(world: World) -> None:
    world.run()
    assert heads(world) == dict.fromkeys(NAMES, 8)  # 1, two a round, and the closing's
    for node in world.grid.nodes.values():
        node.close = fails
    world.run()
    assert heads(world) == dict.fromkeys(NAMES, 8)


def forget(node: Node, message: Message) -> list[Message]:
    behind = FakeClient(node.client.name, leaves(3))
    return [say_closed(message, behind.close(closing_of(node, message)))]


def another_run(node: Node, message: Message) -> list[Message]:
    closing = replace(closing_of(node, message), run="f" * 32)
    return [say_closed(message, node.client.close(closing))]


def forge(node: Node, message: Message) -> list[Message]:
    other = FakeClient("clinic-a", leaves(20))
    return [say_closed(message, other.close(closing_of(node, message)))]


@pytest.mark.parametrize(
    "bad",
    [forget, another_run, forge, fails, nothing_in_it, lambda *_: []],
    ids=["forgets", "another-run", "another-client", "raises", "empty", "silent"],
)
def test_a_client_that_does_not_close_well_keeps_its_last_head(tmp_path: Path, bad: Answer) -> None:
    world = World.make(tmp_path, QUICK)
    world.node("clinic-c").close = bad
    assert bits(world.run()) == bits(expected_model(NAMES))
    store = CheckpointStore(world.home.checkpoints, RUN, QUICK.digest)
    assert store.latest().heads["clinic-c"]["entries"] == 7
    assert store.latest().heads["clinic-a"]["entries"] == 8


# -- killed and resumed --------------------------------------------------------------------------


def test_a_run_killed_at_any_write_resumes_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    short = replace(PLAN, rounds=2)
    undisturbed = bits(World.make(tmp_path / "undisturbed", short).run())
    resumed_from = set()
    for step in range(1, 300):
        path = tmp_path / str(step)
        world = World.make(path, short)
        if not killed_at(step, world.run):
            break
        again = World.make(path, entries=1000)  # clients' ledgers went on
        assert bits(again.run()) == undisturbed
        resumed_from.add(len(again.reports))
        assert [line["round"] for line in again.metrics()] == [1, 2]
        assert all(request.incarnation == 0 for request in again.node("clinic-a").seen)
        before = {request.digest for request in world.node("clinic-a").seen}
        sent = {request.digest for request in again.node("clinic-a").seen}
        assert len(before | sent) <= 2  # a round that was asked before is asked with the same words
    assert resumed_from == {0, 1, 2}


def test_a_run_killed_many_times_ends_in_the_same_bits(tmp_path: Path) -> None:
    undisturbed = bits(World.make(tmp_path / "undisturbed").run())
    for attempt in range(40):
        world = World.make(tmp_path / "killed", entries=1 + 1000 * attempt)
        if not killed_at(26, world.run):
            break
    assert attempt == 3  # each life got one round further, and the last one closed the ledgers
    final = CheckpointStore(world.home.checkpoints, RUN, PLAN.digest).latest()
    assert final is not None
    assert bits(final.model) == undisturbed


@pytest.mark.parametrize(
    "name",
    ["fedadam", *(pytest.param(n, marks=pytest.mark.figures) for n in ("fedavgm", "fedyogi"))],
)
def test_a_server_optimizer_killed_at_any_write_goes_on_with_its_memory(
    tmp_path: Path, name: str
) -> None:
    optimizer = replace(PLAN.optimizer, aggregation=Aggregation(name))
    plan = replace(PLAN, optimizer=optimizer)
    undisturbed = bits(World.make(tmp_path / "undisturbed", plan).run())
    assert undisturbed != bits(expected_model(NAMES))
    steps = 0
    for step in range(1, 300):
        world = World.make(tmp_path / str(step), plan)
        if not killed_at(step, world.run):
            break
        assert bits(World.make(tmp_path / str(step), entries=1000).run()) == undisturbed
        steps += 1
    assert steps > 20


def test_a_checkpoint_whose_rule_was_altered_is_passed_over(world: World, tmp_path: Path) -> None:
    optimizer = replace(PLAN.optimizer, aggregation=Aggregation("fedadam"))
    world = World.make(tmp_path / "other", replace(PLAN, optimizer=optimizer))
    world.run()
    store = CheckpointStore(world.home.checkpoints, RUN, world.home.plan.digest)
    assert set(store.latest().rule) == {f"{m}/{name}" for m in "mv" for name in SHAPES}
    (world.home.checkpoints / "rule-round-000003.safetensors").write_bytes(b"\x00" * 64)
    assert store.latest().round == 2


def test_a_run_that_is_done_needs_nobody_to_be_there(world: World) -> None:
    final = bits(world.run())
    world.grid.nodes = {}
    before = world.home.metrics.read_bytes()
    assert bits(world.run()) == final
    assert world.home.metrics.read_bytes() == before


def test_metrics_of_a_round_that_will_be_repeated_are_forgotten(world: World) -> None:
    world.run()
    for name in ("round-000003.json", "round-000003.safetensors"):
        (world.home.checkpoints / name).unlink()
    with open(world.home.metrics, "ab") as file:
        file.write(b'{"round": 4, "torn')
    for node in world.grid.nodes.values():
        node.client.leaves = leaves(1000)
    world.reports.clear()
    final = world.run()
    assert [report.round for report in world.reports] == [3]
    assert [line["round"] for line in world.metrics()] == [1, 2, 3]
    assert bits(final) == bits(expected_model(NAMES))


def test_checkpoints_of_another_plan_are_refused(tmp_path: Path, world: World) -> None:
    world.run()
    other = replace(PLAN, name="another")
    moved = replace(world.home, plan=other)
    with pytest.raises(TrustError) as caught:
        RoundLoop(moved, world.grid, model())
    assert caught.value.code == "bad-checkpoint"
