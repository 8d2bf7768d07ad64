"""Is the service there? The standard health check of gRPC, ``grpc.health.v1.Health``.

The rule: it says the same about the server and about its one service: serving, until it stops.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as health

from client.device.serving.core import Call, Handler

_PREFIX = "/grpc.health.v1.Health"
_SERVING = health.HealthCheckResponse.SERVING
_NOT_SERVING = health.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Answers for services that are all well, or all ending."""

    def __init__(self, *services: str) -> None:
        self._services = frozenset(("", *services))
        self._status = _SERVING
        self._watching: list[Call] = []

    def handlers(self) -> dict[str, Handler]:
        """What a server is given, by path."""
        return {f"{_PREFIX}/Check": self._check, f"{_PREFIX}/Watch": self._watch}

    def end(self) -> None:
        """Tell everybody who watches that it is over."""
        self._status = _NOT_SERVING
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
