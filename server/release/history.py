"""What has this party signed already? A record beside its key, so that no version is signed twice.

The rule: what is to be signed is in the record, on disk, before a signature leaves the process. A
version of a role in one federation's repository belongs to the content that it was recorded with:
the same content again is fine, so that whoever was killed asks once more, and another is refused.
A release has the version that follows the last one recorded. Only a person says otherwise, by
naming the version, or the digest of what was never put in force. When metadata ends is no part of
its content: that is judged by itself, each time (:func:`server.release.roots.check_expiry`).

    KEYS/signed.json    what was signed, with this key's signature over it: 0600, replaced whole

What it cannot do: whoever deletes or restores the record has its key sign as if it had not signed
before. So what does not follow from the record needs a person's word, in that case too.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from common import durable
from common.canonical import MAX_DOCUMENT_BYTES, CanonicalError, Json, decode, digest, encode
from common.config import Table
from common.errors import InputError, PlanError, TrustError
from common.keys import KeyDirectory, PublicKey, SigningKey, b64
from server.release.roots import Role, parse, who_signed

SCHEMA_VERSION = 1
FILE = "signed.json"
STATEMENT, TARGETS, ROOT = ROLES = ("statement", "targets", "root")
_CONTEXT = b"privet/signing-history/v1\n"
_MOST = 2**53 - 1


@dataclass(frozen=True)
class Content:
    """What one signature is for.

    Args:
        role: ``statement``, ``targets`` or ``root``.
        version: >= 1, of the release or of the root.
        sha256: of what is signed, as canonical JSON without its ``expires``; hexadecimal.
    """

    role: str
    version: int
    sha256: str

    @classmethod
    def of(cls, metadata: Metadata[Role]) -> Content:
        """The content of targets or root metadata; TrustError if no record could hold it."""
        signed = metadata.signed
        document = signed.to_dict()
        del document["expires"]
        try:
            return cls(signed.type, signed.version, digest(encode(document)))
        except CanonicalError as error:
            raise TrustError(
                f"{signed.type} metadata that is not ours: {error}",
                hint="sign nothing; ask whoever drafted it",
            ) from error


def contents_signed(key: PublicKey, root: bytes, targets: bytes | None) -> list[Content]:
    """Of a change of keys, the contents that bear this key's signature."""
    found = []
    if who_signed(parse(root, Root), [key]):
        found.append(Content.of(parse(root, Root)))
    if targets is not None and who_signed(parse(targets, Targets), [key]):
        found.append(Content.of(parse(targets, Targets)))
    return found


@dataclass(frozen=True)
class Signed:
    """A content, and when it was recorded: UTC, ISO 8601."""

    content: Content
    time: str


@dataclass(frozen=True)
class Line:
    """One repository's record.

    Args:
        federations: fingerprints of the keys that sign its statements; the first, and to whom it
            was handed over.
        signed: in the order in which it was recorded.
    """

    federations: tuple[str, ...]
    signed: tuple[Signed, ...] = ()

    @property
    def versions(self) -> set[int]:
        """Of the targets that were recorded."""
        return {one.content.version for one in self.signed if one.content.role == TARGETS}

    @property
    def last(self) -> int:
        """The newest of them; 0: there is none."""
        return max(self.versions, default=0)

    def under(self, content: Content) -> Signed | None:
        """What was recorded last under this role and version."""
        found = [
            one
            for one in self.signed
            if (one.content.role, one.content.version) == (content.role, content.version)
        ]
        return found[-1] if found else None


class History:
    """The record of one key directory.

    Args:
        keys: the party's key directory.
        key: the party's key.
    """

    def __init__(self, keys: Path, key: SigningKey) -> None:
        self.path = keys / FILE
        self._keys, self._key = KeyDirectory(keys), key

    def line(self, federation: str) -> Line:
        """What was signed for this federation's repository; TrustError as :meth:`release`."""
        return _line(self._read(), federation)

    def check(
        self,
        federation: str,
        version: int,
        contents: Sequence[Content],
        named: int | None = None,
    ) -> None:
        """Whether a release of this version may be signed, as far as its contents are known yet.

        For whoever is about to verify it, which takes longer; refuses as :meth:`release`.
        """
        line = self.line(federation)
        _check_version(line, version, named)
        _fresh(line, contents, ())

    def release(
        self,
        federation: str,
        contents: Sequence[Content],
        now: datetime,
        named: int | None = None,
    ) -> None:
        """Record what a release is about to have signed; durable when it returns.

        Args:
            federation: fingerprint of the key that signs its statements.
            contents: of one version, that of the targets; a first root besides.
            now: aware date and time.
            named: the version, as a person who looked elsewhere names it; None: the next one.

        Raises:
            InputError: ``wrong-version``: the named version is another one.
            TrustError: ``signed-before``: another content has that version; ``version-jump``: it is
                not the next version, nor the named one; ``history-damaged``. Nothing changed.
            OperationError: the disk refused. Nothing changed.
        """
        (version,) = {one.version for one in contents if one.role == TARGETS}
        with durable.in_turn(self.path.parent):
            lines = self._read()
            line = _line(lines, federation)
            _check_version(line, version, named)
            self._write(lines, line, _fresh(line, contents, ()), now)

    def change(
        self,
        federation: str,
        contents: Sequence[Content],
        now: datetime,
        *,
        instead: Collection[str] = (),
        heir: str | None = None,
    ) -> None:
        """Record what a change of keys is about to have signed; durable when it returns.

        Its versions follow from what two parties signed, so they are not judged here.

        Args:
            federation: fingerprint of the key that signs the repository's statements until now.
            contents: root, and targets if this key signs any.
            now: aware date and time.
            instead: digests of contents that a person knows were never put in force.
            heir: fingerprint of the key that signs its statements from now on, if it is another.

        Raises:
            TrustError: ``signed-before``; ``other-federation``: the heir has a repository of its
                own already; ``history-damaged``. Nothing changed.
            OperationError: the disk refused. Nothing changed.
        """
        with durable.in_turn(self.path.parent):
            lines = self._read()
            line = _line(lines, federation)
            fresh = _fresh(line, contents, instead)
            if heir is not None and heir not in line.federations:
                if _line(lines, heir).signed:
                    raise TrustError(
                        f"{heir[:16]}… has a repository of its own, which this key signed",
                        hint="sign nothing; a repository is handed to a federation that is new",
                        code="other-federation",
                    )
                lines = [one for one in lines if heir not in one.federations]
                line = replace(line, federations=(*line.federations, heir))
            self._write(lines, line, fresh, now)

    # -- thin: the file ----------------------------------------------------------------------------

    def _write(
        self, lines: Sequence[Line], line: Line, fresh: Sequence[Content], now: datetime
    ) -> None:
        time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = replace(line, signed=(*line.signed, *(Signed(one, time) for one in fresh)))
        others = [one for one in lines if one.federations[0] != line.federations[0]]
        if line in lines:
            return
        document = {
            "schema_version": SCHEMA_VERSION,
            "key": self._key.public.fingerprint,
            "repositories": [_json(one) for one in (*others, line)],
        }
        signature = self._key.sign(_CONTEXT + encode(document))
        document["signature"] = base64.b64encode(signature).decode()
        self._keys.store(FILE, encode(document), again=True)

    def _read(self) -> list[Line]:
        if not self._keys.has(FILE):
            return []
        data = self._keys.read(FILE, most=MAX_DOCUMENT_BYTES)
        try:
            document = decode(data)
            signature = b64(document.pop("signature", None))
            if not self._key.public.verify(signature, _CONTEXT + encode(document)):
                raise TrustError("it is not signed by the key that lies beside it")
            return _parse(document)
        except (CanonicalError, PlanError, TrustError) as error:
            raise TrustError(
                f"{self.path}, which says what this key has signed, cannot be trusted: {error}",
                hint="restore it as it was last written; if it is lost, sign nothing more, and "
                "have the key replaced: privet release revoke",
                code="history-damaged",
            ) from error


def _line(lines: Sequence[Line], federation: str) -> Line:
    return next((one for one in lines if federation in one.federations), Line((federation,)))


def _check_version(line: Line, version: int, named: int | None) -> None:
    if named is not None and named != version:
        raise InputError(
            f"this proposal is of version {version}, and you named version {named}",
            hint="sign nothing; ask the coordinator which of the two it means",
            code="wrong-version",
        )
    if named is None and version not in line.versions and version != line.last + 1:
        raise _jump(line.last, version)


def _fresh(line: Line, contents: Sequence[Content], instead: Collection[str]) -> list[Content]:
    """Those that are not recorded yet; refuses another content under a version that is."""
    fresh = []
    for content in contents:
        there = line.under(content)
        if there is None:
            fresh.append(content)
        elif there.content != content:
            if there.content.sha256 not in instead:
                raise _before(there, content)
            fresh.append(content)
    return fresh


def _before(there: Signed, content: Content) -> TrustError:
    return TrustError(
        f"another {content.role} was signed here as version {content.version}, on {there.time}: "
        f"{there.content.sha256}, and this is {content.sha256}",
        hint="a version belongs to one content: have what was signed then published, or a release "
        "proposed with --version of the next number; for a change of keys, --instead DIGEST if "
        "you know that what was signed then was never put in force",
        code="signed-before",
    )


def _jump(last: int, version: int) -> TrustError:
    found = (
        f"version {last} was the last that was signed here"
        if last
        else "no release of this federation was signed here before"
    )
    return TrustError(
        f"{found}, so version {version} is not the next one: after too large a step nothing newer "
        "can be published",
        hint=f"sign nothing, unless a repository that you looked at yourself (privet release "
        f"status) or its coordinator shows why: then --version {version}",
        code="version-jump",
    )


def _json(line: Line) -> Json:
    return {
        "federations": list(line.federations),
        "signed": [
            {
                "role": one.content.role,
                "version": one.content.version,
                "sha256": one.content.sha256,
                "time": one.time,
            }
            for one in line.signed
        ],
    }


def _parse(document: Json) -> list[Line]:
    table = Table(document, source=FILE)
    table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
    table.text("key")
    lines = []
    for row in table.tables("repositories"):
        federations, signed = row.texts("federations", least=1), []
        for one in row.tables("signed"):
            content = Content(
                one.text("role", choices=ROLES),
                one.integer("version", low=1, high=_MOST),
                one.text("sha256"),
            )
            signed.append(Signed(content, one.text("time")))
            one.done()
        row.done()
        lines.append(Line(federations, tuple(signed)))
    table.done()
    return lines
