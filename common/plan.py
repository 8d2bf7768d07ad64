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
from common.central import Central, check_central
from common.cohort import Cohort, Stopping
from common.compression import Compression
from common.config import Table, open_digested
from common.data.schema import Schema
from common.errors import PlanError
from common.optimizer import Optimizer
from common.personal import Personal
from common.privacy.events import ADJACENCY, Event

__all__ = ["Central", "Cohort", "Optimizer", "Plan", "Privacy", "Release", "Stopping"]

SCHEMA_VERSION = 2  # 2: methods, schedules, averaging, proximal term, noise draws
TASKS = ("classification",)
NOISE_DRAWS = (1, 4)
TRUST_MODES = ("local", "distributed", "central")
MAX_STEPS = 10**9  # over the whole plan
# The privacy unit follows from who adds the noise; no other pair is offered.
UNITS = {"local": "record", "distributed": "record", "central": "client"}


@dataclass(frozen=True)
class Privacy:
    """The mechanism, all of it public: of one client with local trust, of the server with central.

    Args:
        trust: who adds noise; ``local``: each client, in full; ``central``: the server.
        sampling_rate: q in (0, 1], the chance that a step uses a record, or a round a client.
        noise_multiplier: sigma >= 1e-6, in units of ``clipping_norm``.
        clipping_norm: C from 1e-5 to 1e6, greatest L2 norm of one record's gradient, or of one
            client's update (the first round's, where it adapts).
        steps: uses of the mechanism a round, >= 1: local steps; with central trust always 1.
        divisor: public number that a noised sum is divided by, >= 1e-3; usually the expected
            batch of a typical client, or the clients expected in a round. Never a count.
        delta: in (0, 1); stated for the whole plan.
        noise_draws: 1 or 4, how many independent normals add up to one noise value. The sum has
            the same variance, so it costs the same epsilon; behind four are more random bits than
            can be searched for those that give a known float (Holohan and Braghin 2021, arXiv
            2107.10138).
    """

    trust: str
    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    steps: int
    divisor: float
    delta: float
    noise_draws: int = 1

    @property
    def unit(self) -> str:
        return UNITS[self.trust]

    def event(self, rounds: int = 1) -> Event:
        """What ``rounds`` rounds do to a record, or with central trust to a client."""
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
            "noise_draws": self.noise_draws,
        }

    @classmethod
    def read(cls, table: Table, rounds: int) -> Privacy:
        """Read ``[plan.privacy]``, calibrating the noise where only a target epsilon is given."""
        trust = table.text("trust", choices=TRUST_MODES)
        if trust == "distributed":
            raise table.error(
                "trust",
                f"trust = {trust!r} is not built yet",
                hint='use trust = "local": each client adds its own noise, in full; or "central": '
                "the server adds it, and is trusted with each update",
            )
        table.text("unit", UNITS[trust], choices=(UNITS[trust],))
        table.text("adjacency", ADJACENCY, choices=(ADJACENCY,))
        rate = table.number("sampling_rate", low=1e-9, high=1)
        # With central trust a round is one step, and local steps are no part of the mechanism.
        default = {"default": 1} if trust == "central" else {}
        steps = table.integer("steps", **default, low=1, high=10**6)
        if trust == "central" and steps != 1:
            raise table.error(
                "steps",
                f'steps = {steps} contradicts trust = "central": a round draws noise once',
                hint="leave steps out; local_steps in [plan.central] is how long a client trains",
            )
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
            noise = table.number("noise_multiplier", low=1e-6, high=1e6)
        draws = table.integer("noise_draws", 1, low=1, high=4)
        if draws not in NOISE_DRAWS:
            raise table.error(
                "noise_draws", f"noise_draws = {draws} is neither 1 nor 4", hint="use 1 or 4"
            )
        privacy = cls(
            trust=trust,
            sampling_rate=rate,
            noise_multiplier=noise,
            clipping_norm=table.number("clipping_norm", low=1e-5, high=1e6),
            steps=steps,
            divisor=table.number("divisor", low=1e-3, high=1e9),
            delta=delta,
            noise_draws=draws,
        )
        table.done()
        return privacy


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
    stopping: Stopping | None = None
    compression: Compression | None = None
    personal: Personal | None = None
    central: Central | None = None  # exactly with trust = "central"

    @property
    def keeps(self) -> bool:
        """Whether clients keep something from one round to the next: layers, or a residual."""
        return self.personal is not None or (
            self.compression is not None and self.compression.method == "top-k"
        )

    def event(self) -> Event:
        """The whole declared plan, as it falls on a record of a client that is in every round, or
        with central trust on an enrolled client, drawn or not."""
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
        document: Json = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "task": self.task,
            "model": self.model,
            "rounds": self.rounds,
            "schema": self.schema.json(),
            "cohort": self.cohort.json(),
            "optimizer": self.optimizer.json(),
            "privacy": self.privacy.json(),
            "release": {"name": self.release.name},
        }
        if self.stopping:
            document["stopping"] = self.stopping.json()
        if self.compression:
            document["compression"] = self.compression.json()
        if self.personal:
            document["personal"] = self.personal.json()
        if self.central:
            document["central"] = self.central.json()
        return document

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
        cohort = Cohort.read(table.table("cohort"))
        privacy = Privacy.read(table.table("privacy"), rounds)
        plan = cls(
            name=table.name("name"),
            task=table.text("task", "classification", choices=TASKS),
            model=table.name("model"),
            rounds=rounds,
            schema=Schema.read(table.table("schema")),
            cohort=cohort,
            optimizer=Optimizer.read(table.table("optimizer"), cohort.quorum),
            privacy=privacy,
            release=_read_release(table.table("release")),
            stopping=Stopping.read(table.table("stopping")) if table.has("stopping") else None,
            compression=(
                Compression.read(table.table("compression")) if table.has("compression") else None
            ),
            personal=Personal.read(table.table("personal")) if table.has("personal") else None,
            central=Central.read(
                table.table("central"), privacy.clipping_norm, privacy.noise_multiplier
            )
            if privacy.trust == "central"
            else None,
        )
        if plan.personal and plan.stopping:
            raise table.error(
                "stopping",
                "[plan.stopping] has no score to go by: personal layers leave no global model",
                hint="leave [plan.stopping] or [plan.personal] out",
            )
        if plan.personal and plan.central:
            raise table.error(
                "personal",
                '[plan.personal] is not built for trust = "central": what stays on a client '
                "has no noise there",
                hint='leave [plan.personal] out, or use trust = "local"',
            )
        if plan.central:
            check_central(table, cohort, plan.optimizer.aggregation)
        table.done()
        return plan


def _read_release(table: Table) -> Release:
    release = Release(name=table.name("name"))
    table.done()
    return release
