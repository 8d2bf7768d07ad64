"""What does a prediction cost through the service: one by one, and from eight connections?

The service is ``privet device serve`` in a process of its own, on a Unix socket, with the small CNN
of a one-round simulation of the digits. Beside it, in the same run, stand gRPC's two servers for
Python and the service's own, which send back what they get and run no model: the floor of what is
built on them.

Each is asked by two clients. gRPC's own for Python is what a program on the device uses, and costs
more than the server: on two cores it takes half of the machine. The lean one of
:mod:`benchmarks.load` sends the same frames and costs little, so it says what the server can do.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import grpc
import numpy as np

from benchmarks.callers import WARMUP, ask
from benchmarks.harness import Row, Turns, at_least, at_most, in_blocks, main, plain
from benchmarks.http2 import Connection
from benchmarks.load import load
from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.serving import EXPERIMENTS
from client.device.serving import open_inference_pb2 as oip
from client.device.serving.core import Call, CoreServer
from common.inference import INPUT, Array, synthetic_records
from privet.running import simulate

DIGITS = Path(__file__).parent.parent / "examples" / "digits.toml"
SERVICE, METHOD = "inference.GRPCInferenceService", "ModelInfer"
PATH = f"/{SERVICE}/{METHOD}"
CONNECTIONS = 8
OURS = "the service"
ECHOES = {
    "echo by our server": "core",
    "echo by grpc.aio": "aio",
    "echo by grpc.server": "threads",
}
STOCK, LEAN = "gRPC's client", "a lean client"
OWN_SOCKETS = "GRPC_EXPERIMENTS=-event_engine_client"
PAUSE = 0.001  # seconds


def measure(quick: bool) -> list[Row]:
    """Medians of single predictions, and requests a second from eight connections."""
    calls, turns = (200, 3) if quick else (500, 7)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = Path(folder) / "run"
        simulate(DIGITS, out=run, seed=1, rounds=1, overrides=['plan.model="cnn"'])
        home = DeviceHome(run / "device")
        predictor = Predictor.load(home)
        record = synthetic_records(predictor.schema, 1)
        request = oip.ModelInferRequest(model_name=predictor.name)
        request.inputs.add(name=INPUT, datatype="FP32", shape=record.shape)
        request.raw_input_contents.append(record.tobytes())
        data = request.SerializeToString()
        servers = {OURS: stack.enter_context(_served(home))}
        for name, kind in ECHOES.items():
            servers[name] = stack.enter_context(_echo(kind, f"unix:{folder}/{kind}"))
        right = dict.fromkeys(servers, _echoes(data))
        right[OURS] = _answers(predictor.probabilities(record))
        latency = _latency(stack, servers, lambda: predictor.probabilities(record), data, quick)
        rates: dict[str, list[float]] = {name: [] for name in servers}
        stock: dict[str, list[float]] = {name: [] for name in servers}
        alone: dict[str, list[float]] = {name: [] for name in (*servers, OWN_SOCKETS, "paused")}
        awake, pausing = 0.0, 0.0  # CPU-seconds of the service
        spent, own = dict.fromkeys(servers, 0.0), 0.0
        one = partial(ask, path=PATH, message=data, connections=1, calls=2 * calls)
        several = partial(ask, path=PATH, message=data, connections=CONNECTIONS, calls=calls // 4)
        for _ in range(turns):
            ours, process = servers[OURS]
            alone[OWN_SOCKETS].append(one(ours, settings=OWN_SOCKETS))
            before = _cpu_seconds(process)
            alone["paused"].append(one(ours, pause=PAUSE))
            pausing += _cpu_seconds(process) - before
            for name, (target, pid) in servers.items():
                before = _cpu_seconds(pid)
                alone[name].append(one(target))
                awake += (_cpu_seconds(pid) - before) * (name == OURS)
                stock[name].append(several(target))
                before = _cpu_seconds(pid)
                path = target.removeprefix("unix:")
                seen = load(path, PATH, data, right[name], connections=CONNECTIONS, calls=calls)
                rates[name].append(seen.rate)
                spent[name] += _cpu_seconds(pid) - before
                own += seen.cpu_seconds
    made, single = turns * CONNECTIONS * calls, turns * (2 * calls + WARMUP)
    many = f"requests/s from {CONNECTIONS}"
    return [
        plain("a prediction in this process, p50", latency.median("here"), "ms"),
        at_most(
            f"{OURS}, p50, {STOCK}, call after call", statistics.median(alone[OURS]), "ms", 0.5
        ),
        plain(f"the same with {OWN_SOCKETS}", statistics.median(alone[OWN_SOCKETS]), "ms"),
        plain(
            "the same with a millisecond between calls", statistics.median(alone["paused"]), "ms"
        ),
        *(plain(f"{name}, p50, {STOCK}", statistics.median(alone[name]), "ms") for name in ECHOES),
        *(plain(f"{name}, p50, {LEAN}", latency.median(name), "ms") for name in servers),
        at_least(f"{OURS}, {many}, {LEAN}", statistics.median(rates[OURS]), "/s", 3000),
        *(
            plain(f"{name}, {many}, {LEAN}", statistics.median(rates[name]), "/s")
            for name in ECHOES
        ),
        *(
            plain(f"{name}, {many}, {STOCK}", statistics.median(stock[name]), "/s")
            for name in servers
        ),
        plain(f"{OURS}, CPU for one, {STOCK}, call after call", 1e6 * awake / single, "us"),
        plain("CPU for one, with a millisecond between calls", 1e6 * pausing / single, "us"),
        *(
            plain(f"{name}, CPU for one, {LEAN}", 1e6 * seconds / made, "us")
            for name, seconds in spent.items()
        ),
        plain(f"{LEAN}'s own CPU for one", 1e6 * own / made / len(servers), "us"),
    ]


def _latency(
    stack: ExitStack,
    servers: Mapping[str, tuple[str, int]],
    here: Callable[[], object],
    data: bytes,
    quick: bool,
) -> Turns:
    """Single calls of the lean client, by server; ``here`` is the model without either."""
    works = {"here": here}
    for name, (target, _) in servers.items():
        lean = Connection(target.removeprefix("unix:"), PATH, data)
        works[name] = stack.enter_context(closing(lean)).call
    return in_blocks(works, seconds=2.0 if quick else 15.0, least=20)


def _echoes(data: bytes) -> Callable[[bytes], None]:
    def check(answer: bytes) -> None:
        if answer != data:
            raise RuntimeError("an echo sent back something else")

    return check


def _answers(probabilities: Array) -> Callable[[bytes], None]:
    """Whether an answer is the model's: these probabilities, (1, classes), and their label."""

    def check(answer: bytes) -> None:
        response = oip.ModelInferResponse.FromString(answer)
        found = np.frombuffer(response.raw_output_contents[0], "<f4")
        np.testing.assert_allclose(found, probabilities[0], atol=1e-6)

    return check


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _served(home: DeviceHome) -> Iterator[tuple[str, int]]:
    """Serve while the block runs; gives what a channel is opened with, and the process."""
    command = [sys.executable, "-m", "privet", "device", "serve", str(home.path)]
    with _running([*command, "--format", "json"]) as (line, pid):
        yield str(json.loads(line)["data"]["target"]), pid


@contextmanager
def _echo(kind: str, target: str) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "benchmarks.serving", "--echo", kind, target]
    with _running(command, {"GRPC_EXPERIMENTS": EXPERIMENTS} if kind == "core" else {}) as (_, pid):
        yield target, pid


@contextmanager
def _running(
    command: list[str], environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """A process that says when it listens; gives its first line."""
    everything = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=everything) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{command[3:]} did not start")
            yield line, process.pid
        finally:
            process.terminate()
            process.wait()


def _handlers(method: Callable[..., object]) -> tuple[grpc.GenericRpcHandler]:
    handler = grpc.unary_unary_rpc_method_handler(method)
    return (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)


async def _echo_aio(target: str) -> None:
    async def echo(message: bytes, _context: object) -> bytes:
        return message

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(_handlers(echo))
    server.add_insecure_port(target)
    await server.start()
    print("listening", flush=True)
    await server.wait_for_termination()


def _echo_core(target: str) -> None:
    held: list[tuple[Call, bytes]] = []

    def answer() -> None:
        for call, message in held:
            call.answer(message)
        held.clear()

    server = CoreServer(
        {PATH: lambda call, message: held.append((call, message))},
        options=[],
        most=256,
        pending=lambda: bool(held),
        idle=answer,
    )
    server.listen(target)
    server.start()
    print("listening", flush=True)
    while True:
        server.turn()


def _echo_threads(target: str) -> None:
    server = grpc.server(ThreadPoolExecutor(CONNECTIONS))
    server.add_generic_rpc_handlers(_handlers(lambda message, _context: message))
    server.add_insecure_port(target)
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:3] == ["--echo", "aio"]:
        asyncio.run(_echo_aio(sys.argv[3]))
    elif sys.argv[1:3] == ["--echo", "core"]:
        _echo_core(sys.argv[3])
    elif sys.argv[1:3] == ["--echo", "threads"]:
        _echo_threads(sys.argv[3])
    else:
        main("serving", measure)
