"""A device's own directory: what its owner decided, whom it trusts, and where its models lie.

The rule: the policy and the root of trust are written at enrolment, from outside of any repository,
and changed by their owner alone; an update never touches them. A key is trusted by its fingerprint
in the policy, so it does not matter which file its bytes were found in. What must outlive this
directory, or must not leave with a copy of it, lies in another one, with the device's keys.

    policy.json        the device owner's terms
    device.json        whose directory this is, and where its keys are
    root.json          the TUF root that this device was enrolled with
    authority.pem      the only authority that may vouch for the repository's address, if one is set
    tuf/               TUF metadata that verified: what this device has seen
    slots/a  slots/b   two places for a release, sealed to the device; one is current
    current.json       which slot, and the digest of every file in it
    decisions.jsonl    every model that was accepted or refused, and why, signed
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from client.device import floor
from client.device.floor import Floor
from client.device.identity import Identity
from client.device.policy import DevicePolicy
from common import durable
from common.canonical import CanonicalError, decode, encode
from common.config import Table
from common.errors import InputError, OperationError, TrustError
from common.keys import PublicKey

SCHEMA_VERSION = 1
STAGING = ".staging-"
AUTHORITY = "authority.pem"


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
    def init(
        cls,
        path: Path,
        root: bytes,
        policy: DevicePolicy,
        keys: Path | None = None,
        authority: bytes | None = None,
    ) -> DeviceHome:
        """Enrol a device into an empty or new directory.

        Args:
            root: TUF root metadata that came from somewhere else than the repository.
            keys: the key directory, outside of ``path``; ``PATH.keys`` if omitted. One that has
                keys is the same device again: how far it came still counts.
            authority: certificate, PEM, of the one authority that may vouch for the repository's
                address; None: those that this machine trusts.

        Raises:
            TrustError: ``root`` is not root metadata that its own keys sign; others can read the
                keys; the floor beside them is not this device's.
            InputError: the directory holds something else, or the keys would lie in it.
        """
        _check_root(root)
        place = keys or _beside(path)
        if place.absolute().is_relative_to(path.absolute()):
            raise InputError(
                f"the keys in {place} would be wiped with the device's directory",
                hint="name a key directory outside of it",
            )
        given = {"root.json": root, **({AUTHORITY: authority} if authority else {})}
        if path.exists() and not _is_free(path, given):
            raise InputError(
                f"{path} is not an empty directory",
                hint="name a new directory; a device never takes one over",
                code="not-empty",
            )
        identity = Identity.create(place)
        before = floor.read(identity)
        with durable.disk_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.sweep(path)
            for folder in _FOLDERS:
                (path / folder).mkdir(parents=True, exist_ok=True)
            durable.sync_directory(path)
            durable.sync_directory(path / "slots")
        document = {
            "schema_version": SCHEMA_VERSION,
            "device": identity.fingerprint,
            "keys": str(keys.absolute()) if keys else None,
        }
        durable.replace(path / "device.json", encode(document))
        for name, data in given.items():
            durable.replace(path / name, data)
        floor.write(identity, replace(before, policy=policy.encode().decode()))
        durable.replace(path / "policy.json", policy.encode())  # last: from here on it is a device
        return cls(path)

    @property
    def policy(self) -> DevicePolicy:
        """The owner's terms, read afresh: a stricter policy holds from the next call on.

        Raises:
            PlanError: they say something that a policy cannot.
            TrustError: the file cannot be read.
        """
        file = self.path / "policy.json"
        return DevicePolicy.decode(_read(file), str(file))

    @cached_property
    def identity(self) -> Identity:
        """This device's keys.

        Raises:
            OperationError: a key is missing.
            TrustError: they are another device's, or open to others.
        """
        file = self.path / "device.json"
        try:
            table = Table(decode(file.read_bytes()), source=str(file))
            table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
            device = table.text("device")
            keys = Path(table.text("keys")) if table.values.get("keys") else _beside(self.path)
        except (OSError, CanonicalError, InputError) as error:
            raise TrustError(
                f"{file} does not say whose directory this is: {error}",
                hint="enrol the device again, in a new directory",
                code="damaged",
            ) from error
        identity = Identity(keys)
        if identity.fingerprint != device:
            raise TrustError(
                f"{self.path} belongs to device {device[:16]}…, and the keys in {keys} are those "
                f"of {identity.fingerprint[:16]}…",
                hint="use the directory on the device that it was enrolled on",
                code="another-device",
            )
        return identity

    @property
    def floor(self) -> Floor:
        """How far this device came, read afresh."""
        return floor.read(self.identity)

    def raise_floor(self, raised: Floor) -> None:
        """Write the floor, durably; only with the lock held."""
        floor.write(self.identity, raised)

    @cached_property
    def root(self) -> bytes:
        """The root metadata of enrolment; :class:`TrustError` if they cannot be read."""
        return _read(self.path / "root.json")

    def keys(self) -> tuple[PublicKey, ...]:
        """Public keys found in the enrolled root and its successors.

        None of them is trusted for being here: a policy's fingerprint is what chooses one.
        """
        history = sorted((self.tuf / "root_history").glob("*.root.json"))
        found: dict[PublicKey, None] = {}
        for data in (self.root, *map(_read, history)):
            found.update(dict.fromkeys(_keys_of(data)))
        return tuple(found)

    def successors(self) -> dict[str, str]:
        """Keys that took a signer's place in a root: see :mod:`client.device.succession`."""
        from client.device.succession import successors  # where too few signers have signed

        history = (self.tuf / "root_history").glob("*.root.json")
        return successors((self.root, *map(_read, history)), self.policy.signers)

    @property
    def authority(self) -> str | None:
        """The authority for the repository's address, PEM; None: this machine's.

        Raises:
            TrustError: the file cannot be read, or is no PEM.
        """
        file = self.path / AUTHORITY
        if not file.exists():
            return None
        try:
            return _read(file).decode("ascii")
        except UnicodeDecodeError as error:
            raise _damaged(f"{file} is not PEM") from error

    def policy_changes(self) -> tuple[str, ...]:
        """What ``policy.json`` says otherwise than what was last set, in words; empty: nothing.

        By its owner's hand, or because somebody put an older copy of it back.
        """
        noted = self.floor.policy
        if not noted:
            return ()
        then, now = decode(noted.encode()), self.policy.json()
        return tuple(
            f"{key} is {_said(now.get(key))}, and was set to {_said(then.get(key))}"
            for key in sorted({*then, *now})
            if then.get(key) != now.get(key)
        )

    def set_policy(self, policy: DevicePolicy) -> None:
        """Put these terms of the owner in force, and note that they were set; durable."""
        with self.lock():
            self.raise_floor(replace(self.floor, policy=policy.encode().decode()))
            durable.replace(self.path / "policy.json", policy.encode())

    def repository(self) -> str | Path:
        """Where releases come from: an address, or a directory."""
        location = self.policy.repository
        return location if "://" in location else self.path / location

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time change this device, and clear what a killed one left."""
        busy = OperationError(
            f"another process is updating {self.path}", hint="wait until it is done", code="locked"
        )
        with durable.exclusively(self.path, busy), durable.exclusively(self.identity.path, busy):
            self._sweep()
            yield

    def _sweep(self) -> None:
        for folder in (self.path, self.identity.path, *(self.path / name for name in _FOLDERS)):
            durable.sweep(folder)
        import shutil  # not where a model is only run

        for leftover in self.path.glob(f"{STAGING}*"):
            shutil.rmtree(leftover)


_FOLDERS = ("slots/a", "slots/b", "tuf/root_history", "tuf")


def _is_free(path: Path, given: Mapping[str, bytes]) -> bool:
    """Whether ``path`` holds nothing but what a killed :meth:`DeviceHome.init` leaves behind."""
    if not path.is_dir():
        return False
    files = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    return all(
        file.suffix == ".tmp"
        or file == path / "device.json"
        or (file.parent == path and file.read_bytes() == given.get(file.name))
        for file in files
    )


def _said(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _damaged(f"{file} cannot be read: {error.strerror}") from error


def _damaged(why: str) -> TrustError:
    return TrustError(
        f"this device's directory is damaged: {why}",
        hint="enrol the device again, in a new directory, with the keys that it has",
        code="damaged",
    )


def _beside(path: Path) -> Path:
    absolute = path.absolute()
    return absolute.with_name(f"{absolute.name}.keys")


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
