"""What does a coordinator keep between runs? Its keys, its authority, its address, its clients.

The rules: a federation has one directory and one key directory beside it. The first start makes
both, in an order in which a kill at any write leaves something that the same command finishes, and
nothing that it makes is ever made twice. An approver's key is never in the coordinator's key
directory: two signatures of one party are one. Time here only goes forwards: a clock that was set
back does not bring an expired invitation back.

    federation.json    address, names for the certificate, where the keys are, the approver
    registry.jsonl     who is enrolled
    invitations.json   who was invited, and until when; see server.federation.invitations
    heads.json         how far each client's ledger was seen to come; see server.heads
    repository/        what is published for devices; see server.release.repository
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, encode
from common.config import Table
from common.enrolment import About
from common.errors import InputError, PlanError, TrustError
from common.invitation import Address, is_host
from common.keys import KeyDirectory, PublicKey, SigningKey
from server.federation.authority import AUTHORITY, Authority
from server.federation.registry import REGISTRY, Registry
from server.home import COORDINATOR, ServerHome

SCHEMA_VERSION = 1
APPROVER = "approver"  # the name of the approver's key in a key directory of its own
RELEASE_KEY = "release"  # in the coordinator's key directory: release-FINGERPRINT


@dataclass(frozen=True)
class Federation:
    """A federation's directory.

    Args:
        path: the directory.
        keys: the coordinator's key directory.
        address: what clients connect to.
        names: host names and addresses in the server's certificate; the address's host first.
        approver: fingerprint of the approver's key; "" while none is known.
    """

    path: Path
    keys: Path
    address: Address
    names: tuple[str, ...]
    approver: str = ""

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.path / REGISTRY)

    @property
    def heads(self) -> Path:
        return self.path / "heads.json"

    @property
    def repository(self) -> Path:
        return self.path / "repository"

    def signing_key(self) -> SigningKey:
        """The coordinator's key.

        Raises:
            TrustError: ``keys-together``: an approver's key lies beside it.
        """
        keys = KeyDirectory(self.keys)
        if keys.has(APPROVER):
            raise keys_together(self.keys)
        return keys.load(COORDINATOR)

    def release_keys(self) -> list[SigningKey]:
        """Every key here that may be the coordinator's in a repository: the federation's own, and
        those that were made for releases alone.

        Raises:
            TrustError: ``keys-together``, or a key is open to others.
        """
        keys = KeyDirectory(self.keys)
        made = sorted(file.name for file in self.keys.glob(f"{RELEASE_KEY}-*"))
        return [self.signing_key(), *(keys.load(name) for name in made)]

    def release_key(self, wanted: PublicKey) -> SigningKey:
        """The private half of a repository's coordinator key.

        Raises:
            TrustError: ``wrong-coordinator``: it is not here.
        """
        for key in self.release_keys():
            if key.public == wanted:
                return key
        raise TrustError(
            f"the repository's coordinator is {wanted.fingerprint[:16]}…, whose key is not here",
            hint="`privet release keys` shows who may sign; the key lies where it was made",
            code="wrong-coordinator",
        )

    def make_release_key(self) -> SigningKey:
        """A new key for releases alone; it counts once a root names it."""
        self.signing_key()
        secret = os.urandom(32)
        key = SigningKey.from_seed(secret)
        KeyDirectory(self.keys).store(f"{RELEASE_KEY}-{key.public.fingerprint[:16]}", secret)
        return key

    def authority(self) -> Authority:
        return Authority(KeyDirectory(self.keys))

    def about(self) -> About:
        return About(str(self.address), self.authority().certificate, self.approver)

    @classmethod
    def create(
        cls, path: Path, keys: Path, address: Address, names: Sequence[str] = (), approver: str = ""
    ) -> Federation:
        """Make a federation: the coordinator's key, its authority, a certificate, the directory.

        After a kill it is called again; what was made is used.

        Raises:
            InputError: ``federation-exists``, or a name is none.
            OperationError: the disk refused.
            TrustError: the key directory is open to others, or holds an approver's key.
        """
        federation = cls(path, keys.absolute(), address, _names(address, names), approver)
        if (path / "federation.json").exists():
            raise InputError(
                f"there is already a federation at {path}",
                hint="use it, or name another directory",
                code="federation-exists",
            )
        if keys.resolve().is_relative_to(path.resolve()):
            raise InputError(
                f"the keys would lie in {path}, which is copied and backed up with its runs",
                hint="name a key directory outside of it",
                code="keys-inside",
            )
        directory = KeyDirectory(keys)
        if directory.has(APPROVER):
            raise keys_together(keys)
        if not directory.has(COORDINATOR):
            directory.create(COORDINATOR)
        fingerprint = directory.load(COORDINATOR).public.fingerprint
        authority = (
            Authority(directory)
            if directory.has(AUTHORITY)
            else Authority.create(directory, fingerprint[:16])
        )
        authority.renew(federation.names)
        with durable.disk_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        federation.write()
        return federation

    def write(self) -> None:
        document: Json = {
            "schema_version": SCHEMA_VERSION,
            "address": str(self.address),
            "names": list(self.names),
            "keys": str(self.keys.absolute()),
        }
        if self.approver:
            document["approver"] = self.approver
        durable.replace(self.path / "federation.json", encode(document), mode=0o600)

    def with_approver(self, fingerprint: str) -> Federation:
        """The same federation, whose approver is known from now on; durable."""
        if fingerprint == self.signing_key().public.fingerprint:
            raise TrustError(
                "that is the coordinator's own key",
                hint="an approver is another party; privet approver init makes its key",
                code="keys-together",
            )
        federation = replace(self, approver=fingerprint)
        federation.write()
        return federation

    def with_names(self, more: Sequence[str]) -> Federation:
        """The same federation, under more names from its next certificate on; durable."""
        federation = replace(self, names=_names(self.address, (*self.names, *more)))
        if federation != self:
            federation.write()
        return federation

    @classmethod
    def read(cls, path: Path) -> Federation:
        """Read a federation's directory.

        Raises:
            InputError: ``no-federation``.
            PlanError: its file is malformed.
        """
        file = path / "federation.json"
        try:
            document = Table(decode(file.read_bytes()), source=str(file))
        except OSError as error:
            raise InputError(
                f"{path} holds no federation: {error.strerror}",
                hint="privet server init makes one",
                code="no-federation",
            ) from error
        except CanonicalError as error:
            raise PlanError(f"{file}: {error}") from error
        document.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
        federation = cls(
            path=path,
            keys=Path(document.text("keys")),
            address=Address.parse(document.text("address")),
            names=document.texts("names", least=1, most=64),
            approver=document.text("approver") if document.has("approver") else "",
        )
        document.done()
        return federation


def federation_of(home: ServerHome) -> Federation:
    """The federation whose clients take part in a run.

    Raises:
        InputError: ``not-in-a-federation``: the run is a simulation.
    """
    return Federation.read(home.deployed())


def approver_key(path: Path, *, make: bool = False) -> SigningKey:
    """The approver's key, from a key directory of its own.

    Raises:
        TrustError: ``keys-together``: the coordinator's key lies beside it.
        OperationError: there is none, or the disk refused.
    """
    keys = KeyDirectory(path)
    if keys.has(COORDINATOR):
        raise keys_together(path)
    if make and not keys.has(APPROVER):
        keys.create(APPROVER)
    return keys.load(APPROVER)


def keys_together(path: Path) -> TrustError:
    return TrustError(
        f"{path} holds the coordinator's key and the approver's",
        hint="two signatures of one party are one: keep each key with its own party, and make "
        "the other one anew",
        code="keys-together",
    )


def _names(address: Address, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if not is_host(name):
            raise InputError(
                f"{name!r} is no host",
                hint="name a host in lower case, or an IP address",
                code="bad-address",
            )
    return tuple(dict.fromkeys((address.host, *names)))
