"""Who may ask, what, how much, and for how long? The Open Inference Protocol's service over gRPC.

The rules: a request that may not be served is refused before the model sees it, with the status
that gRPC has for the reason. Nothing of a request is logged, and no error repeats what was in it. A
model is replaced between two requests: each is checked, run and answered by one and the same
version.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from client.device.runtime import Predictor
from client.device.serving import messages
from client.device.serving import open_inference_pb2 as oip
from client.device.serving.batches import Batches
from client.device.serving.numbers import Numbers
from common.errors import DataError, OperationError

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
        seconds: that a request without a deadline of its own may take.
    """

    records: int = 1024
    waiting: int = 16_384
    requests: int = 256
    seconds: float = 30.0


@dataclass(frozen=True)
class Served:
    """A model at work: what answers, and how requests to it are brought together."""

    predictor: Predictor
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

    def serve(self, predictor: Predictor) -> None:
        """Answer with this model from the next request on; what was accepted ends with the old."""
        before = self._served
        batches = Batches(
            predictor.run,
            most=self._limits.records,
            waiting=self._limits.waiting,
            ran=self._numbers.ran,
        )
        self._served = Served(predictor, batches)
        self._numbers.serves(predictor.name, predictor.version)
        if before is not None:
            before.batches.retire()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server is given."""
        kinds = {
            "ServerLive": (oip.ServerLiveRequest, self._live),
            "ServerReady": (oip.ServerReadyRequest, self._ready),
            "ModelReady": (oip.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (oip.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (oip.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": (oip.ModelInferRequest, self._infer),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._counted(name, method),
                    request_deserializer=kind.FromString,
                    response_serializer=lambda response: response.SerializeToString(),
                )
                for name, (kind, method) in kinds.items()
            },
        )

    def _counted(
        self, name: str, method: Callable[[Any, float], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            began = time.perf_counter()
            left = context.time_remaining()
            status, why = grpc.StatusCode.OK, ""
            response = None
            try:
                response = await method(request, self._limits.seconds if left is None else left)
            except _Refused as error:
                status, why = error.status, error.why
            except asyncio.CancelledError:  # the caller is gone, or its deadline has passed
                self._numbers.answered(name, "CANCELLED", time.perf_counter() - began)
                raise
            except Exception:  # noqa: BLE001  (its text could hold what was asked)
                status, why = grpc.StatusCode.INTERNAL, "the request could not be served"
            self._numbers.answered(name, status.name, time.perf_counter() - began)
            if response is None:
                await context.abort(status, why)
            return response

        return call

    # -- the methods ---------------------------------------------------------------------------

    async def _live(self, _request: Any, _seconds: float) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def _ready(self, _request: Any, _seconds: float) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._served is not None)

    async def _model_ready(self, request: Any, _seconds: float) -> oip.ModelReadyResponse:
        try:
            self._find(request.name, request.version)
        except _Refused:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    async def _server_metadata(self, _request: Any, _seconds: float) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(
            name=NAME, version=self._version, extensions=list(EXTENSIONS)
        )

    async def _model_metadata(self, request: Any, _seconds: float) -> oip.ModelMetadataResponse:
        predictor = self._find(request.name, request.version).predictor
        return messages.metadata(predictor.name, predictor.version, predictor.schema)

    async def _infer(self, request: Any, seconds: float) -> oip.ModelInferResponse:
        served = self._find(request.model_name, request.model_version)
        predictor = served.predictor
        try:
            outputs = messages.wanted_outputs(request)
            records = messages.read_records(request, predictor.schema, self._limits.records)
            predictor.check(records)
            async with asyncio.timeout(seconds):
                answer = await served.batches.submit(records)
        except DataError as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, error.message) from error
        except OperationError as error:
            raise _Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message) from error
        except TimeoutError as error:
            raise _Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the model did not answer in time"
            ) from error
        return messages.write_answer(
            request,
            outputs,
            answer,
            predictor.schema,
            name=predictor.name,
            version=predictor.version,
        )

    def _find(self, name: str, version: str) -> Served:
        served = self._served
        if served is None:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "no model is ready")
        if name != served.predictor.name:
            raise _Refused(grpc.StatusCode.NOT_FOUND, "there is no model of that name here")
        if version not in ("", str(served.predictor.version)):
            raise _Refused(grpc.StatusCode.NOT_FOUND, "that version is not the one in use")
        return served


class _Refused(Exception):
    def __init__(self, status: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class TokenRequired(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call, health included, that does not bring ``authorization: Bearer TOKEN``."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

        async def refuse(_request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed")

        self._refusal = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        given = [value for key, value in details.invocation_metadata if key == "authorization"]
        if len(given) == 1 and hmac.compare_digest(_bytes(given[0]), self._expected):
            return await continuation(details)
        return self._refusal


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
