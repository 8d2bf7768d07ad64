"""What does the coordinator know? Its run, its plan, its keys, and who is enrolled.

The rule: this is the coordinator's own directory, read at start and not changed by what clients
say. Enrolment binds a client's name to the key that its receipts must be signed with; an answer
from anybody else does not count. Keys are elsewhere; ``server.json`` names the key directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, decode, encode
from common.config import Table
from common.data.binding import Binding
from common.errors import InputError, OperationError, PlanError, TrustError
from common.keys import KeyDirectory, PublicKey, SigningKey
from common.plan import Plan
from common.policy import Policy
from server.federation.registry import REGISTRY, Registry
from server.federation.registry import Member as Member
from server.settings import Settings

SCHEMA_VERSION = 1
COORDINATOR = "coordinator"  # the name of its key in the key directory


@dataclass(frozen=True)
class ServerHome:
    """One run's directory, as the coordinator sees it.

    Args:
        path: the run directory.
        run: random id, 32 hexadecimal digits.
        plan: what is trained.
        keys: the coordinator's key directory.
        members: enrolled clients by name.
        binding: where the public test set and the models are, on this machine.
        seed: makes initial weights and cohorts repeatable; None in a deployment.
        operator: what the operator allows, in whole clients; only with central trust.
        ledger: the coordinator's own, which is not this run's; only with central trust.
        federation: the directory of the federation whose clients these are; None: simulated.
    """

    path: Path
    run: str
    plan: Plan
    keys: Path
    members: Mapping[str, Member]
    binding: Binding
    seed: int | None
    operator: Policy | None = None
    ledger: Path | None = None
    federation: Path | None = None

    @cached_property
    def _registry(self) -> Registry | None:
        return Registry(self.federation / REGISTRY) if self.federation else None

    def counts(self, client: str) -> bool:
        """Whether this member still counts: an operator may have revoked it since.

        Raises:
            TrustError: the registry is damaged; nobody counts without it.
        """
        member = self.members.get(client)
        return member is not None and (self._registry is None or self._registry.counts(member))

    def deployed(self) -> Path:
        """The directory of the federation whose run this is.

        Raises:
            InputError: ``not-in-a-federation``: it is a simulated one.
        """
        if self.federation is None:
            raise InputError(
                f"{self.path} is a simulated run, and has no federation",
                hint="privet server create makes a run of enrolled clients; "
                "a simulated one is released when it ends",
                code="not-in-a-federation",
            )
        return self.federation

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """The log of what happened, for operators; see :mod:`server.events`."""
        return self.path / "events.jsonl"

    @property
    def lifts(self) -> Path:
        """Suspensions that an operator lifted; see :meth:`lift`."""
        return self.path / "lifts.json"

    @property
    def stop(self) -> Path:
        """A server stops after its round when this file is there, and takes it away."""
        return self.path / "stop"

    def settings(self) -> Settings:
        """What the operator chose for this run."""
        return Settings.read(self.path / "server.toml")

    def read_lifts(self) -> dict[str, int]:
        """By client, the round of the suspension that an operator lifted.

        Raises:
            TrustError: the file is damaged.
        """
        if not self.lifts.exists():
            return {}
        try:
            lifts = decode(self.lifts.read_bytes())["lifts"]
            return {client: int(round_) for client, round_ in lifts.items()}
        except (CanonicalError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise TrustError(f"{self.lifts} is damaged: {error}", code="bad-lifts") from error

    def lift(self, client: str, round_: int) -> None:
        """Lift the suspension of ``client`` that dates from ``round_``, once and durably."""
        busy = OperationError(
            "another command is lifting a suspension", hint="run it again", code="busy"
        )
        with durable.exclusively(self.checkpoints, busy):
            lifts = {**self.read_lifts(), client: round_}
            durable.replace(self.lifts, encode({"schema_version": 1, "lifts": lifts}))

    def signing_key(self) -> SigningKey:
        return KeyDirectory(self.keys).load(COORDINATOR)

    def create(self) -> None:
        """Write ``plan.json``, then ``server.json``, which makes the directory a run."""
        with durable.disk_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        durable.replace(self.path / "plan.json", self.plan.encode())
        document = {
            "schema_version": SCHEMA_VERSION,
            "run": self.run,
            "keys": str(self.keys.absolute()),
            "binding": self.binding.json(),
            "members": {
                member.name: {"pseudonym": member.pseudonym, "key": member.key.text()}
                for member in self.members.values()
            },
        }
        if self.seed is not None:
            document["seed"] = self.seed
        if self.operator is not None and self.ledger is not None:
            document["operator"] = self.operator.json()
            document["ledger"] = os.path.relpath(self.ledger, self.path)
        if self.federation is not None:
            document["federation"] = str(self.federation.absolute())
        durable.replace(self.path / "server.json", encode(document))

    @classmethod
    def read(cls, path: Path) -> ServerHome:
        """Read a run directory.

        Raises:
            InputError: there is no run here.
            PlanError: its files are malformed.
        """
        try:
            data = (path / "server.json").read_bytes()
            plan = Plan.decode((path / "plan.json").read_bytes())
        except OSError as error:
            raise InputError(
                f"{path} holds no run: cannot read {error.filename}",
                hint="start one with `privet simulate`",
                code="no-run",
            ) from error
        try:
            document = Table(decode(data), source=str(path / "server.json"))
        except CanonicalError as error:
            raise PlanError(f"{path / 'server.json'}: {error}") from error
        document.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
        members = document.table("members")
        central = document.has("operator") and document.has("ledger")
        home = cls(
            path=path,
            run=document.text("run"),
            plan=plan,
            keys=Path(document.text("keys")),
            members={name: _member(members.table(name), name) for name in members.values},
            binding=Binding.decode(encode(document.table("binding").values)),
            seed=document.integer("seed", low=0, high=2**53 - 1) if document.has("seed") else None,
            operator=Policy.decode(encode(document.table("operator").values)) if central else None,
            ledger=path / document.text("ledger") if central else None,
            federation=Path(document.text("federation")) if document.has("federation") else None,
        )
        members.done()
        document.done()
        return home


def _member(table: Table, name: str) -> Member:
    member = Member(name, table.text("pseudonym"), PublicKey.from_text(table.text("key")))
    table.done()
    return member
