"""How is a run left to itself? In a process of its own, whose words are in its ``server.log``.

The rule: it is the command that an operator would type, in a session of its own, so that neither a
terminal that is closed nor a link that is restarted ends it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from server.home import ServerHome

_ERROR = "error: "


@dataclass(frozen=True)
class Detached:
    """A process that was left.

    Args:
        process: it.
        log: what it says is there, from ``start`` on.
    """

    process: subprocess.Popen[bytes]
    log: Path
    start: int

    def ended(self) -> bool:
        """Whether it is over."""
        return self.process.poll() is not None

    def why(self) -> str:
        """What it said went wrong; empty if nothing did, or if it was stopped."""
        code = self.process.returncode
        if code in (None, 0, EXIT_INTERRUPTED):
            return ""
        said = self.log.read_bytes()[self.start :].decode(errors="replace").strip().splitlines()
        ends = f"it was killed by signal {-code}" if code < 0 else "it ended"
        return next((line for line in said if line.startswith(_ERROR)), ends).removeprefix(_ERROR)


def leave(words: tuple[str, ...], home: ServerHome) -> Detached:
    """Start ``privet server`` with these words and a run."""
    log = home.path / "server.log"
    with open(log, "ab") as file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "privet", "server", *words, str(home.path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Detached(process, log, start)
