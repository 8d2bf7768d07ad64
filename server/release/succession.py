"""How does one key take another's place? A change that parties sign where their keys are.

The rules: a new root is signed by two of the former keys and by two of the new ones, and by the
new key itself, which shows that somebody holds it. When a key is *rotated* its holder signs too, so
that what is published is believed under both roots at each moment; when it is *revoked* nothing
that it signs counts, and the two that remain do. What is published is signed anew with it, the same
files and no other. Whoever signs reads the change as hostile, and brings a root of this repository
that it trusts: a change that began elsewhere could replace the other keys too.

    CHANGE/  1.root.json, 2.root.json, ...      every root so far, each followed by the next
             root.json                          the one that follows now
             former-targets.json, targets.json  what is published, and the same signed anew
             change.json                        written last
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from common import durable
from common.canonical import CanonicalError, decode, encode
from common.carried import Carried
from common.config import Table
from common.errors import InputError, TrustError
from common.keys import PublicKey, SigningKey
from server.release.published import Published
from server.release.repository import Repository, as_next
from server.release.roots import (
    COORDINATOR,
    PARTIES,
    RECOVERY,
    Role,
    Roles,
    check_expiry,
    draft_root,
    parse,
    require,
    roles_in,
    sign,
    tuf_key,
    verified_chain,
    who_signed,
)

SCHEMA_VERSION = 1
CHANGE = "change.json"
MAX_BYTES = 20_000_000  # of a change: targets twice, 5 MB each in TUF's client, and roots
MAX_ROOTS = 1024
_FILES = ("root.json", "former-targets.json", "targets.json")


@dataclass(frozen=True)
class Change:
    """One party's key is replaced by another. Made by :func:`draft`, or read from a directory.

    Args:
        party: ``coordinator``, ``approver`` or ``recovery``.
        revoked: the former key counts no more from now on; else its holder takes part.
        roots: every root metadata so far, from the first.
        root: the next.
        published, targets: targets metadata as published, and the same as the next version; both
            None if nothing is published, or the recovery key changes, which signs no targets.

    Raises:
        TrustError: it says one thing and does another.
    """

    party: str
    revoked: bool
    roots: tuple[bytes, ...]
    root: bytes
    published: bytes | None = None
    targets: bytes | None = None

    def __post_init__(self) -> None:
        old, new = verified_chain(self.roots)[-1], parse(self.root, Root)
        if new.signed.version != old.version + 1:
            raise _crooked("the new root is not the former one's next version")
        before, after = self.before, self.after
        different = [party for party in PARTIES if before.keys[party] != after.keys[party]]
        if different != [self.party]:
            raise _crooked(f"it changes the keys of {', '.join(different) or 'nobody'}")
        may = self.revoked and self.party == COORDINATOR and after.federation is None
        if self.speaks and not may:
            raise _crooked("it lets another key sign statements")
        if self.revoked and self.old in after.known:
            raise _crooked("it revokes a key, and goes on naming it")
        self._check_targets(old)

    def _check_targets(self, old: Root) -> None:
        if self.published is None or self.targets is None:
            if self.published is not self.targets:
                raise _crooked("one of two targets metadata is missing")
            return
        published, again = parse(self.published, Targets), parse(self.targets, Targets)
        require(old, published)
        if again.signed != as_next(self.published, again):
            raise _crooked("it publishes something else than what is published")

    @property
    def former(self) -> bytes:
        """The newest root so far."""
        return self.roots[-1]

    @cached_property
    def before(self) -> Roles:
        return roles_in(self.former)

    @cached_property
    def after(self) -> Roles:
        return roles_in(self.root)

    @property
    def old(self) -> PublicKey:
        return self.before.keys[self.party]

    @property
    def new(self) -> PublicKey:
        return self.after.keys[self.party]

    @property
    def speaks(self) -> bool:
        """Whether the new key signs privacy statements from now on: another federation's does."""
        return self.after.speaker != self.before.speaker

    @property
    def version(self) -> int:
        """Of the new root."""
        return int(parse(self.root, Root).signed.version)

    def files(self) -> dict[str, str]:
        """What stays published: file name to SHA-256."""
        if self.targets is None:
            return {}
        targets = parse(self.targets, Targets).signed.targets
        return {
            name: str(target.hashes.get("sha256", "")) for name, target in sorted(targets.items())
        }

    def check_began(self, trusted: bytes) -> None:
        """Refuse a change of another repository than the one that this root is of.

        Args:
            trusted: any root that the signing party got by a way that it trusts.

        Raises:
            TrustError: ``another-repository``.
        """
        known = parse(trusted, Root).signed
        there = self.roots[known.version - 1 :][:1] if known.version > 0 else ()
        if not there or parse(there[0], Root).signed != known:
            raise TrustError(
                "this change is not of the repository that the root you trust belongs to, or is "
                "older than that root",
                hint="sign nothing; ask whoever drafted it, and compare 1.root.json",
                code="another-repository",
            )

    # -- signatures ------------------------------------------------------------------------------

    def signed_by(self, key: SigningKey, now: datetime) -> Change:
        """The same with this party's signatures, wherever they count.

        Raises:
            TrustError: ``not-asked``: this key signs nothing here; ``wrong-expiry``.
        """
        self._check_expiry(now)
        roots, targets = self._wanted()
        if key.public not in roots | targets:
            raise TrustError(
                f"{key.public.fingerprint[:16]}… has nothing to sign in this change",
                hint="`privet release keys` shows whose keys count",
                code="not-asked",
            )
        root, again = parse(self.root, Root), self.targets
        if key.public in roots:
            sign(root, [key])
        if again is not None and key.public in targets:
            metadata = parse(again, Targets)
            sign(metadata, [key])
            again = metadata.to_bytes()
        return replace(self, root=root.to_bytes(), targets=again)

    def _check_expiry(self, now: datetime) -> None:
        check_expiry(parse(self.root, Root).signed, now)
        if self.targets is not None:
            check_expiry(parse(self.targets, Targets).signed, now)

    def joined(self, other: Change) -> Change:
        """The same change with another copy's signatures too.

        Raises:
            TrustError: ``another-change``: it is not the same.
        """
        if (other.party, other.revoked, other.roots) != (self.party, self.revoked, self.roots):
            raise _another()
        keys = [*self.before.known, *self.after.known]
        root = _joined(parse(self.root, Root), parse(other.root, Root), keys)
        targets = self.targets
        if targets is not None and other.targets is not None:
            targets = _joined(parse(targets, Targets), parse(other.targets, Targets), keys)
        elif targets is not other.targets:
            raise _another()
        return replace(self, root=root, targets=targets)

    def missing(self) -> list[str]:
        """Who has still to sign, in words; empty: it can be committed."""
        root = parse(self.root, Root)
        before, after = self.before, self.after
        former = [key for key in before.keys.values() if not (self.revoked and key == self.old)]
        has = who_signed(root, [*former, self.new])
        found = []
        if self.new not in has:
            found.append(f"the new {self.party} ({_short(self.new)}), to show that it has its key")
        if len(has & set(former)) < 2:
            lacking = [f"{name} ({_short(key)})" for name, key in before.keys.items()
                       if key in former and key not in has]  # fmt: skip
            found.append(f"{2 - len(has & set(former))} of {', '.join(lacking)}, for the root")
        if len(has & set(after.keys.values())) < 2:
            lacking = [f"{name} ({_short(key)})" for name, key in after.keys.items()
                       if key not in has]  # fmt: skip
            found.append(f"one more of {', '.join(lacking)}, for the root")
        if self.targets is not None:
            targets, wanted = parse(self.targets, Targets), self._wanted()[1]
            signers = who_signed(targets, sorted(wanted, key=lambda key: key.fingerprint))
            found += [f"{name} ({_short(key)}), for what is published" for name, key in
                      self._names(wanted - signers)]  # fmt: skip
        return found

    def _wanted(self) -> tuple[set[PublicKey], set[PublicKey]]:
        """Whose signatures count: on the root, on targets."""
        before, after = self.before, self.after
        roots = {*before.keys.values(), self.new}
        targets = {after.coordinator, after.approver}
        if self.revoked:
            roots -= {self.old}
        else:
            targets |= {before.coordinator, before.approver}
        return roots, targets if self.targets is not None else set()

    def _names(self, keys: Iterable[PublicKey]) -> list[tuple[str, PublicKey]]:
        named = {key: party for party, key in self.before.keys.items()}
        named[self.new] = f"new {self.party}"
        return sorted((named[key], key) for key in keys)

    # -- the end ---------------------------------------------------------------------------------

    def commit(self, repository: Repository, keys: Sequence[SigningKey], now: datetime) -> None:
        """Put it in force. After a kill the same call finishes what it began.

        Args:
            keys: the coordinator's, former and new, as far as they are here.

        Raises:
            TrustError: ``signatures-missing`` names who has still to sign; ``root-moved``: another
                root or release came in between. Nothing was written.
        """
        if missing := self.missing():
            raise TrustError(
                f"this change of keys is not signed by {'; '.join(missing)}",
                hint="privet release sign, by each of them",
                code="signatures-missing",
            )
        self._check_expiry(now)
        wanted = {self.after.coordinator} | (set() if self.revoked else {self.before.coordinator})
        online = [key for key in keys if key.public in wanted]
        repository.follow(self.former, self.root, self.targets, online, now, last=not self.revoked)

    # -- a directory that people carry -----------------------------------------------------------

    def write(self, path: Path) -> None:
        with durable.disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        data = {_root_file(number): root for number, root in enumerate(self.roots, 1)}
        rest = dict(zip(_FILES, (self.root, self.published, self.targets), strict=True))
        for name, content in (data | rest).items():
            if content is not None:
                durable.replace(path / name, content)
        document = {"schema_version": SCHEMA_VERSION, "party": self.party, "revoked": self.revoked}
        durable.replace(path / CHANGE, encode(document))

    @classmethod
    def read(cls, path: Path) -> Change:
        """Read a change from an untrusted directory.

        Raises:
            InputError: ``no-change``.
            TrustError: it is malformed, or says one thing and does another.
        """
        files = Carried(path, MAX_BYTES)
        try:
            table = Table(decode(files.read(CHANGE)), source=str(path / CHANGE))
            roots: list[bytes] = []
            while len(roots) < MAX_ROOTS and files.has(_root_file(len(roots) + 1)):
                roots.append(files.read(_root_file(len(roots) + 1)))
            root = files.read(_FILES[0])
            published, targets = (
                files.read(name) if files.has(name) else None for name in _FILES[1:]
            )
        except (OSError, CanonicalError) as error:
            raise InputError(
                f"{path} holds no change of keys: {error}",
                hint="privet release rotate and privet release revoke make one",
                code="no-change",
            ) from error
        table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
        party, revoked = table.text("party", choices=PARTIES), table.flag("revoked")
        table.done()
        return cls(party, revoked, tuple(roots), root, published, targets)


def draft(
    repository: Published,
    party: str,
    new: PublicKey,
    now: datetime,
    *,
    revoked: bool = False,
    speaks: bool = False,
) -> Change:
    """An unsigned change; writes nothing, and works on any whole copy of the repository.

    From a copy without what is published comes a change that cannot be put in force.

    Args:
        party: whose key is replaced: ``coordinator``, ``approver`` or ``recovery``.
        new: the key that takes its place.
        revoked: the former one was lost or stolen.
        speaks: a revoked coordinator's new key is another federation's, and signs statements too.

    Raises:
        InputError: the new key is one that the repository knows.
        TrustError: what is there does not verify.
    """
    roots = tuple(repository.roots())
    before = roles_in(roots[-1])
    if new in before.known:
        raise InputError(
            f"{_short(new)} is a key of this repository already",
            hint="the new key has to be new: make one in another key directory",
            code="same-key",
        )
    if revoked and party == COORDINATOR and before.federation is None and not speaks:
        raise InputError(
            "the coordinator's key here is the federation's own: whoever has stolen it is the "
            "federation, to clients too",
            hint="found another federation, and name its key with --key",
            code="federation-key",
        )
    after = before.succeeded(party, new, speaks=speaks)
    root = draft_root(after, now, repository.expiry, version=len(roots) + 1)
    published = None if party == RECOVERY else repository.targets
    targets = None
    if published is not None:
        again = parse(published, Targets)
        again.signed.expires = now + repository.expiry.targets
        targets = Metadata(as_next(published, again)).to_bytes()
    return Change(party, revoked, roots, root, published, targets)


def _joined(metadata: Metadata[Role], other: Metadata[Role], keys: Sequence[PublicKey]) -> bytes:
    """With the other copy's signatures, as far as they are valid: no other may take one's place."""
    if metadata.signed_bytes != other.signed_bytes:
        raise _another()
    for key in who_signed(other, keys):
        metadata.signatures[tuf_key(key).keyid] = other.signatures[tuf_key(key).keyid]
    return metadata.to_bytes()


def _root_file(version: int) -> str:
    return f"{version}.root.json"


def _short(key: PublicKey) -> str:
    return f"{key.fingerprint[:16]}…"


def _crooked(why: str) -> TrustError:
    return TrustError(
        f"this is not the change of keys that it claims to be: {why}",
        hint="sign nothing; ask whoever drafted it",
        code="crooked-change",
    )


def _another() -> TrustError:
    return TrustError(
        "these are copies of different changes",
        hint="bring the copies of one draft",
        code="another-change",
    )
