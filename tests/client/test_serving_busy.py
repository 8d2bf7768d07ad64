"""While the model is at work the service still hears, and who may not wait longer is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client.device.runtime import Predictor
from client.device.serving import open_inference_pb2 as oip
from client.device.serving.core import CoreServer
from client.device.serving.numbers import Numbers
from client.device.serving.service import InferenceService, Limits
from client.device.verify import verify
from tests.client.device_fixtures import APPROVER, COORDINATOR, POLICY, RECORDS, Recipe
from tests.client.serving_fixtures import call, infer, probabilities

SECONDS = 20.0


class Slow(Predictor):
    """The model of the fixtures, which answers only when its gate is open."""

    def __init__(self, version: int) -> None:
        files = Recipe(version=version).files()
        super().__init__(
            verify(files, POLICY, (COORDINATOR.public, APPROVER.public), successors=dict)
        )
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.batches: list[int] = []

    def run(self, records: Any) -> Any:
        self.entered.release()
        assert self.gate.wait(SECONDS)
        self.batches.append(len(records))
        return super().run(records)


@contextmanager
def served(folder: Path, model: Slow, limits: Limits) -> Iterator[tuple[Any, Any, Any]]:
    """The service in a thread of this process: a channel, its numbers, and the service."""
    numbers = Numbers()
    service = InferenceService(limits, numbers, "0")
    service.serve(model)
    server = CoreServer(
        service.handlers(), options=[], most=16, pending=service.pending, idle=service.flush
    )
    target = f"unix:{folder}/socket"
    server.listen(target)
    server.start()
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            server.turn()
        server.stop(SECONDS)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with grpc.insecure_channel(target) as channel:
            yield channel, numbers, service
    finally:
        model.gate.set()
        stopping.set()
        thread.join(SECONDS)
        assert not thread.is_alive()


def ask(channel: Any, **options: Any) -> Any:
    method = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    return method.future(infer(), timeout=options.pop("timeout", SECONDS))


def counted(numbers: Numbers, code: str) -> int:
    start = f'privet_device_requests_total{{method="ModelInfer",code="{code}"}} '
    lines = [line for line in numbers.text().splitlines() if line.startswith(start)]
    return int(float(lines[0].removeprefix(start))) if lines else 0


def until_counted(channel: Any, numbers: Numbers, **codes: int) -> None:
    """An answer is counted just after it was sent; no more than these are ever counted."""
    for _ in range(10_000):
        found = {code: counted(numbers, code) for code in codes}
        if found == codes:
            return
        assert call(channel, "ServerLive", oip.ServerLiveRequest()).live
    raise AssertionError(found)


def test_others_are_answered_and_what_comes_meanwhile_is_one_call(tmp_path: Path) -> None:
    model = Slow(1)
    with served(tmp_path, model, Limits()) as (channel, numbers, _):
        first = ask(channel)
        assert model.entered.acquire(timeout=SECONDS)
        later = [ask(channel) for _ in range(4)]
        assert call(channel, "ServerLive", oip.ServerLiveRequest()).live
        model.gate.set()
        expected = Recipe(version=1).model.answer(RECORDS)
        for one in (first, *later):
            np.testing.assert_allclose(probabilities(one.result(SECONDS)), expected, atol=1e-6)
        assert sum(model.batches) == 5 * len(RECORDS)
        until_counted(channel, numbers, OK=5)


def test_a_caller_that_leaves_is_left_out_and_counted(tmp_path: Path) -> None:
    model = Slow(1)
    with served(tmp_path, model, Limits()) as (channel, numbers, _):
        first = ask(channel)
        assert model.entered.acquire(timeout=SECONDS)
        leaves, stays = ask(channel), ask(channel)
        for _ in range(20):  # both are there once something that came after them is answered
            assert call(channel, "ServerLive", oip.ServerLiveRequest()).live
        leaves.cancel()
        hurried = ask(channel, timeout=0.05)
        with pytest.raises(grpc.RpcError) as caught:
            hurried.result(SECONDS)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until_counted(channel, numbers, CANCELLED=2)
        model.gate.set()
        first.result(SECONDS)
        stays.result(SECONDS)
        assert model.batches == [len(RECORDS), len(RECORDS)]


def test_a_request_without_a_deadline_waits_no_longer_than_the_limit(tmp_path: Path) -> None:
    model = Slow(1)
    with served(tmp_path, model, Limits(seconds=0.1)) as (channel, numbers, _):
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel).result(SECONDS)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until_counted(channel, numbers, DEADLINE_EXCEEDED=1)


def test_more_records_than_may_wait_are_refused_at_once(tmp_path: Path) -> None:
    model = Slow(1)
    with served(tmp_path, model, Limits(waiting=4)) as (channel, _, _service):
        first = ask(channel)
        assert model.entered.acquire(timeout=SECONDS)
        waits, refused = ask(channel), ask(channel)
        with pytest.raises(grpc.RpcError) as caught:
            refused.result(SECONDS)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        model.gate.set()
        first.result(SECONDS)
        waits.result(SECONDS)


def test_what_the_old_model_took_it_answers_after_a_new_one_has_come(tmp_path: Path) -> None:
    old, new = Slow(1), Slow(2)
    new.gate.set()
    with served(tmp_path, old, Limits()) as (channel, _, service):
        first = ask(channel)
        assert old.entered.acquire(timeout=SECONDS)
        service.serve(new)
        assert ask(channel).result(SECONDS).model_version == "2"
        old.gate.set()
        assert first.result(SECONDS).model_version == "1"
