"""Heartbeats, over Flower's own state: noted, written together, and never in another's name."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import NodeStatus
from sqlalchemy.exc import OperationalError

from server.link.superlink.app import admit_only, one_after_another, superlink_app
from server.link.superlink.parcels import Parcels
from server.link.waking import BEAT, Barred, Waking
from tests.server.test_superlink_contract import quiet

KEYS = (b"one", b"two")
pytestmark = quiet


@pytest.fixture
def parcels(tmp_path: Path) -> Parcels:
    app = superlink_app(tmp_path / "state.db", b"s" * 32)
    admit_only(app, {key: key.decode() for key in KEYS})
    return Parcels(app)


def node(parcels: Parcels, key: bytes) -> int:
    number = parcels.state.get_node_id_by_public_key(key)
    assert number is not None
    return number


def activate(parcels: Parcels, key: bytes) -> None:
    request = ActivateNodeRequest(public_key=key, heartbeat_interval=10)
    parcels.activate(key, request.SerializeToString())


def beat(number: int, interval: float = 10) -> bytes:
    return SendNodeHeartbeatRequest(
        node=Node(node_id=number), heartbeat_interval=interval
    ).SerializeToString()


def online(parcels: Parcels) -> dict[int, float]:
    found: Any = parcels.state.get_node_info(statuses=[NodeStatus.ONLINE])
    return {info.node_id: info.online_until for info in found}


def test_what_is_heard_is_written_together_and_keeps_nodes_there(parcels: Parcels) -> None:
    for key in KEYS:
        activate(parcels, key)
    before = online(parcels)
    for key in KEYS:
        answer = parcels.hear(key, beat(node(parcels, key)))
        assert SendNodeHeartbeatResponse.FromString(answer).success
    assert online(parcels) == before  # nothing is written yet
    assert parcels.beats.waiting
    parcels.beats.write()
    assert not parcels.beats.waiting
    after = online(parcels)
    assert all(after[number] > before[number] for number in before)


def test_a_link_that_was_restarted_takes_the_heartbeats_of_nodes_that_it_knew(
    parcels: Parcels, tmp_path: Path
) -> None:
    activate(parcels, KEYS[0])
    again = Parcels(superlink_app(tmp_path / "state.db", b"s" * 32))
    body = beat(node(again, KEYS[0]))
    assert not again.hear(KEYS[0], body)  # Flower is to be asked first
    assert again.beat(KEYS[0], body)
    assert again.beats.waiting


def test_nobody_beats_in_anothers_name_or_with_an_interval_that_flower_refuses(
    parcels: Parcels,
) -> None:
    for key in KEYS:
        activate(parcels, key)
    one, two = (node(parcels, key) for key in KEYS)
    for body, status in ((beat(two), 401), (beat(one, 9), 400), (beat(one, 1e6), 400)):
        with pytest.raises(Barred) as caught:
            parcels.beat(KEYS[0], body)
        assert caught.value.status == status
    assert not parcels.beats.waiting


def test_a_node_that_went_is_not_brought_back_by_what_it_said_before(parcels: Parcels) -> None:
    activate(parcels, KEYS[0])
    number = node(parcels, KEYS[0])
    parcels.hear(KEYS[0], beat(number))
    parcels.deactivate(KEYS[0], DeactivateNodeRequest(node_id=number).SerializeToString())
    parcels.beats.write()
    assert number not in online(parcels)


def test_a_node_that_was_revoked_is_forgotten(parcels: Parcels) -> None:
    activate(parcels, KEYS[0])
    parcels.hear(KEYS[0], beat(node(parcels, KEYS[0])))
    parcels.forget({KEYS[1]})
    assert not parcels.beats.waiting


def test_whatever_a_node_asks_for_shows_that_it_is_there(parcels: Parcels) -> None:
    for key in KEYS:
        activate(parcels, key)
    before = online(parcels)
    parcels.beats.hear_of(KEYS[0])
    parcels.beats.hear_of(b"nobody")
    parcels.beats.write()
    one, two = (node(parcels, key) for key in KEYS)
    after = online(parcels)
    assert after[one] > before[one]
    assert after[two] == before[two]


def test_a_heartbeat_waits_for_no_work_on_the_database(parcels: Parcels) -> None:
    activate(parcels, KEYS[0])
    body = beat(node(parcels, KEYS[0]))

    async def while_it_works() -> list[Any]:
        waking, sent = Waking(parcels.state, parcels), list[Any]()

        async def send(message: Any) -> None:
            sent.append(message)

        begun, over = threading.Event(), threading.Event()
        work = asyncio.create_task(waking.do(lambda: begun.set() or over.wait()))
        await asyncio.to_thread(begun.wait)
        await asyncio.wait_for(waking.public({"path": BEAT}, body, KEYS[0], send), 10)
        over.set()
        await work
        return sent

    head, _ = asyncio.run(while_it_works())
    assert head["status"] == 200
    assert parcels.beats.waiting


def test_heartbeats_that_are_due_are_written_before_whatever_waits(
    parcels: Parcels, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate(parcels, KEYS[0])
    number = node(parcels, KEYS[0])
    before = online(parcels)[number]

    async def work() -> float:
        return float((await Waking(parcels.state, parcels).do(online, parcels))[number])

    parcels.hear(KEYS[0], beat(number))
    assert asyncio.run(work()) == before  # they are not due yet
    monkeypatch.setattr("server.link.superlink.beats.NOTE_SECONDS", 0.0)
    assert asyncio.run(work()) > before


def test_a_link_that_stood_still_takes_nobody_for_gone_who_was_there_before(
    parcels: Parcels, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.time()
    monkeypatch.setattr("server.link.superlink.beats.NOTE_SECONDS", 0.0)

    def at(second: float) -> int:
        """How many are there, at this second of the clock, for a link that is asked just then."""
        now = start + second
        clock = datetime.fromtimestamp(now, UTC)
        monkeypatch.setattr("server.link.superlink.beats.time.time", lambda: now)
        monkeypatch.setattr("flwr.server.superlink.linkstate.sql_linkstate.now", lambda: clock)
        return len(asyncio.run(ask()))

    async def ask() -> dict[int, float]:
        there: dict[int, float] = await Waking(parcels.state, parcels).do(online, parcels)
        return there

    for key in KEYS:
        activate(parcels, key)
    assert at(2) == 2
    parcels.beats.hear_of(KEYS[0])
    assert [at(second) for second in (6, 10, 14, 18, 21)] == [2, 2, 2, 2, 1]
    assert at(3600) == 1  # it slept
    assert [at(second) for second in (3604, 3608, 3612, 3616, 3620.5)] == [1, 1, 1, 1, 0]
    assert at(7200) == 0


def test_whoever_writes_waits_for_its_turn_however_impatient_sqlite_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flwr.supercore.sql_mixin.SQLITE_PRAGMAS", [("busy_timeout", "0")])
    app = superlink_app(tmp_path / "state.db", b"s" * 32)
    one_after_another(app)
    admit_only(app, {key: key.decode() for key in KEYS})
    parcels = Parcels(app)
    one, two = (node(parcels, key) for key in KEYS)
    with ThreadPoolExecutor(1) as pool:
        with parcels.state.session():
            parcels.state.acknowledge_node_heartbeat(one, 10)
            other = pool.submit(parcels.state.acknowledge_node_heartbeat, two, 10)
            with pytest.raises(TimeoutError):
                other.result(0.1)
        assert other.result()


def test_what_could_not_be_written_is_written_the_next_time(
    parcels: Parcels, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate(parcels, KEYS[0])
    number = node(parcels, KEYS[0])
    before = online(parcels)[number]
    parcels.hear(KEYS[0], beat(number))

    def busy(*_: object) -> None:
        raise OperationalError("database is locked", None, Exception())

    with monkeypatch.context() as patch:
        patch.setattr(parcels.state, "acknowledge_node_heartbeat", busy)
        with pytest.raises(OperationalError):
            parcels.beats.write()
    parcels.beats.write()
    assert online(parcels)[number] > before


def test_a_node_that_goes_while_it_is_written_to_be_there_is_gone(
    parcels: Parcels, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate(parcels, KEYS[0])
    number = node(parcels, KEYS[0])
    parcels.hear(KEYS[0], beat(number))
    acknowledge = parcels.state.acknowledge_node_heartbeat

    def meanwhile(*words: Any) -> bool:
        parcels.beats.forget(KEYS[0])
        parcels.state.deactivate_node(number)
        return bool(acknowledge(*words))

    monkeypatch.setattr(parcels.state, "acknowledge_node_heartbeat", meanwhile)
    parcels.beats.write()
    assert number not in online(parcels)
