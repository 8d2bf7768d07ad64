"""How does an operator keep a client running? One process, from its start to SIGTERM.

The rules: everything that this process needs is checked before it connects: its home, its key, the
authority that it trusts. SIGTERM ends it after the message that it is at; whatever ends it earlier,
a ledger is never half written.
"""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from client.app import app
from client.fleet import Fleet
from client.home import HOME_VARIABLE, Home
from client.node import Node
from client.rounds import open_client
from common.errors import InputError
from common.seal import NodeKey

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")


def node_key_file(home: Home) -> Path:
    """Where a client's node key is, beside its ledger key."""
    return home.keys / f"{home.client}.node.pem"


def serve(
    path: Path,
    server: str,
    authority: Path | None,
    *,
    told: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Take part in a federation until SIGTERM.

    Args:
        path: the client's directory.
        server: ``host:port``.
        authority: PEM file of the federation's authority; None: plaintext, on loopback only.
        told: see :class:`client.node.Node`.
        stop: ends it when set; by default SIGTERM and SIGINT do.

    Raises:
        InputError, TrustError: something that it needs is not there, or not as it should be.
    """
    check_server(server, plaintext=authority is None)
    if authority is not None and not authority.is_file():
        raise InputError(
            f"{authority} is not there",
            hint="--ca names the authority's certificate, as the server's operator gave it",
            code="no-authority",
        )
    home = Home.read(path)
    key = NodeKey.load(node_key_file(home))
    os.environ[HOME_VARIABLE] = str(path)
    open_client(path)  # torch, ledger, plans: what is wrong is said now
    ending = stop or threading.Event()
    if stop is None:
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: ending.set())
    Node(app, lambda: Fleet(server, key, authority, ending), ending, told).run()


def check_server(server: str, *, plaintext: bool) -> None:
    """Refuse what is no address, and plaintext to another machine."""
    match = _ADDRESS.fullmatch(server)
    if match is None or not 0 < int(match[2]) < 65536:
        raise InputError(
            f"{server!r} is no address", hint="give it as HOST:PORT", code="bad-address"
        )
    host = match[1].strip("[]")
    if plaintext and not _is_loopback(host):
        raise InputError(
            f"without TLS a client talks to its own machine alone, not to {host}",
            hint="name the authority's certificate with --ca",
            code="plaintext-off-loopback",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
