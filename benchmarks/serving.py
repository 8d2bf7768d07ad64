"""What does a prediction cost through the service: one by one, and from eight connections?

The service is ``privet device serve`` in a process of its own, on a Unix socket, with the model of
a one-round simulation of the digits; callers are gRPC's own client, in the same process for the
latency and in another one for the throughput. Beside it stands the same call without the service.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from benchmarks.harness import Row, at_least, at_most, main, plain
from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.serving import open_inference_pb2 as oip
from common.inference import INPUT, synthetic_records
from privet.running import simulate

DIGITS = Path(__file__).parent.parent / "examples" / "digits.toml"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
CONNECTIONS = 8


def measure(quick: bool) -> list[Row]:
    """Medians of single predictions, and requests a second from eight connections."""
    calls = 200 if quick else 3000
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        simulate(DIGITS, out=run, seed=1, rounds=1)
        home = DeviceHome(run / "device")
        predictor = Predictor.load(home)
        record = synthetic_records(predictor.schema, 1)
        request = oip.ModelInferRequest(model_name=predictor.name)
        request.inputs.add(name=INPUT, datatype="FP32", shape=record.shape)
        request.raw_input_contents.append(record.tobytes())
        data = request.SerializeToString()
        bare = _p50(lambda: predictor.probabilities(record), calls)
        with _served(home) as target:
            with grpc.insecure_channel(target) as channel:
                method = channel.unary_unary(METHOD)
                through = _p50(lambda: method(data), calls)
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.serving", "--callers", target, str(calls)],
                input=data,
                capture_output=True,
                check=True,
            )
            rate = float(done.stdout)
    return [
        plain("a prediction in this process, p50", 1000 * bare, "ms"),
        at_most("a prediction over a Unix socket, p50", 1000 * through, "ms", 0.5),
        at_least(f"requests a second from {CONNECTIONS} connections", rate, "/s", 3000),
    ]


def _p50(work: object, calls: int) -> float:
    assert callable(work)
    times = []
    for call in range(calls + 20):
        began = time.perf_counter()
        work()
        if call >= 20:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


@contextmanager
def _served(home: DeviceHome) -> Iterator[str]:
    """Serve while the block runs; gives what a channel is opened with."""
    command = [sys.executable, "-m", "privet", "device", "serve", str(home.path)]
    with subprocess.Popen(
        [*command, "--format", "json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            text = ""
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError("the service did not start")
                text += line
            yield str(json.loads(text)["data"]["target"])
        finally:
            process.terminate()
            process.wait()


async def _callers(target: str, calls: int, data: bytes) -> float:
    """Requests a second of so many callers, each with a connection of its own."""
    own = [("grpc.use_local_subchannel_pool", 1)]

    async def caller() -> None:
        async with grpc.aio.insecure_channel(target, options=own) as channel:
            method = channel.unary_unary(METHOD)
            for _ in range(calls):
                await method(data)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return CONNECTIONS * calls / (time.perf_counter() - began)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--callers"]:
        print(asyncio.run(_callers(sys.argv[2], int(sys.argv[3]), sys.stdin.buffer.read())))
    else:
        main("serving", measure)
