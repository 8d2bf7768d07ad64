"""What gets in through the public door? A sealed request of an enrolled node, on five routes, and
who asks to be enrolled, on three.

The rules: nothing is read before its header was found good, and no more than the header announced.
Whoever sends something else learns a status and nothing besides, and its connection is closed. What
Flower then does with a request (parse it, check its own signature, check that the node is the
key's) comes after, not instead.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.enrolment import PATHS
from common.errors import TrustError
from common.nodekey import NodePublicKey
from common.parcel import GIVE, TAKE
from common.seal import AFTER_HEADER, EPOCH_HEADER, SEAL_HEADER, Replays, Seal
from server.bucket import Bucket
from server.link.listener import CONNECTION, Connection
from server.link.waking import ACTIVATE, BEAT, DEACTIVATE, Barred, Waking

log = logging.getLogger("privet.link")

MOST_HEADERS = 16 * 1024  # bytes
SMALL = 64 * 1024  # bytes of a body that a node may send several of at a time
# Registering, unregistering, bundles and runs are the operator's business: not served in public.
ROUTES = frozenset({ACTIVATE, DEACTIVATE, BEAT, TAKE, GIVE})


@dataclass(frozen=True)
class RequestLimits:
    """What one enrolled node may ask for.

    Args:
        body: greatest request body, bytes; Flower sends arrays in chunks of 5 MB.
        body_seconds: in which a body must be there, plus one for each 64 KiB.
        rate, burst: requests a second, and how many at once.
    """

    body: int = 8 * 1024 * 1024
    body_seconds: float = 10.0
    rate: float = 100.0
    burst: float = 1000.0


@dataclass
class _Node:
    """What is kept of one enrolled key: constant memory."""

    key: NodePublicKey
    bucket: Bucket
    replays: Replays = field(default_factory=Replays)
    after: int = 0
    large: asyncio.Lock = field(default_factory=asyncio.Lock)  # one large body at a time


class Denied(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.headers = status, dict(headers or {})


class Hopeless(Exception):
    """An answer that began and cannot be ended; the connection is."""


class Registry(Protocol):
    """Who is enrolled."""

    def node_keys(self) -> Mapping[bytes, str]:
        """Client names by node public key (PEM); the same object while nothing changed."""


class Gate:
    """An ASGI application in front of Flower's.

    Args:
        app: Flower's, told whose a request is.
        registry: who is enrolled; asked at every request.
        key_header: in which Flower wants the node's public key, base64.
        limits: of one node.
        doorway: for whoever wants to enrol; has limits of its own.
    """

    def __init__(
        self,
        app: Waking,
        registry: Registry,
        key_header: str,
        limits: RequestLimits | None = None,
        doorway: ASGIApp | None = None,
    ) -> None:
        self._app, self._registry, self._key_header = app, registry, key_header
        self._limits, self._doorway = limits or RequestLimits(), doorway
        self.epoch = secrets.token_hex(16)
        self._nodes: dict[str, _Node] = {}
        self._known: Mapping[bytes, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        connection: Connection = scope["state"].pop(CONNECTION)
        try:
            # The parser counts what is incomplete alone; what came in one piece is counted here.
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
                raise Denied(431)
            if scope["method"] == "GET" and scope["path"] == "/health":
                await _answer(send, 200, {"connection": "close"})
                return
            if self._doorway is not None and scope["path"] in PATHS:
                await self._doorway(scope, receive, send)
                return
            await self._serve(scope, receive, send, connection)
        except (Denied, Barred) as denied:
            await _answer(send, denied.status, getattr(denied, "headers", {}))
        except Hopeless:
            connection.drop()

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, connection: Connection
    ) -> None:
        seal, node, length = self._check(scope, connection)
        if length <= SMALL and scope["path"] != GIVE:
            await self._work(scope, receive, send, seal, node, length)
            return
        async with node.large:  # and a reply's parts come one after the other
            await self._work(scope, receive, send, seal, node, length)

    async def _work(
        self, scope: Scope, receive: Receive, send: Send, seal: Seal, node: _Node, length: int
    ) -> None:
        body = await self._body(receive, length)
        if hashlib.sha256(body).hexdigest() != seal.body:
            raise Denied(400)
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app.public(scope, body, node.key.pem.encode(), watched)
        except (Denied, Barred):
            raise
        except Exception as error:
            log.error("a request could not be served: %s", type(error).__name__)
            if began:
                raise Hopeless from error
            raise Denied(500) from error

    def _check(self, scope: Scope, connection: Connection) -> tuple[Seal, _Node, int]:
        """Whose request it is, and how long its body is."""
        path = scope["path"]
        if scope["method"] != "POST" or path not in ROUTES or scope["query_string"]:
            raise Denied(404)
        headers = _headers(scope, (SEAL_HEADER, self._key_header, "content-length"))
        length = _length(headers.get("content-length"), self._limits.body)
        seal, node = self._sealed(headers, path, length)
        connection.prove(node.key.pem.encode())
        if not node.bucket.take():
            raise Denied(429)
        return seal, node, length

    def _sealed(self, headers: Mapping[str, str], path: str, length: int) -> tuple[Seal, _Node]:
        """The seal and its node, once it is certain that this is no other's and no repetition."""
        try:
            seal = Seal.parse(headers.get(SEAL_HEADER, ""))
        except TrustError as error:
            raise Denied(401) from error
        node = self._enrolled().get(seal.node)
        if node is None or not seal.signed_by(node.key, "POST", path, length):
            raise Denied(401)
        if headers.get(self._key_header) != _base64(node.key.pem.encode()):
            raise Denied(401)  # Flower would take it for another node's
        if seal.epoch != self.epoch or not node.replays.first(seal.counter):
            # Whoever holds the key seals again; a recording cannot.
            news = {EPOCH_HEADER: self.epoch, AFTER_HEADER: str(node.after)}
            raise Denied(401, headers=news)
        node.after = max(node.after, seal.counter)
        return seal, node

    def _enrolled(self) -> dict[str, _Node]:
        """Who is enrolled now; what is known of those who stay, stays."""
        try:
            keys = self._registry.node_keys()
        except TrustError as error:
            log.debug("nobody can be let in: %s", error)  # the link says it, once
            keys = {}
        if keys is not self._known:
            limits = self._limits
            nodes = (NodePublicKey(pem.decode("ascii")) for pem in keys)
            self._nodes = {
                key.fingerprint: self._nodes.get(key.fingerprint)
                or _Node(key, Bucket(limits.rate, limits.burst))
                for key in nodes
            }
            self._known = keys
            self._app.forget(set(keys))
        return self._nodes

    async def _body(self, receive: Receive, length: int) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds + length / 65536):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Denied(400)
                    body += message.get("body", b"")
                    if len(body) > length:
                        raise Denied(413)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise Denied(408) from error


def _headers(scope: Scope, names: tuple[str, ...]) -> dict[str, str]:
    """The values of these headers; one that is there twice is refused."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1")
        if name == "transfer-encoding":
            raise Denied(411)
        if name in names:
            if name in found:
                raise Denied(400)
            found[name] = value.decode("latin-1")
    return found


def _length(text: str | None, most: int) -> int:
    if text is None:
        raise Denied(411)
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise Denied(400)
    if int(text) > most:
        raise Denied(413)
    return int(text)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def _answer(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """A status without a body; without news for its sender, a refusal ends the connection."""
    lines = [(b"content-length", b"0")]
    lines += [(name.encode(), value.encode()) for name, value in headers.items()]
    if status >= 400 and not headers:
        lines.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": b""})
