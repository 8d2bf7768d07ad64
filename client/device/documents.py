"""What do a release's two documents say, ``release.json`` and the privacy statement?

The rule: what a device needs of them is read field by field; whether it is true, and whether the
two agree, is for :mod:`client.device.verify`. A field of ``release.json`` that is not known is
refused; a statement holds more, which an auditor reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from client.device.release import LIMITS, Claims
from common import weights
from common.canonical import CanonicalError, decode
from common.config import Table
from common.data.schema import Schema
from common.errors import InputError, TrustError
from common.inference import INPUT, OUTPUT
from common.release import RELEASE, STATEMENT

RELEASE_VERSION = 1
AGAIN = "obtain the release again from its source; if it is still refused, do not use it"


@dataclass(frozen=True)
class ReleaseDocument:
    """``release.json``, field by field; an unknown one is refused."""

    name: str
    version: int
    simulated: bool
    plan: str
    schema: Schema
    files: dict[str, tuple[str, int]]
    tensors: weights.Tensors

    @classmethod
    def read(cls, data: bytes) -> ReleaseDocument:
        try:
            table = Table(decode(data), source=RELEASE, json_numbers=True)
            table.integer("schema_version", low=RELEASE_VERSION, high=RELEASE_VERSION)
            table.text("task", choices=("classification",))
            table.text("input", choices=(INPUT,))
            table.text("output", choices=(OUTPUT,))
            release = cls(
                name=table.name("name"),
                version=table.integer("version", low=1, high=2**53 - 1),
                simulated=table.flag("simulated"),
                plan=table.text("plan"),
                schema=Schema.read(table.table("schema")),
                files=_read_files(table.table("files")),
                tensors=_read_tensors(table.table("tensors")),
            )
            table.done()
        except (CanonicalError, InputError) as error:
            raise TrustError(f"{RELEASE} is not a release: {error}", hint=AGAIN) from error
        return release


def _read_files(table: Table) -> dict[str, tuple[str, int]]:
    files = {}
    for name in set(LIMITS) - {RELEASE}:
        entry = table.table(name)
        files[name] = (entry.text("sha256"), entry.integer("length", low=0, high=LIMITS[name]))
        entry.done()
    table.done()
    return files


def _read_tensors(table: Table) -> weights.Tensors:
    tensors = {}
    for name in table.values:
        entry = table.table(name)
        dtype = entry.text("dtype", choices=tuple(weights.SIZES))
        tensors[name] = (dtype, entry.integers("shape", low=0, high=2**53 - 1))
        entry.done()
    table.done()
    return tensors


@dataclass(frozen=True)
class Predicate:
    """What a device needs of a privacy statement; an auditor reads the rest."""

    plan: str
    schema: str  # SHA-256 of its canonical JSON
    name: str
    version: int
    simulated: bool
    noise: tuple[str, ...]
    unit: str
    epsilon: float
    delta: float

    @classmethod
    def read(cls, document: dict[str, Any]) -> Predicate:
        try:
            table = Table(document, source=STATEMENT, json_numbers=True)
            return cls(
                plan=table.text("plan"),
                schema=table.text("schema"),
                name=table.name("name"),
                version=table.integer("version", low=1, high=2**53 - 1),
                simulated=table.flag("simulated"),
                noise=table.texts("noise", least=1, most=2),
                unit=table.text("unit"),
                epsilon=table.number("epsilon", low=0),
                delta=table.number("delta", low=0, below=1),
            )
        except InputError as error:
            raise TrustError(f"malformed privacy statement: {error}", hint=AGAIN) from error


def claims_of(release: ReleaseDocument, predicate: Predicate) -> Claims:
    """What both say, once they were held against each other."""
    return Claims(
        name=release.name,
        version=release.version,
        simulated=release.simulated,
        repeatable=release.simulated or "simulated" in predicate.noise,
        schema=release.schema,
        epsilon=predicate.epsilon,
        delta=predicate.delta,
        unit=predicate.unit,
    )
