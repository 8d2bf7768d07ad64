"""How many calls a second does a gRPC server answer, asked by a client that costs next to nothing?

The rule: a closed loop. Each connection asks again as soon as it has its answer, and every answer
is held against what it should be: an error or a wrong one ends the measurement. All of it is one
thread, so that on a small machine it is the server that is measured.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass

from benchmarks.http2 import PATIENCE, Connection


@dataclass(frozen=True)
class Load:
    """What some calls took.

    Args:
        calls: that were answered.
        seconds: from the first question to the last answer.
        cpu_seconds: of this process meanwhile, which is the client's share.
    """

    calls: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


def load(
    path: str,
    method: str,
    message: bytes,
    check: Callable[[bytes], None],
    *,
    connections: int,
    calls: int,
) -> Load:
    """Ask the same question many times.

    Args:
        path: of the server's Unix socket.
        method: ``/package.Service/Method``.
        check: raises if an answer is wrong; it is asked about each different answer once.
        connections: that ask at the same time.
        calls: of each connection, after one that does not count.

    Raises:
        RuntimeError: a call failed.
    """
    right: set[bytes] = set()

    def hold(answer: bytes) -> None:
        if answer not in right:
            check(answer)
            right.add(answer)

    with ExitStack() as stack:
        lines = [
            stack.enter_context(closing(Connection(path, method, message)))
            for _ in range(connections)
        ]
        for line in lines:
            hold(line.call())
        cpu, began = time.process_time(), time.perf_counter()
        _ask_all(lines, calls, hold)
        seconds = time.perf_counter() - began
        return Load(connections * calls, seconds, time.process_time() - cpu)


def _ask_all(lines: list[Connection], calls: int, hold: Callable[[bytes], None]) -> None:
    with select.epoll() as poll:
        left = {line.fileno(): (line, calls) for line in lines}
        for line in lines:
            poll.register(line, select.EPOLLIN)
            line.ask()
        while left:
            ready = poll.poll(PATIENCE)
            if not ready:
                raise RuntimeError(f"no answer has come in {PATIENCE} seconds")
            for file, _ in ready:
                line, more = left[file]
                answer = line.read()
                if answer is None:
                    continue
                hold(answer)
                if more > 1:
                    left[file] = line, more - 1
                    line.ask()
                else:
                    del left[file]
                    poll.unregister(line)
