"""Flower's Grid in one process or a few, with no Ray: the apps run unchanged.

The rule: an app cannot tell the difference. Every message is given to a ClientApp with a context of
its own, one at a time in each process, and a failure becomes an error reply as it would on a node.
Node ids are positions, so a run does not depend on what the operating system drew. Several workers
are separate processes of one thread each; which of them serves a client never changes the client's
bits.

All of Flower that is not public API is imported here, and ``tests/simulations/test_grid.py`` says
what broke after an upgrade.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 100  # above Flower's reserved ids
_RUN_ID = 1
_WAIT_SECONDS = 0.05  # so that the caller's deadline is looked at
_STOP_SECONDS = 5.0  # for a client that is still at work when the grid is left


class InProcessGrid(Grid):
    """Connects a ServerApp to ``nodes`` virtual nodes that all run one ClientApp.

    Args:
        client_app: where the ClientApp is, as ``module:attribute``.
        nodes: how many; node ``FIRST_NODE + i`` has ``partition-id`` i.
        workers: processes; 1 runs clients in this one.
        environment: variables for worker processes, such as the clients' directory.

    Use it as a context manager: leaving it ends the workers.
    """

    def __init__(
        self,
        client_app: str,
        nodes: int,
        *,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id = _RUN_ID, SUPERLINK_NODE_ID
        TaskIdentity.task_id = 1
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._nodes = nodes
        self._next_id = 0
        self._replies: dict[str, Message] = {}
        self._hosts: list[_Local | _Worker] = (
            [_Worker(client_app, nodes, environment or {}) for _ in range(min(workers, nodes))]
            if workers > 1
            else [_Local(client_app, nodes)]
        )
        self._queues: list[deque[Message]] = [deque() for _ in self._hosts]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self._hosts:
            host.close()

    # -- Flower's Grid -------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return [FIRST_NODE + index for index in range(self._nodes)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(_name(message, self._new_id()))
            # A node stays with one host, so its data is loaded once.
            self._queues[message.metadata.dst_node_id % len(self._hosts)].append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """What has been answered; serves at least one waiting message if there is one."""
        self._serve()
        wanted = [name for name in message_ids if name in self._replies]
        return [self._replies.pop(name) for name in wanted]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
    ) -> list[Message]:
        ids, answers = set(self.push_messages(messages)), list[Message]()
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(answers) < len(ids):
            answers += self.pull_messages(ids)
            if deadline is not None and time.monotonic() > deadline:
                break
        return answers

    # -- serving -------------------------------------------------------------------------------

    def _serve(self) -> None:
        for host, queue in zip(self._hosts, self._queues, strict=True):
            if host.free and queue:
                host.send(queue.popleft())
        busy = [host for host in self._hosts if not host.free]
        for host in _ready(busy):
            reply = host.receive()
            _name(reply, self._new_id())
            self._replies[reply.metadata.reply_to_message_id] = reply

    def _new_id(self) -> str:
        self._next_id += 1
        return f"message-{self._next_id}"


class _Local:
    """Runs clients in this process, when asked for the answer."""

    def __init__(self, client_app: str, nodes: int) -> None:
        self._clients = _Clients(client_app, nodes)
        self._message: Message | None = None

    @property
    def free(self) -> bool:
        return self._message is None

    def send(self, message: Message) -> None:
        self._message = message

    def receive(self) -> Message:
        message, self._message = self._message, None
        assert message is not None
        return self._clients.answer(message)

    def close(self) -> None:
        pass


class _Worker:
    """Runs clients in a process of its own; started anew if a client takes it down."""

    def __init__(self, client_app: str, nodes: int, environment: Mapping[str, str]) -> None:
        self._arguments = (client_app, nodes, dict(environment))
        self._message: Message | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, *self._arguments), daemon=True, name="privet-client-worker"
        )
        self._process.start()
        theirs.close()

    @property
    def free(self) -> bool:
        return self._message is None

    def send(self, message: Message) -> None:
        self._message = message
        with contextlib.suppress(OSError):  # the worker is gone: receive() finds out and says so
            self.connection.send_bytes(message_to_proto(message).SerializeToString())

    def receive(self) -> Message:
        message, self._message = self._message, None
        assert message is not None
        try:
            return _decode(self.connection.recv_bytes())
        except (EOFError, OSError):
            self.close()
            self._start()
            return _failed(message, "the client's process ended")

    def close(self) -> None:
        self.connection.close()
        self._process.join(timeout=_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class _Clients:
    """A ClientApp and the contexts of the nodes that it plays."""

    def __init__(self, client_app: str, nodes: int) -> None:
        module, _, attribute = client_app.partition(":")
        self._app = getattr(importlib.import_module(module), attribute)
        if not isinstance(self._app, ClientApp):
            raise TypeError(f"{client_app} is not a Flower ClientApp")
        self._nodes = nodes
        self._contexts: dict[int, Context] = {}

    def answer(self, message: Message) -> Message:
        try:
            reply: Message = self._app(message, self._context(message.metadata.dst_node_id))
            return reply
        except (Exception, SystemExit) as error:  # noqa: BLE001  (an app's failure is its own, as on a node)
            return _failed(message, type(error).__name__)

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            self._contexts[node] = Context(
                run_id=_RUN_ID,
                node_id=node,
                node_config={"partition-id": node - FIRST_NODE, "num-partitions": self._nodes},
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node]


def _work(
    connection: Connection, client_app: str, nodes: int, environment: Mapping[str, str]
) -> None:
    """A worker process: answer messages until the other end closes."""
    os.environ.update(environment)
    TaskIdentity.run_id, TaskIdentity.node_id = _RUN_ID, FIRST_NODE
    TaskIdentity.task_id = 1
    clients = _Clients(client_app, nodes)
    try:
        while True:
            reply = clients.answer(_decode(connection.recv_bytes()))
            connection.send_bytes(message_to_proto(reply).SerializeToString())
    except (EOFError, OSError, KeyboardInterrupt):
        pass


def _ready(busy: list[_Local | _Worker]) -> list[_Local | _Worker]:
    """Those whose answer can be read now; waits a moment for the first one."""
    ready: list[_Local | _Worker] = [host for host in busy if isinstance(host, _Local)]
    workers = [host for host in busy if isinstance(host, _Worker)]
    if not workers:
        return ready
    answered = wait([host.connection for host in workers], timeout=_WAIT_SECONDS)
    return ready + [host for host in workers if host.connection in answered]


def _decode(data: bytes) -> Message:
    proto = ProtoMessage()
    proto.ParseFromString(data)
    return message_from_proto(proto)


def _name(message: Message, name: str) -> str:
    message.metadata.__dict__["_message_id"] = name
    return name


def _failed(message: Message, reason: str) -> Message:
    return Message(
        Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
    )
