"""What will be trained, by whom, how, and at what privacy? One frozen plan.

The rule: everything that two parties must agree on is in the plan, and nothing else is: no path, no
import, no seed, no name of a machine. Its digest is the SHA-256 of its canonical JSON; a
coordinator signs that, a data owner approves that, and every request, receipt and statement names
it. What must agree about privacy (rate, steps, clip, noise, divisor, delta) is one object, so it
cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from common.canonical import Json, digest, encode, number
from common.config import Table, open_digested
from common.data.schema import Schema
from common.errors import PlanError
from common.privacy.events import ADJACENCY, Event

SCHEMA_VERSION = 1
TASKS = ("classification",)
AGGREGATIONS = ("fedavg",)
TRUST_MODES = ("local", "distributed", "central")
MAX_STEPS = 10**9  # over the whole plan
# The privacy unit follows from who adds the noise; no other pair is offered.
UNITS = {"local": "record", "distributed": "record", "central": "client"}


@dataclass(frozen=True)
class Privacy:
    """One client's mechanism, all of it public.

    Args:
        trust: who adds noise; ``local``: each client, in full.
        sampling_rate: q in (0, 1], the chance that a step uses a record.
        noise_multiplier: sigma > 0, in units of ``clipping_norm``.
        clipping_norm: C > 0, greatest L2 norm of one record's gradient.
        steps: local steps a round, >= 1.
        divisor: public number that a step's noised sum is divided by, > 0; usually the expected
            batch of a typical client. Never the number of records.
        delta: in (0, 1); stated for the whole plan.
    """

    trust: str
    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    steps: int
    divisor: float
    delta: float

    @property
    def unit(self) -> str:
        return UNITS[self.trust]

    def event(self, rounds: int = 1) -> Event:
        """What ``rounds`` rounds do to a record."""
        return Event(self.sampling_rate, self.noise_multiplier, self.steps * rounds)

    def json(self) -> Json:
        return {
            "trust": self.trust,
            "unit": self.unit,
            "adjacency": ADJACENCY,
            "sampling_rate": number(self.sampling_rate),
            "noise_multiplier": number(self.noise_multiplier),
            "clipping_norm": number(self.clipping_norm),
            "steps": self.steps,
            "divisor": number(self.divisor),
            "delta": number(self.delta),
        }

    @classmethod
    def read(cls, table: Table, rounds: int) -> Privacy:
        """Read ``[plan.privacy]``, calibrating the noise where only a target epsilon is given."""
        trust = table.text("trust", choices=TRUST_MODES)
        if trust != "local":
            raise table.error(
                "trust",
                f"trust = {trust!r} is not built yet",
                hint='use trust = "local": each client adds its own noise, in full',
            )
        table.text("unit", UNITS[trust], choices=(UNITS[trust],))
        table.text("adjacency", ADJACENCY, choices=(ADJACENCY,))
        rate = table.number("sampling_rate", low=1e-9, high=1)
        steps = table.integer("steps", low=1, high=10**6)
        if steps * rounds > MAX_STEPS:
            raise table.error(
                "steps",
                f"{steps} steps in each of {rounds} rounds are over {MAX_STEPS:g} in all",
                hint="plan fewer rounds, or fewer steps",
            )
        delta = table.number("delta", above=0, below=0.1)
        if table.json_numbers and table.has("epsilon"):
            raise table.error("epsilon", "a finished plan states its noise, not a target epsilon")
        if table.has("epsilon") == table.has("noise_multiplier"):
            raise table.error(
                "epsilon",
                "give either epsilon or noise_multiplier"
                + (", not both" if table.has("epsilon") else ""),
                hint="epsilon is a target that the noise is calibrated to",
            )
        if table.has("epsilon"):
            from common.privacy.reference import calibrate

            target = table.number("epsilon", low=0.01, high=100)
            noise = calibrate(rate, steps * rounds, target, delta)
        else:
            noise = table.number("noise_multiplier", above=0, high=1e6)
        privacy = cls(
            trust=trust,
            sampling_rate=rate,
            noise_multiplier=noise,
            clipping_norm=table.number("clipping_norm", above=0, high=1e6),
            steps=steps,
            divisor=table.number("divisor", above=0, high=1e9),
            delta=delta,
        )
        table.done()
        return privacy


@dataclass(frozen=True)
class Cohort:
    """Who is asked in a round.

    Args:
        clients: how many clients a round asks, >= 1; all that are there if fewer.
        quorum: how many valid replies a round needs to change the model, 1 to ``clients``.
        deadline: seconds that a round waits for replies, > 0.
    """

    clients: int
    quorum: int
    deadline: float


@dataclass(frozen=True)
class Optimizer:
    """How noised gradients become a model. All of it is post-processing.

    Args:
        learning_rate: of a local step, > 0.
        momentum: of local steps within one round, in [0, 1).
        aggregation: how valid updates become the next model.
        update_bound: greatest absolute value of one coordinate of a valid update, > 0.
    """

    learning_rate: float
    momentum: float = 0.0
    aggregation: str = "fedavg"
    update_bound: float = 1000.0


@dataclass(frozen=True)
class Release:
    """What is published at the end: ``name`` is the model's name in the repository."""

    name: str


@dataclass(frozen=True)
class Plan:
    """One federation's training run, as everybody sees it. See the module docstring."""

    name: str
    task: str
    model: str
    rounds: int
    schema: Schema
    cohort: Cohort
    optimizer: Optimizer
    privacy: Privacy
    release: Release

    def event(self) -> Event:
        """The whole declared plan, as it falls on a record of a client that is in every round."""
        return self.privacy.event(self.rounds)

    def exposure(self, most_steps: int) -> Event:
        """What a release must answer for: the declared plan, or what was spent where that is more.

        A round that a crash cut off is charged and asked again, so the most exposed client may
        have spent ``most_steps``, more than the plan declares.
        """
        declared = self.event()
        return replace(declared, steps=max(declared.steps, most_steps))

    def encode(self) -> bytes:
        """Canonical JSON: what is signed, digested and published."""
        return encode(self.json())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of :meth:`encode`, hexadecimal."""
        return digest(self.encode())

    def json(self) -> Json:
        cohort, optimizer = self.cohort, self.optimizer
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "task": self.task,
            "model": self.model,
            "rounds": self.rounds,
            "schema": self.schema.json(),
            "cohort": {
                "clients": cohort.clients,
                "quorum": cohort.quorum,
                "deadline": number(cohort.deadline),
            },
            "optimizer": {
                "learning_rate": number(optimizer.learning_rate),
                "momentum": number(optimizer.momentum),
                "aggregation": optimizer.aggregation,
                "update_bound": number(optimizer.update_bound),
            },
            "privacy": self.privacy.json(),
            "release": {"name": self.release.name},
        }

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """Read canonical JSON from anywhere; :class:`PlanError` unless it is exactly a plan."""
        plan = cls.read(open_digested(data, "plan", SCHEMA_VERSION))
        if plan.encode() != data:
            raise PlanError("the plan leaves something to a default: it cannot be digested")
        return plan

    @classmethod
    def read(cls, table: Table) -> Plan:
        """Read ``[plan]`` of an experiment file."""
        rounds = table.integer("rounds", low=1, high=10**6)
        plan = cls(
            name=table.name("name"),
            task=table.text("task", "classification", choices=TASKS),
            model=table.name("model"),
            rounds=rounds,
            schema=Schema.read(table.table("schema")),
            cohort=_read_cohort(table.table("cohort")),
            optimizer=_read_optimizer(table.table("optimizer")),
            privacy=Privacy.read(table.table("privacy"), rounds),
            release=_read_release(table.table("release")),
        )
        table.done()
        return plan


def _read_cohort(table: Table) -> Cohort:
    clients = table.integer("clients", low=1, high=10**6)
    cohort = Cohort(
        clients=clients,
        quorum=table.integer("quorum", 1, low=1, high=clients),
        deadline=table.number("deadline", 3600.0, above=0, high=10**7),
    )
    table.done()
    return cohort


def _read_optimizer(table: Table) -> Optimizer:
    optimizer = Optimizer(
        learning_rate=table.number("learning_rate", above=0, high=1e6),
        momentum=table.number("momentum", 0.0, low=0, below=1),
        aggregation=table.text("aggregation", "fedavg", choices=AGGREGATIONS),
        # 2^10 with 2^16 clients and 36 fractional bits fills the exact mean's 63 bits.
        update_bound=table.number("update_bound", 1000.0, above=0, high=1024),
    )
    table.done()
    return optimizer


def _read_release(table: Table) -> Release:
    release = Release(name=table.name("name"))
    table.done()
    return release
