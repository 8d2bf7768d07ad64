"""What is logged and shown of a run: facts, counts and codes, readable by machines."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import OperationError
from common.exposition import CONTENT_TYPE, serving
from server.events import EventLog, public_code, read
from server.metrics import Metrics
from tests.server.federation import World, fails, refuse, with_receipt, with_update
from tests.world import PLAN, RUN, flower_identity

NOON = datetime(2030, 1, 2, 12, tzinfo=UTC)
FIELDS = {
    "server-started": {"incarnation"},
    "round-started": {"asked", "present", "again"},
    "reply": {"client", "node", "code"},
    "stray-replies": {"code", "count"},
    "round-ended": {"asked", "valid", "changed"},
    "suspended": {"client", "codes"},
    "suspension-lifted": {"client"},
    "run-ended": {"code"},
    "server-stopped": set[str](),
}


@pytest.fixture(autouse=True)
def _flower(caplog: pytest.LogCaptureFixture) -> None:
    flower_identity()
    caplog.set_level(logging.CRITICAL, "flwr")


# -- the log -------------------------------------------------------------------------------------


def test_a_line_says_when_in_utc_and_what_and_of_which_run(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", RUN, lambda: NOON)
    log.note("round-ended", 3, asked=2, valid=1, changed=False)
    assert not (tmp_path / "events.jsonl").exists()  # collected, and written together
    log.write()
    log.write()
    assert read(tmp_path / "events.jsonl") == [
        {
            "schema_version": 1,
            "time": "2030-01-02T12:00:00.000+00:00",
            "run": RUN,
            "round": 3,
            "event": "round-ended",
            "asked": 2,
            "valid": 1,
            "changed": False,
        }
    ]


def test_what_a_full_disk_refused_is_written_by_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path / "no-such-folder" / "events.jsonl", RUN, lambda: NOON)
    log.note("server-stopped", 1)
    with pytest.raises(OperationError):
        log.write()
    (tmp_path / "no-such-folder").mkdir()
    log.write()
    assert len(read(tmp_path / "no-such-folder" / "events.jsonl")) == 1


def test_a_torn_line_is_not_read_and_is_cut_off_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    log = EventLog(file, RUN, lambda: NOON)
    log.note("server-stopped", 1)
    log.write()
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"event": "serv')
    assert len(read(file)) == 1
    log.mend()
    assert file.read_bytes() == whole


def test_a_run_is_logged_with_the_documented_fields_and_nothing_else(tmp_path: Path) -> None:
    world = World.make(tmp_path, replace(PLAN, rounds=4))
    world.node("clinic-c").train = with_receipt(update="0" * 64)
    world.run()
    for event in world.events():
        assert set(event) == {"event", "round"} | FIELDS[event["event"]]
    assert [event["event"] for event in world.events()] == [
        "server-started",
        *("round-started", *3 * ["reply"], "round-ended") * 2,
        *("round-started", *3 * ["reply"], "round-ended", "suspended"),
        *("round-started", *2 * ["reply"], "round-ended", "run-ended"),
    ]
    assert world.events("run-ended")[0]["code"] == "all-rounds"


def test_nothing_that_a_client_chose_or_computed_gets_into_the_log(tmp_path: Path) -> None:
    logs = []
    for number, change in enumerate((1.0, 2.0)):
        world = World.make(tmp_path / str(number))
        world.node("clinic-a").train = with_update(
            lambda update, c=change: {n: (c * v).astype("float32") for n, v in update.items()}  # type: ignore[misc]
        )
        world.node("clinic-b").train = refuse(f"my-secret-is-{'x' * number}")
        world.node("clinic-c").train = fails
        world.run_anyway()
        logs.append(world.events())
    assert logs[0] == logs[1]
    assert "secret" not in json.dumps(logs)
    assert "traceback" not in json.dumps(logs)


def test_only_codes_that_our_clients_use_are_told() -> None:
    assert public_code("refused-budget-exhausted") == "refused-budget-exhausted"
    assert public_code("refused") == "refused"
    assert public_code("refused-anything-else") == "refused-other"


# -- the endpoint --------------------------------------------------------------------------------

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)",?')
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> tuple[Samples, dict[str, str]]:
    """Prometheus' text format 0.0.4, strictly: the samples, and each family's type."""
    assert text.endswith("\n")
    samples: Samples = {}
    kinds: dict[str, str] = {}
    helped = set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in helped
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name in helped
            assert name not in kinds
            assert kind in ("counter", "gauge", "summary")
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            labels = LABEL.findall(match[2] or "")
            assert LABEL.sub("", match[2] or "") == ""
            family = list(kinds)[-1]  # the samples of a family stand together, below its type
            suffixes = ("_sum", "_count") if kinds[family] == "summary" else ("",)
            assert match[1] in [family + suffix for suffix in suffixes]
            key = (match[1], tuple(labels))
            assert key not in samples
            samples[key] = float(match[3])
    assert helped == set(kinds)
    return samples, kinds


def test_numbers_are_told_in_prometheus_text_format(tmp_path: Path) -> None:
    world = World.make(tmp_path, replace(PLAN, rounds=4))
    world.metrics_shown = Metrics(RUN, 4, 3)
    world.score = lambda _: 0.75
    world.node("clinic-b").train = refuse("in-my-own-words")
    world.node("clinic-c").train = with_receipt(update="0" * 64)
    world.run_anyway()
    samples, kinds = parse(world.metrics_shown.text())
    told = {f"{name}{dict(labels) or ''}": value for (name, labels), value in samples.items()}
    seconds = told.pop("privet_round_duration_seconds_sum")
    assert seconds == pytest.approx(sum(report.seconds for report in world.reports))
    assert told == {
        f"privet_run_info{{'run': '{RUN}'}}": 1,
        "privet_rounds_planned": 4,
        "privet_round": 4,
        "privet_rounds_total{'outcome': 'changed'}": 0,
        "privet_rounds_total{'outcome': 'unchanged'}": 4,
        "privet_round_duration_seconds_count": 4,
        "privet_replies_total{'code': 'refused-other'}": 4,
        "privet_replies_total{'code': 'valid'}": 4,
        "privet_replies_total{'code': 'wrong-update'}": 3,
        "privet_stray_replies_total{'kind': 'duplicate'}": 0,
        "privet_stray_replies_total{'kind': 'late'}": 0,
        "privet_clients_enrolled": 3,
        "privet_clients_present": 3,
        "privet_clients_suspended": 1,
        "privet_model_accuracy_ratio": 0.75,
    }
    for name, kind in kinds.items():  # the naming conventions of Prometheus
        assert (kind == "counter") == name.endswith("_total")


def test_before_the_first_round_there_are_numbers_too() -> None:
    samples, _ = parse(Metrics('a"b\\c\nd', 4, 3).text())
    assert samples[("privet_run_info", (("run", r"a\"b\\c\nd"),))] == 1
    assert samples[("privet_round", ())] == 0


LISTENER = "privet-metrics"


def running_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def get(port: int, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def test_the_endpoint_answers_on_the_loopback_address_and_ends_with_the_run() -> None:
    metrics = Metrics(RUN, 4, 3)
    with serving(metrics.text, 0) as port:
        assert LISTENER in running_threads()
        assert port is not None
        assert get(port, "/metrics") == (200, CONTENT_TYPE, metrics.text())
        assert get(port, "/")[0] == get(port, "/../etc/passwd")[0] == 404
        with pytest.raises(OperationError) as caught, serving(metrics.text, port):
            pass
        assert caught.value.code == "port-in-use"
    with pytest.raises(ConnectionRefusedError):
        get(port, "/metrics")
    assert LISTENER not in running_threads()


def test_nothing_listens_unless_a_port_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def listens(*_: object) -> None:
        raise AssertionError("a socket was bound")

    monkeypatch.setattr(socket.socket, "bind", listens)
    with serving(Metrics(RUN, 4, 3).text, None) as port:
        assert port is None
