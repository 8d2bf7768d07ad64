"""Flower's Grid in one process or a few: an app cannot tell, and a bad client harms itself alone.

The first tests are a contract with the parts of Flower that are not public API. After an upgrade of
Flower they say which of them changed; ``simulations/grid.py`` is the one place to mend.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from simulations import grid as grid_module
from simulations.grid import FIRST_NODE, InProcessGrid
from tests.world import flower_identity

APP = "tests.simulations.apps:app"


def messages(*what: str) -> list[Message]:
    """A message for each node in turn, which asks it to do something."""
    return [
        Message(
            RecordDict({"ask": ConfigRecord({"do": do})}),
            dst_node_id=FIRST_NODE + index,
            message_type="train",
        )
        for index, do in enumerate(what)
    ]


def answers(replies: list[Message]) -> dict[int, dict[str, object]]:
    """By node id, what was answered."""
    return {
        reply.metadata.src_node_id: dict(reply.content.config_records["answer"])
        for reply in replies
        if not reply.has_error()
    }


def errors(replies: list[Message]) -> dict[int, str]:
    return {
        reply.metadata.src_node_id: reply.error.reason or ""
        for reply in replies
        if reply.has_error()
    }


@pytest.fixture(scope="module")
def workers() -> Iterator[InProcessGrid]:
    with InProcessGrid(APP, 6, workers=2, environment={"PRIVET_TEST_HOME": "there"}) as grid:
        yield grid


@pytest.fixture
def local() -> Iterator[InProcessGrid]:
    with InProcessGrid(APP, 4) as grid:
        yield grid


# -- the contract with Flower --------------------------------------------------------------------


def test_contract_task_identity_is_three_numbers_that_can_be_set() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 5, 6, 7
    metadata = Message(RecordDict(), dst_node_id=8, message_type="train").metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.src_task_id) == (5, 6, 7), (
        "a message no longer takes its origin from TaskIdentity"
    )
    assert metadata.dst_node_id == 8
    assert metadata.message_type == "train"


def test_contract_an_empty_run_can_be_made() -> None:
    from flwr.supercore.run import Run

    assert Run.create_empty(run_id=1).run_id == 1


def test_contract_reserved_ids_are_below_ours() -> None:
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

    assert 0 <= SUPERLINK_NODE_ID < FIRST_NODE
    assert isinstance(int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), int)


def test_contract_a_message_gets_its_id_by_the_name_that_we_set() -> None:
    flower_identity()
    message = Message(RecordDict(), dst_node_id=101, message_type="train")
    assert message.metadata.message_id == ""
    grid_module._name(message, "message-1")
    assert message.metadata.message_id == "message-1", "metadata keeps its id elsewhere now"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "message-1"
    assert reply.metadata.src_node_id == 101
    assert reply.metadata.message_type == "train"


def test_contract_a_message_survives_protobuf_to_the_bit() -> None:
    from flwr.common.serde import message_to_proto

    flower_identity()
    values = np.array([[0.1, -0.0], [np.nan, 1e-45]], np.float32)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(values)}),
            "bytes": ConfigRecord({"envelope": bytes(range(256)), "n": 3}),
        }
    )
    message = Message(content, dst_node_id=101, message_type="train", group_id="round-1")
    grid_module._name(message, "message-9")
    back = grid_module._decode(message_to_proto(message).SerializeToString())
    assert back.content.array_records["arrays"]["w"].numpy().tobytes() == values.tobytes()
    assert back.content.config_records["bytes"] == content.config_records["bytes"]
    for name in ("message_id", "dst_node_id", "group_id", "message_type", "reply_to_message_id"):
        assert getattr(back.metadata, name) == getattr(message.metadata, name), name
    failure = grid_module._failed(message, "ValueError")
    again = grid_module._decode(message_to_proto(failure).SerializeToString())
    assert isinstance(again.error, Error)
    assert again.error.reason == "ValueError"


def test_contract_a_context_takes_what_we_give_it() -> None:
    assert {"run_id", "node_id", "node_config", "state", "run_config"} <= set(
        inspect.signature(Context).parameters
    )


def test_contract_grid_asks_for_no_more_methods_than_we_have() -> None:
    assert not InProcessGrid.__abstractmethods__


# -- serving -------------------------------------------------------------------------------------


def test_every_node_is_a_partition_in_order(local: InProcessGrid) -> None:
    nodes = local.get_node_ids()
    assert nodes == [FIRST_NODE + index for index in range(4)]
    found = answers(local.send_and_receive(messages(*["count"] * 4)))
    assert [found[node]["partition"] for node in nodes] == [0, 1, 2, 3]
    assert all(answer["of"] == 4 and answer["node"] == node for node, answer in found.items())
    assert all(answer["config"] == 0 for answer in found.values())


@pytest.mark.parametrize("kind", ["local", "workers"])
def test_each_node_has_a_context_of_its_own(kind: str, request: pytest.FixtureRequest) -> None:
    grid: InProcessGrid = request.getfixturevalue(kind)
    before = answers(grid.send_and_receive(messages("count", "count")))
    grid.send_and_receive(messages("count"))
    after = answers(grid.send_and_receive(messages("count", "count")))
    gained = {n: int(str(after[n]["calls"])) - int(str(before[n]["calls"])) for n in after}
    assert gained == {FIRST_NODE: 2, FIRST_NODE + 1: 1}


def test_a_reply_names_its_message_and_each_is_pulled_once(local: InProcessGrid) -> None:
    ids = local.push_messages(messages("count", "count"))
    assert len(set(ids)) == 2
    assert local.pull_messages(["message-unknown"]) == []
    got = []
    for _ in range(3):
        got += local.pull_messages(ids)
    assert sorted(reply.metadata.reply_to_message_id for reply in got) == sorted(ids)
    assert len({reply.metadata.message_id for reply in got} | set(ids)) == 4
    assert local.pull_messages(ids) == []


@pytest.mark.parametrize("what", ["raise", "leave"])
def test_an_app_that_raises_is_an_error_reply_without_its_text(
    local: InProcessGrid, what: str
) -> None:
    replies = local.send_and_receive(messages("count", what, "count"))
    assert set(answers(replies)) == {FIRST_NODE, FIRST_NODE + 2}
    failed = errors(replies)
    assert set(failed) == {FIRST_NODE + 1}
    assert "must not travel" not in str(failed)


def test_something_that_is_no_client_app_is_refused() -> None:
    with pytest.raises(TypeError, match="not a Flower ClientApp"):
        InProcessGrid("tests.simulations.apps:not_an_app", 1)


# -- worker processes ----------------------------------------------------------------------------


def test_workers_are_other_processes_and_a_node_stays_with_one(workers: InProcessGrid) -> None:
    first = answers(workers.send_and_receive(messages(*["count"] * 6)))
    again = answers(workers.send_and_receive(messages(*["count"] * 6)))
    assert len({answer["process"] for answer in first.values()}) == 2
    assert os.getpid() not in {answer["process"] for answer in first.values()}
    assert all(first[node]["process"] == again[node]["process"] for node in first)
    assert {answer["home"] for answer in first.values()} == {"there"}
    assert "PRIVET_TEST_HOME" not in os.environ


def test_a_client_that_takes_its_process_down_harms_itself_alone(workers: InProcessGrid) -> None:
    before = answers(workers.send_and_receive(messages(*["count"] * 6)))
    replies = workers.send_and_receive(
        messages("count", "exit", "count", "count", "raise", "count")
    )
    assert set(answers(replies)) == {FIRST_NODE + index for index in (0, 2, 3, 5)}
    assert set(errors(replies)) == {FIRST_NODE + 1, FIRST_NODE + 4}
    after = answers(workers.send_and_receive(messages(*["count"] * 6)))
    assert len(after) == 6  # started anew, and serving everybody
    assert after[FIRST_NODE]["process"] == before[FIRST_NODE]["process"]
    assert after[FIRST_NODE + 1]["process"] != before[FIRST_NODE + 1]["process"]


def test_a_client_that_hangs_does_not_keep_the_others_or_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grid_module, "_STOP_SECONDS", 0.2)
    with InProcessGrid(APP, 2, workers=2) as grid:
        grid.send_and_receive(messages("count", "count"))
        began = time.monotonic()
        replies = grid.send_and_receive(messages("hang", "count"), timeout=1.0)
        assert set(answers(replies)) == {FIRST_NODE + 1}
        assert 1.0 <= time.monotonic() - began < 5.0
        ids = grid.push_messages(messages("count", "count"))
        grid_answers: list[Message] = []
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            grid_answers += grid.pull_messages(ids)
        assert set(answers(grid_answers)) == {FIRST_NODE + 1}
        workers = [host._process for host in grid._hosts]  # type: ignore[union-attr]
    assert not any(process.is_alive() for process in workers)


def test_no_more_workers_are_started_than_there_are_nodes() -> None:
    with InProcessGrid(APP, 1, workers=8) as grid:
        assert len(grid._hosts) == 1
        assert set(answers(grid.send_and_receive(messages("count")))) == {FIRST_NODE}
