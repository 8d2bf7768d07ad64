"""How does an operator end a run for now? By SIGTERM, or by a file called ``stop`` beside it.

The rule: stopping is a wish. The round under way ends as it would have, its checkpoint is written,
clients hear the last word on their ledgers, and then the server leaves. Whoever cannot wait may
kill it: that is safe too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from common import durable
from common.errors import EXIT_INTERRUPTED, OperationError


class Stopped(OperationError):
    """The run was stopped as its operator wished; it goes on from its checkpoint when resumed."""

    exit_code = EXIT_INTERRUPTED
    code = "stopped"


class StopRequest:
    """Whether somebody wants this server to stop.

    Args:
        file: asks for it by being there.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._signalled = False

    def __call__(self) -> bool:
        return self._signalled or self._file.exists()

    def signal(self) -> None:
        self._signalled = True

    def done(self) -> None:
        """The server has stopped: the next one is not to stop for the same reason."""
        self._file.unlink(missing_ok=True)
        self._signalled = False


def ask(file: Path) -> None:
    """Ask the server of a run to stop after its round."""
    durable.replace(file, b"")


@contextlib.contextmanager
def on_sigterm(request: StopRequest) -> Iterator[None]:
    """Take SIGTERM as a wish to stop, where this thread may decide that."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; the file works everywhere
        return
    before = signal.signal(signal.SIGTERM, lambda *_: request.signal())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
