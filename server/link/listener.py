"""Who may hold a connection, and for how long before it has said something worth it?

The rules: a connection costs something from the moment that it is accepted, so it is counted from
there, not from the end of its handshake. One that has proven nothing yet may be dropped for a newer
one: a flood pushes out its own kind, and whoever is honest is through its handshake before that
comes to it. What says nothing costs a file and no more: TLS gets its memory when a whole first
record is there. Handshake and headers each have a deadline that no trickle of bytes extends. Only
TLS 1.3 is spoken, with whatever certificate is current when a handshake begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import ssl
from asyncio import sslproto
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

log = logging.getLogger("privet.link")

CONNECTION = "privet_connection"  # where a request's scope["state"] names its connection
_TLS_BUFFER = 32 * 1024
_FAILED = 64  # failed connections between two looks for what they left behind
_RECORD_HEADER, _HANDSHAKE, _MOST_RECORD = 5, 0x16, 2**14  # RFC 8446, section 5.1
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Budget(Protocol):
    """What a rate is taken from."""

    def take(self) -> bool: ...

    @property
    def full(self) -> bool: ...


@dataclass(frozen=True)
class ConnectionLimits:
    """What somebody unknown may cost.

    Args:
        handshake: seconds for TLS.
        headers: seconds for a request's headers, from the connection's start or their first byte.
        idle: seconds between requests.
        header_bytes: of one request.
        unproven: connections that have proven nothing, together and from one address.
        proven: connections of one node.
        rate, burst: new connections a second from one address, and how many at once.
    """

    handshake: float = 5.0
    headers: float = 5.0
    idle: float = 30.0
    header_bytes: int = 16 * 1024
    unproven: int = 256
    unproven_a_peer: int = 64
    proven: int = 16
    rate: float = 20.0
    burst: float = 200.0


@dataclass(eq=False)
class Connection:
    """One accepted connection, from its first moment."""

    peer: str
    handle: socket.socket
    listener: Listener = field(repr=False)
    proven: bytes | None = None

    def prove(self, key: bytes) -> None:
        """A request on it was sealed by this key's holder."""
        if self.proven != key:
            self.listener.proven(self, key)

    def drop(self) -> None:
        """End it now, whatever it is at; the event loop then sees its end and cleans up."""
        with contextlib.suppress(OSError):
            self.handle.shutdown(socket.SHUT_RDWR)


class Listener:
    """Accepts connections on one socket for one ASGI application.

    Args:
        app: what answers.
        listening: a listening socket; this owns it from here on.
        context: gives the TLS context for a new connection; None: plaintext.
        limits: see :class:`ConnectionLimits`.
        budget: makes what a new address's rate is taken from.
    """

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        *,
        context: Callable[[], ssl.SSLContext] | None,
        limits: ConnectionLimits,
        budget: Callable[[float, float], Budget] | None = None,
    ) -> None:
        self._socket, self._context, self._limits = listening, context, limits
        self._budget = budget
        self._config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_keep_alive=int(limits.idle),
        )
        self._config.load()
        self._state = ServerState()
        self._unproven: OrderedDict[Connection, None] = OrderedDict()
        self._proven: dict[bytes, list[Connection]] = {}
        self._budgets: dict[str, Budget] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = 0

    @property
    def host(self) -> str:
        return str(self._socket.getsockname()[0])

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def counts(self) -> tuple[int, int]:
        """How many connections have proven nothing, and how many have."""
        return len(self._unproven), sum(len(held) for held in self._proven.values())

    async def serve(self) -> None:
        """Accept until cancelled."""
        # Each TLS connection has a buffer of so many bytes, and nothing to ask asyncio with.
        sslproto.SSLProtocol.max_size = _TLS_BUFFER
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        try:
            while True:
                try:
                    handle, address = await loop.sock_accept(self._socket)
                except OSError as error:
                    if error.errno not in _OUT_OF_FILES:
                        continue  # it was gone before we came to it
                    self._make_room()
                    await asyncio.sleep(0.05)
                    continue
                self._admit(handle, str(address[0]))
        finally:
            self._socket.close()
            await self._end()

    def _admit(self, handle: socket.socket, peer: str) -> None:
        if not self._may_come(peer):
            handle.close()
            return
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(peer, handle, self)
        self._unproven[connection] = None
        same = [one for one in self._unproven if one.peer == peer]
        if len(same) > self._limits.unproven_a_peer:
            self._push_out(same[0])
        elif len(self._unproven) > self._limits.unproven:
            self._make_room()
        task = asyncio.get_running_loop().create_task(self._start(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_come(self, peer: str) -> bool:
        if self._budget is None:
            return True
        if len(self._budgets) > 4096:
            self._budgets = {name: one for name, one in self._budgets.items() if not one.full}
        if peer not in self._budgets:
            self._budgets[peer] = self._budget(self._limits.rate, self._limits.burst)
        return self._budgets[peer].take()

    def _make_room(self) -> None:
        """Drop whoever has proven nothing for the longest."""
        if self._unproven:
            self._push_out(next(iter(self._unproven)))

    def _push_out(self, connection: Connection) -> None:
        self._unproven.pop(connection, None)
        connection.drop()

    async def _start(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        context = self._context() if self._context else None
        deadline = self._limits.handshake if context else None
        try:
            if context:
                async with asyncio.timeout(deadline):
                    await _whole_hello(connection.handle)
            await loop.connect_accepted_socket(
                lambda: _Protocol(
                    self._config, self._state, {CONNECTION: connection}, loop, self._limits
                ),
                connection.handle,
                ssl=context,
                ssl_handshake_timeout=deadline,
                ssl_shutdown_timeout=2.0 if context else None,
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError):
            self.lost(connection)
            connection.handle.close()
            self._failed += 1
            if self._failed % _FAILED == 0:
                gc.collect()  # what a handshake leaves behind are cycles of some 60 KiB

    # -- what connections say of themselves ------------------------------------------------------

    def proven(self, connection: Connection, key: bytes) -> None:
        """A connection has shown whose it is; of one node's too many, the oldest goes."""
        self.lost(connection)
        connection.proven = key
        held = self._proven.setdefault(key, [])
        held.append(connection)
        if len(held) > self._limits.proven:
            held.pop(0).drop()

    def lost(self, connection: Connection) -> None:
        """It is over."""
        self._unproven.pop(connection, None)
        if connection.proven is not None and (held := self._proven.get(connection.proven)):
            with contextlib.suppress(ValueError):
                held.remove(connection)
            if not held:
                del self._proven[connection.proven]

    def keep_only(self, keys: set[bytes]) -> list[bytes]:
        """Drop the connections of every other node; which nodes that were."""
        gone = [key for key in self._proven if key not in keys]
        for key in gone:
            for connection in self._proven.pop(key):
                connection.drop()
        return gone

    async def _end(self) -> None:
        """Let requests under way finish for a moment, then end all."""
        for connection in list(self._state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                while self._state.tasks:
                    await asyncio.sleep(0.02)
        for record in [*self._unproven, *(c for held in self._proven.values() for c in held)]:
            record.drop()
        for task in list(self._tasks):
            task.cancel()


async def _whole_hello(handle: socket.socket) -> None:
    """Wait until a client's first TLS record is in the socket's buffer, whole and unread.

    Until then a connection costs a file and a task, and none of the memory that TLS takes.

    Raises:
        OSError: it is no TLS record, or the connection ended.
    """
    need = _RECORD_HEADER
    while True:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, need)
        await _readable(handle)
        head = handle.recv(need, socket.MSG_PEEK)
        if len(head) < need:
            raise ConnectionError("it ended before it began")
        if need > _RECORD_HEADER:
            break
        size = int.from_bytes(head[3:5], "big")
        if head[0] != _HANDSHAKE or not 0 < size <= _MOST_RECORD:
            raise ConnectionError("it does not speak TLS")
        need += size
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(handle: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(handle)


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a deadline for headers."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits or ConnectionLimits()
        self._connection: Connection = app_state[CONNECTION]
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_headers()
        self._connection.listener.lost(self._connection)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._between_requests():
            self._await_headers()
        super().data_received(data)
        if not self._between_requests():
            self._have_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._await_headers()

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.headers, self._too_slow)

    def _have_headers(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._between_requests() and not self.transport.is_closing():
            self.transport.abort()
