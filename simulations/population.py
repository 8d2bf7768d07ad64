"""Who are the clients, and what do they hold? A data set is dealt out to directories.

The rule: a simulated client is a real one. It has its own key, ledger and approval, under a policy
that an owner of its own signed, and runs the same code; only its rows come from a share of one data
set, and its coordinator lives next door. How rows are dealt depends on the seed and the data set
alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.approval import approve
from client.custody import OWNER, Custody
from client.home import Home
from common import durable
from common.canonical import encode
from common.data.binding import Binding, load_training
from common.data.records import Records
from common.errors import DataError, InputError
from common.keys import KeyDirectory
from common.models.registry import build
from common.statement import PLAN_TYPE, Envelope
from server.central.books import Books
from server.home import COORDINATOR, Member, ServerHome
from simulations.download import ensure
from simulations.experiment import Experiment

Rows = NDArray[np.int64]
APPROVER, RECOVERY = "approver", "recovery"


@dataclass(frozen=True)
class Run:
    """A prepared run directory, and where the keys of its simulated parties are."""

    path: Path
    keys: Path

    @property
    def clients(self) -> Path:
        return self.path / "clients"

    @property
    def custodies(self) -> Path:
        return self.path / "custody"

    @property
    def coordinator_ledger(self) -> Path:
        """The coordinator's own ledger, with central trust."""
        return self.path / "coordinator" / "ledger.jsonl"

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.json"

    @property
    def plan_envelope(self) -> Path:
        return self.path / "plan.dsse.json"

    def party(self, name: str) -> KeyDirectory:
        """The key directory of one party: coordinator, approver, recovery or clients."""
        return KeyDirectory(self.keys / name)

    def owner(self, client: str) -> KeyDirectory:
        """The key directory of the simulated owner of one client's data."""
        return KeyDirectory(self.keys / "owner" / client)

    def custody(self, client: str) -> Custody:
        """Where the policy and the ledger of one client's data are."""
        return Custody(self.custodies / client)

    def ledger(self, client: str) -> Path:
        """The ledger file of one client's data."""
        return self.custody(client).ledger


def prepare(
    experiment: Experiment, out: Path, *, progress: Callable[[int, int], None] = lambda *_: None
) -> Run:
    """Make a run directory: parties, keys, shares of the data, and every owner's approval.

    Args:
        experiment: what to run.
        out: must not exist, or be empty.
        progress: called as (clients done, clients) along the way.

    Raises:
        InputError: the directory is in use.
        DataError: the data cannot be read or dealt out as asked.
        BudgetError: the owners' budget does not cover the plan; nothing was made.
    """
    durable.check_free(out)
    plan, policy = experiment.plan, experiment.policy
    policy.check_terms(plan)
    policy.check_budget(plan)
    build(plan.model, plan.schema, seed=0, bindings=experiment.binding.models)  # it exists and fits
    ensure(experiment.binding)
    records = load_training(experiment.binding, plan.schema)
    shares = deal(records, experiment.binding, experiment.settings.seed)
    keys = state_home() / "keys" / secrets.token_hex(8)
    with durable.disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    try:
        with durable.disk_errors(out):
            keys.mkdir(parents=True, mode=0o700)
            _fill(Run(draft, keys), experiment, shares, progress)
            draft.chmod(0o755)
            _put(draft, out)
            durable.sync_directory(out.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(keys, ignore_errors=True)
        raise
    return Run(out, keys)


def _put(draft: Path, out: Path) -> None:
    """Give a whole run its name, unless somebody else took that meanwhile."""
    try:
        draft.replace(out)
    except OSError:
        durable.check_free(out)
        raise


def _fill(
    run: Run, experiment: Experiment, shares: dict[str, Rows], progress: Callable[[int, int], None]
) -> None:
    plan, policy, settings = experiment.plan, experiment.policy, experiment.settings
    coordinator = run.party(COORDINATOR).create(COORDINATOR)
    for other in (APPROVER, RECOVERY):
        run.party(other).create(other)
    envelope = Envelope.sign(PLAN_TYPE, plan.encode(), [coordinator]).encode()
    durable.replace(run.plan_envelope, envelope)
    durable.replace(run.experiment, _experiment_bytes(experiment))
    (run.keys / "owner").mkdir(mode=0o700)
    members: dict[str, Member] = {}
    for done, (name, rows) in enumerate(shares.items(), start=1):
        owner, custody = run.owner(name).create(OWNER), run.custody(name)
        # The end of a long id gives way, not the name: each owner's data set has an id of its own.
        dataset = f"{experiment.policy.dataset[: 63 - len(name)]}.{name}"
        home = Home(
            path=run.clients / name,
            client=name,
            coordinator=coordinator.public,
            owner=owner.public,
            custody=custody,
            keys=run.keys / "clients",
            seed=settings.seed,
            policy=custody.sign(replace(experiment.policy, dataset=dataset), owner),
            binding=experiment.binding,
        )
        home.create()
        np.save(home.rows, rows)
        approve(home, envelope, owner)
        identity = home.read_ledger().identity(home.federation)
        members[name] = Member(name, identity.pseudonym, identity.key.public)
        progress(done, len(shares))
    central = plan.central is not None
    if central:
        Books.create(run.coordinator_ledger, run.keys / COORDINATOR)
    ServerHome(
        path=run.path,
        run=secrets.token_hex(16),
        plan=plan,
        keys=run.keys / COORDINATOR,
        members=members,
        binding=experiment.binding,
        seed=settings.seed,
        operator=replace(policy, dataset=COORDINATOR, approved_plans=()) if central else None,
        ledger=run.coordinator_ledger if central else None,
    ).create()


def _experiment_bytes(experiment: Experiment) -> bytes:
    """All that a run was prepared from; how many workers play it is not part of it."""
    return encode(
        {
            "plan": experiment.plan.digest,
            "policy": experiment.policy.json(),
            "binding": experiment.binding.json(),
            "seed": experiment.settings.seed,
        }
    )


def reopen(path: Path, experiment: Experiment) -> Run:
    """A run directory that :func:`prepare` made earlier, to continue the same experiment.

    Raises:
        InputError: there is no run, or it was prepared from something else.
    """
    home = ServerHome.read(path)
    run = Run(path, home.keys.parent)
    if run.experiment.read_bytes() != _experiment_bytes(experiment):
        raise InputError(
            f"{path} was started with another plan, policy, data or seed than this",
            hint="resume with the same file, seed and settings that it was started with",
            code="another-plan",
        )
    return run


def state_home() -> Path:
    """``$PRIVET_STATE_HOME``, else ``$XDG_STATE_HOME/privet``, else ``~/.local/state/privet``."""
    if chosen := os.environ.get("PRIVET_STATE_HOME"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "privet"


# -- dealing out ---------------------------------------------------------------------------------


def deal(records: Records, binding: Binding, seed: int | None) -> dict[str, Rows]:
    """Which places each client holds, by the client's name: each record's goes to one client."""
    if binding.partition_by is not None:
        return {name: records.places[rows] for name, rows in _by_group(records).items()}
    generator = np.random.default_rng(seed)
    clients = binding.clients or 1
    if clients > len(records):
        raise DataError(
            f"{clients} clients for {len(records)} records", hint="ask for fewer clients"
        )
    if binding.partition == "dirichlet":
        parts = _dirichlet(records.labels, clients, binding.alpha or 1.0, generator)
    else:
        order = generator.permutation(len(records))
        sizes = _sizes(len(records), clients, binding.partition or "equal")
        parts = np.split(order, np.cumsum(sizes)[:-1])
    width = len(str(clients - 1))
    return {
        f"client-{index:0{width}d}": records.places[np.sort(part)]
        for index, part in enumerate(parts)
    }


def _sizes(records: int, clients: int, partition: str) -> list[int]:
    """``equal``: as even as can be. ``unequal``: in the proportions 1 to 3, evenly spread."""
    weights = np.ones(clients) if partition == "equal" else np.linspace(1, 3, clients)
    edges = np.floor(np.cumsum(weights) / weights.sum() * records + 0.5).astype(int)
    return [int(size) for size in np.diff(np.concatenate([[0], edges]))]


def _dirichlet(
    labels: NDArray[np.int64], clients: int, alpha: float, generator: np.random.Generator
) -> list[Rows]:
    """Each class is spread by its own Dirichlet(alpha) draw (Hsu et al. 2019, arXiv 1909.06335)."""
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(clients, alpha))
        edges = np.floor(np.cumsum(shares) * len(rows) + 0.5).astype(int)[:-1]
        for part, piece in zip(parts, np.split(rows, edges), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _by_group(records: Records) -> dict[str, Rows]:
    """One client for each value of the partition column, named after it."""
    groups = np.array(records.groups or ())
    result: dict[str, Rows] = {}
    for value in sorted(set(records.groups or ())):
        name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in value)
        stem = (name.strip(".-_") or "client")[:48]
        name, number = stem, 1
        while name in result:
            number += 1
            name = f"{stem}-{number}"
        result[name] = np.flatnonzero(groups == value).astype(np.int64)
    if len(result) < 1:
        raise DataError("the partition column has no values")
    return result
