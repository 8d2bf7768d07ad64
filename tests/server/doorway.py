"""A federation whose doorway is really there: a process of its own, TLS 1.3, loopback.

The socket listens before the process starts, so nobody has to wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn

from client.custody import Custody
from client.site import Site
from common.data.binding import Binding
from common.invitation import Address, Invitation
from server.federation.authority import TLS
from server.federation.directory import Federation
from server.federation.doorkeeper import Doorkeeper
from server.federation.doorway import Doorway, Rate
from server.federation.invitations import Invitations
from tests.world import POLICY, ROWS, Snapshot, write_rows

DAY = 86400
ROOMY = Rate(10**6, 1e6, 10**6, 1e6)
App = Callable[[Any, Any, Any], Any]


@dataclass
class Door:
    """A federation, the socket at its address, and who is invited."""

    folder: Path
    socket: socket.socket
    federation: Federation
    running: list[int] = field(default_factory=list)

    def invite(self, name: str = "clinic-a", **options: Any) -> Invitation:
        return Invitations(self.federation).invite(name, options.pop("seconds", DAY), **options)

    def serve(
        self,
        app: App | None = None,
        *,
        clock: Callable[[], float] = time.time,
        rate: Rate = ROOMY,
        tls: Path | None = None,
        newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        kill_at: str = "",
    ) -> int:
        """Answer in a process of its own; its id."""
        child = os.fork()
        if child == 0:
            try:
                if kill_at:
                    os.environ["PRIVET_TEST_KILL_AT_WRITE"] = kill_at
                door = app or Doorway(Doorkeeper(self.federation, clock), rate)
                _serve(door, self.socket, tls or self.federation.keys / TLS, newest)
            except BaseException:  # noqa: BLE001  (nothing may escape into the tests above)
                traceback.print_exc()
                os._exit(3)
            os._exit(0)
        self.running.append(child)
        return child

    def stop(self, child: int) -> int:
        """Kill a server; the signal that it died of, which may have been another."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        self.running.remove(child)
        return os.WTERMSIG(status)

    def site(self, name: str = "clinic-a", **changes: Any) -> Site:
        """A device with data of its own, and an owner who has signed nothing yet."""
        folder = self.folder / "devices" / name
        folder.mkdir(parents=True, exist_ok=True)
        data = write_rows(folder / "data.csv", ROWS)
        site = Site(
            home=folder / "home",
            keys=folder / "keys",
            custody=Custody(folder / "custody"),
            binding=Binding(source="csv", path=str(data)),
            owner_keys=folder / "owner",
            terms=replace(POLICY, dataset=f"answers.{name}", approved_plans=()),
        )
        return replace(site, **changes)

    def devices(self) -> Snapshot:
        """Every file on every device."""
        return Snapshot.of(self.folder / "devices")

    def registry(self) -> bytes:
        path = self.federation.registry.path
        return path.read_bytes() if path.exists() else b""


@contextlib.contextmanager
def door_in(folder: Path) -> Iterator[Door]:
    """A federation in ``folder`` whose address is a free port of this machine."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    address = Address("127.0.0.1", listening.getsockname()[1])
    federation = Federation.create(folder / "federation", folder / "keys", address)
    door = Door(folder, listening, federation)
    try:
        yield door
    finally:
        for child in list(door.running):
            door.stop(child)
        listening.close()


def _serve(app: App, listening: socket.socket, tls: Path, newest: ssl.TLSVersion) -> None:
    config = uvicorn.Config(
        app,
        ssl_certfile=tls,
        ssl_keyfile=tls,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    config.load()
    assert config.ssl is not None
    config.ssl.maximum_version = newest
    uvicorn.Server(config).run(sockets=[listening])
