"""What is a release to a device: which files, and, once it was verified, which claims and model?

The rule: these are values; nothing is checked here. What makes one is :mod:`client.device.verify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.canonical import Json, number
from common.config import Table
from common.data.schema import Schema
from common.inference import Session
from common.release import ANSWERS, CARD, MODEL, RELEASE, STATEMENT, WEIGHTS

# Every file of a release and the most bytes that a device will hold of it.
LIMITS = {
    WEIGHTS: 512 * 2**20,
    MODEL: 512 * 2**20,
    ANSWERS: 16 * 2**20,
    STATEMENT: 16 * 2**20,
    CARD: 2**20,
    RELEASE: 2**20,
}


@dataclass(frozen=True)
class Claims:
    """What a release says of itself, and its privacy statement of it, once they agree.

    Args:
        name, version: of the model.
        simulated: its data or its noise were, as it says.
        repeatable: it is simulated, or some of its noise was.
        schema: what it predicts from, and its classes.
        epsilon, delta, unit: the headline of its privacy statement.
    """

    name: str
    version: int
    simulated: bool
    repeatable: bool
    schema: Schema
    epsilon: float
    delta: float
    unit: str

    @property
    def privacy(self) -> str:
        """What is claimed of it, in words."""
        return f"epsilon {self.epsilon:g} at delta {self.delta:g} for each {self.unit}"

    def json(self) -> Json:
        return {
            "name": self.name,
            "version": self.version,
            "simulated": self.simulated,
            "repeatable": self.repeatable,
            "schema": self.schema.json(),
            "epsilon": number(self.epsilon),
            "delta": number(self.delta),
            "unit": self.unit,
        }

    @classmethod
    def read(cls, table: Table) -> Claims:
        """Read :meth:`json`; :class:`InputError` on anything else."""
        claims = cls(
            name=table.name("name"),
            version=table.integer("version", low=1, high=2**53 - 1),
            simulated=table.flag("simulated"),
            repeatable=table.flag("repeatable"),
            schema=Schema.read(table.table("schema")),
            epsilon=table.number("epsilon", low=0),
            delta=table.number("delta", low=0, below=1),
            unit=table.text("unit"),
        )
        table.done()
        return claims


@dataclass(frozen=True, eq=False)
class Candidate:
    """A release that passed :func:`client.device.verify.verify`.

    Args:
        claims: which the owner's policy of then allowed.
        files: the verified bytes, by name; without the model where it was prepared.
        digests: SHA-256 of every file, by name.
        signers: fingerprints of the keys that have signed its statement.
        session: the model, loaded from those bytes.
    """

    claims: Claims
    files: Mapping[str, bytes]
    digests: Mapping[str, str]
    signers: frozenset[str]
    session: Session
