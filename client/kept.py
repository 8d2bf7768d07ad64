"""What does a client remember from one round of a run to the next? Named arrays, kept with it.

The rule: what is remembered changes with a disclosure and with nothing else. A round's file is
durable before the disclosure that names its request, and it counts only once that disclosure is
there: a round that was killed or forfeited before leaves what was remembered as it was, and a round
that is begun again starts from what it started from. The same request gets the same bytes again
without reading it. It never leaves, and is readable by the client alone.

Files are named by the digest of the request that they follow, and begin with the SHA-256 of the
rest. One that is gone or damaged counts as nothing remembered; the log says so. Of the runs that a
client took part in, the last few keep theirs.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from common import durable
from common.ledger import Entry, Kind
from common.wire import Arrays, RoundRequest, pack_arrays, unpack_arrays

KEPT_RUNS = 8
_DIGEST_BYTES = 32

log = logging.getLogger("privet.client")


class Kept:
    """The ``kept/`` directory of a client; all of it is called under the ledger's lock.

    Args:
        path: the directory; made when something is kept first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, chain: Sequence[Entry], plan: str, run: str | None = None) -> Arrays:
        """What was kept after the last disclosed round of a run; empty if nothing was.

        Args:
            chain: the federation's ledger entries.
            plan: digest of the plan.
            run: its id; None: the plan's run with the last disclosure.
        """
        request = next(
            (
                request
                for (of, its), request in reversed(_last_disclosed(chain).items())
                if of == plan and run in (None, its)
            ),
            None,
        )
        if request is None:
            return {}
        try:
            data = self._file(request).read_bytes()
        except FileNotFoundError:
            log.warning("what was kept of the run so far is gone; going on without it")
            return {}
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
            log.warning("what was kept of the run so far is damaged; going on without it")
            return {}
        return unpack_arrays(data[_DIGEST_BYTES:])

    def write(self, request: RoundRequest, arrays: Arrays) -> None:
        """Make durable what is to count once ``request`` has its disclosure."""
        if not self.path.exists():
            with durable.disk_errors(self.path):
                self.path.mkdir(mode=0o700, exist_ok=True)
                durable.sync_directory(self.path.parent)
        data = pack_arrays(arrays)
        file = self._file(request.digest)
        durable.replace(file, hashlib.sha256(data).digest() + data, mode=0o600)

    def forget(self, chain: Sequence[Entry]) -> None:
        """Delete what no round will start from: superseded, of old runs, or never disclosed."""
        if not self.path.exists():
            return
        newest = list(_last_disclosed(chain).values())[-KEPT_RUNS:]
        wanted = {self._file(request) for request in newest}
        for file in self.path.iterdir():
            if file not in wanted:
                file.unlink(missing_ok=True)

    def _file(self, request: str) -> Path:
        return self.path / f"{request}.kept"


def _last_disclosed(chain: Sequence[Entry]) -> dict[tuple[str, str], str]:
    """By (plan, run): the request that was disclosed last; in the order of those disclosures."""
    intents = {entry.seq: entry.body for entry in chain if entry.kind is Kind.INTENT}
    result: dict[tuple[str, str], str] = {}
    for entry in chain:
        if entry.kind is Kind.DISCLOSURE:
            body = intents[entry.body["intent"]]
            run = (body["plan"], body["run"])
            result.pop(run, None)
            result[run] = body["request"]
    return result
