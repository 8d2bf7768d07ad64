"""A node runs the installed app and nothing else, says no more than a code, and comes back."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.link import node as module
from client.link.fleet import NotAdmitted, RunEnded, Unreachable, Unreadable
from client.link.node import Node


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.0,))
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 5)


class FakeServer:
    """Gives what it is told to, in turn: messages, or errors to raise; then stops the node."""

    node_id = 5

    def __init__(self, *gives: Any) -> None:
        self.gives = list(gives)
        self.pushed: list[Message] = []
        self.entered = self.left = 0
        self.stop = threading.Event()
        self.on_push: list[Exception] = []

    def __enter__(self) -> FakeServer:
        self.entered += 1
        if self.gives and isinstance(self.gives[0], NotAdmitted):
            raise self.gives.pop(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1

    def pull(self) -> Message | None:
        if not self.gives:
            self.stop.set()
            return None
        given = self.gives.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    def push(self, reply: Message) -> None:
        if self.on_push:
            raise self.on_push.pop(0)
        self.pushed.append(reply)


def message(kind: str = "train") -> Message:
    made = Message(
        RecordDict({"config": ConfigRecord({"clip": 1e9})}), dst_node_id=5, message_type=kind
    )
    made.metadata.__dict__["_message_id"] = "m"
    made.metadata.__dict__["_src_node_id"] = 1
    return made


def run(server: FakeServer, app: Any) -> list[str]:
    told: list[str] = []
    Node(app, lambda: server, server.stop, told.append).run()
    return told


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


@pytest.mark.parametrize("kind", ["train", "query", "query.close"])
def test_the_three_messages_that_the_app_knows_are_answered(kind: str) -> None:
    server = FakeServer(message(kind))
    run(server, echo)
    (reply,) = server.pushed
    assert reply.metadata.reply_to_message_id == "m"
    assert reply.has_content()


@pytest.mark.parametrize("kind", ["evaluate", "train.other", "query.x", "system"])
def test_any_other_message_never_reaches_the_app(kind: str) -> None:
    server = FakeServer(message(kind))
    run(server, lambda *_: pytest.fail("the app was called"))
    assert server.pushed[0].has_error()


def test_an_exception_leaves_as_a_code_and_never_as_text() -> None:
    def fails(*_: Any) -> Message:
        raise ValueError("record 17 of Jane Doe")

    server = FakeServer(message())
    run(server, fails)
    assert server.pushed[0].error.reason == "failed"


def test_no_configuration_of_the_servers_reaches_the_app() -> None:
    seen: list[Context] = []

    def look(message: Message, context: Context) -> Message:
        seen.append(context)
        return echo(message, context)

    run(FakeServer(message(), message()), look)
    assert [(c.run_config, c.node_config, dict(c.state)) for c in seen] == [({}, {}, {})] * 2


def test_it_comes_back_whatever_happened() -> None:
    server = FakeServer(
        NotAdmitted("this node is still there"),
        NotAdmitted("and still"),
        message(),
        Unreachable("restarted"),
        message(),
        Unreadable("garbage"),
        ValueError("a fault in the reading"),
        message(),
        RunEnded(),
        message(),
    )
    assert run(server, echo) == [
        *("not-admitted", "connected", "waiting", "connected", "waiting", "connected")
    ]
    assert len(server.pushed) == 4
    assert (server.entered, server.left) == (5, 3)


def test_an_answer_that_nobody_wants_any_more_is_dropped() -> None:
    server = FakeServer(message(), message())
    server.on_push = [RunEnded()]
    run(server, echo)
    assert len(server.pushed) == 1
