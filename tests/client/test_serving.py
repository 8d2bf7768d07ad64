"""The verified model behind the Open Inference Protocol: real processes, sockets and channels."""

from __future__ import annotations

import json
import stat
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.device.serving import open_inference_pb2 as oip
from client.device.updater import update
from tests.client.device_fixtures import NOW, POLICY, RECORDS, Recipe, World
from tests.client.serving_fixtures import (
    MODEL,
    Serving,
    call,
    command,
    infer,
    probabilities,
    served,
)

FIRST, SECOND = Recipe(version=1), Recipe(version=2)
LABELS = ("no", "perhaps", "yes")
SECRET = 777.25  # a value out of bounds, which no error may repeat


def world_at(path: Path) -> World:
    made = World.make(path)
    made.publish(FIRST)
    update(made.home, NOW)
    return made


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_at(tmp_path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    home = world_at(tmp_path_factory.mktemp("served")).home
    with served(home, "--metrics-port", "0", "--records", "8") as serving:
        yield serving


@pytest.fixture
def channel(service: Serving) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.target) as channel:
        yield channel


def refusal(channel: grpc.Channel, request: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", request, **options)
    return caught.value


@pytest.mark.parametrize("raw", [True, False])
def test_the_answer_is_the_models_in_the_form_of_the_question(
    channel: grpc.Channel, raw: bool
) -> None:
    response = call(channel, "ModelInfer", infer(raw=raw))
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "17")
    expected = FIRST.model.answer(RECORDS)
    np.testing.assert_allclose(probabilities(response), expected, atol=1e-6)
    wanted = [LABELS[index].encode() for index in expected.argmax(axis=1)]
    label = response.outputs[1]
    assert (label.name, label.datatype, list(label.shape)) == ("label", "BYTES", [3])
    if raw:
        packed = b"".join(struct.pack("<I", len(word)) + word for word in wanted)
        assert response.raw_output_contents[1] == packed
        assert not label.HasField("contents")
    else:
        assert list(label.contents.bytes_contents) == wanted
        assert not response.raw_output_contents


def test_only_the_outputs_that_are_named_come_back_in_their_order(channel: grpc.Channel) -> None:
    request = infer()
    request.outputs.add(name="label")
    assert [output.name for output in call(channel, "ModelInfer", request).outputs] == ["label"]


def test_no_record_is_a_question_too(channel: grpc.Channel) -> None:
    response = call(channel, "ModelInfer", infer(RECORDS[:0]))
    assert probabilities(response).shape == (0, 3)


def test_what_the_model_takes_and_gives_can_be_asked(channel: grpc.Channel) -> None:
    found = call(channel, "ModelMetadata", oip.ModelMetadataRequest(name=MODEL))
    assert (list(found.versions), found.platform) == (["1"], "onnxruntime_onnx")
    tensors = {t.name: (t.datatype, list(t.shape)) for t in (*found.inputs, *found.outputs)}
    assert tensors == {
        "input": ("FP32", [-1, 4]),
        "probabilities": ("FP32", [-1, 3]),
        "label": ("BYTES", [-1]),
    }
    assert call(channel, "ServerLive", oip.ServerLiveRequest()).live
    assert call(channel, "ServerReady", oip.ServerReadyRequest()).ready
    assert call(channel, "ServerMetadata", oip.ServerMetadataRequest()).name == "privet"
    for name, version, ready in (
        (MODEL, "", True),
        (MODEL, "1", True),
        (MODEL, "2", False),
        ("another", "", False),
    ):
        request = oip.ModelReadyRequest(name=name, version=version)
        assert call(channel, "ModelReady", request).ready is ready


def test_the_standard_health_check_answers(service: Serving) -> None:
    with grpc.insecure_channel(service.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            found = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
            assert found.status == health_pb2.HealthCheckResponse.SERVING


def _set(name: str, value: Any) -> Callable[[oip.ModelInferRequest], None]:
    return lambda request: setattr(request.inputs[0], name, value)


def _shape(*sizes: int) -> Callable[[oip.ModelInferRequest], None]:
    def change(request: oip.ModelInferRequest) -> None:
        del request.inputs[0].shape[:]
        request.inputs[0].shape.extend(sizes)

    return change


def _raw(*parts: bytes) -> Callable[[oip.ModelInferRequest], None]:
    def change(request: oip.ModelInferRequest) -> None:
        del request.raw_input_contents[:]
        request.raw_input_contents.extend(parts)

    return change


def _both(request: oip.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.append(1.0)


def _integers(request: oip.ModelInferRequest) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([1.0] * 12)
    request.inputs[0].contents.int_contents.append(1)


def _value(value: float) -> Callable[[oip.ModelInferRequest], None]:
    records = RECORDS.copy()
    records[1, 0] = value
    return _raw(records.astype("<f4").tobytes())


WRONG: dict[str, Callable[[oip.ModelInferRequest], object]] = {
    "no input": lambda request: request.ClearField("inputs"),
    "two inputs": lambda request: request.inputs.add(name="input", datatype="FP32"),
    "another input": _set("name", "features"),
    "another type": _set("datatype", "FP64"),
    "a shape that is too flat": _shape(12),
    "a shape of another width": _shape(4, 3),
    "a negative number of records": _shape(-1, 4),
    "more records than allowed": _shape(9, 4),
    "a claim of 10^18 records": _shape(10**18, 4),
    "fewer bytes than the shape": _raw(b"\0" * 44),
    "more bytes than the shape": _raw(b"\0" * 52),
    "two raw tensors": _raw(b"\0" * 48, b""),
    "raw and typed at once": _both,
    "integers beside the floats": _integers,
    "not a number": _value(float("nan")),
    "infinity": _value(float("inf")),
    "a value outside of the schema's bounds": _value(SECRET),
    "an output that there is not": lambda request: request.outputs.add(name="logits"),
    "an output twice": lambda request: [request.outputs.add(name="label") for _ in range(2)],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_request_that_is_wrong_is_refused_and_the_next_one_is_served(
    channel: grpc.Channel, wrong: str
) -> None:
    request = infer()
    WRONG[wrong](request)
    error = refusal(channel, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(SECRET) not in error.details()
    assert call(channel, "ModelInfer", infer()).model_version == "1"


def test_a_question_that_was_answered_before_is_checked_like_the_first(
    channel: grpc.Channel,
) -> None:
    for records in (RECORDS, RECORDS[::-1].copy(), RECORDS):
        response = call(channel, "ModelInfer", infer(records, number=""))
        np.testing.assert_allclose(probabilities(response), FIRST.model.answer(records), atol=1e-6)
        for value in (float("nan"), SECRET):
            request = infer(number="")
            _value(value)(request)
            assert refusal(channel, request).code() == grpc.StatusCode.INVALID_ARGUMENT


def test_another_model_or_version_is_not_found(channel: grpc.Channel) -> None:
    for name, version in (("another", ""), (MODEL, "2"), (MODEL, "latest"), ("", "")):
        request = infer()
        request.model_name, request.model_version = name, version
        assert refusal(channel, request).code() == grpc.StatusCode.NOT_FOUND


def test_a_message_larger_than_any_request_may_be_is_not_read(service: Serving) -> None:
    with grpc.insecure_channel(service.target) as channel:
        request = infer()
        request.raw_input_contents[0] = b"\0" * 2**20
        assert refusal(channel, request).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(channel, "ModelInfer", infer()).model_version == "1"


def test_what_is_no_message_is_an_error_and_no_more(service: Serving) -> None:
    with grpc.insecure_channel(service.target) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for garbage in (b"\xff" * 100, b"\x2a\xff\xff\xff\xff\x0f"):
            with pytest.raises(grpc.RpcError):
                method(garbage, timeout=20)
        assert call(channel, "ModelInfer", infer()).model_version == "1"


def test_prometheus_sees_counts_and_no_record(service: Serving, channel: grpc.Channel) -> None:
    call(channel, "ModelInfer", infer())
    page = urllib.request.urlopen(service.address["metrics"], timeout=20).read().decode()
    assert f'privet_device_model_info{{name="{MODEL}",version="1"}} 1' in page
    (line,) = [
        line
        for line in page.splitlines()
        if line.startswith('privet_device_requests_total{method="ModelInfer",code="OK"}')
    ]
    assert int(line.rpartition(" ")[2]) >= 1
    assert str(SECRET) not in page


def test_a_stock_client_of_the_protocol_works_unmodified(service: Serving) -> None:
    """``open-inference-grpc`` from PyPI, in its own process: it has messages of these names."""
    script = """
import json, sys, grpc
from open_inference.grpc.protocol import InferTensorContents, ModelInferRequest, ModelReadyRequest
from open_inference.grpc.protocol import ServerReadyRequest
from open_inference.grpc.service import GRPCInferenceServiceStub
with grpc.insecure_channel(sys.argv[1]) as channel:
    client = GRPCInferenceServiceStub(channel)
    assert client.ServerReady(ServerReadyRequest()).ready
    assert client.ModelReady(ModelReadyRequest(name=sys.argv[2])).ready
    tensor = ModelInferRequest.InferInputTensor(
        name="input", datatype="FP32", shape=[1, 4],
        contents=InferTensorContents(fp32_contents=json.loads(sys.argv[3])))
    answer = client.ModelInfer(ModelInferRequest(model_name=sys.argv[2], inputs=[tensor]))
    print(json.dumps(list(answer.outputs[0].contents.fp32_contents)))
"""
    record = json.dumps(RECORDS[0].tolist())
    done = subprocess.run(
        [sys.executable, "-c", script, service.target, MODEL, record],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    np.testing.assert_allclose(json.loads(done.stdout), FIRST.model.answer(RECORDS)[0], atol=1e-6)


# -- who may ask, and what listens -----------------------------------------------------------------


def test_on_a_port_every_call_needs_the_token(world: World) -> None:
    with served(world.home, "--port", "0") as serving:
        token = Path(serving.address["token"])
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert serving.target.startswith("127.0.0.1:")
        right = [("authorization", f"Bearer {token.read_text()}")]
        with grpc.insecure_channel(serving.target) as channel:
            assert call(channel, "ModelInfer", infer(), metadata=right).model_version == "1"
            for wrong in (
                [],
                [("authorization", "Bearer ")],
                [("authorization", right[0][1] + "x")],
                [("authorization", right[0][1][:-1])],
                [("token", token.read_text())],
                [*right, *right],
            ):
                error = refusal(channel, infer(), metadata=wrong)
                assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            stub = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.Check(health_pb2.HealthCheckRequest(), timeout=20)


def test_the_socket_is_its_owners_and_goes_with_the_service(world: World) -> None:
    with served(world.home) as serving:
        socket = Path(serving.target.removeprefix("unix:"))
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        second = subprocess.run(command(world.home), capture_output=True, text=True, timeout=60)
        assert second.returncode != 0
        assert "another process serves" in second.stdout + second.stderr
        with grpc.insecure_channel(serving.target) as channel:
            assert call(channel, "ModelInfer", infer()).model_version == "1"
    assert not socket.exists()


def test_what_cannot_be_served_is_said_without_a_traceback(world: World, tmp_path: Path) -> None:
    empty = world.device("empty")
    here = tmp_path / "a file"
    here.touch()
    for home, options in (
        (empty, []),
        (world.home, ["--socket", str(tmp_path / ("x" * 120))]),
        (world.home, ["--socket", str(here)]),
        (world.home, ["--socket", "s", "--port", "0"]),
    ):
        done = subprocess.run(
            command(home, *options), capture_output=True, check=False, text=True, timeout=60
        )
        assert done.returncode != 0
        assert json.loads(done.stdout)["error"]["hint"]
        assert "Traceback" not in done.stderr
    assert here.read_bytes() == b""


# -- a new model while requests come ---------------------------------------------------------------


def versions_until(channel: grpc.Channel, last: str, most: int = 20_000) -> list[str]:
    """Ask until ``last`` answers; each answer must be the one of the version that it names."""
    versions = []
    expected = {str(recipe.version): recipe.model.answer(RECORDS) for recipe in (FIRST, SECOND)}
    for _ in range(most):
        response = call(channel, "ModelInfer", infer(number=""))
        versions.append(response.model_version)
        np.testing.assert_allclose(
            probabilities(response), expected[response.model_version], atol=1e-6
        )
        if response.model_version == last:
            return versions
    raise AssertionError(f"version {last} never answered")


def test_a_new_release_takes_over_and_no_request_is_lost(world: World) -> None:
    with served(world.home) as serving, grpc.insecure_channel(serving.target) as channel:
        assert call(channel, "ModelInfer", infer()).model_version == "1"
        world.publish(SECOND)
        update(world.home, NOW)
        versions = versions_until(channel, "2")
        assert versions == sorted(versions)


def test_a_release_that_was_altered_on_disk_does_not_take_over(world: World) -> None:
    with (
        served(world.home, "--metrics-port", "0") as serving,
        grpc.insecure_channel(serving.target) as channel,
    ):
        pointer = world.home.current
        pointer.write_bytes(pointer.read_bytes().replace(b'"version":1', b'"version":9'))
        refused = 'privet_device_model_swaps_total{outcome="refused"} 1'
        for _ in range(20_000):
            assert call(channel, "ModelInfer", infer()).model_version == "1"
            page = urllib.request.urlopen(serving.address["metrics"], timeout=20).read().decode()
            if refused in page:
                return
        raise AssertionError("the altered release was never looked at")


def test_a_stricter_policy_stops_the_service_and_an_older_one_brings_it_back(world: World) -> None:
    with served(world.home) as serving, grpc.insecure_channel(serving.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        watched = stub.Watch(request, timeout=20)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(2):  # so that the service knows the question
            assert call(channel, "ModelInfer", infer(number="")).model_version == "1"
        world.home.set_policy(replace(POLICY, greatest_epsilon=1.0))
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for number in ("17", ""):
            error = refusal(channel, infer(number=number))
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert not call(channel, "ServerReady", oip.ServerReadyRequest()).ready
        assert not call(channel, "ModelReady", oip.ModelReadyRequest(name=MODEL)).ready
        again = stub.Watch(request, timeout=20)
        assert next(again).status == health_pb2.HealthCheckResponse.NOT_SERVING
        world.home.set_policy(POLICY)
        assert next(again).status == health_pb2.HealthCheckResponse.SERVING
        assert call(channel, "ModelInfer", infer()).model_version == "1"
