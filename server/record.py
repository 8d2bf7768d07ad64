"""What is written down of a round, for whom: metrics for reports, events for operators, counters.

The rule: all of it is on disk before the round's checkpoint, and none of it is needed to go on. A
crash between the two repeats the round: then its line of metrics is written anew, and its events
are logged once more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from common import durable
from server.checkpoint import Checkpoint
from server.events import EventLog, public_code
from server.home import ServerHome
from server.metrics import Metrics
from server.suspension import Standing


@dataclass(frozen=True)
class RoundReport:
    """What a round did; one line of ``metrics.jsonl``.

    Args:
        round: 1 … plan.rounds.
        asked, valid: clients asked, and replies that counted.
        changed: whether the model changed.
        unchanged: why it did not: ``no-quorum``, ``too-few-replies``, ``not-finite`` or
            ``no-model``; empty if it did.
        dropped: client to code, for replies that did not count; ``late``: the round had enough.
        late: replies that came in this round to requests of an earlier one.
        duplicates: replies to what had been answered already.
        accuracy: on the public test set, in [0, 1]; None if there is none.
        seconds: wall time.
        update_bytes: that the updates of the valid replies came in; receipts and framing left out.
        uncompressed_bytes: that they would have come in without ``[plan.compression]``.
    """

    round: int
    asked: int
    valid: int
    changed: bool
    unchanged: str
    dropped: Mapping[str, str]
    late: int
    duplicates: int
    accuracy: float | None
    seconds: float
    update_bytes: int = 0
    uncompressed_bytes: int = 0


class Record:
    """The files and counters of one server process.

    Args:
        home: the run.
        metrics: is told how the run is doing.
    """

    def __init__(self, home: ServerHome, metrics: Metrics) -> None:
        self._file, self._metrics = home.metrics, metrics
        self._events = EventLog(home.events, home.run)

    def start(self, completed: int, incarnation: int) -> None:
        """Mend what a crash left: lines of rounds after the checkpoint are about to be repeated."""
        if self._file.exists():
            lines = self._file.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _round_of(line) <= completed]
            durable.replace(self._file, b"".join(kept))
        self._events.mend()
        self._events.note("server-started", completed, incarnation=incarnation)

    def lifted(self, round_: int, before: Standing, after: Standing) -> None:
        for client in sorted(set(before.suspended) - set(after.suspended)):
            self._events.note("suspension-lifted", round_, client=client)

    def begin(self, round_: int, *, asked: int, present: int, again: bool) -> None:
        """A round is about to be asked for; durable."""
        self._events.note("round-started", round_, asked=asked, present=present, again=again)
        self._events.write()

    def end(
        self,
        report: RoundReport,
        outcomes: Mapping[str, str],
        nodes: Mapping[str, int],
        before: Standing,
        state: Checkpoint,
    ) -> None:
        """A round has ended; durable, and the checkpoint comes next.

        Args:
            report: the line of metrics.
            outcomes: each asked client's code; empty if its reply counted.
            nodes: where each of them was asked.
            before: how clients stood before.
            state: what the checkpoint will hold.
        """
        durable.append(self._file, json.dumps(asdict(report), sort_keys=True).encode() + b"\n")
        note, round_ = self._events.note, report.round
        for client, code in outcomes.items():
            code = public_code(code or "valid")
            note("reply", round_, client=client, node=str(nodes[client]), code=code)
        for kind, count in (("late", report.late), ("duplicate", report.duplicates)):
            if count:
                note("stray-replies", round_, code=kind, count=count)
        counts = {"asked": report.asked, "valid": report.valid, "changed": report.changed}
        note("round-ended", round_, **counts)
        for client, suspension in sorted(state.standing.suspended.items()):
            if client not in before.suspended:
                note("suspended", round_, client=client, codes=list(suspension.codes))
        if state.ended:
            note("run-ended", round_, code=state.ended)
        self._events.write()

    def count(self, report: RoundReport, outcomes: Mapping[str, str]) -> None:
        """Count a round whose checkpoint is durable."""
        self._metrics.count(
            changed=report.changed,
            seconds=report.seconds,
            codes=Counter(code or "valid" for code in outcomes.values()),
            strays={"late": report.late, "duplicate": report.duplicates},
            accuracy=report.accuracy,
            received={"coded": report.update_bytes, "uncompressed": report.uncompressed_bytes},
        )

    def stand(self, round_: int, present: int, suspended: int) -> None:
        """How things stand: rounds done, clients there, clients suspended."""
        self._metrics.stand(round_, present, suspended)

    def stopped(self, round_: int) -> None:
        """The server leaves as its operator wished; durable."""
        self._events.note("server-stopped", round_)
        self._events.write()

    def write(self) -> None:
        """Make durable what was noted since."""
        self._events.write()


def _round_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # torn by a crash
