"""Where does the service listen, and for how long? One process, on this machine alone.

The rules: it listens on a Unix socket that only its owner can open, or on the loopback address
where every call needs a token, and nowhere else. One process serves a device at a time. A release
that is installed meanwhile is verified like any other and takes over between two requests; one that
does not verify is refused, and the model in use stays, unless the owner's policy of now refuses it:
then nothing answers until one is allowed. SIGTERM and SIGINT end it after the requests under way.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from client.device.home import DeviceHome
from client.device.runtime import Predictor, installed
from client.device.serving.core import CoreServer
from client.device.serving.health import WATCH, Health
from client.device.serving.lookout import Lookout, Verdict, stamp
from client.device.serving.numbers import Numbers
from client.device.serving.service import SERVICE, InferenceService, Limits, brings
from common import durable
from common.errors import InputError, OperationError
from common.exposition import serving

LONGEST_SOCKET = 107  # bytes of a path, by the kernel's sockaddr_un
GRACE_SECONDS = 5.0
WATCH_SECONDS = 1.0
_METADATA_BYTES = 16 * 2**10


@dataclass(frozen=True)
class Listen:
    """Where to listen.

    Args:
        socket: path of a Unix socket; None: ``serving/socket`` in the device's directory.
        port: on 127.0.0.1 instead, 0 for any that is free.
        metrics: a port of the loopback address for Prometheus; None: nowhere.
    """

    socket: Path | None = None
    port: int | None = None
    metrics: int | None = None


@dataclass(frozen=True)
class Address:
    """Where a service listens.

    Args:
        target: for a gRPC channel, ``unix:…`` or ``127.0.0.1:…``.
        token: file with what every call must bring; None with a socket.
        metrics: port of the page for Prometheus, or None.
    """

    target: str
    token: Path | None
    metrics: int | None


def serve(
    home: DeviceHome,
    listen: Listen,
    *,
    version: str,
    limits: Limits | None = None,
    ready: Callable[[Address], None] = lambda _: None,
) -> None:
    """Serve a device's model until SIGTERM or SIGINT.

    Args:
        version: of Privet, for the server's metadata.
        ready: called once requests are answered.

    Raises:
        OperationError: there is no model, somebody serves this device already, or the address
            cannot be listened on.
        TrustError: the installed model does not verify.
    """
    folder = home.path / "serving"
    with durable.disk_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    busy = OperationError(
        f"another process serves {home.path}", hint="stop that one first", code="busy"
    )
    with durable.exclusively(folder, busy):
        seen = stamp(home)  # before the load: what is installed meanwhile is newer
        model = installed(home)
        numbers = Numbers()
        lookout = Lookout(home, seen, model, lambda: numbers.swapped("refused"))
        with serving(numbers.text, listen.metrics) as metrics:
            host = _Host(folder, limits or Limits(), numbers, version, lookout)
            predictor = Predictor(model)
            predictor.expect_batches()
            host.run(predictor, listen, metrics, ready)


@dataclass
class _Host:
    folder: Path
    limits: Limits
    numbers: Numbers
    version: str
    lookout: Lookout
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(
        self,
        predictor: Predictor,
        listen: Listen,
        metrics: int | None,
        ready: Callable[[Address], None],
    ) -> None:
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: self._stop.set())
        service = InferenceService(self.limits, self.numbers, self.version)
        service.serve(predictor)
        token = None if listen.port is None else _token(self.folder / "token")
        states = Health(SERVICE)
        server = CoreServer(
            {**service.handlers(), **states.handlers()},
            options=self._options(predictor),
            most=self.limits.requests,
            streams=(WATCH,),
            most_streams=self.limits.watchers,
            seconds=self.limits.seconds,
            pending=service.pending,
            idle=service.flush,
            admits=brings(token.read_text()) if token else lambda _: True,
        )
        target = self._bind(server, listen)
        gc.collect()
        gc.freeze()  # the model and all modules stay: no need to look through them again and again
        server.start()
        found: deque[Predictor | None] = deque()
        watch = threading.Thread(target=self._watch, args=(found,), name="privet-watch")
        watch.start()
        try:
            ready(Address(target, token, metrics))
            while not self._stop.is_set():
                server.turn()
                if found:
                    self._change(service, states, found.popleft())
        finally:
            self._stop.set()
            states.end()
            server.stop(GRACE_SECONDS)
            watch.join()
            if target.startswith("unix:"):
                Path(target.removeprefix("unix:")).unlink(missing_ok=True)

    def _options(self, predictor: Predictor) -> list[tuple[str, int]]:
        # A typed float takes four bytes as a raw one does; the rest is names and shapes.
        largest = 64 * 2**10 + 4 * self.limits.records * predictor.schema.size
        return [
            ("grpc.max_receive_message_length", largest),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.max_concurrent_streams", self.limits.requests + self.limits.watchers),
            ("grpc.so_reuseport", 0),
        ]

    def _bind(self, server: CoreServer, listen: Listen) -> str:
        if listen.port is not None:
            try:
                port = server.listen(f"127.0.0.1:{listen.port}")
            except OSError as error:
                raise _taken(f"127.0.0.1:{listen.port}") from error
            return f"127.0.0.1:{port}"
        socket = (listen.socket or self.folder / "socket").absolute()
        if len(os.fsencode(socket)) > LONGEST_SOCKET:
            raise InputError(
                f"the path of the socket has over {LONGEST_SOCKET} bytes: {socket}",
                hint="name a shorter one with --socket",
            )
        if socket.exists() and not socket.is_socket():
            raise InputError(f"{socket} is there, and is no socket", hint="name another --socket")
        before = os.umask(0o177)  # nobody but the owner, from the first moment
        try:
            server.listen(f"unix:{socket}")
        except OSError as error:
            raise _taken(str(socket)) from error
        finally:
            os.umask(before)
        return f"unix:{socket}"

    def _change(
        self, service: InferenceService, states: Health, predictor: Predictor | None
    ) -> None:
        if predictor is None:
            service.withdraw()
        else:
            service.serve(predictor)
        states.says(serving=predictor is not None)
        self.numbers.swapped("accepted" if predictor else "withdrawn")

    def _watch(self, found: deque[Predictor | None]) -> None:
        """Give what has to answer from now on; None: nothing may."""
        while not self._stop.wait(WATCH_SECONDS):
            seen = self.lookout.look()
            if seen is Verdict.WITHDRAWN:
                found.append(None)
            elif isinstance(seen, Predictor):
                found.append(seen)


def _token(file: Path) -> Path:
    """The file with the token that callers must bring; made once."""
    if not file.exists():
        durable.replace(file, secrets.token_urlsafe(32).encode(), mode=0o600)
    return file


def _taken(where: str) -> OperationError:
    return OperationError(
        f"cannot listen on {where}", hint="choose another address", code="port-in-use"
    )
