"""The public door: what is no sealed request of an enrolled node goes no further than its head."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from common.errors import TrustError
from common.nodekey import NodeKey
from common.parcel import GIVE, TAKE
from common.seal import EPOCH_HEADER, SEAL_HEADER, Sealer
from server.link.gate import ROUTES, Gate, RequestLimits
from server.link.listener import CONNECTION

KEY_HEADER = "flwr-public-key"
BODY = b"a request"


@dataclass
class Enrolled:
    """A registry in memory, that may be damaged."""

    keys: Mapping[bytes, str] = field(default_factory=dict)
    damaged: bool = False

    def node_keys(self) -> Mapping[bytes, str]:
        if self.damaged:
            raise TrustError("damaged", code="registry-damaged")
        return self.keys


class Behind:
    """What the gate gates."""

    def __init__(self) -> None:
        self.served: list[tuple[str, bytes, bytes]] = []

    async def public(self, scope: Any, body: bytes, key: bytes, send: Any) -> None:
        self.served.append((scope["path"], body, key))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def forget(self, keys: set[bytes]) -> None:
        pass


class FakeConnection:
    def __init__(self) -> None:
        self.proven: list[bytes] = []

    def prove(self, key: bytes) -> None:
        self.proven.append(key)


@dataclass
class Door:
    """A gate, who is enrolled, and a way to knock."""

    gate: Gate
    behind: Behind
    registry: Enrolled
    key: NodeKey
    sealer: Sealer

    def learn(self) -> None:
        assert self.sealer.learn(self.gate.epoch, "0")

    def headers(self, path: str = TAKE, body: bytes = BODY) -> dict[str, str]:
        return {
            SEAL_HEADER: self.sealer.seal("POST", path, body),
            KEY_HEADER: base64.b64encode(self.key.public.pem.encode()).decode(),
            "content-length": str(len(body)),
        }

    def knock(
        self,
        path: str = TAKE,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        *,
        method: str = "POST",
        body: bytes = BODY,
        query: bytes = b"",
    ) -> tuple[int, dict[str, str], bool]:
        """Status, headers, and whether the body was looked at."""
        given = self.headers(path, body) if headers is None else headers
        lines = given.items() if isinstance(given, Mapping) else given
        sent: list[dict[str, Any]] = []
        looked = False
        parts = [body[: len(body) // 2], body[len(body) // 2 :]]

        async def receive() -> dict[str, Any]:
            nonlocal looked
            looked = True
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query,
            "headers": [(name.encode(), value.encode()) for name, value in lines],
            "state": {CONNECTION: FakeConnection()},
        }
        asyncio.run(self.gate(scope, receive, send))
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, looked


@pytest.fixture(scope="module")
def keys() -> list[NodeKey]:
    return [NodeKey.generate() for _ in range(2)]


@pytest.fixture
def door(keys: list[NodeKey]) -> Door:
    behind, registry = (
        Behind(),
        Enrolled({key.public.pem.encode(): str(n) for n, key in enumerate(keys)}),
    )
    gate = Gate(behind, registry, KEY_HEADER, RequestLimits(body=1000))  # type: ignore[arg-type]
    made = Door(gate, behind, registry, keys[0], Sealer(keys[0]))
    made.learn()
    return made


def test_a_sealed_request_of_an_enrolled_node_is_served_whole(door: Door) -> None:
    assert door.knock()[0] == 200
    assert door.behind.served == [(TAKE, BODY, door.key.public.pem.encode())]


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/pull-object",
        "/privet/v1/send",
        "/privet/v1/collect",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/activate-node/",
        "//privet/v1/take",
    ],
)
def test_nothing_else_is_there_even_for_an_enrolled_node(door: Door, path: str) -> None:
    status, told, looked = door.knock(path)
    assert (status, looked) == (404, False)
    assert told["connection"] == "close"


def test_other_methods_and_queries_are_not_there(door: Door) -> None:
    assert door.knock(method="GET")[0] == 404
    assert door.knock(query=b"a=b")[0] == 404
    assert door.knock("/health", {}, method="GET")[0] == 200
    assert not door.behind.served


def test_an_unknown_key_is_refused_without_a_word_or_a_look(door: Door) -> None:
    stranger = NodeKey.generate()
    door.key, door.sealer = stranger, Sealer(stranger)
    door.learn()
    status, told, looked = door.knock()
    assert (status, looked) == (401, False)
    assert EPOCH_HEADER not in told


def test_no_seal_or_a_broken_one_is_refused(door: Door) -> None:
    good = door.headers()
    for seal in ("", "v1", good[SEAL_HEADER][:-8] + "AAAAAAA=", "x" * 10_000):
        assert door.knock(headers={**good, SEAL_HEADER: seal})[0] == 401
    del good[SEAL_HEADER]
    assert door.knock(headers=good)[0] == 401
    assert not door.behind.served


def test_a_captured_request_counts_once(door: Door) -> None:
    captured = door.headers()
    assert door.knock(headers=captured)[0] == 200
    assert door.knock(headers=captured)[0] == 401
    assert len(door.behind.served) == 1


def test_a_captured_seal_serves_for_no_other_method_body_or_length(door: Door) -> None:
    captured = door.headers(TAKE)
    for path in ROUTES - {TAKE}:
        assert door.knock(path, captured)[0] == 401
    assert door.knock(TAKE, captured, body=b"a reQuest")[0] == 400  # same length, other content
    longer = {**door.headers(TAKE), "content-length": "10"}
    assert door.knock(TAKE, longer, body=b"0123456789")[0] == 401
    assert not door.behind.served


def test_a_captured_request_is_worth_nothing_after_a_restart(door: Door) -> None:
    captured = door.headers()
    limits = RequestLimits()
    door.gate = Gate(door.behind, door.registry, KEY_HEADER, limits)  # type: ignore[arg-type]
    status, told, _ = door.knock(headers=captured)
    assert (status, door.behind.served) == (401, [])
    assert door.sealer.learn(told[EPOCH_HEADER], told["privet-after"])
    assert door.knock()[0] == 200  # whoever has the key goes on


def test_one_node_cannot_pass_for_another_before_flower(door: Door, keys: list[NodeKey]) -> None:
    other = base64.b64encode(keys[1].public.pem.encode()).decode()
    assert door.knock(headers={**door.headers(), KEY_HEADER: other})[0] == 401


def test_a_header_that_is_there_twice_is_refused(door: Door) -> None:
    lines = list(door.headers().items())
    for name in (SEAL_HEADER, KEY_HEADER, "content-length"):
        assert door.knock(headers=[*lines, (name, "1")])[0] == 400


@pytest.mark.parametrize(
    ("length", "status"),
    [(None, 411), ("", 400), ("-1", 400), ("1e3", 400), ("1001", 413), ("9" * 30, 400)],
)
def test_a_body_is_announced_and_small_or_is_never_read(
    door: Door, length: str | None, status: int
) -> None:
    headers = door.headers()
    del headers["content-length"]
    if length is not None:
        headers["content-length"] = length
    assert door.knock(headers=headers)[::2] == (status, False)
    assert door.knock(headers={**headers, "transfer-encoding": "chunked"})[::2] == (411, False)


def test_more_than_was_announced_is_refused(door: Door) -> None:
    headers = door.headers(body=b"a")
    assert door.knock(headers=headers, body=b"abc")[0] == 413


def test_a_revoked_node_is_refused_from_the_next_request_on(door: Door) -> None:
    assert door.knock()[0] == 200
    door.registry.keys = {}
    assert door.knock()[0] == 401


def test_a_damaged_registry_lets_nobody_in(door: Door) -> None:
    door.registry.damaged = True
    assert door.knock()[0] == 401
    door.registry.damaged = False
    assert door.knock()[0] == 200


def test_a_node_that_asks_too_often_is_slowed_and_others_are_not(
    door: Door, keys: list[NodeKey]
) -> None:
    limits = RequestLimits(rate=1e-9, burst=3)
    door.gate = Gate(door.behind, door.registry, KEY_HEADER, limits)  # type: ignore[arg-type]
    door.learn()
    assert [door.knock()[0] for _ in range(5)] == [200, 200, 200, 429, 429]
    door.key, door.sealer = keys[1], Sealer(keys[1])
    door.learn()
    assert door.knock(GIVE)[0] == 200
