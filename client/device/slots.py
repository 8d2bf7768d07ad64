"""Two places for a release, one of them current: a switch is one rename.

The rule: a release is written to the slot that is not in use and read back whole before
``current.json`` points to it, and what ``current.json`` points to is authenticated before it is
used: hashed, or opened with the device's key, which is bound to the hash. Killed at any write, the
device loads the old release or the new one. The model lies sealed to the device; a directory that
somebody put back to an older release than the device last switched to is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from client.device.home import DeviceHome
from client.device.verify import LIMITS, MODEL, RELEASE, WEIGHTS, Candidate
from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.config import Table
from common.errors import InputError, OperationError, TrustError

SCHEMA_VERSION = 2  # 2: sealed, with the release before
SLOTS = ("a", "b")
SEALED = (WEIGHTS, MODEL)  # the rest is public, and says nothing of the model
SUFFIX = ".sealed"
NEEDED = tuple(name for name in LIMITS if name != WEIGHTS)  # for answering


@dataclass(frozen=True)
class Installed:
    """A release in a slot.

    Args:
        slot: ``a`` or ``b``.
        name, version: of the release.
        digests: SHA-256 of every file of it, as it was published.
    """

    slot: str
    name: str
    version: int
    digests: Mapping[str, str]

    def json(self) -> Json:
        return {
            "slot": self.slot,
            "name": self.name,
            "version": self.version,
            "digests": dict(self.digests),
        }

    @classmethod
    def read(cls, table: Table) -> Installed:
        digests = table.table("digests")
        installed = cls(
            slot=table.text("slot", choices=SLOTS),
            name=table.name("name"),
            version=table.integer("version", low=1, high=2**53 - 1),
            digests={name: digests.text(name) for name in LIMITS},
        )
        digests.done()
        table.done()
        return installed

    def sealed_as(self, file: str) -> dict[str, str | int]:
        """What a sealed file of it is bound to, besides the device."""
        return {
            "name": self.name,
            "version": self.version,
            "file": file,
            "digest": self.digests[file],
        }


@dataclass(frozen=True)
class Current:
    """What ``current.json`` says.

    Args:
        release: what the device runs.
        previous: what it ran before, in the other slot; None if there is no going back.
        declined: digest of the ``release.json`` that the owner went back from; empty: none.
    """

    release: Installed
    previous: Installed | None = None
    declined: str = ""

    @property
    def name(self) -> str:
        return self.release.name

    @property
    def version(self) -> int:
        return self.release.version

    @property
    def digests(self) -> Mapping[str, str]:
        return self.release.digests

    @property
    def sealed(self) -> Mapping[str, str]:
        """Digests of the files that only open as what they are."""
        return {name: self.digests[name] for name in SEALED}

    def json(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "release": self.release.json(),
            "previous": [self.previous.json()] if self.previous else [],
            "declined": [self.declined] if self.declined else [],
        }

    @classmethod
    def decode(cls, data: bytes) -> Current:
        try:
            table = Table(decode(data), source="current.json")
            table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
            release = Installed.read(table.table("release"))
            previous = [Installed.read(entry) for entry in table.tables("previous")[:1]]
            declined = table.texts("declined", most=1)
            table.done()
        except (CanonicalError, InputError) as error:
            raise _damaged(f"current.json is unreadable: {error}") from error
        return cls(release, previous[0] if previous else None, "".join(declined))


def current(home: DeviceHome) -> Current | None:
    """What is current; None before the first release; :class:`TrustError` if it is damaged."""
    try:
        return Current.decode(home.current.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(f"current.json is unreadable: {error.strerror}") from error


def load(home: DeviceHome) -> tuple[Current, dict[str, bytes]]:
    """What answering needs of the current release: bytes with the recorded digests, no weights.

    Raises:
        OperationError: there is no release yet, or the device's keys are gone.
        TrustError: a file is missing or was changed, the keys are another device's, or the
            directory was put back to an older release.
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
            files = read(home, pointer.release, NEEDED)
            _check_not_put_back(home, pointer)
            return pointer, files
        except TrustError:
            if current(home) == pointer:
                raise  # not an update that took place in between


def size(home: DeviceHome) -> int:
    """Bytes that the current release takes on disk; 0 without one."""
    pointer = current(home)
    if pointer is None:
        return 0
    return sum(file.stat().st_size for file in (home.slots / pointer.release.slot).iterdir())


def read(
    home: DeviceHome, installed: Installed, names: Iterable[str] = tuple(LIMITS)
) -> dict[str, bytes]:
    """Files of a release in a slot; :class:`TrustError` unless each is whole."""
    files = {}
    for name in names:
        try:
            data = (home.slots / installed.slot / _stored(name)).read_bytes()
            if name in SEALED:
                data = home.identity.open(data, installed.sealed_as(name))
        except OSError as error:
            raise _damaged(f"slot {installed.slot} lacks {name}: {error.strerror}") from error
        except TrustError as error:
            if error.code != "not-ours":
                raise
            raise _damaged(
                f"{name} in slot {installed.slot} was changed since it was verified, or sealed to "
                "another device or as another release"
            ) from error
        if name not in SEALED and digest(data) != installed.digests[name]:
            raise _damaged(f"{name} in slot {installed.slot} was changed since it was verified")
        files[name] = data
    return files


def install(home: DeviceHome, candidate: Candidate, before: Current | None, *, keep: bool) -> None:
    """Make a verified release current.

    Args:
        before: what was current, if that can be read.
        keep: it is whole, so that there is a way back to it.
    """
    slot = SLOTS[0] if before is None or before.release.slot == SLOTS[1] else SLOTS[1]
    installed = Installed(slot, candidate.name, candidate.version, dict(candidate.digests))
    for name, data in candidate.files.items():
        if name in SEALED:
            data = home.identity.seal(data, installed.sealed_as(name))
        durable.replace(home.slots / slot / _stored(name), data)
    read(home, installed)
    back = before.release if before and keep and before.version < installed.version else None
    _write(home, Current(installed, back))


def go_back(home: DeviceHome, before: Current, to: Installed) -> None:
    """Make the release in the other slot current, and remember what its owner went back from."""
    _write(home, Current(to, None, before.digests[RELEASE]))


def _check_not_put_back(home: DeviceHome, pointer: Current) -> None:
    running = home.floor.running
    if pointer.version < running:
        raise TrustError(
            f"{home.path} holds version {pointer.version}, and this device had version {running}",
            hint="somebody put an older copy of the directory back: update the device",
            code="rolled-back",
        )


def _stored(name: str) -> str:
    return name + SUFFIX if name in SEALED else name


def _write(home: DeviceHome, pointer: Current) -> None:
    durable.replace(home.current, encode(pointer.json()))


def _damaged(why: str) -> TrustError:
    return TrustError(
        f"the installed model cannot be trusted: {why}",
        hint="update the device: it will install the release again",
        code="damaged",
    )
