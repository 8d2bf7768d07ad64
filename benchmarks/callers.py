"""How long does gRPC's own client for Python wait? In a process that has nothing else in it.

    python -m benchmarks.callers TARGET PATH CONNECTIONS CALLS PAUSE < MESSAGE

One connection asks call after call, or with so many seconds between them, and gives the median in
milliseconds; several ask at the same time, and give calls a second. Prints that one number.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from statistics import median

import grpc

WARMUP = 100


def ask(
    target: str,
    path: str,
    message: bytes,
    *,
    connections: int,
    calls: int,
    pause: float = 0.0,
    settings: str = "",
) -> float:
    """Run this module in a process of its own; see there.

    Args:
        pause: seconds between the calls of a single connection.
        settings: ``NAME=VALUE`` for its environment.
    """
    command = [sys.executable, "-m", "benchmarks.callers", target, path, str(connections)]
    environment = os.environ | (dict([settings.split("=")]) if settings else {})
    done = subprocess.run(
        [*command, str(calls), str(pause)],
        input=message,
        capture_output=True,
        check=True,
        env=environment,
    )
    return float(done.stdout)


def _one(target: str, path: str, calls: int, pause: float, message: bytes) -> float:
    taken = []
    with grpc.insecure_channel(target) as channel:
        method = channel.unary_unary(path)
        for _ in range(WARMUP + calls):
            began = time.perf_counter()
            method(message)
            taken.append(time.perf_counter() - began)
            if pause:
                time.sleep(pause)
    return 1000 * median(taken[WARMUP:])


async def _several(target: str, path: str, connections: int, calls: int, message: bytes) -> float:
    own = [("grpc.use_local_subchannel_pool", 1)]

    async def caller() -> None:
        async with grpc.aio.insecure_channel(target, options=own) as channel:
            method = channel.unary_unary(path)
            for _ in range(calls):
                await method(message)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(connections)))
    return connections * calls / (time.perf_counter() - began)


if __name__ == "__main__":
    target, path, connections, calls, pause = sys.argv[1:]
    message = sys.stdin.buffer.read()
    if connections == "1":
        print(_one(target, path, int(calls), float(pause), message))
    else:
        print(asyncio.run(_several(target, path, int(connections), int(calls), message)))
