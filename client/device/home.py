"""A device's own directory: what its owner decided, whom it trusts, and where its models lie.

The rule: the policy and the root of trust are written once, at enrolment, from outside of any
repository; an update never touches them. A key is trusted by its fingerprint in the policy, so it
does not matter which file its bytes were found in.

    policy.json        the device owner's terms
    root.json          the TUF root that this device was enrolled with
    tuf/               TUF metadata that verified: what this device has seen
    slots/a  slots/b   two places for a release; one is current
    current.json       which slot, and the digest of every file in it
    decisions.jsonl    every model that was accepted or refused, and why
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode_lenient, encode, number
from common.config import Table
from common.errors import InputError, OperationError, PlanError, TrustError
from common.keys import PublicKey

SCHEMA_VERSION = 1
STAGING = ".staging-"
GREATEST_EPSILON = 1000.0

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class DevicePolicy:
    """What the owner of a device lets run on it.

    Args:
        greatest_epsilon: of the headline epsilon that a release states, in (0, 1000].
        greatest_delta: of its delta, in (0, 1).
        signers: fingerprints of the keys that may sign a privacy statement.
        repository: ``https://…``, ``http://…`` or a directory; a relative one starts at the
            device's own directory.
        threshold: how many different ``signers`` a statement needs, >= 1.
        accept_simulated: also run models whose noise was repeatable or whose data were nobody's.

    Raises:
        PlanError: a value is out of range.
    """

    greatest_epsilon: float
    greatest_delta: float
    signers: tuple[str, ...]
    repository: str
    threshold: int = 2
    accept_simulated: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.greatest_epsilon <= GREATEST_EPSILON and 0 < self.greatest_delta < 1):
            raise PlanError(
                f"greatest_epsilon = {self.greatest_epsilon:g} and greatest_delta = "
                f"{self.greatest_delta:g} must be in (0, {GREATEST_EPSILON:g}] and (0, 1)"
            )
        for fingerprint in self.signers:
            if not _FINGERPRINT.fullmatch(fingerprint):
                raise PlanError(
                    f"a fingerprint is 64 hexadecimal digits, not {fingerprint!r:.80}",
                    hint="it is the SHA-256 of a public key; ask its holder to read it out",
                )
        if not 1 <= self.threshold <= len(set(self.signers)):
            raise PlanError(
                f"{self.threshold} signatures cannot come from {len(set(self.signers))} signers"
            )
        if "://" in self.repository and not self.repository.startswith(("https://", "http://")):
            raise PlanError(
                f"repository = {self.repository!r} is not https, http or a directory",
                hint="name an address such as https://models.example.org or a directory",
            )

    def encode(self) -> bytes:
        return encode(self.json())

    def json(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "greatest_epsilon": number(self.greatest_epsilon),
            "greatest_delta": number(self.greatest_delta),
            "signers": list(self.signers),
            "repository": self.repository,
            "threshold": self.threshold,
            "accept_simulated": self.accept_simulated,
        }

    @classmethod
    def read(cls, table: Table) -> DevicePolicy:
        """Read a device's policy; :class:`PlanError` names the key that is wrong."""
        policy = cls(
            greatest_epsilon=table.number("greatest_epsilon", above=0, high=GREATEST_EPSILON),
            greatest_delta=table.number("greatest_delta", above=0, below=1),
            signers=table.texts("signers", least=1, most=16),
            repository=table.text("repository"),
            threshold=table.integer("threshold", 2, low=1, high=16),
            accept_simulated=table.flag("accept_simulated", False),
        )
        table.done()
        return policy

    @classmethod
    def decode(cls, data: bytes, source: str = "policy.json") -> DevicePolicy:
        """Read ``policy.json``, which a person may have edited."""
        try:
            table = Table(decode_lenient(data), source=source, json_numbers=True)
        except CanonicalError as error:
            raise PlanError(f"{source} is not a device policy: {error}") from error
        if table.integer("schema_version", low=1, high=10**6) != SCHEMA_VERSION:
            raise PlanError(f"{source} is of another schema version")
        return cls.read(table)


class DeviceHome:
    """The directory of one device.

    Args:
        path: made by :meth:`init`.

    Raises:
        InputError: it was not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tuf = path / "tuf"
        self.slots = path / "slots"
        self.current = path / "current.json"
        self.decisions = path / "decisions.jsonl"
        if not (path / "policy.json").is_file():
            raise InputError(
                f"there is no device at {path}",
                hint="enrol one here first, or name the directory of one",
                code="no-device",
            )

    @classmethod
    def init(cls, path: Path, root: bytes, policy: DevicePolicy) -> DeviceHome:
        """Enrol a device into an empty or new directory.

        Args:
            root: TUF root metadata that came from somewhere else than the repository.

        Raises:
            TrustError: ``root`` is not root metadata that its own keys sign.
            InputError: the directory holds something else.
        """
        _check_root(root)
        if path.exists() and not _is_free(path, root):
            raise InputError(
                f"{path} is not an empty directory",
                hint="name a new directory; a device never takes one over",
                code="not-empty",
            )
        with durable.disk_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.sweep(path)
            for folder in _FOLDERS:
                (path / folder).mkdir(parents=True, exist_ok=True)
            durable.sync_directory(path)
            durable.sync_directory(path / "slots")
        durable.replace(path / "root.json", root)
        durable.replace(path / "policy.json", policy.encode())  # last: from here on it is a device
        return cls(path)

    @property
    def policy(self) -> DevicePolicy:
        """The owner's terms, read afresh: a stricter policy holds from the next call on."""
        file = self.path / "policy.json"
        return DevicePolicy.decode(file.read_bytes(), str(file))

    @cached_property
    def root(self) -> bytes:
        """The root metadata of enrolment."""
        return (self.path / "root.json").read_bytes()

    def keys(self) -> tuple[PublicKey, ...]:
        """Public keys found in the enrolled root and its successors.

        None of them is trusted for being here: a policy's fingerprint is what chooses one.
        """
        history = sorted((self.tuf / "root_history").glob("*.root.json"))
        found: dict[PublicKey, None] = {}
        for data in (self.root, *(file.read_bytes() for file in history)):
            found.update(dict.fromkeys(_keys_of(data)))
        return tuple(found)

    def repository(self) -> str | Path:
        """Where releases come from: an address, or a directory."""
        location = self.policy.repository
        return location if "://" in location else self.path / location

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time change this directory, and clear what a killed one left."""
        busy = OperationError(
            f"another process is updating {self.path}", hint="wait until it is done", code="locked"
        )
        with durable.exclusively(self.path, busy):
            self._sweep()
            yield

    def _sweep(self) -> None:
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            durable.sweep(folder)
        for leftover in self.path.glob(f"{STAGING}*"):
            shutil.rmtree(leftover)


_FOLDERS = ("slots/a", "slots/b", "tuf/root_history", "tuf")


def _is_free(path: Path, root: bytes) -> bool:
    """Whether ``path`` holds nothing but what a killed :meth:`DeviceHome.init` leaves behind."""
    if not path.is_dir():
        return False
    files = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    return all(
        file.suffix == ".tmp" or (file == path / "root.json" and file.read_bytes() == root)
        for file in files
    )


def _check_root(data: bytes) -> None:
    # Here and not above: predicting needs none of it, and it is a fifth of what a start takes.
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

    try:
        metadata: Metadata[Root] = Metadata.from_bytes(data)
        if not isinstance(metadata.signed, Root):
            raise TrustError("this is TUF metadata, but not a root")
        metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise TrustError(
            f"this is not a TUF root that its own keys sign: {error}",
            hint="obtain the root again, from somebody you trust, not from the repository",
        ) from error


def _keys_of(data: bytes) -> Iterator[PublicKey]:
    """The Ed25519 keys in root metadata; nothing from a damaged file."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, TrustError):
        for key in json.loads(data)["signed"]["keys"].values():
            if key["keytype"] == "ed25519":
                yield PublicKey(bytes.fromhex(key["keyval"]["public"]))
