"""How does a stranger reach the doorkeeper? Three paths over HTTP, small, strict and slow to tire.

The rules: size and method are checked before a byte of the body counts, and the body before any
signature. Each peer has a bucket of requests, and all strangers together have one as well, so
nobody who wants in can cost those who are in. An answer is a document or a code, never a text. The
application knows no other path; a public listener mounts it as it is.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from common.canonical import encode
from common.enrolment import ABOUT_PATH, CHALLENGE_PATH, MAX_BYTES, PATHS
from common.errors import PrivetError, TrustError
from server.bucket import Bucket
from server.federation.doorkeeper import Doorkeeper

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_SECONDS = 10.0
MAX_PEERS = 4096
__all__ = ["PATHS", "Doorway", "Rate"]


@dataclass(frozen=True)
class Rate:
    """Requests at once, and requests a second afterwards: for one peer, and for all together."""

    burst: int = 60
    each_second: float = 2.0
    all_burst: int = 600
    all_each_second: float = 60.0


class Doorway:
    """An ASGI application for :data:`PATHS`.

    Args:
        doorkeeper: who answers.
        rate: how often anybody may ask.
        now: seconds that only go forwards.
    """

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        rate: Rate | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._doorkeeper, self._rate = doorkeeper, rate or Rate()
        self._bucket = functools.partial(Bucket, now=now)
        self._all = self._bucket(self._rate.all_each_second, self._rate.all_burst)
        self._peers: OrderedDict[str, Bucket] = OrderedDict()
        self._one = asyncio.Lock()  # signatures and disk, one stranger at a time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body = await self._answer(scope, receive)
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"connection", b"close"))  # a stranger's connection is good for one answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        path, method = scope["path"], scope["method"]
        if path not in PATHS or scope.get("query_string"):
            return _refusal(404, "not-found")
        if method != ("GET" if path == ABOUT_PATH else "POST"):
            return _refusal(405, "wrong-method")
        peer = scope.get("client")
        if not self._may(str(peer[0]) if peer else ""):
            return _refusal(429, "too-many-requests")
        try:
            if path == ABOUT_PATH:
                async with self._one:
                    return 200, await asyncio.to_thread(self._doorkeeper.about)
            body = await asyncio.wait_for(_body(scope, receive), BODY_SECONDS)
            work = self._doorkeeper.challenge if path == CHALLENGE_PATH else self._doorkeeper.join
            async with self._one:
                return 200, await asyncio.to_thread(work, body)
        except TimeoutError:
            return _refusal(408, "too-slow")
        except _TooLarge:
            return _refusal(413, "too-large")
        except TrustError as error:
            return _refusal(400 if error.code == "malformed" else 403, error.code)
        except PrivetError:
            return _refusal(503, "not-now")  # the machine's trouble is its operator's to read

    def _may(self, peer: str) -> bool:
        """Whether this peer may ask once more, and everybody together."""
        own = self._peers.pop(peer, None) or self._bucket(self._rate.each_second, self._rate.burst)
        self._peers[peer] = own  # the last of them
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return own.any and self._all.take() and own.take()


class _TooLarge(Exception):
    pass


async def _body(scope: Scope, receive: Receive) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value[:9]) > MAX_BYTES):
            raise _TooLarge
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise TrustError("the peer went away", code="malformed")
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise _TooLarge
        if not message.get("more_body", False):
            return bytes(body)


def _refusal(status: int, code: str) -> tuple[int, bytes]:
    return status, encode({"error": code})
