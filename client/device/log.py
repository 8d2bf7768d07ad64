"""What did this device decide about the models it was offered? One line each, for its owner.

The rule: a decision is on disk before it takes effect, and a line is never edited. A line that a
crash tore is skipped by readers; what follows it starts on a line of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, encode

LONGEST_REASON = 400


@dataclass(frozen=True)
class Decision:
    """One model accepted or refused.

    Args:
        at: the device's clock.
        accepted: it will be used.
        name, version: of the release; None where a refusal came before they were known.
        digest: SHA-256 of the ``release.json`` of an accepted release, which names all its bytes.
        code: a stable word: ``accepted``, or the refusing error's.
        reason: a sentence.
    """

    at: datetime
    accepted: bool
    name: str | None
    version: int | None
    digest: str | None
    code: str
    reason: str

    def json(self) -> Json:
        reason = self.reason.encode("utf-8", "replace").decode()[:LONGEST_REASON]
        return {
            "at": self.at.isoformat(timespec="seconds"),
            "decision": "accepted" if self.accepted else "refused",
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "code": self.code,
            "reason": reason,
        }


@dataclass(frozen=True)
class Accepted:
    """A release that this device once accepted; ``digest`` as in :class:`Decision`."""

    name: str
    version: int
    digest: str


def append(file: Path, decision: Decision) -> None:
    """Add one line, durably."""
    line = encode(decision.json()) + b"\n"
    durable.append(file, line if _ends_whole(file) else b"\n" + line)


def read(file: Path) -> list[Json]:
    """Every whole line, oldest first."""
    lines = []
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            lines.append(decode(line))
        except CanonicalError:
            continue  # torn by a crash
    return lines


def accepted(file: Path) -> list[Accepted]:
    """Every release that was ever accepted here, oldest first."""
    return [
        Accepted(str(line["name"]), line["version"], str(line["digest"]))
        for line in read(file)
        if line.get("decision") == "accepted" and type(line.get("version")) is int
    ]


def _ends_whole(file: Path) -> bool:
    if not file.exists() or file.stat().st_size == 0:
        return True
    with open(file, "rb") as opened:
        opened.seek(-1, 2)
        return opened.read(1) == b"\n"
