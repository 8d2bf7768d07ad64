"""What did this device decide about the models it was offered? One signed line each.

The rules: a decision is on disk before it takes effect, and a line is never edited. Each names the
digest of the line before it and is signed by the device's key, so a line that was changed, taken
out, moved or put in is found; that the end was cut off is seen by the floor, which lies elsewhere
and counts. The first line of a file says that it is. A line that a crash tore is skipped by
readers; what follows it starts on its own line.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from client.device.floor import NOTHING, Floor
from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.errors import TrustError
from common.keys import PublicKey, SigningKey, b64

LONGEST_REASON = 400
LONGEST_LINE = 8192  # bytes: a reason in the longest spelling, and the rest
_CONTEXT = b"privet/device-decision/v1\n"
_ACCEPTED = b'"decision":"accepted"'  # inside of a JSON string the quotes would be escaped


class Kind(StrEnum):
    """What was decided."""

    ACCEPTED = "accepted"  # it will be used
    REFUSED = "refused"
    WENT_BACK = "went-back"  # the owner put the release before in its place


@dataclass(frozen=True)
class Decision:
    """One decision about a model.

    Args:
        at: the device's clock.
        kind: what was decided.
        name, version: of the release; None where a refusal came before they were known.
        digest: SHA-256 of the ``release.json`` of a release that is used: it names all its bytes.
        code: a stable word: the kind's, or the refusing error's.
        reason: a sentence.
        evidence: what shows it to others, by name: digests of two things that should be one.
    """

    at: datetime
    kind: Kind
    name: str | None
    version: int | None
    digest: str | None
    code: str
    reason: str
    evidence: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Json:
        reason = self.reason.encode("utf-8", "replace").decode()[:LONGEST_REASON]
        return {
            "at": self.at.isoformat(timespec="seconds"),
            "decision": self.kind.value,
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "code": self.code,
            "reason": reason,
            "evidence": dict(self.evidence),
        }


@dataclass(frozen=True)
class Accepted:
    """A release that this device once accepted; ``digest`` as in :class:`Decision`."""

    name: str
    version: int
    digest: str


@dataclass(frozen=True)
class History:
    """What a log holds.

    Args:
        lines: every whole line, oldest first, as JSON.
        wrong: where it is not what the device wrote, in plain words; empty: it is whole.
        before: how many decisions were made before this file was begun: in a directory that was
            wiped since.
        count, head: how many decisions were made up to its end, and the last line's digest.
    """

    lines: tuple[Json, ...]
    wrong: tuple[str, ...]
    before: int
    count: int
    head: str


def append(file: Path, decision: Decision, key: SigningKey, floor: Floor) -> Floor:
    """Add one line, durably.

    Args:
        floor: says where the chain was, in case the file does not go as far.

    Returns:
        The floor with the new end of the chain, to be written after this.
    """
    count, head = floor.decisions, floor.head
    if digest(_last(file)) != head:  # a crash came between line and floor; or the file was changed
        history = read(file, key.public, floor)
        if history.count >= floor.decisions:
            count, head = history.count, history.head
    place = {"seq": count, "prev": head, "first": not file.exists()}
    line = _sign({**place, **decision.json()}, key)
    durable.append(file, line + b"\n" if _ends_whole(file) else b"\n" + line + b"\n")
    return floor.decided(count + 1, digest(line))


def read(file: Path, key: PublicKey, floor: Floor) -> History:
    """Every whole line, and whether they are the chain that the device wrote."""
    lines: list[Json] = []
    wrong: list[str] = []
    count, head = 0, NOTHING
    before = 0 if file.exists() else floor.decisions
    seen = {0: NOTHING}
    for data in file.read_bytes().splitlines() if file.exists() else ():
        try:
            line = decode(data)
        except CanonicalError:
            continue  # torn by a crash; if it was more than that, the next line does not follow
        number = line.get("seq")
        if type(number) is not int or number < 0 or not _signed(line, key):
            wrong.append(f"a line after decision {count} is not this device's")
            continue
        if not lines and line.get("first") is True:
            before, count, head = number, number, str(line.get("prev"))
        lines.append(line)
        if number != count:
            wrong.append(_gap(count, number))
        elif line.get("prev") != head:
            wrong.append(f"decision {number + 1} does not follow from the one before it")
        count, head = number + 1, digest(data)
        seen[count] = head
    if count < floor.decisions and file.exists():
        wrong.append(_gap(count, floor.decisions))
    elif seen.get(floor.decisions) not in (floor.head, None):
        wrong.append(f"decision {floor.decisions} is not the one that was made")
    return History(tuple(lines), tuple(wrong), before, count, head)


def accepted(file: Path, key: PublicKey) -> list[Accepted]:
    """Every release that was ever accepted here and signed for, oldest first."""
    found = []
    for data in file.read_bytes().splitlines() if file.exists() else ():
        if _ACCEPTED not in data:
            continue
        with contextlib.suppress(CanonicalError):
            line = decode(data)
            if line.get("decision") == Kind.ACCEPTED and _signed(line, key):
                found.append(Accepted(line["name"], line["version"], line["digest"]))
    return found


def _last(file: Path) -> bytes:
    """The last line, without its end; empty where there is none or it is torn."""
    if not file.exists():
        return b""
    with open(file, "rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - LONGEST_LINE))
        *_, last, end = b"", b"", *opened.read().split(b"\n")
    return last if not end else b""


def _gap(count: int, number: int) -> str:
    if number < count:
        return f"decision {number + 1} stands after decision {count}"
    if number == count + 1:
        return f"decision {number} is missing"
    return f"decisions {count + 1} to {number} are missing"


def _sign(line: Json, key: SigningKey) -> bytes:
    signature = key.sign(_CONTEXT + encode(line))
    return encode({**line, "signature": base64.b64encode(signature).decode()})


def _signed(line: Json, key: PublicKey) -> bool:
    unsigned = {name: value for name, value in line.items() if name != "signature"}
    try:
        return key.verify(b64(line.get("signature")), _CONTEXT + encode(unsigned))
    except TrustError:
        return False


def _ends_whole(file: Path) -> bool:
    if not file.exists() or file.stat().st_size == 0:
        return True
    with open(file, "rb") as opened:
        opened.seek(-1, 2)
        return opened.read(1) == b"\n"
