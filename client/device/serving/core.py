"""How are calls taken from gRPC's core, one thread for all of them? Messages in, messages out.

The rules: a call is refused before its message is read if it may not be made, and what it is
refused with is fixed text. A call whose message does not come in time is refused, and streams that
stay open have places of their own, so neither keeps a place from whoever asks. Each call is
answered or refused once, by whichever thread comes first. Whoever handles a call gives the thread
back at once, and answers then or later. What has come together is handled before the server counts
as idle, so that it can be answered together.

``grpc.aio`` and the thread pools of ``grpc.server`` hand each call between threads several times,
which costs three to four times what the call itself does. This module uses the part of grpcio below
both, which its own servers are written with and which is not promised to stay. So it is the only
one that names it, grpcio is pinned to the versions that it was tested with, and
``tests/client/test_grpc_core.py`` says what an upgrade broke. HTTP/2, limits of sizes and deadlines
are gRPC's, as for any of its servers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc._cython import cygrpc

TICK_SECONDS = 0.2  # at most this long passes until a stop is seen
_NO_FLAGS = 0
_WITHOUT_WAITING = 0.0  # a deadline in the past
_NOTHING = cygrpc.CompletionType.queue_timeout
_OK = cygrpc.StatusCode.ok

_AHEAD = 16  # calls that the core may begin before the first of them is taken

# The core reads what has come when it is asked for events, and hands it over when asked once more:
# only two times nothing, one after the other, mean that there is nothing. Whoever was alone on the
# server for so many calls is not kept waiting for that, but with every eighth one.
_LOOKS = 2
_ALONE = 64
_SOMETIMES = 8

# Waking a thread takes as long as a call, and everything it needs has left the caches meanwhile. So
# for whoever is alone and asked again within this time of the last answer, the thread stays awake
# as long once more. It keeps a core busy meanwhile, which has to be one that the caller does not
# need.
AWAKE_SECONDS = 0.0005

Metadata = Sequence[tuple[str, str | bytes]]


class Call:
    """One call: its deadline, and the answer to it. Safe to use from any thread.

    Args:
        call: of the core.
        deadline: seconds since 1970, or infinity.
        finished: called once, in the server's thread, when nothing of the call is left.
    """

    __slots__ = ("_call", "_ended", "_finished", "_lock", "_opened", "_watched", "deadline")

    def __init__(self, call: Any, deadline: float, finished: Callable[[Any], None]) -> None:
        self.deadline = deadline
        self._call, self._finished = call, finished
        self._lock = threading.Lock()
        self._ended = self._opened = self._watched = False

    def answer(self, message: bytes) -> bool:
        """End the call with a message. False: it had ended before."""
        return self._end(_OK, b"", message)

    def refuse(self, status: grpc.StatusCode, why: str) -> bool:
        """End the call with an error. False: it had ended before."""
        return self._end(status.value[0], why.encode(), None)

    def send(self, message: bytes) -> None:
        """The first message of a stream, which stays open."""
        with self._lock:
            if self._ended:
                return
            self._opened = True
            operations = (
                cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
                cygrpc.SendMessageOperation(message, _NO_FLAGS),
            )
            self._call.start_server_batch(operations, lambda _: None)

    def watch(self, gone: Callable[[], None]) -> None:
        """Have ``gone`` called if the caller goes away before the call has ended."""

        def closed(event: Any) -> None:
            if event.batch_operations[0].cancelled():
                with self._lock:
                    over, self._ended = self._ended, True
                if not over:
                    gone()
                    self._finished(event)

        with self._lock:
            if self._ended or self._watched:
                return
            self._watched = True
            operation = cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
            self._call.start_server_batch((operation,), closed)

    def _end(self, code: Any, why: bytes, message: bytes | None) -> bool:
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            operations = []
            if not self._opened:
                operations.append(cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS))
            if message is not None:
                operations.append(cygrpc.SendMessageOperation(message, _NO_FLAGS))
            if not self._watched:
                operations.append(cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))
            operations.append(cygrpc.SendStatusFromServerOperation(None, code, why, _NO_FLAGS))
            self._call.start_server_batch(tuple(operations), self._finished)
        return True


Handler = Callable[[Call, bytes], None]


class CoreServer:
    """A gRPC server of unary requests whose calls are all handled in one thread.

    Args:
        handlers: by path, ``/package.Service/Method``; called with each whole message.
        options: of gRPC's core.
        most: calls under way at once; one more is refused.
        streams: paths of the handlers that leave their calls open.
        most_streams: of their calls, which do not count as under way; one more is refused.
        seconds: from the beginning of a call, in which its message has to come.
        pending: whether something waits until the server is idle: more events are handled first.
        idle: called when there are none, and every :data:`TICK_SECONDS`.
        admits: whether a call with this metadata may be made.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        options: Sequence[tuple[str, int]],
        most: int,
        streams: Collection[str] = (),
        most_streams: int = 0,
        seconds: float = 30.0,
        pending: Callable[[], bool],
        idle: Callable[[], None],
        admits: Callable[[Metadata], bool] = lambda _: True,
    ) -> None:
        self._handlers = {path.encode(): handler for path, handler in handlers.items()}
        self._most, self._admits = most, admits
        self._streams = frozenset(path.encode() for path in streams)
        self._most_streams, self._seconds = most_streams, seconds
        self._pending, self._idle = pending, idle
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._under_way = self._open = 0
        self._silent: dict[Call, float] = {}  # until when their messages have to come, oldest first
        self._look_again = 0.0  # for those whose time is over
        self._alone = 0  # calls in a row that no other one overlapped with
        self._ended = 0.0  # when the last of them had
        self._soon = False  # whether it began soon after the one before
        self._awake = _cores() > 1
        self._asked = 0  # how many calls the core may begin
        self._stopping = self._stopped = False

    def listen(self, address: str) -> int:
        """Listen on an address of gRPC's; gives the port, or 1 for a socket.

        Raises:
            OSError: it cannot be listened on.
        """
        try:
            port = int(self._server.add_http2_port(address.encode()))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        if not port:
            raise OSError(f"cannot listen on {address}")
        return port

    def start(self) -> None:
        """Take calls from now on; :meth:`turn` handles them."""
        self._server.start()
        self._ask()

    def stop(self, seconds: float) -> None:
        """Take no more calls, and end after those under way, or after so many seconds."""
        self._stopping = True
        self._server.shutdown(self._queue, self._shut)
        until, cancelled = time.monotonic() + seconds, False
        while not self._stopped:
            if not cancelled and time.monotonic() >= until:
                self._server.cancel_all_calls()
                cancelled = True
            self.turn()
        self._server.destroy()

    def turn(self) -> None:
        """Handle what comes next within TICK_SECONDS, and all that is there as well; be idle."""
        if not (self._soon and self._alone >= _ALONE and self._expect()):
            self._handle(time.time() + TICK_SECONDS)
        if self._asked <= _AHEAD // 2:
            self._ask()
        if self._pending() and (self._alone < _ALONE or self._alone % _SOMETIMES == 0):
            self._handle_all()
        self._idle()
        self._refuse_silent()

    def _expect(self) -> bool:
        """Look for the next event without sleeping; whether it came."""
        while not self._handle(_WITHOUT_WAITING):
            if time.monotonic() - self._ended > AWAKE_SECONDS:
                self._soon = False
                return False
        return True

    def _handle_all(self) -> None:
        handled = missed = 0
        while handled < self._most and missed < _LOOKS and self._pending():
            if self._handle(_WITHOUT_WAITING):
                handled, missed = handled + 1, 0
            else:
                missed += 1

    def _handle(self, deadline: float) -> bool:
        event = self._queue.poll(deadline)
        if event.completion_type == _NOTHING:
            return False
        event.tag(event)
        return True

    def _ask(self) -> None:
        """Have calls begun, several at a time: not each of them has to wait for that."""
        while self._asked < _AHEAD and not self._stopping:
            self._server.request_call(self._queue, self._queue, self._begin)
            self._asked += 1

    def _shut(self, _event: Any) -> None:
        self._stopped = True

    def _begin(self, event: Any) -> None:
        self._asked -= 1
        if not event.success:
            return  # the server is shutting down
        details = event.call_details
        stream = details.method in self._streams
        call = Call(event.call, details.deadline, self._close if stream else self._end)
        if stream:
            self._open += 1
            too_many = self._open > self._most_streams
        else:
            self._under_way += 1
            self._alone = self._alone + 1 if self._under_way == 1 else 0
            self._soon = self._awake and time.monotonic() - self._ended <= AWAKE_SECONDS
            too_many = self._under_way > self._most
        handler = self._handlers.get(details.method)
        if not self._admits(event.invocation_metadata):
            call.refuse(grpc.StatusCode.UNAUTHENTICATED, "a token is needed")
        elif too_many:
            call.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls are under way")
        elif handler is None:
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, "there is no such method here")
        else:
            self._read(event.call, call, handler)

    def _read(self, core: Any, call: Call, handler: Handler) -> None:
        def read(event: Any) -> None:
            self._silent.pop(call, None)
            message = event.batch_operations[0].message()
            if message is None:  # the caller is gone, or sent none, or too much
                call.refuse(grpc.StatusCode.UNIMPLEMENTED, "exactly one message is expected")
            else:
                handler(call, message)

        self._silent[call] = time.monotonic() + self._seconds
        core.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), read)

    def _refuse_silent(self) -> None:
        now = time.monotonic()
        if now < self._look_again:
            return
        self._look_again = now + TICK_SECONDS
        while self._silent:
            call, until = next(iter(self._silent.items()))
            if until > now:
                return
            del self._silent[call]
            call.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "no message has come in time")

    def _close(self, _event: Any) -> None:
        self._open -= 1

    def _end(self, _event: Any) -> None:
        self._under_way -= 1
        self._ended = time.monotonic()


def _cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many of this machine's cores this process may use all the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        most, period = quota.read_text().split()
    except (OSError, ValueError):
        return cores or 1  # no control group, or an old kind
    return cores or 1 if most == "max" else min(cores or 1, int(most) // int(period))
