"""The durable ledger of one data set: JSON lines, appended under a lock, fsynced before they count.

The rules: :meth:`Ledger.append` returns after the entry is on disk, never before. Every open
verifies every line. The file holds all federations' entries in the order in which they happened,
and a running ``link`` over all of them, so the owner notices any change to any of them; what is
published later is one federation's chain alone, which does not show how much other work there is.

A ledger that was restored from an older copy is whole and forgets what was spent. So how far it
came is also kept elsewhere, with the keys, after every append: a ledger that does not reach that
far, or reaches it by another way, is refused.

A torn last line is what a crash during a write leaves. Nothing was disclosed under it, because a
disclosure waits for its intent: it is set aside beside the ledger and recorded. Any other damage
makes the ledger unusable, and the guard then refuses everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.errors import OperationError, TrustError
from common.keys import Identity
from common.ledger.entry import GENESIS, Entry, Kind, events, now, verify_chain
from common.privacy.events import Event

LOCAL = "0" * 64  # the federation of entries that concern the owner alone


class Ledger:
    """One data set's ledger, open for reading and appending.

    Args:
        path: the file; :meth:`create` makes it once, at enrolment. A missing ledger is an error,
            because an emptied one would forget what was spent.
        secret: the client's 32 secret bytes, from which each federation's key is derived.
        mark: the file that says how far this ledger came, outside of what is backed up with it;
            None: nobody remembers.

    Raises:
        TrustError: the ledger is missing, damaged, or written with another key.
    """

    def __init__(self, path: Path, secret: bytes, mark: Path | None = None) -> None:
        self.path, self.mark = path, mark
        self._secret = secret
        self._identities: dict[str, Identity] = {}
        self._entries: list[Entry] = []
        self._chains: dict[str, list[Entry]] = {}
        self._link = GENESIS
        self._time = ""
        self._stamp: tuple[int, int, int] | None = None  # of the file as it was last read
        with self.locked():
            pass

    @classmethod
    def create(cls, path: Path, secret: bytes, mark: Path | None = None) -> Ledger:
        """Start an empty ledger; an existing one, or one that is remembered, is never replaced."""
        if path.exists():
            raise OperationError(
                f"there is already a ledger at {path}",
                hint="a ledger lives as long as its data set; use it",
                code="ledger-exists",
            )
        if mark is not None and mark.exists():
            raise TrustError(
                f"the ledger {path} is gone, and {mark} remembers that there was one",
                hint="restore the file as it was last written; without it, enrol again as a new "
                "data set",
                code="ledger-unusable",
            )
        durable.replace(path, b"", mode=0o600)
        if mark is not None:
            durable.replace(mark, _mark(0, GENESIS), mode=0o600)
        return cls(path, secret, mark)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ledger against every other process, up to date, for check-then-append."""
        try:
            handle = os.open(self.path, os.O_RDWR)
        except OSError as error:
            raise TrustError(
                f"cannot open the ledger {self.path}: {error.strerror}",
                hint="without its ledger a client does not know what was spent; restore the file, "
                "or enrol again as a new data set",
                code="ledger-unusable",
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _stamp(os.fstat(handle)) != self._stamp:
                self._read()
            yield
        finally:
            os.close(handle)

    # -- reading -------------------------------------------------------------------------------

    def identity(self, federation: str) -> Identity:
        """Who this client is in ``federation``."""
        if federation not in self._identities:
            self._identities[federation] = Identity.derive(self._secret, federation)
        return self._identities[federation]

    def chain(self, federation: str) -> tuple[Entry, ...]:
        """One federation's entries, oldest first."""
        return tuple(self._chains.get(federation, ()))

    def entries(self) -> tuple[Entry, ...]:
        """Everybody's entries, in the order in which they happened."""
        return tuple(self._entries)

    def now(self, clock: str | None = None) -> str:
        """The present: the clock, but never before what is recorded here.

        A clock that is set back does not reopen a period. One that ran ahead closes it for as long.

        Args:
            clock: UTC, ISO 8601 with a ``Z``; the machine's if omitted.
        """
        return max(clock or now(), self._time)

    def spent(self) -> list[Event]:
        """What was spent on this data set, across all federations."""
        return [event for chain in self._chains.values() for event in events(chain)]

    # -- writing -------------------------------------------------------------------------------

    def append(self, federation: str, kind: Kind, body: Json) -> Entry:
        """Add an entry durably. Call it inside :meth:`locked`.

        Raises:
            OperationError: the disk refused; the ledger is as it was.
            TrustError: the file is gone, or was changed since :meth:`locked` looked.
        """
        self._check_unchanged()
        chain = self._chains.setdefault(federation, [])
        last = chain[-1] if chain else None
        # A clock that was set back must not make the past look like the present. Another
        # federation's times stay out of this one's.
        time = max(now(), last.time if last else "")
        entry = Entry.sign(self.identity(federation), federation, last, kind, body, time)
        link = _next_link(self._link, entry)
        line = encode({"entry": entry.json(), "link": link}) + b"\n"
        durable.append(self.path, line)
        chain.append(entry)
        self._entries.append(entry)
        self._link, self._time = link, max(entry.time, self._time)
        self._stamp = _stamp(self.path.stat())
        if self.mark is not None:
            durable.replace(self.mark, _mark(len(self._entries), link), mode=0o600)
        return entry

    def _check_unchanged(self) -> None:
        try:
            present = _stamp(self.path.stat())
        except OSError as error:
            raise self._damaged(error.strerror or "it is gone") from error
        if self._stamp is None or present[:2] != self._stamp[:2]:
            raise self._damaged("it changed while it was open")

    # -- opening -------------------------------------------------------------------------------

    def _read(self) -> None:
        self._stamp, self._entries, self._chains = None, [], {}
        self._link, self._time = GENESIS, ""
        links = [GENESIS]
        *lines, torn = self.path.read_bytes().split(b"\n")
        if _is_line(torn):  # only the end of the line is missing: what it records stays recorded
            durable.append(self.path, b"\n")
            lines, torn = [*lines, torn], b""
        elif _is_line(torn[:-1]):  # no crash puts another byte where the end of a line should be
            raise self._damaged(f"line {len(lines) + 1}: followed by {torn[-1:]!r}")
        for number, line in enumerate(lines, start=1):
            try:
                entry, link = _parse(line)
                if link != _next_link(self._link, entry):
                    raise TrustError("does not follow from the line before it")
            except (TrustError, CanonicalError) as error:
                raise self._damaged(f"line {number}: {error}") from error
            self._entries.append(entry)
            self._chains.setdefault(entry.federation, []).append(entry)
            links.append(link)
            self._link, self._time = link, max(entry.time, self._time)
        for federation, chain in self._chains.items():
            try:
                verify_chain(chain, self.identity(federation).key.public)
            except TrustError as error:
                raise self._damaged(f"federation {federation[:12]}…: {error}") from error
        self._check_mark(links)
        self._set_aside(torn, sum(len(line) + 1 for line in lines))

    def _check_mark(self, links: list[str]) -> None:
        """Whether this ledger goes on from where it was remembered to be."""
        if self.mark is None:
            return
        try:
            count, link = _read_mark(self.mark.read_bytes())
        except FileNotFoundError:  # a kill came between the ledger and its first mark
            return
        except (OSError, CanonicalError) as error:
            raise TrustError(
                f"cannot read how far the ledger came, {self.mark}: {error}",
                code="ledger-unusable",
            ) from error
        if count >= len(links) or links[count] != link:
            raise self._damaged(
                f"it had {count} entries and now "
                + (f"has {len(links) - 1}" if count >= len(links) else "others")
                + ": it was restored from an older copy, or written anew"
            )

    def _set_aside(self, torn: bytes, size: int) -> None:
        """Cut ``torn`` off and record that; also what a kill during an earlier recovery left."""
        aside = self.path.with_suffix(".torn")
        if torn:
            durable.replace(aside, torn, mode=0o600)
            with durable.disk_errors(self.path):
                os.truncate(self.path, size)
        self._stamp = _stamp(self.path.stat())
        body = {"torn": digest(aside.read_bytes())} if aside.exists() else None
        if body and all(body != entry.body for entry in self._chains.get(LOCAL, ())):
            self.append(LOCAL, Kind.RECOVERY, body)

    def _damaged(self, what: str) -> TrustError:
        return TrustError(
            f"the ledger {self.path} is damaged: {what}",
            hint="restore the file as it was last written; do not edit it, and do not start anew",
            code="ledger-unusable",
        )


def read_federation(path: Path, federation: str) -> list[Entry]:
    """One federation's entries, as they stand in a ledger file; for publishing, without the secret.

    Raises:
        TrustError: a line is not a ledger line.
    """
    entries = []
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TrustError(f"cannot read the ledger {path}: {error.strerror}") from error
    for number, line in enumerate([*lines, torn] if torn else lines, start=1):
        try:
            entry, _ = _parse(line)
        except (CanonicalError, TrustError) as error:
            raise TrustError(f"{path}, line {number}: {error}") from error
        if entry.federation == federation:
            entries.append(entry)
    return entries


def _parse(line: bytes) -> tuple[Entry, str]:
    document = decode(line)
    if set(document) != {"entry", "link"} or not isinstance(document["link"], str):
        raise CanonicalError("not a ledger line")
    return Entry.from_json(document["entry"]), document["link"]


def _is_line(data: bytes) -> bool:
    try:
        _parse(data)
    except (CanonicalError, TrustError):
        return False
    return True


def _mark(entries: int, link: str) -> bytes:
    return encode({"entries": entries, "link": link})


def _read_mark(data: bytes) -> tuple[int, str]:
    document = decode(data)
    entries, link = document.get("entries"), document.get("link")
    if type(entries) is not int or entries < 0 or not isinstance(link, str):
        raise CanonicalError("not a mark")
    return entries, link


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _next_link(link: str, entry: Entry) -> str:
    return digest(f"privet/ledger-link/v1\n{link}\n{entry.digest}".encode())
