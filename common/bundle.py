"""What is published for auditors? Signed files, and a manifest that lists all of them.

The rules: a bundle holds one federation's entries and nothing else of a client's ledger, under a
pseudonym that means nothing in another federation. It holds no client's name, no data set's name,
no accuracy. The keys in it are a convenience: they prove nothing until somebody brings their
fingerprints.

    bundle.json             manifest: the keys, and the SHA-256 of every other file
    plan.dsse.json          the plan, signed by the coordinator
    statement.dsse.json     the privacy statement, signed by coordinator and approver
    ledgers/PSEUDONYM.jsonl one client's entries for this federation, one canonical line each
    heads/PSEUDONYM.note    how far the coordinator saw that ledger: a note that both signed
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.errors import InputError, TrustError
from common.keys import PublicKey
from common.ledger.entry import Entry, verify_chain

SCHEMA_VERSION = 2
MANIFEST, PLAN, STATEMENT = "bundle.json", "plan.dsse.json", "statement.dsse.json"
LEDGERS, HEADS = "ledgers", "heads"
SIGNERS = ("coordinator", "approver")
MAX_FILE_BYTES = 64 * 2**20
_PSEUDONYM = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. Reading one checks its form, digests and chains; whether its keys are to
    be believed is for ``audit``.

    Args:
        plan, statement: DSSE envelopes as bytes.
        signers: role to public key, as the bundle claims.
        clients: pseudonym to public key, as the bundle claims.
        ledgers: pseudonym to entries, oldest first.
        heads: pseudonym to signed note, for every client that the coordinator had a receipt of.
    """

    plan: bytes
    statement: bytes
    signers: Mapping[str, PublicKey]
    clients: Mapping[str, PublicKey]
    ledgers: Mapping[str, Sequence[Entry]]
    heads: Mapping[str, bytes]

    def write(self, path: Path) -> None:
        """Write all files, the manifest last: a directory without one is not a bundle."""
        files = {PLAN: self.plan, STATEMENT: self.statement}
        for pseudonym, entries in self.ledgers.items():
            files[f"{LEDGERS}/{pseudonym}.jsonl"] = ledger_bytes(entries)
        for pseudonym, note in self.heads.items():
            files[f"{HEADS}/{pseudonym}.note"] = note
        with durable.disk_errors(path):
            for directory in (LEDGERS, HEADS):
                (path / directory).mkdir(parents=True, exist_ok=True)
        for folder in (path, path / LEDGERS, path / HEADS):  # a reader refuses any other file
            durable.sweep(folder)
        for name, data in files.items():
            durable.replace(path / name, data)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "signers": {role: key.text() for role, key in self.signers.items()},
            "clients": {name: key.text() for name, key in self.clients.items()},
            "files": {name: digest(data) for name, data in files.items()},
        }
        durable.replace(path / MANIFEST, encode(manifest))

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read a bundle from an untrusted directory.

        Raises:
            InputError: there is no bundle there.
            TrustError: a file is missing, added, altered, too large or malformed; names it.
        """
        try:
            is_bundle = (path / MANIFEST).is_file()
        except OSError:  # a name that no file can have
            is_bundle = False
        if not is_bundle:
            raise InputError(
                f"{path} is not a bundle: it holds no {MANIFEST}",
                hint="name the bundle/ directory of a run",
                code="no-bundle",
            )
        data = _read(path, MANIFEST)
        try:
            manifest = decode(data)
            signers = _keys(manifest, "signers")
            clients = _keys(manifest, "clients")
            files = _files(manifest)
        except (CanonicalError, TrustError) as error:
            raise TrustError(f"{MANIFEST}: {error}") from error
        expected = {PLAN, STATEMENT, *(f"{LEDGERS}/{name}.jsonl" for name in clients)}
        notes = {name: f"{HEADS}/{name}.note" for name in clients}
        notes = {name: file for name, file in notes.items() if file in files}
        if set(files) != expected | set(notes.values()) or set(signers) != set(SIGNERS):
            raise TrustError(f"{MANIFEST} lists other files or signers than a bundle has")
        _no_strangers(path, set(files) | {MANIFEST})
        contents = {name: _read(path, name) for name in sorted(files)}
        # Ledgers first: a chain can name the entry that is wrong, a file's digest cannot.
        ledgers = {
            name: read_ledger(name, contents[f"{LEDGERS}/{name}.jsonl"], key)
            for name, key in clients.items()
        }
        for name, data in contents.items():
            if digest(data) != files[name]:
                raise TrustError(f"{name} is not the file that the manifest lists")
        heads = {name: contents[file] for name, file in notes.items()}
        return cls(contents[PLAN], contents[STATEMENT], signers, clients, ledgers, heads)


@dataclass(frozen=True)
class Trust:
    """Fingerprints from outside of a bundle: whose signatures count.

    Args:
        signers: role (``coordinator``, ``approver``) to fingerprint.
        clients: pseudonym to fingerprint.
    """

    signers: Mapping[str, str]
    clients: Mapping[str, str]

    def write(self, path: Path) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "signers": dict(self.signers),
            "clients": dict(self.clients),
        }
        durable.replace(path, encode(document))

    @classmethod
    def read(cls, path: Path) -> Trust:
        """Read a trust file; :class:`InputError` if it is missing or malformed."""
        try:
            document = decode(path.read_bytes())
            if set(document) != {"schema_version", "signers", "clients"}:
                raise CanonicalError("it has other fields than a trust file")
            _check_version(document)
            signers, clients = document["signers"], document["clients"]
            for group in (signers, clients):
                if not isinstance(group, dict) or not all(
                    isinstance(value, str) and _HEX64.fullmatch(value) for value in group.values()
                ):
                    raise CanonicalError("a fingerprint is 64 hexadecimal digits")
            if set(signers) != set(SIGNERS):
                raise CanonicalError(f"it names other signers than {', '.join(SIGNERS)}")
        except (OSError, CanonicalError) as error:
            raise InputError(
                f"cannot use the trust file {path}: {error}",
                hint="it comes from whoever runs the federation, by another way than the bundle",
                code="bad-trust-file",
            ) from error
        return cls(signers, clients)


def _read(path: Path, name: str) -> bytes:
    file = path / name
    try:
        if file.is_symlink() or not file.is_file():
            raise TrustError(f"{name} is missing, or is not a plain file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise TrustError(f"{name} is over {MAX_FILE_BYTES} bytes")
        return file.read_bytes()
    except OSError as error:
        raise TrustError(f"cannot read {name}: {error.strerror}") from error


def _keys(manifest: Json, field: str) -> dict[str, PublicKey]:
    value = manifest.get(field)
    if not isinstance(value, dict):
        raise CanonicalError(f"{field} is not an object")
    for name in value:
        if field == "clients" and not _PSEUDONYM.fullmatch(name):
            raise CanonicalError("a client is not named by a pseudonym")
    return {name: PublicKey.from_text(text) for name, text in value.items()}


def _files(manifest: Json) -> dict[str, str]:
    value = manifest.get("files")
    if set(manifest) != {"schema_version", "signers", "clients", "files"}:
        raise CanonicalError("other fields than a manifest has")
    _check_version(manifest)
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CanonicalError("files is not an object of digests")
    return value


def _no_strangers(path: Path, expected: set[str]) -> None:
    for directory in (LEDGERS, HEADS):
        if (path / directory).is_symlink():
            raise TrustError(f"{directory} is a link, not a directory")
    present = {item.relative_to(path).as_posix() for item in path.rglob("*")}
    if strangers := sorted(present - expected - {LEDGERS, HEADS}):
        raise TrustError(f"{strangers[0]} is not listed in {MANIFEST}")


def _check_version(document: Json) -> None:
    version = document["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise CanonicalError("another schema version")


def ledger_bytes(entries: Sequence[Entry]) -> bytes:
    """Entries as a ledger file of a bundle."""
    return b"".join(entry.line + b"\n" for entry in entries)


def read_ledger(name: str, data: bytes, key: PublicKey) -> list[Entry]:
    """A ledger file's entries, their order, links and signatures checked.

    Raises:
        TrustError: names the ledger, and the entry.
    """
    entries: list[Entry] = []
    try:
        *lines, rest = data.split(b"\n")
        for line in lines:
            entries.append(Entry.from_json(decode(line)))  # noqa: PERF401  (its length names the line)
        if rest:
            raise TrustError("its line does not end")
    except (CanonicalError, TrustError) as error:
        raise TrustError(f"ledger {name[:12]}…, entry {len(entries)}: {error}") from error
    try:
        verify_chain(entries, key)
    except TrustError as error:
        raise TrustError(f"ledger {name[:12]}…, {error}") from error
    return entries
