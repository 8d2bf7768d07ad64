"""What the service needs of gRPC's core, which grpcio does not promise: this says what broke."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.device.serving import EXPERIMENTS, core
from client.device.serving.core import Call, CoreServer
from client.device.serving.health import WATCH, Health

PATH = "/test.Service/Method"
SECONDS = 20.0


@dataclass
class Served:
    """A server in a thread of this process, and what its handler saw."""

    target: str
    seen: list[tuple[Call, bytes]] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    gone: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def handle(self, call: Call, message: bytes) -> None:
        """``echo…`` is answered at once; anything else is kept and watched."""
        self.seen.append((call, message))
        if message.startswith(b"echo"):
            call.answer(message)
        else:
            call.watch(self.gone.release)
        self.arrived.release()


@contextmanager
def served(
    folder: Path,
    *,
    most: int = 4,
    watchers: int = 4,
    seconds: float = SECONDS,
    admits: Callable[[Any], bool] = lambda _: True,
    grace: float = SECONDS,
    health: Health | None = None,
    ending: Callable[[], None] = lambda: None,
    kind: type[CoreServer] = CoreServer,
) -> Iterator[Served]:
    place = Served(f"unix:{folder}/socket")
    server = kind(
        {PATH: place.handle, **(health.handlers() if health else {})},
        options=[("grpc.max_receive_message_length", 1000)],
        most=most,
        streams=(WATCH,),
        most_streams=watchers,
        seconds=seconds,
        pending=lambda: False,
        idle=lambda: None,
        admits=admits,
    )
    server.listen(place.target)
    server.start()
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            server.turn()
        ending()
        server.stop(grace)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield place
    finally:
        stopping.set()
        thread.join(SECONDS)
        assert not thread.is_alive()


@contextmanager
def asking(place: Served) -> Iterator[Any]:
    """A stub of the method; gives a future for each message."""
    with grpc.insecure_channel(place.target) as channel:
        method = channel.unary_unary(PATH)
        yield lambda message, **options: method.future(
            message, timeout=options.pop("timeout", SECONDS), **options
        )


def status(future: Any) -> grpc.StatusCode:
    return future.exception(SECONDS).code()


def arrived(place: Served) -> Call:
    assert place.arrived.acquire(timeout=SECONDS)
    return place.seen[-1][0]


def test_grpcio_is_of_the_versions_that_this_was_tested_with() -> None:
    """Another one may work: run this file with it, then change the pin."""
    assert version("grpcio").startswith("1.85.")


def test_the_core_knows_the_experiment_that_is_switched_off() -> None:
    """It says so on standard error if it does not, when the first server is made."""
    code = """
from client.device.serving.core import CoreServer
server = CoreServer({}, options=[], most=1, pending=lambda: False, idle=lambda: None)
server.listen("127.0.0.1:0")
server.start()
server.stop(0.0)
"""
    said = {}
    for experiments in (EXPERIMENTS, "-there_is_no_such_experiment"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "GRPC_EXPERIMENTS": experiments},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        said[experiments] = "Unknown experiment" in done.stderr
    assert list(said.values()) == [False, True]


def test_a_call_is_answered_at_once_or_later_from_another_thread(tmp_path: Path) -> None:
    with served(tmp_path) as place, asking(place) as ask:
        assert [ask(b"echo%d" % i).result() for i in range(50)] == [
            b"echo%d" % i for i in range(50)
        ]
        later = ask(b"later")
        for _ in range(51):
            call = arrived(place)
        call.answer(b"now")
        assert later.result() == b"now"


def test_the_first_answer_counts(tmp_path: Path) -> None:
    with served(tmp_path) as place, asking(place) as ask:
        later = ask(b"later")
        call = arrived(place)
        told = [call.refuse(grpc.StatusCode.INTERNAL, "no"), call.answer(b"yes"), call.answer(b"")]
        assert told == [True, False, False]
        assert (status(later), later.details()) == (grpc.StatusCode.INTERNAL, "no")


def test_one_call_too_many_is_refused_and_its_place_is_free_again(tmp_path: Path) -> None:
    with served(tmp_path, most=2) as place, asking(place) as ask:
        first, second = ask(b"a"), ask(b"b")
        for _ in range(2):
            arrived(place)
        calls = [call for call, _ in place.seen]
        for _ in range(3):
            assert status(ask(b"echo")) == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.answer(b"done")
        assert (first.result(), second.result()) == (b"done", b"done")
        while ask(b"echo").exception(SECONDS):  # until the server has heard that they are through
            continue
        for _ in range(10):
            assert ask(b"echo").result() == b"echo"


def test_who_may_not_ask_is_refused_before_the_message_is_read(tmp_path: Path) -> None:
    def admits(metadata: Any) -> bool:
        return ("word", "right") in [tuple(pair) for pair in metadata]

    with served(tmp_path, admits=admits) as place, asking(place) as ask:
        for metadata in ((), (("word", "wrong"),)):
            assert status(ask(b"echo", metadata=metadata)) == grpc.StatusCode.UNAUTHENTICATED
        assert place.seen == []
        assert ask(b"echo", metadata=(("word", "right"),)).result() == b"echo"


def test_what_is_not_one_message_to_a_method_is_refused(tmp_path: Path) -> None:
    with served(tmp_path) as place, grpc.insecure_channel(place.target) as channel:
        unknown = channel.unary_unary("/test.Service/Other").future(b"", timeout=SECONDS)
        assert status(unknown) == grpc.StatusCode.UNIMPLEMENTED
        none = channel.stream_unary(PATH).future(iter(()), timeout=SECONDS)
        assert status(none) == grpc.StatusCode.UNIMPLEMENTED
        large = channel.unary_unary(PATH).future(b"echo" * 1000, timeout=SECONDS)
        assert status(large) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert place.seen == []
        two = channel.stream_unary(PATH).future(iter((b"echo", b"more")), timeout=SECONDS)
        assert two.result() == b"echo"


def test_calls_that_send_nothing_do_not_keep_their_places(tmp_path: Path) -> None:
    with served(tmp_path, most=3, seconds=0.3) as place, asking(place) as ask:
        ending = threading.Event()

        def nothing() -> Iterator[bytes]:
            ending.wait(SECONDS)
            yield from ()

        with grpc.insecure_channel(place.target) as channel:
            method = channel.stream_unary(PATH)
            silent = [method.future(nothing(), timeout=SECONDS) for _ in range(3)]
            codes = {status(future) for future in silent}
            ending.set()
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert place.seen == []
        later: list[Any] = []
        while len(later) < 3:  # all of the places are free, once the server has heard of the ends
            future = ask(b"later")
            while not future.done() and not place.arrived.acquire(timeout=0.01):
                continue
            later += [] if future.done() else [future]
        assert status(ask(b"echo")) == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call, _ in place.seen:
            assert call.answer(b"done")
        assert [future.result(SECONDS) for future in later] == [b"done"] * 3


def test_whoever_watches_the_health_takes_no_place_from_whoever_asks(tmp_path: Path) -> None:
    health, request = Health(), health_pb2.HealthCheckRequest()
    with (
        grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel,
        served(tmp_path, most=1, watchers=2, health=health, ending=health.end) as place,
        asking(place) as ask,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watching = [stub.Watch(request, timeout=SECONDS) for _ in range(2)]
        for one in watching:
            assert next(one).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(request, timeout=SECONDS))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ask(b"echo").result() == b"echo"


@pytest.fixture(scope="module")
def crowds() -> dict[str, list[int]]:
    """How many calls were handled before each time that the server was idle, as it is served."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.client.crowd"],
        env={**os.environ, "GRPC_EXPERIMENTS": EXPERIMENTS},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return dict(json.loads(done.stdout))


def test_calls_that_come_together_are_handled_before_the_server_is_idle(
    crowds: dict[str, list[int]],
) -> None:
    assert sum(crowds["together"]) == 8 * 40
    assert len(crowds["together"]) < 8 * 40 / 2


def test_others_who_join_whoever_was_alone_for_long_are_noticed(
    crowds: dict[str, list[int]],
) -> None:
    assert crowds["alone"] == [1] * 200
    assert sum(crowds["joined"]) == 8 * 40
    assert len(crowds["joined"]) < 8 * 40 / 2


def looks(folder: Path, calls: int) -> list[bool]:
    """One caller asks so often, one call after the other: of each look for what comes next, whether
    the server would have slept until then."""
    slept: list[bool] = []

    class Noted(CoreServer):
        def _handle(self, deadline: float) -> bool:
            slept.append(deadline > 0)
            return super()._handle(deadline)

    with served(folder, kind=Noted) as place, asking(place) as ask:
        for _ in range(calls):
            assert ask(b"echo").result(SECONDS) == b"echo"
        return list(slept)


def test_whoever_is_alone_and_asks_again_at_once_finds_the_server_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "AWAKE_SECONDS", 1.0)
    monkeypatch.setattr(core, "_cores", lambda: 2)
    slept = looks(tmp_path, core._ALONE + 50)
    assert all(slept[: core._ALONE])  # nobody was alone for long yet
    assert slept.count(False) >= 50


@pytest.mark.parametrize(("seconds", "cores"), [(0.0, 2), (1.0, 1)])
def test_the_server_sleeps_where_nobody_asks_at_once_or_the_caller_needs_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, cores: int
) -> None:
    monkeypatch.setattr(core, "AWAKE_SECONDS", seconds)
    monkeypatch.setattr(core, "_cores", lambda: cores)
    assert all(looks(tmp_path, core._ALONE + 50))


@pytest.mark.parametrize(
    ("says", "most"),
    [
        ("max 100000", None),
        ("100000 100000", 1),
        ("150000 100000", 1),
        ("4000", None),
        (None, None),
    ],
)
def test_a_quota_of_a_control_group_counts_as_cores(
    tmp_path: Path, says: str | None, most: int | None
) -> None:
    file = tmp_path / "cpu.max"
    if says is not None:
        file.write_text(f"{says}\n")
    assert core._cores(file) == (most or len(os.sched_getaffinity(0)))


def test_a_caller_that_leaves_is_noticed_and_its_place_is_free_again(tmp_path: Path) -> None:
    with served(tmp_path, most=1) as place, asking(place) as ask:
        for leaves in (True, False):  # by itself, and by its deadline
            future = ask(b"wait", timeout=SECONDS if leaves else 0.05)
            call = arrived(place)
            if leaves:
                future.cancel()
            assert place.gone.acquire(timeout=SECONDS)
            assert not call.answer(b"too late")
            assert ask(b"echo").result() == b"echo"
            arrived(place)


def test_a_stop_waits_for_calls_under_way_and_takes_no_more(tmp_path: Path) -> None:
    ending = threading.Event()
    with grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        with served(tmp_path, ending=ending.set) as place:
            later = channel.unary_unary(PATH).future(b"later", timeout=SECONDS)
            call = arrived(place)
            timer = threading.Thread(target=lambda: ending.wait(SECONDS) and call.answer(b"done"))
            timer.start()
        assert later.result() == b"done"
        timer.join()
        after = channel.unary_unary(PATH).future(b"echo", timeout=SECONDS)
        assert status(after) == grpc.StatusCode.UNAVAILABLE


def test_a_stop_ends_calls_that_take_too_long(tmp_path: Path) -> None:
    with grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        with served(tmp_path, grace=0.0) as place:
            never = channel.unary_unary(PATH).future(b"never", timeout=SECONDS)
            arrived(place)
        assert status(never) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_two_servers_cannot_have_one_address(tmp_path: Path) -> None:
    def server() -> CoreServer:
        options = [("grpc.so_reuseport", 0)]
        return CoreServer({}, options=options, most=1, pending=lambda: False, idle=lambda: None)

    first = server()
    port = first.listen("127.0.0.1:0")
    first.start()
    with pytest.raises(OSError, match="cannot listen"):
        server().listen(f"127.0.0.1:{port}")
    first.stop(0.0)


def test_whoever_watches_the_health_is_told_of_the_end(tmp_path: Path) -> None:
    health = Health("test.Service")
    serving, ended = (
        health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    )  # fmt: skip
    with grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with served(tmp_path, health=health, ending=health.end):
            for name in ("", "test.Service"):
                request = health_pb2.HealthCheckRequest(service=name)
                assert stub.Check(request, timeout=SECONDS).status == serving
            watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            assert next(watched).status == serving
            other = health_pb2.HealthCheckRequest(service="other")
            leaving = stub.Watch(other, timeout=SECONDS)
            assert next(leaving).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            leaving.cancel()
            with pytest.raises(grpc.RpcError) as caught:
                stub.Check(other, timeout=SECONDS)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert [answer.status for answer in watched] == [ended]
