"""Two places for a release, one of them current: a switch is one rename.

The rule: a release is written to the slot that is not in use and read back whole before
``current.json`` points to it, and what ``current.json`` points to is authenticated before it is
used: hashed, or opened with the device's key, which is bound to the hash. Killed at any write, the
device loads the old release or the new one. The model lies sealed to the device, and so does what
was prepared of it, without which a start only takes longer; a directory that somebody put back to
an older release than the device last switched to is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from client.device.home import DeviceHome
from client.device.prepared import Prepared, made_for, most
from client.device.release import LIMITS, Candidate
from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.config import Table
from common.errors import InputError, OperationError, TrustError
from common.release import MODEL, RELEASE, WEIGHTS

SCHEMA_VERSION = 3  # 3: sealed under a secret of the device's
SLOTS = ("a", "b")
SEALED = (WEIGHTS, MODEL)  # the rest is public, and says nothing of the model
PREPARED = "prepared"
SUFFIX = ".sealed"
NEEDED = tuple(name for name in LIMITS if name != WEIGHTS)  # for answering
PUBLIC = tuple(name for name in LIMITS if name not in SEALED)
Found = TypeVar("Found")


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

    def sealed_as(self, file: str) -> Json:
        """What a sealed file of it is bound to, besides the device."""
        return {
            "name": self.name,
            "version": self.version,
            "file": file,
            "digest": self.digests[file],
        }

    def prepared_as(self) -> Json:
        """What is prepared of it is bound to, besides the device."""
        named = {"name": self.name, "version": self.version, "file": PREPARED}
        return {**named, "digests": dict(self.digests), **made_for()}


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
    """What verifying needs of the current release: bytes with the recorded digests, no weights.

    Raises:
        OperationError: there is no release yet, or the device's keys are gone.
        TrustError: a file is missing or was changed, the keys are another device's, or the
            directory was put back to an older release.
    """
    return of_current(home, lambda pointer: (pointer, read(home, pointer.release, NEEDED)))


def of_current(home: DeviceHome, work: Callable[[Current], Found]) -> Found:
    """What is made of the release that is current, also if that changes meanwhile.

    Raises:
        OperationError: there is no release yet.
        TrustError: the directory was put back to an older release; or what ``work`` raises.
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
            _check_not_put_back(home, pointer)
            return work(pointer)
        except TrustError:
            if current(home) == pointer:
                raise  # not an update that took place in between


def ready(home: DeviceHome, installed: Installed) -> Prepared | None:
    """What was prepared of a release, for what runs here; None without it."""
    slot = home.slots / installed.slot
    try:
        limit = most((slot / _stored(MODEL)).stat().st_size)
        data = home.identity.open(slot / _stored(PREPARED), installed.prepared_as(), most=limit)
    except OSError:
        return None
    except TrustError as error:
        if error.code != "not-ours":
            raise
        return None
    try:
        return Prepared.decode(data)
    except Exception:  # noqa: BLE001  (of another form: it counts for nothing)
        return None


def is_ready(home: DeviceHome, installed: Installed) -> bool:
    """Whether the next start can use what was prepared of a release; looks as it will.

    Raises:
        TrustError: the release's own model is missing or was changed.
    """
    found = ready(home, installed)
    if found is None:
        return False
    return found.session(open_sealed(home, installed, MODEL, found.shift)) is not None


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
        if name in SEALED:
            files[name] = bytes(open_sealed(home, installed, name))
            continue
        try:
            files[name] = (home.slots / installed.slot / name).read_bytes()
        except OSError as error:
            raise _lacks(installed, name, error) from error
        if digest(files[name]) != installed.digests[name]:
            raise _damaged(f"{name} in slot {installed.slot} was changed since it was verified")
    return files


def open_sealed(home: DeviceHome, installed: Installed, name: str, shift: int = 0) -> memoryview:
    """A sealed file of a release, in memory of its own that ``shift`` lays out.

    Raises:
        TrustError: it is missing, was changed, or is another device's or release's.
    """
    file = home.slots / installed.slot / _stored(name)
    what, most = installed.sealed_as(name), LIMITS[name]
    try:
        return home.identity.open(file, what, most=most, shift=shift)
    except OSError as error:
        raise _lacks(installed, name, error) from error
    except TrustError as error:
        if error.code != "not-ours":
            raise
        raise _damaged(
            f"{name} in slot {installed.slot} was changed since it was verified, or sealed by "
            "another device or as another release"
        ) from error


def install(
    home: DeviceHome,
    candidate: Candidate,
    prepared: Prepared | None,
    before: Current | None,
    *,
    keep: bool,
) -> None:
    """Make a verified release current.

    Args:
        prepared: of this candidate.
        before: what was current, if that can be read.
        keep: it is whole, so that there is a way back to it.
    """
    slot = SLOTS[0] if before is None or before.release.slot == SLOTS[1] else SLOTS[1]
    claims = candidate.claims
    installed = Installed(slot, claims.name, claims.version, dict(candidate.digests))
    for name, data in candidate.files.items():
        if name in SEALED:
            data = home.identity.seal(data, installed.sealed_as(name))
        durable.replace(home.slots / slot / _stored(name), data)
    read(home, installed)
    back = before.release if before and keep and before.version < installed.version else None
    _write(home, Current(installed, back))
    put_ready(home, installed, prepared)


def put_ready(home: DeviceHome, installed: Installed, prepared: Prepared | None) -> None:
    """Keep what was prepared of a release in its slot, in the place of what is there.

    Where the disk has no room for it there is none: the release itself is in place.
    """
    file = home.slots / installed.slot / _stored(PREPARED)
    with contextlib.suppress(OSError, OperationError):
        if prepared is not None:
            sealed = home.identity.seal(prepared.encode(), installed.prepared_as())
            durable.replace(file, sealed)
        else:
            file.unlink(missing_ok=True)  # of another release, or runtime: it does not open


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
    return name + SUFFIX if name in (*SEALED, PREPARED) else name


def _write(home: DeviceHome, pointer: Current) -> None:
    durable.replace(home.current, encode(pointer.json()))


def _lacks(installed: Installed, name: str, error: OSError) -> TrustError:
    return _damaged(f"slot {installed.slot} lacks {name}: {error.strerror}")


def _damaged(why: str) -> TrustError:
    return TrustError(
        f"the installed model cannot be trusted: {why}",
        hint="update the device: it will install the release again",
        code="damaged",
    )
