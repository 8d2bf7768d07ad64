"""How does a client stay part of a federation, for months? It asks, answers, and comes back.

The rules: this process runs the installed :mod:`client.app` and nothing else. There is no bundle,
no subprocess and no configuration from the network; only the three messages that the app knows are
handed to it, and what goes wrong leaves as a code. A server that is away, was restarted, or takes
this node for one that is still there, is asked again until it answers. What was spent is safe
whenever this process ends: see :mod:`client.rounds`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from client.link.fleet import NotAdmitted, RunEnded, Unreadable
from common.errors import NetworkError

log = logging.getLogger("privet.node")

KNOWN = frozenset({"query", "query.close", "query.ledger", "train"})
ASK_SECONDS = 0.05  # between questions; a link of ours holds one until there is news
IDLE_SECONDS = 2.0  # at most, of a server that answers at once that there is nothing
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0)  # the last one for as long as it takes

App = Callable[[Message, Context], Message]


class Connection(Protocol):
    """What a node needs of a server; see :class:`client.link.fleet.Fleet`."""

    @property
    def node_id(self) -> int: ...

    def pull(self) -> Message | None: ...

    def push(self, reply: Message) -> None: ...

    def __enter__(self) -> Connection: ...

    def __exit__(self, *_: object) -> None: ...


class Node:
    """A client's message loop.

    Args:
        app: answers messages; :data:`client.app.app`.
        connect: makes a new connection, not yet entered.
        stop: set when the node is to end: after the message that it is at.
        told: called with a word whenever the node's standing changes: ``connected``, ``waiting``.
    """

    def __init__(
        self,
        app: App,
        connect: Callable[[], Connection],
        stop: threading.Event,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._app, self._connect, self._stop, self._told = app, connect, stop, told
        self._failures = 0

    def run(self) -> None:
        """Until it is told to stop."""
        while not self._stop.is_set():
            try:
                with self._connect() as server:
                    self._failures = 0
                    self._told("connected")
                    log.info("connected as node %d", server.node_id)
                    self._serve(server)
            except NetworkError as error:
                self._wait(error)

    def _wait(self, error: NetworkError) -> None:
        """A while, longer the more often it failed, and not the same for all nodes."""
        if self._failures == 0:
            self._told("not-admitted" if isinstance(error, NotAdmitted) else "waiting")
            log.warning("%s; trying again until it works", error)
        seconds = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
        self._failures += 1
        self._stop.wait(seconds * random.uniform(0.75, 1.25))  # noqa: S311  (no secret)

    def _serve(self, server: Connection) -> None:
        pause = ASK_SECONDS
        while not self._stop.is_set():
            asked = time.monotonic()
            try:
                message = server.pull()
            except Unreadable as error:
                log.warning("a message could not be read: %s", error)
                continue
            except RunEnded:
                continue
            if message is None:
                held = time.monotonic() - asked > 1.0
                pause = ASK_SECONDS if held else min(pause * 1.1, IDLE_SECONDS)
                self._stop.wait(pause * random.uniform(0.9, 1.1))  # noqa: S311  (no secret)
                continue
            reply = self._answer(message, server.node_id)
            try:
                server.push(reply)
            except RunEnded:
                log.info("the run was over before the answer was")
            pause = ASK_SECONDS

    def _answer(self, message: Message, node_id: int) -> Message:
        kind = message.metadata.message_type
        if kind not in KNOWN:
            log.warning("a message of a kind that is not served")
            return Message(_error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)
        context = Context(
            run_id=message.metadata.run_id,
            node_id=node_id,
            node_config={},
            state=RecordDict(),
            run_config={},  # whatever the server's is
        )
        try:
            return self._app(message, context)
        except Exception:
            log.exception("the app failed")
            return Message(_error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)


def _error(code: int) -> Error:
    return Error(code=code, reason="failed")  # never text: it may quote the data
