"""Where does a client keep what it is? A directory: its name, its data, its terms.

The rule: everything here is local and the owner's. Paths, the data binding, the custody of the data
set and the seed of a simulation come from this directory and from nowhere else; no message, plan or
run configuration can name another. Policy and ledger lie in the custody, together: whoever names a
data set's policy spends on its ledger. Private keys are not here: ``client.json`` names the key
directory.

    client.json    name, the coordinator's key, the owner's key and data set, where custody and
                   keys are, a seed if simulated
    binding.json   where the data is
    rows.npy       which places in it are this client's (simulations share one source)
    plans/         approved plans, as the coordinator signed them
    outbox/        the last update, as it was disclosed
    kept/          what a run's next round starts from, where its plan has such a thing
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from client.custody import Custody
from common import durable
from common.canonical import CanonicalError, decode, encode
from common.config import Table
from common.data.binding import Binding
from common.errors import InputError, OperationError, PlanError, PrivetError, TrustError
from common.keys import KeyDirectory, PublicKey
from common.ledger import Ledger
from common.policy import Policy

SCHEMA_VERSION = 2  # 2: the owner's key, the data set, the custody
HOME_VARIABLE = "PRIVET_CLIENT_HOME"


@dataclass(frozen=True)
class Home:
    """A client's directory, read and checked.

    Args:
        path: the directory.
        client: the name it enrolled under.
        coordinator: whose requests it may serve; the federation's name is this key's fingerprint.
        owner: whose policies count, and nobody else's; pinned when the home is made.
        custody: where the data set's policy and ledger are.
        keys: the key directory; the secret of the data set's ledger is stored there, under the
            data set's id: clients of two federations over one data set share it.
        seed: for repeatable noise; only with a policy that says ``simulated``.
        policy: as it stood when the home was read; :meth:`terms` reads it again.
        binding: see its module.
    """

    path: Path
    client: str
    coordinator: PublicKey
    owner: PublicKey
    custody: Custody
    keys: Path
    seed: int | None
    policy: Policy
    binding: Binding

    @property
    def federation(self) -> str:
        return self.coordinator.fingerprint

    @property
    def ledger(self) -> Path:
        return self.custody.ledger

    @property
    def plans(self) -> Path:
        return self.path / "plans"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox"

    @property
    def kept(self) -> Path:
        return self.path / "kept"

    @property
    def rows(self) -> Path:
        return self.path / "rows.npy"

    def terms(self) -> Policy:
        """The policy as it stands now: an owner may replace it while the client runs.

        Raises:
            InputError, PlanError, TrustError: as :meth:`~client.custody.Custody.policy`.
            TrustError: ``another-data-set``.
        """
        version = version_of(self.custody.policy_file)
        policy = _signed_policy(self.custody, self.owner, version)
        self.custody.check_not_older(policy)
        if policy.dataset != self.policy.dataset:
            raise _another_data_set(self.path, self.policy.dataset, policy)
        return policy

    @property
    def mark(self) -> Path:
        """How far the ledger came: with its secret, where no backup of the data brings it back."""
        return self.keys / f"{self.policy.dataset}.mark"

    def read_ledger(self) -> Ledger:
        """The data set's ledger, verified."""
        return Ledger(self.ledger, KeyDirectory(self.keys).secret(self.policy.dataset), self.mark)

    def open_ledger(self) -> Ledger:
        """The data set's ledger, to work with: it records which policy is in force."""
        policy, ledger = self.terms(), self.read_ledger()
        with ledger.locked():
            self.custody.note(ledger, policy)
        return ledger

    def create(self) -> None:
        """Write this home. The directory must not exist yet; the custody must hold the policy.

        The first home over a data set makes its ledger and the ledger's secret.

        Raises:
            OperationError: the directory is in use, or the disk refused.
            TrustError: the policy is not the owner's, or the ledger is missing or another's.
            PlanError: ``seed-without-simulation``, or another policy is in force.
        """
        if self.seed is not None and not self.policy.simulated:
            raise _seed_without_simulation(self.path)
        if self.custody.policy(self.owner) != self.policy:
            raise PlanError(f"{self.custody.path} holds another policy than this home was given")
        if (self.path / "client.json").exists():
            raise OperationError(
                f"there is already something at {self.path}",
                hint="name another directory",
                code="home-exists",
            )
        if not self.ledger.exists():
            Ledger.create(self.ledger, self._secret(), self.mark)
        self.open_ledger()
        with durable.disk_errors(self.path):
            for directory in (self.path, self.plans, self.outbox):
                directory.mkdir(parents=True, exist_ok=True)
        durable.replace(self.path / "binding.json", encode(self.binding.json()))
        document = {
            "schema_version": SCHEMA_VERSION,
            "client": self.client,
            "coordinator": self.coordinator.text(),
            "owner": self.owner.text(),
            "dataset": self.policy.dataset,
            "custody": os.path.relpath(self.custody.path, self.path),
            "keys": str(self.keys.absolute()),
        }
        if self.seed is not None:
            document["seed"] = self.seed
        durable.replace(self.path / "client.json", encode(document))

    def _secret(self) -> bytes:
        """The ledger's secret: a new one, or what a kill left before there was a ledger."""
        keys = KeyDirectory(self.keys)
        if (self.keys / self.policy.dataset).exists() and not self.mark.exists():
            return keys.secret(self.policy.dataset)
        return keys.create_secret(self.policy.dataset)

    @classmethod
    def read(cls, path: Path) -> Home:
        """Read a client's directory; a typed error says what is missing or contradictory."""
        document = Table(_read_json(path / "client.json"), source=str(path / "client.json"))
        document.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
        owner = PublicKey.from_text(document.text("owner"))
        custody = Custody((path / document.text("custody")).resolve())
        dataset, policy = document.name("dataset"), custody.policy(owner)
        if policy.dataset != dataset:
            raise _another_data_set(path, dataset, policy)
        home = cls(
            path=path,
            client=document.name("client"),
            coordinator=PublicKey.from_text(document.text("coordinator")),
            owner=owner,
            custody=custody,
            keys=Path(document.text("keys")),
            seed=document.integer("seed", low=0, high=2**53 - 1) if document.has("seed") else None,
            policy=policy,
            binding=Binding.decode(_read_bytes(path / "binding.json")),
        )
        document.done()
        if home.seed is not None and not home.policy.simulated:
            raise _seed_without_simulation(path)
        return home


def locate(partition: int | None) -> Path:
    """This process's client directory, from the environment of whoever started it.

    ``PRIVET_CLIENT_HOME`` names a client's directory; in a simulation on Ray, where one process
    plays many clients, it names the directory that holds theirs, in the order of their names.

    Raises:
        InputError: nothing is set, or it does not name a client.
    """
    value = os.environ.get(HOME_VARIABLE)
    if not value:
        raise InputError(
            f"{HOME_VARIABLE} is not set, so there is no policy and no data",
            hint="start clients with `privet`, or set it to a client's directory",
            code="no-client-home",
        )
    path = Path(value)
    if (path / "client.json").is_file():
        return path
    homes = _homes(path, version_of(path))
    if partition is None or not 0 <= partition < len(homes):
        raise InputError(
            f"{path} holds {len(homes)} clients; there is none for partition {partition}",
            hint="ask for as many nodes as there are clients",
            code="no-client-home",
        )
    return homes[partition]


def version_of(path: Path | str | None) -> tuple[int, ...] | None:
    """What changes when a file or directory is replaced: part of the key of what is cached."""
    try:
        status = Path(path).stat() if path else None
    except OSError:
        return None  # reading it says what is wrong
    return (status.st_ino, status.st_mtime_ns, status.st_size) if status else None


@lru_cache(maxsize=16)
def _homes(path: Path, version: tuple[int, ...] | None) -> list[Path]:  # noqa: ARG001
    """The clients' directories in one; a simulation makes all of them before it starts."""
    return sorted(entry.parent for entry in path.glob("*/client.json"))


@lru_cache(maxsize=256)
def _signed_policy(
    custody: Custody,
    owner: PublicKey,
    version: tuple[int, ...] | None,  # noqa: ARG001  (a policy that was replaced is read again)
) -> Policy:
    return custody.signed_policy(owner)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", hint="is this a client's directory?"
        ) from error


def _read_json(path: Path) -> dict[str, object]:
    try:
        return decode(_read_bytes(path))
    except CanonicalError as error:
        raise PlanError(f"{path}: {error}") from error


def _another_data_set(path: Path, dataset: str, policy: Policy) -> TrustError:
    return TrustError(
        f"{path} is a client over data set {dataset!r}, and the policy is for {policy.dataset!r}",
        hint="put back the policy of that data set; another one needs a home of its own",
        code="another-data-set",
    )


def _seed_without_simulation(path: Path) -> PrivetError:
    return PlanError(
        f"{path}: a seed makes noise repeatable, and the policy does not say simulated = true",
        hint="remove the seed; only data that needs no protection may use repeatable noise",
        code="seed-without-simulation",
    )
