"""How do clients reach the coordinator? A SuperLink with one door in public and one on loopback.

The rules: the public door is :class:`server.guard.Guard`: sealed requests of enrolled nodes, over
TLS 1.3. Control and runtime interfaces answer on the loopback address alone, and a run's task only
to whoever knows the executor secret. What is known of nodes, runs and messages is in a SQLite file,
so a killed link goes on where it was. Who is enrolled and which certificate is shown may change at
any time, without a restart.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import durable
from common.canonical import CanonicalError, decode, encode
from common.errors import InputError, OperationError, TrustError
from server.certificates import Certificates
from server.guard import Bucket, Guard, RequestLimits
from server.listener import CONNECTION, ConnectionLimits, Listener
from server.registry import FileRegistry, Registry
from server.waking import COLLECT, LINK_HEADER, SEND, Waking

log = logging.getLogger("privet.link")

WATCH_SECONDS = 0.25
LOOPBACK = "127.0.0.1"
_INSIDE = ("/v1/control/", "/v1/runtime/")
_ROOMY = ConnectionLimits(headers=30.0, idle=120.0, unproven=1024, unproven_a_peer=1024)


@dataclass(frozen=True)
class LinkHome:
    """A link's directory: certificates, registry, Flower's state; its keys in ``keys/``."""

    path: Path

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def database(self) -> Path:
        return self.path / "state.db"

    @property
    def members(self) -> Path:
        return self.path / "members.json"

    @property
    def certificates(self) -> Certificates:
        return Certificates(self.path, self.keys)

    @property
    def addresses(self) -> Path:
        """Where the link listens, or did last."""
        return self.path / "addresses.json"

    def prepare(self, names: list[str]) -> bool:
        """Make what a first start needs; whether this was the first."""
        with durable.disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.keys.mkdir(mode=0o700, exist_ok=True)
        if self.keys.stat().st_mode & 0o077:
            raise TrustError(
                f"{self.keys} is open to other users",
                hint=f"chmod -R go-rwx {self.keys}",
                code="key-exposed",
            )
        if not (self.keys / "executor.secret").exists():
            durable.replace(self.keys / "executor.secret", secrets.token_bytes(32), mode=0o600)
        return self.certificates.ensure(names)

    def secret(self) -> bytes:
        """Who knows it may take a run's task.

        Raises:
            InputError: no link was ever started here.
        """
        try:
            return (self.keys / "executor.secret").read_bytes()
        except OSError as error:
            raise self._nothing() from error

    def inside(self) -> str:
        """``host:port`` of the loopback interface, while a link runs or once it did.

        Raises:
            InputError: no link was ever started here.
        """
        port = self._ports().get("inside")
        if port is None:
            raise self._nothing()
        return f"{LOOPBACK}:{port}"

    def remembered(self) -> tuple[int, int]:
        """The public and the loopback port of the last start; 0 where there was none."""
        ports = self._ports()
        return ports.get("public", 0), ports.get("inside", 0)

    def _ports(self) -> dict[str, int]:
        try:
            document = decode(self.addresses.read_bytes())
            return {name: int(document[name]) for name in ("public", "inside")}
        except (OSError, CanonicalError, KeyError, TypeError, ValueError):
            return {}

    def _nothing(self) -> InputError:
        return InputError(
            f"{self.path} holds no link",
            hint=f"start one with `privet server start {self.path}`",
            code="no-link",
        )


@dataclass(frozen=True)
class LinkSettings:
    """How a link listens.

    Args:
        host: the public address.
        port: the public port; None: that of the last start, or a free one.
        names: host names and addresses for the certificate of a first start, beside ``host``.
        plaintext: no TLS; refused off loopback.
        requests, connections: limits of the public door.
    """

    host: str = LOOPBACK
    port: int | None = None
    names: tuple[str, ...] = ()
    plaintext: bool = False
    requests: RequestLimits = field(default_factory=RequestLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


class Link:
    """A link at work.

    Args:
        home: its directory.
        settings: how it listens.
        registry: who is enrolled; ``members.json`` by default.
        ready: called with the public and the loopback port once both are open.

    Raises:
        InputError: plaintext was asked for off loopback, or a port is taken.
    """

    def __init__(
        self,
        home: LinkHome,
        settings: LinkSettings,
        *,
        registry: Registry | None = None,
        ready: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        if settings.plaintext and not is_loopback(settings.host):
            raise InputError(
                f"without TLS a link listens on the loopback address alone, not on {settings.host}",
                hint="leave --insecure out: a first start makes its own certificates",
                code="plaintext-off-loopback",
            )
        self._home, self._settings, self._ready = home, settings, ready
        self._registry = registry or FileRegistry(home.members)
        self._context: ssl.SSLContext | None = None
        self._certificates = home.certificates
        self._shown: tuple[int, ...] = ()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; requests under way are answered first."""
        names = [self._settings.host, *self._settings.names]
        if is_loopback(self._settings.host):
            names.append("localhost")
        self._home.prepare(list(dict.fromkeys(n for n in names if n not in ("0.0.0.0", "::"))))  # noqa: S104
        busy = OperationError(
            f"another link is at work in {self._home.path}", hint="stop that one", code="busy"
        )
        with durable.exclusively(self._home.path, busy):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        from server.superlink.app import KEY_HEADER, give_time, superlink_app
        from server.superlink.parcels import Parcels

        flower = superlink_app(self._home.database, self._home.secret())
        self._admit = lambda keys: _admit(flower, keys)
        waking = Waking(flower, Parcels(flower))
        guard = Guard(waking, self._registry, KEY_HEADER, self._settings.requests)
        public, inside = self._listen(guard, _Inside(waking, LINK_HEADER))
        if not self._settings.plaintext:
            self._show()
        stop = asyncio.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, stop.set)
        async with flower.router.lifespan_context(flower):
            await self._follow(public)
            await asyncio.to_thread(give_time, flower)
            works = [public.serve(), inside.serve(), self._watch(public)]
            tasks = [asyncio.create_task(work) for work in works]
            durable.replace(
                self._home.addresses, encode({"public": public.port, "inside": inside.port})
            )
            self._ready(public.port, inside.port)
            ending = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in [*tasks, ending]:
                task.cancel()
            await asyncio.gather(*tasks, ending, return_exceptions=True)
            for task in done - {ending}:
                task.result()  # whatever ended by itself says why

    def _listen(self, guard: ASGIApp, inside: ASGIApp) -> tuple[Listener, Listener]:
        before = self._home.remembered()
        settings = self._settings
        public = Listener(
            guard,
            _socket(settings.host, before[0] if settings.port is None else settings.port),
            context=None if settings.plaintext else self._current,
            limits=settings.connections,
            budget=Bucket,
        )
        return public, Listener(inside, _socket(LOOPBACK, before[1]), context=None, limits=_ROOMY)

    # -- what may change while it runs -----------------------------------------------------------

    def _current(self) -> ssl.SSLContext:
        assert self._context is not None
        return self._context

    def _show(self) -> None:
        """Take the certificate that is on disk."""
        self._shown = self._certificates.version()
        self._context = self._certificates.context()

    async def _follow(self, public: Listener) -> None:
        """Let Flower know whom the registry knows; whoever is gone loses its connections."""
        try:
            keys = self._registry.node_keys()
        except TrustError as error:
            log.error("nobody can be let in: %s", error)
            keys = {}
        self._followed = keys
        public.keep_only(set(keys))
        added, removed = await asyncio.to_thread(self._admit, dict(keys))
        if added or removed:
            log.info("nodes admitted: %s; removed: %d", ", ".join(added) or "none", removed)

    async def _watch(self, public: Listener) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                if self._registry.node_keys() is not self._followed:
                    await self._follow(public)
                if not self._settings.plaintext and self._certificates.version() != self._shown:
                    self._show()
                    log.info("a new certificate is in use")
            except (TrustError, OSError) as error:
                log.error("the change is not taken up: %s", error)
                if isinstance(error, TrustError) and error.code == "bad-members":
                    await self._follow(public)


class _Inside:
    """Flower's control and runtime interfaces, and nothing that describes them."""

    def __init__(self, app: Waking, header: str) -> None:
        self._app = app
        self._mark = (header.encode(), secrets.token_hex(8).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope["state"].pop(CONNECTION, None)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._mark]
            await send(message)

        path = scope["path"]
        if path.startswith(_INSIDE) or path in (SEND, COLLECT, "/health"):
            await self._app.inside(scope, receive, marked)
            return
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _admit(flower: object, keys: dict[bytes, str]) -> tuple[list[str], int]:
    from server.superlink.app import admit_only

    return admit_only(flower, keys)  # type: ignore[arg-type]


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            hint="name another with --port, or end what holds it",
            code="port-taken",
        ) from error


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; a name is, only if it is ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
