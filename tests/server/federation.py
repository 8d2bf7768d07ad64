"""A federation in memory for the round loop's tests: a grid, its nodes, and what they may do wrong.

Messages arrive at once, and time passes only where somebody waits: a deadline of an hour costs no
time, and every wait is exact.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from common.data.binding import Binding
from common.errors import NetworkError
from common.keys import KeyDirectory
from common.plan import Plan
from common.wire import Arrays, Closing, Hello, RollCall, RoundRequest, Update, digest_arrays
from server.aggregation.mean import ExactMean
from server.central.books import Books
from server.events import read as read_events
from server.home import COORDINATOR, ServerHome
from server.metrics import Metrics
from server.nodes import Clock
from server.rounds import RoundLoop, RoundReport
from server.stopping import Stopped, ask
from tests.world import PLAN, POLICY, RUN, SHAPES, FakeClient, leaves, model

NAMES = ("clinic-a", "clinic-b", "clinic-c")
OPERATOR = replace(POLICY, dataset="coordinator", unit="client", approved_plans=())
Answer = Callable[["Node", Message], list[Message]]


class FakeTime:
    """Seconds that pass when somebody sleeps, and a thousandth at each look at the clock."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        self.seconds += 0.001
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def clock(self) -> Clock:
        return Clock(self.now, self.sleep)


# -- a grid in memory ----------------------------------------------------------------------------


@dataclass
class Node:
    """A node that plays one client; its answers may be replaced by something worse."""

    client: FakeClient
    coordinator: Any
    train: Answer | None = None
    query: Answer | None = None
    close: Answer | None = None
    seen: list[RoundRequest] = field(default_factory=list)

    def __call__(self, message: Message) -> list[Message]:
        if message.metadata.message_type == "query":
            return (self.query or hello)(self, message)
        if message.metadata.message_type == "query.close":
            return (self.close or closed)(self, message)
        envelope = message.content.config_records["request"]["envelope"]
        assert isinstance(envelope, bytes)
        self.seen.append(RoundRequest.verify(envelope, self.coordinator))
        arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
        assert len(arrays) == len(SHAPES)
        return (self.train or honest)(self, message)


class MemoryGrid(Grid):
    """Delivers messages at once, by node id; ``extra`` replies come with each batch."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes = nodes
        self.pushed: list[Message] = []
        self.extra: list[Message] = []
        self.on_push: Callable[[], None] = lambda: None
        self._replies: list[Message] = []

    def set_run(self, run: Any) -> None:
        pass

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.on_push()
        names = []
        for message in messages:
            name = f"message-{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = name
            self.pushed.append(message)
            names.append(name)
            node = self.nodes.get(message.metadata.dst_node_id)
            self._replies += node(message) if node else []
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        answers = [m for m in self._replies if m.metadata.reply_to_message_id in wanted]
        self._replies = [m for m in self._replies if m not in answers]
        return answers + self.extra

    def send_and_receive(self, *_: Any, **__: Any) -> list[Message]:
        raise NotImplementedError


def reply(message: Message, update: Update, receipt: bytes) -> Message:
    record: ArrayRecord | ConfigRecord
    if isinstance(update, bytes):
        record = ConfigRecord({"coded": update})
    else:
        record = ArrayRecord({name: Array(value) for name, value in update.items()})
    content = RecordDict({"update": record, "receipt": ConfigRecord({"envelope": receipt})})
    return Message(content, reply_to=message)


def honest(node: Node, message: Message) -> list[Message]:
    return [reply(message, *node.client.answer(node.seen[-1]))]


def hello(node: Node, message: Message) -> list[Message]:
    return [say_hello(message, node.client, nonce_of(node, message))]


def closed(node: Node, message: Message) -> list[Message]:
    return [say_closed(message, node.client.close(closing_of(node, message)))]


def closing_of(node: Node, message: Message) -> Closing:
    envelope = message.content.config_records["closing"]["envelope"]
    assert isinstance(envelope, bytes)
    return Closing.verify(envelope, node.coordinator)


def say_closed(message: Message, envelope: bytes) -> Message:
    return Message(RecordDict({"closed": ConfigRecord({"envelope": envelope})}), reply_to=message)


def nonce_of(node: Node, message: Message) -> str:
    envelope = message.content.config_records["roll-call"]["envelope"]
    assert isinstance(envelope, bytes)
    return RollCall.verify(envelope, node.coordinator).nonce


def say_hello(message: Message, signer: FakeClient, nonce: str, name: str = "") -> Message:
    envelope = Hello(name or signer.name, nonce).sign(signer.key)
    return Message(RecordDict({"hello": ConfigRecord({"envelope": envelope})}), reply_to=message)


def refuse(code: str) -> Answer:
    content = RecordDict({"refusal": ConfigRecord({"code": code})})
    return lambda _, message: [Message(content, reply_to=message)]


# -- a run ---------------------------------------------------------------------------------------


@dataclass
class World:
    """A run directory, its grid, and what its rounds reported."""

    home: ServerHome
    grid: MemoryGrid
    reports: list[RoundReport] = field(default_factory=list)
    time: FakeTime = field(default_factory=FakeTime)
    metrics_shown: Metrics | None = None
    score: Callable[[Arrays], float] | None = None

    @classmethod
    def make(cls, path: Path, plan: Plan = PLAN, entries: int = 1, seed: int | None = 5) -> World:
        clients = [FakeClient(name, leaves(entries)) for name in NAMES]
        keys = KeyDirectory(path / "keys")
        if not (path / "keys").exists():
            keys.create(COORDINATOR)
            (path / "keys" / COORDINATOR).write_bytes(b"\x01" * 32)  # the one of tests.world
            home = ServerHome(
                path=path / "run",
                run=RUN,
                plan=plan,
                keys=path / "keys",
                members={client.name: client.member() for client in clients},
                binding=Binding(source="csv", path="/nowhere.csv"),
                seed=seed,
                operator=OPERATOR if plan.central else None,
                ledger=path / "books" / "ledger.jsonl" if plan.central else None,
            )
            if home.ledger:
                Books.create(home.ledger, home.keys)
            home.create()
        home = ServerHome.read(path / "run")
        public = home.signing_key().public
        nodes = {100 + i: Node(client, public) for i, client in enumerate(clients)}
        return cls(home, MemoryGrid(nodes))

    def node(self, name: str) -> Node:
        (node,) = [n for n in self.grid.nodes.values() if n.client.name == name]
        return node

    def run(self) -> Arrays:
        loop = RoundLoop(
            self.home,
            self.grid,
            model(),
            on_round=self.reports.append,
            clock=self.time.clock(),
            score=self.score,
            metrics=self.metrics_shown,
        )
        return loop.run()

    def run_stopped_after(self, round_: int) -> None:
        """Rounds up to this one; then the server is asked to stop, and does."""

        def look() -> None:
            if any(r.round == round_ - 1 for n in self.grid.nodes.values() for r in n.seen) or (
                round_ == 1 and self.grid.pushed
            ):
                self.grid.on_push = lambda: None
                ask(self.home.stop)

        self.grid.on_push = look
        with contextlib.suppress(Stopped):
            self.run()

    def run_anyway(self) -> None:
        """All rounds, of which none may have changed the model."""
        with contextlib.suppress(NetworkError):
            self.run()

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Logged events of these kinds, or all, without what is the same in each."""
        common = ("schema_version", "time", "run")
        return [
            {name: value for name, value in line.items() if name not in common}
            for line in read_events(self.home.events)
            if line["event"] in kinds or not kinds
        ]

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.home.metrics.read_bytes().splitlines()]


def bits(arrays: Arrays) -> str:
    return digest_arrays(arrays)


def expected_model(who: Iterable[str], rounds: int = PLAN.rounds) -> Arrays:
    """By arithmetic: the sum over rounds of the mean of these clients' updates."""
    result = model()
    for round_ in range(1, rounds + 1):
        mean = ExactMean(SHAPES)
        for name in who:
            mean.add(FakeClient(name).update(round_))
        result = {n: (v + mean.mean()[n]).astype(np.float32) for n, v in result.items()}
    return result


def with_update(change: Callable[[Arrays], Arrays]) -> Answer:
    def answer(node: Node, message: Message) -> list[Message]:
        update, _ = node.client.answer(node.seen[-1])
        update = change(update)
        return [reply(message, update, node.client.receipt(node.seen[-1], update))]

    return answer


def with_receipt(**changes: Any) -> Answer:
    def answer(node: Node, message: Message) -> list[Message]:
        update, _ = node.client.answer(node.seen[-1])
        return [reply(message, update, node.client.receipt(node.seen[-1], update, **changes))]

    return answer


def with_ledger(entries: int) -> Answer:
    def answer(node: Node, message: Message) -> list[Message]:
        update = node.client.update(node.seen[-1].round)
        behind = FakeClient(node.client.name, leaves(entries))
        return [reply(message, update, behind.receipt(node.seen[-1], update))]

    return answer


def fails(node: Node, message: Message) -> list[Message]:
    return [Message(Error(code=0, reason="a traceback with data in it"), reply_to=message)]


def only_in(rounds: set[int], otherwise: Answer) -> Answer:
    def answer(node: Node, message: Message) -> list[Message]:
        return (honest if node.seen[-1].round in rounds else otherwise)(node, message)

    return answer
