"""What may Flower's own command do with a link? Begin a run, list runs, follow one, stop one.

The rules: four routes, for whoever has the command's token, and on loopback alone. A run is begun
by its directory, as ``privet server run --resume`` begins or goes on with it: in a process of its
own, over the very Flower run that the command is told of. It has to be a run of this federation, in
a directory that only its operator can write to. What is shown of a run is read from its directory;
stopping is a wish, as :mod:`server.stopping` has it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from starlette.types import Receive, Scope, Send

from common.errors import InputError, NetworkError, OperationError, PrivetError, TrustError
from common.parcel import frame
from server import stopping
from server.home import ServerHome
from server.link.place import Place
from server.link.readiness import is_at_work, may_be_started
from server.status import ended, round_line, rounds

if TYPE_CHECKING:
    from server.link.superlink.control import Control

log = logging.getLogger("privet.link")

START, STOP, LIST, FOLLOW = (
    f"/v1/control/{name}" for name in ("start-run", "stop-run", "list-runs", "stream-logs")
)
MOST_BODY = 16 * 1024 * 1024  # bytes: the command sends a bundle of at most 10 MB along
BODY_SECONDS = 30.0
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 2.0  # for a run's process that may be about to end
MOST_FOLLOWING = 8  # logs that are followed at the same time
_AUTHENTICATION_FAILED = 36  # Flower's number for it: its command shows the words of a 401 by that


class Process(Protocol):
    """A run's process."""

    def ended(self) -> bool:
        """Whether it is over."""

    def why(self) -> str:
        """What it said went wrong; empty if nothing did."""


class Desk:
    """An ASGI application for what Flower's command may ask.

    Args:
        place: the link's.
        control: Flower's words for it.
        do: runs work on the database, in its turn.
        begin: starts a run's process; None: nothing is begun here.
    """

    ROUTES = frozenset({START, STOP, LIST, FOLLOW})

    def __init__(
        self,
        place: Place,
        control: Control,
        do: Callable[..., Any],
        begin: Callable[[ServerHome], Process] | None,
    ) -> None:
        self._place, self._control, self._do, self._begin = place, control, do, begin
        self._one = asyncio.Lock()
        self._begun: dict[asyncio.Task[None], Path] = {}
        self._following = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request of somebody who has the token."""
        try:
            if scope["path"] not in self.ROUTES or scope["method"] != "POST":
                raise TrustError(
                    "Flower's command may run, list, log and stop here, and nothing else",
                    hint="the rest is done with `privet server`",
                    code="not-here",
                )
            body = await _read(receive)
            if scope["path"] == FOLLOW:
                await self._follow(body, receive, send)
                return
            work = {START: self._start, STOP: self._stop, LIST: self._list}[scope["path"]]
            answer = await self._done(work, body)
        except PrivetError as error:
            await refuse(send, 403 if isinstance(error, TrustError) else 412, error)
            return
        await _send(send, 200, answer, b"application/protobuf")

    @staticmethod
    async def _done(work: Callable[[bytes], Awaitable[bytes]], body: bytes) -> bytes:
        try:
            return await work(body)
        except PrivetError:
            raise
        except Exception as error:
            log.error("Flower's command could not be served: %s", type(error).__name__)
            raise OperationError(
                "the link could not do that", hint="its log says why", code="failed"
            ) from error

    # -- beginning -------------------------------------------------------------------------------

    async def _start(self, body: bytes) -> bytes:
        from server.link.superlink.control import started, wanted

        if self._begin is None:
            raise InputError(
                "this link begins no run for Flower's command",
                hint="begin it with `privet server run RUN` or its service; "
                "flwr list, log and stop work",
                code="not-here",
            )
        path = wanted(body)
        async with self._one:
            if self._begun:  # one that was stopped may be about to end
                await asyncio.wait(self._begun, timeout=PATIENCE_SECONDS)
            home = await asyncio.to_thread(may_be_started, path, self._place)
            if self._begun:
                raise InputError(
                    f"{next(iter(self._begun.values()))} is at work in this federation",
                    hint="wait for its end, or stop it with flwr stop",
                    code="link-in-use",
                )
            number: int = await self._do(self._control.open, home.path)
            try:
                process = await asyncio.to_thread(self._begin, home)
            except BaseException:
                await self._do(self._control.end, number, "its process could not be started")
                raise
            task = asyncio.create_task(self._mind(process, number))
            self._begun[task] = home.path
            task.add_done_callback(self._begun.pop)
        log.info("%s was begun for Flower's command", home.path)
        return started(number)

    async def _mind(self, process: Process, number: int) -> None:
        """Wait for a process's end, and then see that its Flower run does not go on without it."""
        while not process.ended():
            await asyncio.sleep(LOOK_SECONDS)
        try:
            await self._do(self._control.end, number, process.why())
        except Exception as error:  # noqa: BLE001  (a busy database: the next run stops it)
            log.warning("Flower's run %d could not be ended: %s", number, type(error).__name__)

    # -- looking on, and stopping ----------------------------------------------------------------

    async def _list(self, body: bytes) -> bytes:
        answer: bytes = await self._do(self._control.list, body)
        return answer

    async def _stop(self, body: bytes) -> bytes:
        from server.link.superlink.control import stopped
        from server.link.superlink.control import stopping as wanted

        run = await self._do(self._control.find, wanted(body))
        if run.finished:
            raise InputError(f"run {run.number} is over", hint="see flwr list", code="no-such-run")
        if run.path is None:
            raise InputError(
                f"run {run.number} trains nothing, and ends by itself", code="no-such-run"
            )
        if run.path in self._begun.values() or await asyncio.to_thread(_worked_on, run.path):
            await asyncio.to_thread(stopping.ask, ServerHome.read(run.path).stop)
        else:
            await self._do(self._control.end, run.number, "")
        return stopped()

    async def _follow(self, body: bytes, receive: Receive, send: Send) -> None:
        """Show what a run's directory tells, until the run is over or nobody listens."""
        from server.link.superlink.control import following, lines

        number, given = following(body)
        await self._do(self._control.find, number)
        if self._following >= MOST_FOLLOWING:
            raise OperationError("too many logs are followed", hint="end one", code="busy")
        self._following += 1
        gone = asyncio.create_task(_until_gone(receive))
        try:
            headers = [(b"content-type", b"application/protobuf-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while not gone.done():
                run = await self._do(self._control.find, number)  # before its lines: none is missed
                told = await asyncio.to_thread(story, run.path, run.finished, run.why)
                if len(told) > given:
                    part = frame(lines("".join(told[given:]), len(told)))
                    given = len(told)
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                if run.finished:
                    break
                await asyncio.wait([gone], timeout=LOOK_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            self._following -= 1


def story(path: Path | None, finished: bool, why: str) -> list[str]:
    """What is told of a run, line by line; nothing that was told is taken back.

    Args:
        path: its directory; None: it trains nothing.
        finished: whether its transport is over.
        why: what was said when it ended.
    """
    told: list[str] = []
    if path is not None:
        try:
            home = ServerHome.read(path)
            planned = home.plan.rounds
            told.append(f"{path}: plan {home.plan.name}, {planned} rounds")
            told += [round_line(line, planned) for line in rounds(home)]
            why = why or ended(home)
        except PrivetError as error:
            told = [error.message]
    if finished:
        told.append(f"ended: {why}" if why else "ended")
    return [f"{line}\n" for line in told]


async def refuse(send: Send, status: int, error: PrivetError) -> None:
    """Answer so that Flower's command shows what was wrong, in words."""
    words = f"{error.message} ({error.code})" + (f": {error.hint}" if error.hint else "")
    answer: dict[str, object] = {"detail": words}
    if status == 401:
        answer["code"] = _AUTHENTICATION_FAILED
    await _send(send, status, json.dumps(answer).encode(), b"application/json")


async def _send(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if status >= 400:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise NetworkError("the command went away")
                body += message.get("body", b"")
                if len(body) > MOST_BODY:
                    raise InputError("a request that is too large", code="too-large")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise NetworkError("a request that does not end") from error


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _worked_on(path: Path) -> bool:
    return path.is_dir() and is_at_work(ServerHome.read(path))
