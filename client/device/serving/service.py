"""Who may ask, what, how much, and for how long? The Open Inference Protocol's service over gRPC.

The rules: a request that may not be served is refused before the model sees it, with the status
that gRPC has for the reason. Nothing of a request is logged, and no error repeats what was in it. A
model is replaced between two requests: each is checked, run and answered by one and the same
version. One that the device's owner withdrew answers no more.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from client.device.runtime import Predictor
from client.device.serving import messages
from client.device.serving import open_inference_pb2 as oip
from client.device.serving.batches import Batches, Outcome
from client.device.serving.core import Call, Handler, Metadata
from client.device.serving.numbers import Numbers
from common.errors import DataError, OperationError
from common.inference import Array

SERVICE = "inference.GRPCInferenceService"
NAME = "privet"
EXTENSIONS = ("batching of concurrent requests",)


@dataclass(frozen=True)
class Limits:
    """What one process serves at once.

    Args:
        records: of one request, and of one call of the model, >= 1.
        waiting: records that wait for a call of the model.
        requests: calls under way.
        watchers: of the health, who stay and are counted apart.
        seconds: that a request without a deadline of its own may take, and until its message comes.
    """

    records: int = 1024
    waiting: int = 16_384
    requests: int = 256
    watchers: int = 16
    seconds: float = 30.0


@dataclass(frozen=True)
class Served:
    """A model at work: what answers, how requests to it are read and brought together."""

    predictor: Predictor
    exchange: messages.Exchange
    batches: Batches


class InferenceService:
    """Answers for one model, which :meth:`serve` sets and replaces.

    Args:
        limits: see there.
        numbers: is told what happens.
        version: of Privet.
    """

    def __init__(self, limits: Limits, numbers: Numbers, version: str) -> None:
        self._limits, self._numbers, self._version = limits, numbers, version
        self._served: Served | None = None
        self._withdrawn = False

    def serve(self, predictor: Predictor) -> None:
        """Answer with this model from the next request on; what was accepted ends with the old."""
        before = self._served
        batches = Batches(
            predictor.run,
            most=self._limits.records,
            waiting=self._limits.waiting,
            ran=self._numbers.ran,
        )
        exchange = messages.Exchange(
            predictor.name, predictor.version, predictor.schema, self._limits.records
        )
        self._served, self._withdrawn = Served(predictor, exchange, batches), False
        self._numbers.serves(predictor.name, predictor.version)
        if before is not None:
            before.batches.retire()

    def withdraw(self) -> None:
        """Answer with no model from the next request on; what was accepted ends with the old."""
        before, self._served = self._served, None
        self._withdrawn = True
        self._numbers.serves_none()
        if before is not None:
            before.batches.retire()

    def pending(self) -> bool:
        """Whether a request waits for a call of the model that nothing else holds up."""
        return self._served is not None and self._served.batches.quick

    def flush(self) -> None:
        """Nothing else is to be done: call the model for what waits."""
        if self._served is not None:
            self._served.batches.flush()

    def handlers(self) -> dict[str, Handler]:
        """What a server is given, by path."""
        kinds: dict[str, tuple[Any, Callable[[Any, Reply], Any]]] = {
            "ServerLive": (oip.ServerLiveRequest, self._live),
            "ServerReady": (oip.ServerReadyRequest, self._ready),
            "ModelReady": (oip.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (oip.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (oip.ModelMetadataRequest, self._model_metadata),
        }
        handlers = {
            name: self._handler(name, kind.FromString, method)
            for name, (kind, method) in kinds.items()
        }
        handlers["ModelInfer"] = self._handler("ModelInfer", bytes, self._infer)
        return {f"/{SERVICE}/{name}": handler for name, handler in handlers.items()}

    def _handler(
        self, name: str, read: Callable[[bytes], Any], method: Callable[[Any, Reply], Any]
    ) -> Handler:
        """Calls a method, which gives its answer back, or None and the reply later."""

        def handle(call: Call, message: bytes) -> None:
            reply = Reply(call, name, self._numbers)
            try:
                response = method(read(message), reply)
            except _Refused as error:
                reply.refuse(error.status, error.why)
            except DecodeError:
                reply.refuse(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be read")
            except Exception:  # noqa: BLE001  (its text could hold what was asked)
                reply.refuse(*_INTERNAL)
            else:
                if response is not None:
                    reply.give(response.SerializeToString())

        return handle

    # -- the methods ---------------------------------------------------------------------------

    def _live(self, _request: Any, _reply: Reply) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    def _ready(self, _request: Any, _reply: Reply) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._served is not None)

    def _model_ready(self, request: Any, _reply: Reply) -> oip.ModelReadyResponse:
        try:
            self._find(request.name, request.version)
        except _Refused:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    def _server_metadata(self, _request: Any, _reply: Reply) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(
            name=NAME, version=self._version, extensions=list(EXTENSIONS)
        )

    def _model_metadata(self, request: Any, _reply: Reply) -> oip.ModelMetadataResponse:
        predictor = self._find(request.name, request.version).predictor
        return messages.metadata(predictor.name, predictor.version, predictor.schema)

    def _infer(self, message: bytes, reply: Reply) -> None:
        served = self._in_use()
        left = min(reply.call.deadline - time.time(), self._limits.seconds)
        try:
            question, records = served.exchange.again(message) or self._read(served, message)
            records = served.predictor.check(records)
        except DataError as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, error.message) from error

        def done(outcome: Outcome) -> None:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                response = served.exchange.answer(question, outcome)
            except DataError as error:
                reply.refuse(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            except TimeoutError as error:
                reply.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
            except Exception:  # noqa: BLE001  (its text could hold what was asked)
                reply.refuse(*_INTERNAL)
            else:
                reply.give(response)

        try:
            waiting = served.batches.submit(records, done, time.monotonic() + left)
        except OperationError as error:
            raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message) from error
        if not served.batches.quick:  # it may wait so long that its caller leaves

            def gone() -> None:
                waiting.given_up = True
                reply.left()

            reply.call.watch(gone)

    def _read(self, served: Served, message: bytes) -> tuple[messages.Question, Array]:
        request = oip.ModelInferRequest.FromString(message)
        self._find(request.model_name, request.model_version)
        return served.exchange.read(request, message)

    def _in_use(self) -> Served:
        served = self._served
        if self._withdrawn:
            raise _Refused(
                grpc.StatusCode.FAILED_PRECONDITION, "the device's owner does not allow the model"
            )
        if served is None:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "no model is ready")
        return served

    def _find(self, name: str, version: str) -> Served:
        served = self._in_use()
        if name != served.predictor.name:
            raise _Refused(grpc.StatusCode.NOT_FOUND, "there is no model of that name here")
        if version not in ("", str(served.predictor.version)):
            raise _Refused(grpc.StatusCode.NOT_FOUND, "that version is not the one in use")
        return served


class _Refused(Exception):
    def __init__(self, status: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Reply:
    """The one answer to a call, and its time; the first of several counts."""

    def __init__(self, call: Call, method: str, numbers: Numbers) -> None:
        self.call = call
        self._method, self._numbers, self._began = method, numbers, time.perf_counter()

    def give(self, response: bytes) -> None:
        """End the call with a message, serialized."""
        if self.call.answer(response):
            self._count("OK")

    def refuse(self, status: grpc.StatusCode, why: str) -> None:
        """End the call with an error."""
        if self.call.refuse(status, why):
            self._count(status.name)

    def left(self) -> None:
        """The caller has gone away, or its deadline has passed."""
        self._count("CANCELLED")

    def _count(self, code: str) -> None:
        self._numbers.answered(self._method, code, time.perf_counter() - self._began)


_INTERNAL = (grpc.StatusCode.INTERNAL, "the request could not be served")


def brings(token: str) -> Callable[[Metadata], bool]:
    """Whether metadata has ``authorization: Bearer TOKEN``, once."""
    expected = f"Bearer {token}".encode()

    def admits(metadata: Metadata) -> bool:
        given = [value for key, value in metadata if key == "authorization"]
        return len(given) == 1 and hmac.compare_digest(_bytes(given[0]), expected)

    return admits


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
