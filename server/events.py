"""What happened, in the order it happened: a log for operators, one JSON object a line.

The rules: a line says who, when and what by names, counts and codes from a fixed list. Nothing in
it depends on a record, and no text of a client's gets in: a refusal with a code that no client of
ours sends is written as ``refused-other``. The log is written before the checkpoint of its round:
after a kill the round is logged again, below a ``server-started``. A line that a crash tore is cut
off at the next start.

Each line has ``schema_version`` (1), ``time`` (UTC), ``run``, ``round`` and ``event``; and

    event              further fields
    server-started     incarnation
    round-started      asked (count), present (count), again (true if sent before a kill)
    reply              client, node (a decimal text), code: ``valid`` or why it was dropped
    stray-replies      code: ``late`` (to an earlier round's request) or ``duplicate``; count
    round-ended        asked, valid (counts), changed
    suspended          client, codes
    suspension-lifted  client
    run-ended          code: ``all-rounds``, ``no-improvement`` or ``budget-used``
    server-stopped     (an operator asked for it; the run can be resumed)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import durable

SCHEMA_VERSION = 1
# What our clients refuse with: their guard's codes, and what their machine or their files can do.
REFUSALS = frozenset(
    {
        "bad-data",
        "bad-input",
        "bad-plan",
        "bad-signature",
        "below-floor",
        "budget-exhausted",
        "cannot-write",
        "disk-full",
        "failed",
        "forfeited",
        "ledger-forked",
        "ledger-rolled-back",
        "ledger-unusable",
        "malformed",
        "no-rounds-left",
        "not-approved",
        "operation-failed",
        "other-columns",
        "other-unit",
        "outside-period",
        "policy-unusable",
        "refused",
        "stale-round",
        "verification-failed",
        "wrong-client",
        "wrong-model",
    }
)


def public_code(code: str) -> str:
    """``code``, unless it is a refusal in a client's own words.

    >>> public_code("not-finite"), public_code("refused-my-name-is-ann")
    ('not-finite', 'refused-other')
    """
    reason = code.removeprefix("refused-")
    return code if reason == code or reason in REFUSALS else "refused-other"


def utc_now() -> datetime:
    return datetime.now(UTC)


class EventLog:
    """Collects events, and appends them durably, many at a time.

    Args:
        file: ``events.jsonl``.
        run: the run's id.
        now: the time of day.
    """

    def __init__(self, file: Path, run: str, now: Callable[[], datetime] = utc_now) -> None:
        self._file, self._run, self._now = file, run, now
        self._lines: list[bytes] = []

    def note(self, event: str, round_: int, **fields: Any) -> None:
        """Collect one event; see the module for its fields."""
        line = {
            "schema_version": SCHEMA_VERSION,
            "time": self._now().astimezone(UTC).isoformat(timespec="milliseconds"),
            "run": self._run,
            "round": round_,
            "event": event,
            **fields,
        }
        self._lines.append(json.dumps(line, sort_keys=True).encode() + b"\n")

    def write(self) -> None:
        """Append what was collected, in one durable step.

        Raises:
            OperationError: the disk refused; what was collected is kept for the next attempt.
        """
        if self._lines:
            durable.append(self._file, b"".join(self._lines))
            self._lines.clear()

    def mend(self) -> None:
        """Cut off the line that a crash tore, if there is one."""
        if not self._file.exists():
            return
        data = self._file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            durable.replace(self._file, whole)


def read(file: Path) -> list[dict[str, Any]]:
    """All whole lines of a log, oldest first; a server may be writing the next one."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().splitlines(True) if line[-1:] == b"\n"]
