"""Numbers for Prometheus: its text format, and a page that this machine alone can read.

The rules: nothing listens unless an operator gave a port, only the loopback address is listened on,
and the listener ends with the block. The format is version 0.0.4 of
https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common.errors import OperationError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_SECONDS = 5

Samples = list[tuple[str, Mapping[str, str], float]]  # suffix of the name, labels, value


def one(value: float) -> Samples:
    """A family of a single number."""
    return [("", {}, value)]


def by(label: str, counter: Mapping[str, int]) -> Samples:
    """A family of one number for each value of a label, in the order of the values."""
    return [("", {label: name}, counter[name]) for name in sorted(counter)]


def family(name: str, kind: str, help_: str, samples: Samples) -> str:
    """The lines of one metric: help, type (``gauge``, ``counter`` ...), and its samples."""
    lines = [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
    for suffix, labels, value in samples:
        inside = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        lines.append(f"{name}{suffix}{{{inside}}} {value}" if inside else f"{name}{suffix} {value}")
    return "".join(f"{line}\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@contextlib.contextmanager
def serving(text: Callable[[], str], port: int | None) -> Iterator[int | None]:
    """Answer ``GET /metrics`` on 127.0.0.1 while the block runs; gives the port.

    Args:
        text: what to show, at the moment of asking; called from another thread.
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
            body = text().encode()
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
            hint="choose another port, or stop what listens there",
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
