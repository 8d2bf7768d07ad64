"""What is done with a request that came through a door, and when is it worth doing?

The rules: what a node sends goes to Flower's handlers through :mod:`server.link.superlink.parcels`,
never to its application; the coordinator's and the operator's other requests go there. Who asked
first is served first, but no heartbeat waits. A question that would get no answer is held until
there is news, or for so long; then it is asked, whatever this module thinks: holding can delay
nothing for longer than that and hide nothing, and a node that waits costs one request in a while
instead of ten a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from common.parcel import GIVE, TAKE, frame
from server.link.superlink.beats import NOTE_SECONDS

if TYPE_CHECKING:
    from server.link.superlink.parcels import Parcels, Taken

log = logging.getLogger("privet.link")

ACTIVATE, DEACTIVATE, BEAT = (  # a node's, as TAKE and GIVE are
    f"/v1/fleet/{name}" for name in ("activate-node", "deactivate-node", "send-node-heartbeat")
)
SEND, COLLECT = "/privet/v1/send", "/privet/v1/collect"  # the coordinator's
LIMIT_HEADER = "privet-limit"
LINK_HEADER = "privet-link"  # a value of its own for each start of a link
SECRET_HEADER = "privet-executor"  # noqa: S105  (of the executor secret, hexadecimal)
TOKEN_HEADER = "flwr-task-token"  # noqa: S105  (a name)

HOLD_NODES = 8.0  # seconds that a node's question may be held
HOLD_COORDINATOR = 0.25
SEND_SECONDS = 120.0  # that a node may take to read a message
PART_SECONDS = 10.0  # that a part of a message may be late by
ASK_AGAIN = 1.0  # seconds; without news, replies that nobody will give may be heard of this late
MOST_ASKING = 64  # coordinators whose last question is remembered
MAX_INSIDE = 1 << 31


class Barred(Exception):
    """A request that cannot be served; ``status`` says why in HTTP's terms."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class News:
    """A number that grows whenever there is news, and a way to wait for that."""

    def __init__(self) -> None:
        self.number = 0
        self._changed = asyncio.Event()

    def tell(self) -> None:
        self.number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, number: int, seconds: float) -> None:
        """Return when there is news that is newer than ``number``, or after so long."""
        if number == self.number:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), seconds)


@dataclass(frozen=True)
class _Asked:
    """When a coordinator got nothing, and the news that there were: more than that is new to it."""

    number: int
    time: float


_NEVER = _Asked(-1, 0.0)


class Waking:
    """Flower's application behind both doors; what is sent through one wakes who asks in the other.

    Args:
        app: Flower's.
        parcels: whole messages over its state.
    """

    def __init__(self, app: ASGIApp, parcels: Parcels) -> None:
        self._app, self._parcels = app, parcels
        self._for_nodes, self._for_coordinator = News(), News()
        self._heard: dict[bytes, int] = {}  # the news that a node knew when it got nothing
        self._giving: dict[bytes, asyncio.Lock] = {}
        self._asked: dict[str, _Asked] = {}  # by a run's token
        self._work = asyncio.Lock()

    async def public(self, scope: Scope, body: bytes, key: bytes, send: Send) -> None:
        """A request of the node with this key."""
        path = scope["path"]
        if path == BEAT:
            answer = self._parcels.hear(key, body) or await self.do(self._parcels.beat, key, body)
            await _answer(send, answer)
            return
        self._parcels.beats.hear_of(key)
        if path == TAKE:
            await self._take(key, body, send)
        elif path == GIVE:
            answer = await self.do(self._parcels.give, key, body)
            self._for_coordinator.tell()
            await _answer(send, answer)
        else:
            work = self._parcels.activate if path == ACTIVATE else self._parcels.deactivate
            await _answer(send, await self.do(work, key, body))

    async def _take(self, key: bytes, body: bytes, send: Send) -> None:
        await self._for_nodes.after(self._heard.pop(key, -1), HOLD_NODES)
        number = self._for_nodes.number
        taken: Taken | None = await self.do(self._parcels.take, key, body)
        if taken is None:
            self._heard[key] = number
            await _answer(send, b"")
            return
        # One answer at a time for a node, and not for ever: what waits to be sent is memory.
        async with self._giving.setdefault(key, asyncio.Lock()), asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": frame(taken.head), "more_body": True})
            async for data in self._parts(taken):
                await send({"type": "http.response.body", "body": frame(data), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self, taken: Taken) -> AsyncIterator[bytes]:
        """All parts of a message, in order; fewer if some never come: the node sees that."""
        names, until = list(taken.parts), time.monotonic() + PART_SECONDS
        while names:
            found: list[bytes | None] = await self.do(self._parcels.parts, taken, names)
            for data in found:
                if data is None:
                    return
                yield data
            del names[: len(found)]
            if found:
                until = time.monotonic() + PART_SECONDS
            elif time.monotonic() > until:
                return
            else:
                await asyncio.sleep(0.05)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request of the coordinator's, or an operator's."""
        if scope["path"] not in (SEND, COLLECT):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        token, body = headers.get(TOKEN_HEADER, ""), await _read(receive)
        try:
            await _answer(send, await self._serve(scope["path"], token, body, headers))
        except Barred as barred:
            await _answer(send, b"", barred.status)

    async def _serve(self, path: str, token: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        answer: bytes
        if path == SEND:
            answer = await self.do(self._parcels.send, token, body)
            self._for_nodes.tell()
        else:
            answer = await self._collect(token, body, int(headers.get(LIMIT_HEADER, "0")))
        return answer

    async def _collect(self, token: str, body: bytes, limit: int) -> bytes:
        news = self._for_coordinator
        last = self._asked.pop(token, _NEVER)
        if last.number == news.number:
            await news.after(last.number, HOLD_COORDINATOR)
            if last.number == news.number and time.monotonic() - last.time < ASK_AGAIN:
                self._asked[token] = last
                return b""
        asked = _Asked(news.number, time.monotonic())
        answer: bytes = await self.do(self._parcels.collect, token, body, limit)
        if not answer:  # otherwise there may be more than fitted
            self._asked = {**dict(list(self._asked.items())[-MOST_ASKING:]), token: asked}
        return answer

    async def do(self, work: Any, *arguments: Any) -> Any:
        """Work on the database, in its turn: whoever asked first is served first.

        Heartbeats that are due go before it, however many wait.
        """
        async with self._work:
            await self._keep_beats()
            return await asyncio.to_thread(work, *arguments)

    async def keep(self) -> None:
        """Write heartbeats down from time to time, also if nobody asks; until cancelled."""
        while True:
            await asyncio.sleep(NOTE_SECONDS / 2)
            async with self._work:
                await self._keep_beats()

    async def _keep_beats(self) -> None:
        beats = self._parcels.beats
        beats.wake()
        if not beats.due:
            return
        try:
            await asyncio.to_thread(beats.write)
        except Exception as error:  # noqa: BLE001  (a busy database: tried again)
            log.warning("heartbeats are not written yet: %s", type(error).__name__)

    def forget(self, keys: set[bytes]) -> None:
        """Drop what is known of other nodes than these."""
        self._heard = {key: number for key, number in self._heard.items() if key in keys}
        self._giving = {key: lock for key, lock in self._giving.items() if key in keys}
        self._parcels.forget(keys)


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False) or len(body) > MAX_INSIDE:
            return bytes(body)


async def _answer(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
