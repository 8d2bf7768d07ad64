"""What is on a device before, while and after it joins a federation?

The rules: everything that can be refused here is refused before anything is connected to or
written. Keys are made on the device, in its key directory, and stay there; the ledger's secret
belongs to the data set, the node's key to one client of one federation. They are durable before
anybody hears of them, so a client that was killed asks again with the same keys. The home comes
last, and ``client.json`` last in it: a directory without it is no client yet.

    enrolment.dsse.json   what the coordinator bound to this client's name
    authority.pem         the certificate authority that vouches for its server
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.custody import OWNER, Custody
from client.home import Home
from common import durable
from common.data.binding import Binding
from common.enrolment import Enrolment, Join
from common.errors import InputError, OperationError, TrustError
from common.keys import Identity, KeyDirectory, PublicKey
from common.nodekey import NodeKey
from common.policy import Policy

ENROLMENT, AUTHORITY = "enrolment.dsse.json", "authority.pem"


@dataclass(frozen=True)
class Site:
    """What the data owner and the device's operator decided.

    Args:
        home: the client's directory; must not be a client's yet.
        keys: the key directory, of the ledger's secret and the node's key.
        custody: where the data set's policy and ledger are, or will be.
        binding: where the data is.
        owner_keys: the data owner's key directory; a key is made there if there is none. None: the
            owner is elsewhere, and has signed a policy into the custody.
        owner: the data owner's public key, if ``owner_keys`` is None.
        terms: what the owner signs if the custody holds no policy yet.
    """

    home: Path
    keys: Path
    custody: Custody
    binding: Binding
    owner_keys: Path | None = None
    owner: PublicKey | None = None
    terms: Policy | None = None

    def dataset(self) -> str:
        """The id of the data set, once nothing here speaks against joining.

        Raises:
            OperationError: ``home-exists``, or a key is missing.
            InputError: ``no-policy``, ``policy-in-force``, ``no-owner-key``.
            TrustError: the policy in the custody is not the owner's; or the data set's ledger is
                gone, or its secret.
        """
        if (self.home / "client.json").exists():
            raise OperationError(
                f"there is already a client at {self.home}",
                hint="name another directory",
                code="home-exists",
            )
        policy = self._policy()
        keys = KeyDirectory(self.keys)
        known, remembered = keys.has(policy.dataset), keys.has(f"{policy.dataset}.mark")
        if self.custody.ledger.exists() and not known:
            keys.secret(policy.dataset)  # says what to do
        if remembered and not self.custody.ledger.exists():
            raise TrustError(
                f"{self.keys} remembers a ledger of data set {policy.dataset!r}, and "
                f"{self.custody.path} holds none",
                hint="name the custody that the data set has; without its ledger, enrol it as a "
                "new data set",
                code="ledger-unusable",
            )
        if known:
            keys.secret(policy.dataset)
        return policy.dataset

    def _policy(self) -> Policy:
        if not self.custody.policy_file.exists():
            if self.terms is None:
                raise InputError(
                    f"{self.custody.path} holds no policy, and no [policy] was given",
                    hint="add a [policy] table to the file, or have the owner sign one with "
                    "privet client policy sign",
                    code="no-policy",
                )
            if self.owner_keys is None:
                raise _no_owner()
            return self.terms
        policy = self.custody.policy(self._owner())
        if self.terms is not None and not _same_terms(self.terms, policy):
            raise InputError(
                f"{self.custody.path} holds another policy than this [policy]",
                hint="privet client policy sign puts other terms in force; or leave the table out",
                code="policy-in-force",
            )
        return policy

    def _owner(self) -> PublicKey:
        if self.owner_keys is not None:
            return KeyDirectory(self.owner_keys).load(OWNER).public
        if self.owner is None:
            raise _no_owner()
        return self.owner

    def settle(self, signed: bytes, enrolment: Enrolment, coordinator: PublicKey) -> Home:
        """Write the home of a client that was enrolled; after a kill it is called again.

        Args:
            signed: the coordinator's answer, as it came.
            enrolment: the same, verified.
            coordinator: whose requests the client will serve.
        """
        if self.owner_keys is not None and not KeyDirectory(self.owner_keys).has(OWNER):
            KeyDirectory(self.owner_keys).create(OWNER)
        owner = self._owner()
        if not self.custody.policy_file.exists():
            assert self.terms is not None
            assert self.owner_keys is not None
            policy = self.custody.sign(self.terms, KeyDirectory(self.owner_keys).load(OWNER))
        else:
            policy = self.custody.policy(owner)
        with durable.disk_errors(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
        durable.replace(self.home / AUTHORITY, enrolment.authority.encode())
        durable.replace(self.home / ENROLMENT, signed)
        home = Home(
            path=self.home,
            client=enrolment.name,
            coordinator=coordinator,
            owner=owner,
            custody=self.custody,
            keys=self.keys,
            seed=None,
            policy=policy,
            binding=self.binding,
        )
        home.create()
        return home


@dataclass(frozen=True)
class Keys:
    """The two private keys of a client in one federation, and which files were made just now."""

    identity: Identity
    node: NodeKey
    made: Sequence[Path]

    def forget(self) -> None:
        """Take back what was made just now: nobody was enrolled with it."""
        for file in self.made:
            with durable.disk_errors(file):
                file.unlink(missing_ok=True)

    def join(
        self, name: str, federation: str, authority: str, *, invitation: str, challenge: str
    ) -> Join:
        """What is asked with these keys."""
        return Join(
            name=name,
            federation=federation,
            authority=authority,
            invitation=invitation,
            challenge=challenge,
            pseudonym=self.identity.pseudonym,
            ledger_key=self.identity.key.public.text(),
            node_key=self.node.public.pem,
        )


def make_keys(site: Site, dataset: str, name: str, federation: str) -> Keys:
    """The keys of this client, durably; those that are there are used.

    Raises:
        OperationError: the disk refused.
        TrustError: the key directory is open to others, or a key is damaged.
    """
    keys, made = KeyDirectory(site.keys), []
    file = node_file(name, federation)
    for key, new in ((dataset, None), (file, NodeKey.generate)):
        if keys.has(key):
            continue
        if new is None:
            keys.create_secret(key)
        else:
            keys.store(key, new().encode())
        made.append(site.keys / key)
    identity = Identity.derive(keys.secret(dataset), federation)
    return Keys(identity, NodeKey.decode(keys.read(file)), made)


def node_file(name: str, federation: str) -> str:
    """What a node's key is called in the key directory; no data set can be called so."""
    return f"{name}@{federation[:16]}"


def node_key(home: Home) -> Path:
    """The file of this client's node key, in OpenSSH's form, for Flower.

    Raises:
        TrustError: ``wrong-node-key``: it is not the key that was enrolled.
        OperationError: it is missing.
    """
    file = node_file(home.client, home.federation)
    key = NodeKey.decode(KeyDirectory(home.keys).read(file))
    if key.public.pem != read_enrolment(home).node_key:
        raise TrustError(
            f"{home.keys / file} is not the node key that was enrolled",
            hint="restore the key directory, or enrol again as another client",
            code="wrong-node-key",
        )
    return home.keys / file


def read_enrolment(home: Home) -> Enrolment:
    """What this client's coordinator bound to its name, signature checked.

    Raises:
        InputError: ``not-enrolled``: a client that was set up by hand, or is simulated.
        TrustError: not signed by this client's coordinator.
    """
    return _read_enrolment(home.path, home.coordinator)


def enrolled_by(path: Path, invitation: str) -> Home | None:
    """The client at ``path``, if it came with this invitation."""
    if not (path / "client.json").exists() or not (path / ENROLMENT).exists():
        return None
    home = Home.read(path)
    return home if read_enrolment(home).invitation == invitation else None


def _read_enrolment(path: Path, coordinator: PublicKey) -> Enrolment:
    try:
        data = (path / ENROLMENT).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} holds no enrolment: {error.strerror}",
            hint="privet client join makes a client that is enrolled",
            code="not-enrolled",
        ) from error
    return Enrolment.verify(data, coordinator)


def _same_terms(terms: Policy, policy: Policy) -> bool:
    kept = {"version": policy.version, "approved_plans": policy.approved_plans}
    return replace(terms, **kept) == policy  # type: ignore[arg-type]


def _no_owner() -> InputError:
    return InputError(
        "nobody is named as the data's owner",
        hint="--owner-keys DIR, where a key is made if there is none; or --owner KEY, and a policy "
        "that this owner signed",
        code="no-owner-key",
    )
