"""What does a prediction cost through the service: one by one, and from eight connections?

The service is ``privet device serve`` in a process of its own, on a Unix socket, with the small CNN
of a one-round simulation of the digits. Beside it, in the same run, stand gRPC's two servers for
Python, which send back what they get and run no model: the floor of what is built on them.
Callers are gRPC's own client, in this process for the latency and in another one for the
throughput, so that on two cores they take about half of the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from benchmarks.harness import Row, at_least, at_most, in_blocks, main, plain
from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.serving import open_inference_pb2 as oip
from common.inference import INPUT, synthetic_records
from privet.running import simulate

DIGITS = Path(__file__).parent.parent / "examples" / "digits.toml"
SERVICE, METHOD = "inference.GRPCInferenceService", "ModelInfer"
PATH = f"/{SERVICE}/{METHOD}"
CONNECTIONS = 8
OURS, AIO, THREADS = "the service", "an echo by grpc.aio", "an echo by grpc.server"


def measure(quick: bool) -> list[Row]:
    """Medians of single predictions, and requests a second from eight connections."""
    calls, turns = (100, 2) if quick else (300, 5)
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
        processes = {OURS: stack.enter_context(_served(home))}
        for name, kind in ((AIO, "aio"), (THREADS, "threads")):
            processes[name] = stack.enter_context(_echo(kind, f"unix:{folder}/{kind}"))
        works: dict[str, Callable[[], object]] = {"here": lambda: predictor.probabilities(record)}
        for name, (target, _) in processes.items():
            channel = stack.enter_context(grpc.insecure_channel(target))
            works[name] = _ask(channel, data)
        latency = in_blocks(works, seconds=1.0 if quick else 10.0, least=20)
        rates: dict[str, list[float]] = {name: [] for name in processes}
        spent = dict.fromkeys(processes, 0.0)
        for _ in range(turns):
            for name, (target, pid) in processes.items():
                before = _cpu_seconds(pid)
                rates[name].append(_rate(target, calls, data))
                spent[name] += _cpu_seconds(pid) - before
    single, many = (
        "{}, p50 over a Unix socket",
        f"{{}}, requests a second, {CONNECTIONS} connections",
    )
    cost = "{}, CPU of its process for a request"

    made = turns * CONNECTIONS * calls
    return [
        plain("a prediction in this process, p50", latency.median("here"), "ms"),
        at_most(single.format(OURS), latency.median(OURS), "ms", 0.5),
        *(plain(single.format(name), latency.median(name), "ms") for name in (AIO, THREADS)),
        at_least(many.format(OURS), statistics.median(rates[OURS]), "/s", 3000),
        *(
            plain(many.format(name), statistics.median(rates[name]), "/s")
            for name in (AIO, THREADS)
        ),
        *(plain(cost.format(name), 1e6 * spent[name] / made, "us") for name in processes),
    ]


def _ask(channel: grpc.Channel, data: bytes) -> Callable[[], object]:
    method = channel.unary_unary(PATH)
    return lambda: method(data)


def _rate(target: str, calls: int, data: bytes) -> float:
    """Requests a second of eight callers in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.serving", "--callers", target, str(calls)]
    return float(subprocess.run(command, input=data, capture_output=True, check=True).stdout)


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
    with _running(command) as (_, pid):
        yield target, pid


@contextmanager
def _running(command: list[str]) -> Iterator[tuple[str, int]]:
    """A process that says when it listens; gives its first line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{command[3:]} did not start")
            yield line, process.pid
        finally:
            process.terminate()
            process.wait()


async def _callers(target: str, calls: int, data: bytes) -> float:
    """Requests a second of so many callers, each with a connection of its own."""
    own = [("grpc.use_local_subchannel_pool", 1)]

    async def caller() -> None:
        async with grpc.aio.insecure_channel(target, options=own) as channel:
            method = channel.unary_unary(PATH)
            for _ in range(calls):
                await method(data)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return CONNECTIONS * calls / (time.perf_counter() - began)


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


def _echo_threads(target: str) -> None:
    server = grpc.server(ThreadPoolExecutor(CONNECTIONS))
    server.add_generic_rpc_handlers(_handlers(lambda message, _context: message))
    server.add_insecure_port(target)
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--callers"]:
        print(asyncio.run(_callers(sys.argv[2], int(sys.argv[3]), sys.stdin.buffer.read())))
    elif sys.argv[1:3] == ["--echo", "aio"]:
        asyncio.run(_echo_aio(sys.argv[3]))
    elif sys.argv[1:3] == ["--echo", "threads"]:
        _echo_threads(sys.argv[3])
    else:
        main("serving", measure)
