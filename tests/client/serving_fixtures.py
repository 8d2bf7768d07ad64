"""A device that serves, as a process of its own, and a plain gRPC client for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from client.device.home import DeviceHome
from client.device.serving import open_inference_pb2 as oip
from tests.client.device_fixtures import RECORDS

MODEL = "clinic-linear"
METHODS = {
    "ServerLive": oip.ServerLiveResponse,
    "ServerReady": oip.ServerReadyResponse,
    "ModelReady": oip.ModelReadyResponse,
    "ServerMetadata": oip.ServerMetadataResponse,
    "ModelMetadata": oip.ModelMetadataResponse,
    "ModelInfer": oip.ModelInferResponse,
}


@dataclass
class Serving:
    """A process that serves, and where."""

    process: subprocess.Popen[str]
    address: dict[str, Any]

    @property
    def target(self) -> str:
        return str(self.address["target"])


def command(home: DeviceHome, *options: str) -> list[str]:
    words = ["device", "serve", str(home.path), "--format", "json", *options]
    return [sys.executable, "-m", "privet", *words]


@contextmanager
def served(home: DeviceHome, *options: str) -> Iterator[Serving]:
    """Serve while the block runs; SIGTERM ends it, with exit code 0."""
    process = subprocess.Popen(command(home, *options), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        text, address = "", None
        while address is None:
            line = process.stdout.readline()
            assert line, "the service ended before it listened"
            text += line
            try:
                address = json.loads(text)["data"]
            except json.JSONDecodeError:
                continue
        yield Serving(process, address)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def call(channel: grpc.Channel, method: str, request: Any, **options: Any) -> Any:
    unary = channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=METHODS[method].FromString,
    )
    return unary(request, timeout=options.pop("timeout", 20), **options)


def infer(
    records: NDArray[np.float32] = RECORDS, *, raw: bool = True, number: str = "17"
) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=MODEL, id=number)
    tensor = request.inputs.add(name="input", datatype="FP32", shape=records.shape)
    if raw:
        request.raw_input_contents.append(records.astype("<f4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(records.ravel().tolist())
    return request


def probabilities(response: oip.ModelInferResponse) -> NDArray[np.float32]:
    (tensor,) = [output for output in response.outputs if output.name == "probabilities"]
    place = list(response.outputs).index(tensor)
    if response.raw_output_contents:
        flat = np.frombuffer(response.raw_output_contents[place], "<f4")
    else:
        flat = np.array(tensor.contents.fp32_contents, np.float32)
    return flat.reshape(tuple(tensor.shape))
