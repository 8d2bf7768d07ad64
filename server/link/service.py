"""How do clients reach the coordinator? A SuperLink with one door in public and one on loopback.

The rules: the public door is :class:`server.link.gate.Gate`: sealed requests of enrolled nodes and
the doorway for those who want to enrol, over TLS 1.3, never in the clear. Control and runtime
interfaces answer on the loopback address alone, and there to whom :mod:`server.link.inside` lets
in. What is known of nodes, runs and messages is in a SQLite file, so a killed link goes on
where it was. Who is enrolled and which certificate is shown may change at any time, without a
restart; a certificate that ends soon, and the timestamp of what is published for devices, are
renewed by the link itself.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import ipaddress
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from starlette.types import ASGIApp

from common import durable
from common.errors import InputError, OperationError, PrivetError, TrustError
from common.keys import KeyDirectory
from server.bucket import Bucket
from server.federation.authority import TLS
from server.federation.directory import Federation
from server.federation.doorkeeper import Doorkeeper
from server.federation.doorway import Doorway
from server.federation.publication import renew_if_due
from server.home import ServerHome
from server.link.desk import Desk, Process
from server.link.gate import Gate, RequestLimits
from server.link.inside import Inside
from server.link.listener import ConnectionLimits, Listener
from server.link.place import LOOPBACK, Place
from server.link.shelf import Shelf
from server.link.waking import Waking

log = logging.getLogger("privet.link")

WATCH_SECONDS = 0.25
RENEW_SECONDS = 3600.0
_ROOMY = ConnectionLimits(
    headers=30.0, idle=120.0, unproven=1024, unproven_a_peer=1024, proven=1024
)


@dataclass(frozen=True)
class LinkSettings:
    """How a link listens.

    Args:
        host: the address to bind; empty: loopback if that is where clients come, else all.
        port: the public port; 0: that of the federation's address.
        requests, connections: limits of the public door.
    """

    host: str = ""
    port: int = 0
    requests: RequestLimits = field(default_factory=RequestLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


class Link:
    """A link at work.

    Args:
        federation: whose link it is.
        settings: how it listens.
        ready: called with the public host and port and the loopback port, once both are open.
        begin: starts the process of a run that Flower's command asks for; None: it may begin none.

    Raises:
        TrustError: keys are open to others, or an approver's lies beside them.
        OperationError: ``busy``: another link is at work there.
        InputError: ``port-taken``.
    """

    def __init__(
        self,
        federation: Federation,
        settings: LinkSettings | None = None,
        *,
        ready: Callable[[str, int, int], None] = lambda *_: None,
        begin: Callable[[ServerHome], Process] | None = None,
    ) -> None:
        self._federation, self._settings = federation, settings or LinkSettings()
        self._place, self._ready, self._begin = Place(federation), ready, begin
        self._context: ssl.SSLContext | None = None
        self._shown: tuple[int, ...] = ()
        self._followed: Mapping[bytes, str] | None = None
        self._trouble = ""

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; requests under way are answered first."""
        busy = OperationError(
            f"another link is at work in {self._federation.path}",
            hint="stop that one first",
            code="busy",
        )
        self._federation.signing_key()  # refuses keys that lie together, or open
        os.umask(0o077)  # what Flower writes is for nobody else either
        self._place.make()
        with durable.exclusively(self._place.path, busy):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        from server.link.superlink.app import (
            KEY_HEADER,
            admit_only,
            damaged,
            give_time,
            one_after_another,
            superlink_app,
        )
        from server.link.superlink.control import Control
        from server.link.superlink.parcels import Parcels

        self._renew()
        self._show()
        secret = self._place.secret(make=True)
        with damaged(self._place.path):
            flower = superlink_app(self._place.database, secret)
            one_after_another(flower)
        self._admit = functools.partial(admit_only, flower)
        waking = Waking(flower, Parcels(flower))
        doorway = Doorway(Doorkeeper(self._federation))
        registry, limits = self._federation.registry, self._settings.requests
        shelf = Shelf(self._federation.repository, Bucket)
        gate = Gate(waking, registry, KEY_HEADER, limits, doorway, shelf)
        desk = Desk(self._place, Control(flower), waking.do, self._begin)
        within = Inside(waking, desk, secret, self._place.flower_token())
        public, inside = self._listen(gate, within)
        stop = asyncio.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, stop.set)
        async with flower.router.lifespan_context(flower):
            await self._follow(public)
            await asyncio.to_thread(give_time, flower)
            works = [public.serve(), inside.serve(), self._watch(public), waking.keep()]
            tasks = [asyncio.create_task(work) for work in works]
            gc.freeze()  # what is here by now stays: the listener's looks for garbage are short
            self._place.note(inside.port)
            self._ready(public.host, public.port, inside.port)
            ending = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in [*tasks, ending]:
                task.cancel()
            await asyncio.gather(*tasks, ending, return_exceptions=True)
            for task in done - {ending}:
                task.result()  # whatever ended by itself says why

    def _listen(self, gate: ASGIApp, inside: ASGIApp) -> tuple[Listener, Listener]:
        settings, address = self._settings, self._federation.address
        host = settings.host or (LOOPBACK if is_loopback(address.host) else "0.0.0.0")  # noqa: S104
        public = Listener(
            gate,
            _socket(host, settings.port or address.port),
            context=self._current,
            limits=settings.connections,
            budget=Bucket,
        )
        try:
            within = _socket(LOOPBACK, self._place.port())
        except InputError:
            within = _socket(LOOPBACK, 0)  # somebody took it meanwhile
        return public, Listener(inside, within, context=None, limits=_ROOMY)

    # -- what may change while it runs -----------------------------------------------------------

    def _current(self) -> ssl.SSLContext:
        assert self._context is not None
        return self._context

    def _renew(self) -> None:
        self._renewed = time.monotonic()
        with durable.in_turn(self._federation.path):  # `server rotate` may be at it
            here = Federation.read(self._federation.path)
            if here.authority().renew(here.names):
                log.info("the server's certificate was renewed")
        try:
            if renew_if_due(here, datetime.now(UTC)):
                log.info("the repository's timestamp was renewed")
        except (PrivetError, OSError) as error:  # clients do not wait for what devices read
            self._note(f"what is published cannot be renewed: {error}")

    def _version(self) -> tuple[int, ...]:
        status = (self._federation.keys / TLS).stat()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _show(self) -> None:
        """Take the certificate that is on disk."""
        self._shown = self._version()
        self._context = tls_context(self._federation)

    async def _follow(self, public: Listener) -> None:
        """Let Flower know whom the registry knows; whoever is gone loses its connections."""
        try:
            keys = self._federation.registry.node_keys()
        except TrustError as error:
            # Flower takes nobody back whom it was told to remove: it hears of this when it is over.
            self._note(f"nobody can be let in: {error}")
            self._followed = None
            public.keep_only(set())
            return
        if keys is self._followed:
            return
        self._note("")
        public.keep_only(set(keys))
        added, removed = await asyncio.to_thread(self._admit, dict(keys))
        self._followed = keys
        if added or removed:
            log.info("nodes admitted: %s; removed: %d", ", ".join(added) or "none", removed)

    async def _watch(self, public: Listener) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._follow(public)
            except Exception as error:  # noqa: BLE001  (a busy database: it is tried again)
                self._note(f"the registry is not followed yet: {type(error).__name__}")
            try:
                if time.monotonic() - self._renewed > RENEW_SECONDS:
                    self._renew()
                if self._version() != self._shown:
                    self._show()
                    log.info("a new certificate is in use")
            except (PrivetError, OSError) as error:
                self._note(f"the certificate on disk is not taken up: {error}")

    def _note(self, trouble: str) -> None:
        """Say what is wrong, once."""
        if trouble and trouble != self._trouble:
            log.error("%s", trouble)
        self._trouble = trouble


def tls_context(federation: Federation) -> ssl.SSLContext:
    """TLS 1.3 and nothing older, with the certificate that is on disk now.

    Raises:
        TrustError: it is damaged, another authority's, or others could have read its key.
    """
    federation.authority().server_certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(KeyDirectory(federation.keys).path / TLS)
    except (OSError, ssl.SSLError) as error:
        raise TrustError(
            f"{federation.keys / TLS} cannot be used: {error}",
            hint="privet server rotate makes a new one",
            code="bad-certificate",
        ) from error
    return context


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; a name is, only if it is ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            hint="name another with --host or --port, or end what holds it",
            code="port-taken",
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{host!r} is no address to listen on", code="bad-address") from error
