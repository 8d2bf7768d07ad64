"""Who is enrolled in this federation? Names, each bound to a pseudonym and two keys, for good.

The rules: one file, replaced as a whole, holds a line for every client that was ever enrolled and
ends in a digest of them all. Enrolling appends a line and revoking changes one; all others stay as
they are, byte for byte. A key, a pseudonym or an invitation that any line holds, revoked or not,
never enters again, so that which invitations were used is known from this file alone. It is read
again whenever it was replaced: what an operator decides holds from then on, without a restart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.enrolment import Join
from common.errors import InputError, TrustError
from common.keys import PublicKey
from common.ledger.entry import now as utc_now
from common.nodekey import NodePublicKey

SCHEMA_VERSION = 1
MAX_CLIENTS = 100_000
REGISTRY = "registry.jsonl"  # in a federation's directory
_FIELDS = ("name", "pseudonym", "ledger_key", "node_key", "invitation", "enrolled", "revoked")


@dataclass(frozen=True)
class Member:
    """An enrolled client: the name that it is known by, its pseudonym and ledger key here."""

    name: str
    pseudonym: str
    key: PublicKey


@dataclass(frozen=True)
class Enrolled:
    """One line: what is bound to a name.

    Args:
        name: what the client is called.
        pseudonym: what it is called in bundles.
        ledger_key: Ed25519, base64.
        node_key: PEM, as Flower registers it.
        invitation: id of the invitation it came with; "" if it came as a file.
        enrolled: when, UTC.
        revoked: when, UTC; "" while it is active.
    """

    name: str
    pseudonym: str
    ledger_key: str
    node_key: str
    invitation: str
    enrolled: str
    revoked: str = ""

    @property
    def active(self) -> bool:
        return not self.revoked

    @property
    def node_fingerprint(self) -> str:
        return NodePublicKey(self.node_key).fingerprint

    def member(self) -> Member:
        return Member(self.name, self.pseudonym, PublicKey.from_text(self.ledger_key))

    def line(self) -> bytes:
        return encode(asdict(self)) + b"\n"

    def binds(self, join: Join) -> bool:
        """Whether this line is the answer to exactly this request."""
        names = ("name", "pseudonym", "ledger_key", "node_key", "invitation")
        return all(getattr(self, name) == getattr(join, name) for name in names)


class Registry:
    """The file of who is enrolled.

    Args:
        path: the file; a missing one is an empty registry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: tuple[int, ...] | None = None
        self._entries: tuple[Enrolled, ...] = ()
        self._members: dict[str, Member] = {}
        self._node_keys: Mapping[bytes, str] = {}

    # -- reading -------------------------------------------------------------------------------

    def entries(self) -> tuple[Enrolled, ...]:
        """Everybody who was ever enrolled, in that order.

        Raises:
            TrustError: ``registry-damaged``.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            if self._version is not None:
                raise self._damaged("it is gone") from None
            return ()
        except OSError as error:
            raise self._damaged(error.strerror or "it cannot be read") from error
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version != self._version:
            try:
                self._entries = self._read()
            except OSError as error:
                raise self._damaged(error.strerror or "it cannot be read") from error
            active = [entry for entry in self._entries if entry.active]
            self._members = {entry.name: entry.member() for entry in active}
            self._node_keys = {entry.node_key.encode(): entry.name for entry in active}
            self._version = version
        return self._entries

    def active(self) -> dict[str, Enrolled]:
        """Who may take part now, by name."""
        return {entry.name: entry for entry in self.entries() if entry.active}

    def members(self) -> dict[str, Member]:
        """Who may take part now, as a run knows them."""
        self.entries()
        return dict(self._members)

    def node_keys(self) -> Mapping[bytes, str]:
        """The node key (PEM) of everybody who may connect now, to the name it is bound to.

        The same object as long as the file is the same, so asking at each request costs a look.
        """
        self.entries()
        return self._node_keys

    def counts(self, member: Member) -> bool:
        """Whether this member of a run may still take part, with this very key."""
        self.entries()
        return self._members.get(member.name) == member

    def used(self, invitation: str) -> Enrolled | None:
        """Who came with this invitation."""
        found = [entry for entry in self.entries() if entry.invitation == invitation]
        return found[0] if invitation and found else None

    # -- changing ------------------------------------------------------------------------------

    def enrol(self, join: Join, moment: str | None = None) -> Enrolled:
        """Bind a verified request's keys to its name; the same request again changes nothing.

        Raises:
            TrustError: ``invitation-used``, ``name-taken``, ``key-known`` or ``revoked``.
            OperationError: the disk refused; nobody was added.
        """
        with self._changing() as entries:
            for entry in entries:
                if entry.binds(join):
                    if entry.active:
                        return entry
                    raise TrustError(
                        f"{join.name} was revoked at {entry.revoked}",
                        hint="ask the operator for a new invitation, and use new keys",
                        code="revoked",
                    )
            _check_new(entries, join)
            if len(entries) >= MAX_CLIENTS:
                raise InputError(f"{MAX_CLIENTS} clients were enrolled, the most there can be")
            entry = Enrolled(
                name=join.name,
                pseudonym=join.pseudonym,
                ledger_key=join.ledger_key,
                node_key=join.node_key,
                invitation=join.invitation,
                enrolled=moment or utc_now(),
            )
            self._write([*entries, entry])
            return entry

    def revoke(self, name: str, moment: str | None = None) -> Enrolled:
        """End a client's part, for good: its keys never come back.

        Raises:
            InputError: ``not-enrolled``.
        """
        with self._changing() as entries:
            found = [i for i, entry in enumerate(entries) if entry.name == name and entry.active]
            if not found:
                raise InputError(
                    f"no client {name!r} is enrolled",
                    hint="privet server nodes lists who is",
                    code="not-enrolled",
                )
            revoked = replace(entries[found[0]], revoked=moment or utc_now())
            self._write([*entries[: found[0]], revoked, *entries[found[0] + 1 :]])
            return revoked

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Enrolled]]:
        with durable.in_turn(self.path.parent):
            yield list(self.entries())

    def _write(self, entries: list[Enrolled]) -> None:
        lines = b"".join(entry.line() for entry in entries)
        last = {"schema_version": SCHEMA_VERSION, "clients": len(entries), "sha256": digest(lines)}
        durable.replace(self.path, lines + encode(last) + b"\n", mode=0o600)

    def _read(self) -> tuple[Enrolled, ...]:
        with open(self.path, "rb") as file:
            data = file.read()
        *lines, last, end = data.split(b"\n") if data.count(b"\n") else (b"", b"no end")
        try:
            trailer = decode(last)
        except CanonicalError as error:
            raise self._damaged(str(error)) from error
        body = data[: len(data) - len(last) - 1]
        expected = {
            "schema_version": SCHEMA_VERSION,
            "clients": len(lines),
            "sha256": digest(body),
        }
        if end or trailer != expected:
            raise self._damaged("its digest is wrong")
        return tuple(self._line(line) for line in lines)

    def _line(self, line: bytes) -> Enrolled:
        try:
            document: Json = decode(line)
        except CanonicalError as error:
            raise self._damaged(str(error)) from error
        if set(document) != set(_FIELDS) or not all(isinstance(v, str) for v in document.values()):
            raise self._damaged("a line has other fields")
        return Enrolled(**document)

    def _damaged(self, why: str) -> TrustError:
        return TrustError(
            f"the registry {self.path} is damaged: {why}",
            hint="restore the file; nobody can be let in without knowing who was revoked",
            code="registry-damaged",
        )


def _check_new(entries: list[Enrolled], join: Join) -> None:
    for entry in entries:
        if join.invitation and entry.invitation == join.invitation:
            raise TrustError(
                "this invitation was used",
                hint="an invitation is for one client; ask the operator for another one",
                code="invitation-used",
            )
        if entry.active and entry.name == join.name:
            raise TrustError(
                f"there is a client {join.name!r} with other keys",
                hint="revoke it first, or choose another name",
                code="name-taken",
            )
    for entry in entries:
        if (
            entry.ledger_key == join.ledger_key
            or entry.node_key == join.node_key
            or entry.pseudonym == join.pseudonym
        ):
            raise TrustError(
                f"{join.name} asks with a key that is bound to {entry.name!r}",
                hint="each client has keys of its own, and a revoked key never comes back",
                code="key-known",
            )
