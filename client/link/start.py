"""How does an operator keep a client running? One process, from its start to SIGTERM.

The rules: everything that this process needs is checked before it connects: its home, its ledger,
its enrolment, its node key, the authority that it trusts. SIGTERM ends it after the message that it
is at; whatever ends it earlier, a ledger is never half written.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from client.app import app
from client.home import HOME_VARIABLE, Home
from client.link.fleet import Fleet
from client.link.node import Node
from client.rounds import open_client
from client.site import node_key, read_enrolment
from common.invitation import Address
from common.nodekey import NodeKey


def serve(
    path: Path,
    address: Address | None = None,
    *,
    told: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Take part in the federation that a client enrolled in, until SIGTERM.

    Args:
        path: the client's directory.
        address: where the server is now, if it has moved since.
        told: see :class:`client.link.node.Node`.
        stop: ends it when set; by default SIGTERM and SIGINT do.

    Raises:
        InputError: ``not-enrolled``, or there is no client.
        TrustError: the enrolment, the node key or the ledger is not as it should be.
    """
    home = Home.read(path)
    enrolment = read_enrolment(home)
    key = NodeKey.decode(node_key(home).read_bytes())
    os.environ[HOME_VARIABLE] = str(path)
    open_client(path)  # torch, ledger, plans: what is wrong is said now
    ending = stop or threading.Event()
    if stop is None:
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: ending.set())
    where = address or Address.parse(enrolment.address)
    Node(app, lambda: Fleet(where, key, enrolment.authority, ending), ending, told).run()
