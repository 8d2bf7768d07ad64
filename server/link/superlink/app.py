"""How is the SuperLink run, and whom does it know?

The rules: it is run as its application object, without its command: no telemetry, no update check,
nothing installed, no process started (process isolation), node authentication on. Its nodes are
those whom the registry knows.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from flwr.common.constant import (
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NodeStatus
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from sqlalchemy.exc import SQLAlchemyError

from common.errors import TrustError
from common.parcel import HEARTBEAT_SECONDS

log = logging.getLogger("privet.link")
logging.getLogger("flwr").setLevel(logging.WARNING)  # its import makes it debug

KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER


def superlink_app(database: Path, secret: bytes) -> FastAPI:
    """Flower's SuperLink as an ASGI application, over a SQLite file.

    Args:
        database: made if it is not there.
        secret: who knows it may take a run's task (the executor secret).
    """
    config = SuperLinkLifespanConfig(
        control_address="127.0.0.1:1",  # of the gRPC interfaces, which are never started
        health_server_address=None,
        host="127.0.0.1",
        port=1,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


def one_after_another(app: FastAPI) -> None:
    """Have each of the state's transactions wait for the one before it, Flower's own as well.

    SQLite lets one write at a time. Whoever waits for that looks again from time to time, for five
    seconds, and fails: among many that come and go, some never find it free.
    """
    state = app.state.linkstate_factory.state()
    turns = threading.RLock()  # a transaction's steps have transactions of their own
    for store in (state, state.object_store):
        store.session = functools.partial(_in_turn, turns, store.session)


@contextlib.contextmanager
def _in_turn(turns: threading.RLock, session: Callable[[], Any]) -> Iterator[Any]:
    with turns, session() as inner:
        yield inner


@contextlib.contextmanager
def damaged(place: Path) -> Iterator[None]:
    """Say what to do about a state that cannot be used.

    Raises:
        TrustError: ``link-damaged``.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise TrustError(
            f"the link's state in {place} cannot be used: {type(error).__name__}",
            hint="move it away: nodes are admitted anew, and runs go on with privet server resume",
            code="link-damaged",
        ) from error


def admit_only(app: FastAPI, keys: Mapping[bytes, str]) -> tuple[list[str], int]:
    """Make the SuperLink's nodes those with these keys; whoever was added, how many removed.

    A key that was removed once cannot come back: Flower keeps it as taken.
    """
    state = app.state.linkstate_factory.state()
    added = []
    for key, name in keys.items():
        if state.get_node_id_by_public_key(key) is None:
            try:
                state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=name)
            except ValueError:
                log.error("the node key of %s was revoked before: it needs a new one", name)
                continue
            added.append(name)
    removed = 0
    for node in state.get_node_info(owner_aids=[NOOP_FLWR_AID]):
        if node.public_key not in keys and node.status != "unregistered":
            state.delete_node(NOOP_FLWR_AID, node.node_id)
            removed += 1
    return added, removed


def give_time(app: FastAPI) -> None:
    """After a start, treat the nodes that were there as if they had just been heard of.

    While the link was away they could not be heard; Flower would call them gone at once.
    """
    state = app.state.linkstate_factory.state()
    for node in state.get_node_info(owner_aids=[NOOP_FLWR_AID], statuses=[NodeStatus.ONLINE]):
        state.acknowledge_node_heartbeat(node.node_id, HEARTBEAT_SECONDS)
