"""Is the service there? The standard health check of gRPC, ``grpc.health.v1.Health``.

The rule: it says the same about the server and about its one service: serving, until it stops or
the model is withdrawn. A stream of whoever watches ends with each change, after saying it: so it
never holds more than two messages, whether they are read or not.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as health

from client.device.serving.core import Call, Handler

_PREFIX = "/grpc.health.v1.Health"
WATCH = f"{_PREFIX}/Watch"
_SERVING = health.HealthCheckResponse.SERVING
_NOT_SERVING = health.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Answers for services that are all well, or none of them."""

    def __init__(self, *services: str) -> None:
        self._services = frozenset(("", *services))
        self._status = _SERVING
        self._watching: list[Call] = []

    def handlers(self) -> dict[str, Handler]:
        """What a server is given, by path."""
        return {f"{_PREFIX}/Check": self._check, WATCH: self._watch}

    def says(self, *, serving: bool) -> None:
        """From now on all are well or none is; everybody who watches is told if that is new."""
        status = _SERVING if serving else _NOT_SERVING
        if status == self._status:
            return
        self._status = status
        for call in self._watching:
            call.answer(_said(status))
        self._watching.clear()

    def end(self) -> None:
        """It is over: nobody is left watching."""
        self.says(serving=False)
        for call in self._watching:
            call.answer(_said(_NOT_SERVING))
        self._watching.clear()

    def _check(self, call: Call, message: bytes) -> None:
        name = _asked(message)
        if name in self._services:
            call.answer(_said(self._status))
        else:
            call.refuse(grpc.StatusCode.NOT_FOUND, "there is no such service here")

    def _watch(self, call: Call, message: bytes) -> None:
        call.send(_said(self._status if _asked(message) in self._services else _UNKNOWN))
        call.watch(lambda: self._watching.remove(call))
        self._watching.append(call)


def _asked(message: bytes) -> str | None:
    try:
        return str(health.HealthCheckRequest.FromString(message).service)
    except DecodeError:
        return None


def _said(status: int) -> bytes:
    data: bytes = health.HealthCheckResponse(status=status).SerializeToString()
    return data
