"""Two places for a release, one of them current: a switch is one rename.

The rule: a release is written to the slot that is not in use and read back whole before
``current.json`` points to it, and what ``current.json`` points to is hashed before it is used.
Killed at any write, the device loads the old release or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from client.device.home import DeviceHome
from client.device.verify import LIMITS, Candidate
from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.config import Table
from common.errors import InputError, OperationError, TrustError

SCHEMA_VERSION = 1
SLOTS = ("a", "b")


@dataclass(frozen=True)
class Current:
    """What ``current.json`` says.

    Args:
        slot: ``a`` or ``b``.
        name, version: of the release in it.
        digests: SHA-256 of every file in it.
        seen: the latest time at which a repository's metadata verified, in seconds since 1970
            (UTC). A clock that is set back does not make expired metadata fresh again.
    """

    slot: str
    name: str
    version: int
    digests: Mapping[str, str]
    seen: int

    def json(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "slot": self.slot,
            "name": self.name,
            "version": self.version,
            "digests": dict(self.digests),
            "seen": self.seen,
        }

    @classmethod
    def decode(cls, data: bytes) -> Current:
        try:
            table = Table(decode(data), source="current.json")
            table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
            digests = table.table("digests")
            current = cls(
                slot=table.text("slot", choices=SLOTS),
                name=table.name("name"),
                version=table.integer("version", low=1, high=2**53 - 1),
                digests={name: digests.text(name) for name in LIMITS},
                seen=table.integer("seen", low=0, high=2**53 - 1),
            )
            digests.done()
            table.done()
        except (CanonicalError, InputError) as error:
            raise _damaged(f"current.json is unreadable: {error}") from error
        return current


def current(home: DeviceHome) -> Current | None:
    """What is current; None before the first release; :class:`TrustError` if it is damaged."""
    try:
        return Current.decode(home.current.read_bytes())
    except FileNotFoundError:
        return None


def load(home: DeviceHome) -> tuple[Current, dict[str, bytes]]:
    """The files of the current release, as bytes with the recorded digests.

    Raises:
        OperationError: there is no release yet.
        TrustError: a file is missing or was changed.
    """
    while True:
        pointer = current(home)
        if pointer is None:
            raise OperationError(
                f"no model is installed in {home.path}",
                hint="update the device first",
                code="no-model",
            )
        try:
            return pointer, _read(home, pointer.slot, pointer.digests)
        except TrustError:
            if current(home) == pointer:
                raise  # not an update that took place in between


def install(home: DeviceHome, candidate: Candidate, previous: Current | None, seen: int) -> None:
    """Make a verified release current."""
    slot = SLOTS[0] if previous is None or previous.slot == SLOTS[1] else SLOTS[1]
    digests = candidate.digests()
    for name, data in candidate.files.items():
        durable.replace(home.slots / slot / name, data)
    _read(home, slot, digests)
    _write(home, Current(slot, candidate.name, candidate.version, digests, seen))


def note_seen(home: DeviceHome, pointer: Current, seen: int) -> None:
    """Record that a repository was believed at ``seen``; nothing else changes."""
    _write(home, replace(pointer, seen=seen))


def _write(home: DeviceHome, pointer: Current) -> None:
    durable.replace(home.current, encode(pointer.json()))


def _read(home: DeviceHome, slot: str, digests: Mapping[str, str]) -> dict[str, bytes]:
    files = {}
    for name, expected in digests.items():
        try:
            files[name] = (home.slots / slot / name).read_bytes()
        except OSError as error:
            raise _damaged(f"slot {slot} lacks {name}: {error.strerror}") from error
        if digest(files[name]) != expected:
            raise _damaged(f"{name} in slot {slot} was changed since it was verified")
    return files


def _damaged(why: str) -> TrustError:
    return TrustError(
        f"the installed model cannot be trusted: {why}",
        hint="update the device: it will install the release again",
        code="damaged",
    )
