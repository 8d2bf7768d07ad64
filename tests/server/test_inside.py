"""Who knew the secret is not pushed out by who says nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.link.inside import Inside
from server.link.listener import CONNECTION
from server.link.waking import SECRET_HEADER

SECRET = b"s" * 32


class Seen:
    """Stands for a connection, and for Flower's application behind the door."""

    def __init__(self) -> None:
        self.proven: list[bytes] = []
        self.served = 0

    def prove(self, key: bytes) -> None:
        self.proven.append(key)

    async def inside(self, *_: Any) -> None:
        self.served += 1


@pytest.mark.parametrize(("given", "known"), [(SECRET, True), (b"t" * 32, False)])
def test_a_connection_is_proven_by_the_secret_alone(given: bytes, known: bool) -> None:
    seen = Seen()
    door = Inside(seen, seen.inside, SECRET, "token")  # type: ignore[arg-type]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/runtime/push-task-output",
        "headers": [(SECRET_HEADER.encode(), given.hex().encode())],
        "state": {CONNECTION: seen},
    }

    async def send(_: Any) -> None:
        return None

    asyncio.run(door(scope, None, send))  # type: ignore[arg-type]
    assert (seen.served, len(seen.proven)) == ((1, 1) if known else (0, 0))
