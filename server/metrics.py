"""How is the run doing, for machines: numbers in Prometheus' text format, on the loopback address.

The rules: what is shown are counts, times and codes from a fixed list; nothing depends on a record,
and no client is named. Nothing listens unless the operator gave a port, nobody outside this machine
can ask, and the listener ends with the run. Counters start at 0 with each process, as Prometheus
expects. The format is version 0.0.4 of
https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common.errors import OperationError
from server.events import public_code

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_SECONDS = 5

Samples = list[tuple[str, Mapping[str, str], float]]  # suffix of the name, labels, value


class Metrics:
    """The numbers of one server process; safe to read from another thread.

    Args:
        run: the run's id.
        rounds: how many the plan has.
        enrolled: how many clients are enrolled.
    """

    def __init__(self, run: str, rounds: int, enrolled: int) -> None:
        self._lock = threading.Lock()
        self._run, self._rounds, self._enrolled = run, rounds, enrolled
        self._round = self._present = self._suspended = 0
        self._outcomes: Counter[str] = Counter({"changed": 0, "unchanged": 0})
        self._replies: Counter[str] = Counter({"valid": 0})
        self._strays: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter({"coded": 0, "uncompressed": 0})
        self._seconds = 0.0
        self._accuracy: float | None = None

    def stand(self, round_: int, present: int, suspended: int) -> None:
        """What is so now: rounds done, clients there, clients suspended."""
        with self._lock:
            self._round, self._present, self._suspended = round_, present, suspended

    def count(
        self,
        *,
        changed: bool,
        seconds: float,
        codes: Mapping[str, int],
        strays: Mapping[str, int],
        accuracy: float | None,
        received: Mapping[str, int],
    ) -> None:
        """A round has ended.

        Args:
            changed: whether the model changed.
            seconds: that it took.
            codes: how many replies had which code; ``valid`` for those that counted.
            strays: answers to nothing that was asked then, by kind.
            accuracy: on the public test set.
            received: bytes of valid updates, as ``coded`` and ``uncompressed``.
        """
        with self._lock:
            self._outcomes["changed" if changed else "unchanged"] += 1
            self._seconds += seconds
            for code, number in codes.items():
                self._replies[public_code(code)] += number
            self._strays.update(strays)
            self._bytes.update(received)
            self._accuracy = accuracy

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        with self._lock:
            ended = sum(self._outcomes.values())
            families: list[tuple[str, str, str, Samples]] = [
                ("privet_run_info", "gauge", "The run.", [("", {"run": self._run}, 1)]),
                ("privet_rounds_planned", "gauge", "Rounds of the plan.", _one(self._rounds)),
                ("privet_round", "gauge", "Rounds that are done.", _one(self._round)),
                (
                    "privet_rounds_total",
                    "counter",
                    "Rounds that ended in this process, by whether the model changed.",
                    _by("outcome", self._outcomes),
                ),
                (
                    "privet_round_duration_seconds",
                    "summary",
                    "Wall time of the rounds of this process.",
                    [("_sum", {}, self._seconds), ("_count", {}, ended)],
                ),
                (
                    "privet_replies_total",
                    "counter",
                    "Asked clients of this process's rounds, by what became of their replies.",
                    _by("code", self._replies),
                ),
                (
                    "privet_stray_replies_total",
                    "counter",
                    "Replies that answered nothing that was asked, by kind.",
                    _by("kind", self._strays),
                ),
                (
                    "privet_update_bytes_total",
                    "counter",
                    "Bytes of updates that counted: as they came, and as they would uncompressed.",
                    _by("kind", self._bytes),
                ),
                ("privet_clients_enrolled", "gauge", "Clients enrolled.", _one(self._enrolled)),
                ("privet_clients_present", "gauge", "Clients that are there.", _one(self._present)),
                (
                    "privet_clients_suspended",
                    "gauge",
                    "Clients that are not asked, by rule.",
                    _one(self._suspended),
                ),
            ]
            if self._accuracy is not None:
                help_ = "Accuracy of the global model on its public test set, 0 to 1."
                families.append(
                    ("privet_model_accuracy_ratio", "gauge", help_, _one(self._accuracy))
                )
        return "".join(_family(*family) for family in families)


def _one(value: float) -> Samples:
    return [("", {}, value)]


def _by(label: str, counter: Mapping[str, int]) -> Samples:
    return [("", {label: name}, counter[name]) for name in sorted(counter)]


def _family(name: str, kind: str, help_: str, samples: Samples) -> str:
    lines = [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
    for suffix, labels, value in samples:
        inside = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        lines.append(f"{name}{suffix}{{{inside}}} {value}" if inside else f"{name}{suffix} {value}")
    return "".join(f"{line}\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@contextlib.contextmanager
def serving(metrics: Metrics, port: int | None) -> Iterator[int | None]:
    """Answer ``GET /metrics`` on 127.0.0.1 while the block runs; gives the port.

    Args:
        metrics: what to show.
        port: 0 for any that is free; None: listen nowhere.

    Raises:
        OperationError: the port is taken.
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS

        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = metrics.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Standard error is for people."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise OperationError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}",
            hint="choose another [metrics] port in server.toml",
            code="port-in-use",
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="privet-metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
