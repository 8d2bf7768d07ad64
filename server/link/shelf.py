"""What may anybody read through the public door? What is published for devices, file by file.

The rules: a path is one of five shapes or it is not there; there is no listing, no other method, no
range and no query. Below the repository no link is followed and nothing but a plain file is opened.
Who reads has proven nothing, so a reader is slow to tire: each address and all together have a
bucket of requests and a number of files at a time, and a file has a deadline that grows with it.
Every byte is signed: this hands out, and vouches for nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.types import Message, Receive, Scope, Send

from server.link.listener import Budget

PREFIX = "/repository/"
CHUNK = 64 * 1024
_PATH = re.compile(
    r"/repository/(?:"
    r"(metadata)/(timestamp\.json|[1-9][0-9]{0,9}\.(?:root|snapshot|targets)\.json)"
    r"|(targets)/([0-9a-f]{64}\.[A-Za-z0-9][A-Za-z0-9._-]{0,63})"
    r")",
    re.ASCII,
)
_MOST_PEERS = 4096


@dataclass(frozen=True)
class ShelfLimits:
    """What strangers may read.

    Args:
        metadata, target: greatest file, bytes; a larger one is not there.
        at_once, at_once_a_peer: files on their way, together and to one address; metadata and
            targets each have so many places.
        pause: seconds in which a reader has to take the next part of a file.
        each_second: bytes that a reader has to take, at least, after ``seconds``.
        rate, burst: requests a second from one address, and how many at once.
    """

    metadata: int = 5_000_000
    target: int = 512 * 2**20
    at_once: int = 32
    at_once_a_peer: int = 8
    pause: float = 10.0
    seconds: float = 30.0
    each_second: int = 64 * 1024
    rate: float = 20.0
    burst: float = 200.0


class Shelf:
    """An ASGI application for :data:`PREFIX`.

    Args:
        path: the repository; it need not be there yet.
        budget: makes what a new address's rate is taken from.
    """

    def __init__(
        self,
        path: Path,
        budget: Callable[[float, float], Budget],
        limits: ShelfLimits | None = None,
    ) -> None:
        self._path, self._budget, self._limits = path, budget, limits or ShelfLimits()
        self._budgets: OrderedDict[str, Budget] = OrderedDict()
        self._reading: dict[str, Counter[str]] = {"metadata": Counter(), "targets": Counter()}

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        peer = str((scope.get("client") or ("",))[0])
        found = _PATH.fullmatch(scope["path"])
        if scope["method"] != "GET" or scope["query_string"] or found is None:
            await _refuse(send, 404)
            return
        if not self._may(peer):
            await _refuse(send, 429)
            return
        limits = self._limits
        folder, name = (part for part in found.groups() if part)
        reading = self._reading[folder]
        if reading.total() >= limits.at_once or reading[peer] >= limits.at_once_a_peer:
            await _refuse(send, 503)
            return
        most = limits.metadata if folder == "metadata" else limits.target
        reading[peer] += 1
        try:
            file = await asyncio.to_thread(_open, self._path, folder, name, most)
            if file is None:
                await _refuse(send, 404)
                return
            handle, length = file
            try:
                async with asyncio.timeout(limits.seconds + length / limits.each_second):
                    await _send_file(handle, length, _within(send, limits.pause))
            finally:
                os.close(handle)
        finally:
            reading[peer] -= 1
            if not reading[peer]:
                del reading[peer]

    def _may(self, peer: str) -> bool:
        if peer not in self._budgets:
            self._budgets[peer] = self._budget(self._limits.rate, self._limits.burst)
        self._budgets.move_to_end(peer)
        while len(self._budgets) > _MOST_PEERS:
            self._budgets.popitem(last=False)
        return self._budgets[peer].take()


def _open(root: Path, folder: str, name: str, most: int) -> tuple[int, int] | None:
    """A file's handle and length; None if there is no such plain file, or it is too large."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        place = os.open(root / folder, flags | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        handle = os.open(name, flags | os.O_NONBLOCK, dir_fd=place)
    except OSError:
        return None
    finally:
        os.close(place)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        os.close(handle)
        return None
    return handle, status.st_size


async def _send_file(handle: int, length: int, send: Send) -> None:
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % length),
        (b"connection", b"close"),  # a stranger's connection is good for one answer
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    sent = 0
    while sent < length:
        # At a place, not from it: a read that outlives its reader takes nothing from anybody.
        data = await asyncio.to_thread(os.pread, handle, min(CHUNK, length - sent), sent)
        if not data:
            raise OSError("a file that is only ever replaced became shorter")
        sent += len(data)
        await send({"type": "http.response.body", "body": data, "more_body": sent < length})
    if not length:
        await send({"type": "http.response.body", "body": b""})


def _within(send: Send, seconds: float) -> Send:
    """A sender that gives up on whoever takes nothing for so long."""

    async def bounded(message: Message) -> None:
        async with asyncio.timeout(seconds):
            await send(message)

    return bounded


async def _refuse(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
