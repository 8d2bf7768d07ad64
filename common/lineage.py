"""What became of a model between its training and the device that runs it? Steps, file to file.

The rule: each step names the file that it began with, the one that it ended with, what it was done
with, and how the two compare. The first begins with the exported model, the last ends with what
devices run; the statement that two parties sign holds all of it. Nothing private goes in: records
that a step used were public, or made up from the schema's bounds, and the step says which.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.canonical import Json, number
from common.config import Table
from common.errors import InputError, TrustError

METHODS = ("distill", "prune", "quantize")
PUBLIC, SYNTHETIC = KINDS = ("public", "synthetic")
MOST_STEPS = 8
_ENDS = ("parent", "child")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Used:
    """The records that a step was done and compared with.

    Args:
        kind: ``public``: the operator declares that they are; ``synthetic``: fixed values within
            the schema's public bounds, from nobody.
        name: what they are, in words.
        sha256: of their values and labels, hexadecimal.
        tuned, compared: how many were worked with, and how many others measured on.
    """

    kind: str
    name: str
    sha256: str
    tuned: int
    compared: int

    def json(self) -> Json:
        return {
            "kind": self.kind,
            "name": self.name,
            "sha256": self.sha256,
            "tuned": self.tuned,
            "compared": self.compared,
        }


@dataclass(frozen=True)
class Comparison:
    """A model beside the one that it was made from.

    Args:
        agreement: share of records whose class is the same, in [0, 1].
        drift: largest difference of a logit, each record's logits less their mean, >= 0.
        accuracy: of the parent and of the child, in [0, 1]; None without labels.
        sizes: bytes of the two files.
        microseconds: median time of one prediction, in turn, on ``machine``.
        machine: the processor that it was measured on.
    """

    agreement: float
    drift: float
    accuracy: tuple[float, float] | None
    sizes: tuple[int, int]
    microseconds: tuple[float, float]
    machine: str

    @property
    def lost(self) -> float:
        """Accuracy lost, below 0 if gained; without labels, what may be lost at most."""
        if self.accuracy is None:
            return 1 - self.agreement
        return self.accuracy[0] - self.accuracy[1]

    def json(self) -> Json:
        values: Json = {
            "agreement": number(self.agreement),
            "drift": number(self.drift),
            "bytes": dict(zip(_ENDS, self.sizes, strict=True)),
            "microseconds": _ends(self.microseconds),
            "machine": self.machine,
        }
        return values if self.accuracy is None else {**values, "accuracy": _ends(self.accuracy)}


@dataclass(frozen=True)
class Step:
    """From one model file to the next.

    Args:
        method: one of ``METHODS``.
        parent, child: SHA-256 of the two ONNX files, hexadecimal.
        used: records.
        compared: the child beside its parent.
        settings: of the method, by name; plain texts.
    """

    method: str
    parent: str
    child: str
    used: Used
    compared: Comparison
    settings: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Json:
        return {
            "method": self.method,
            "parent": self.parent,
            "child": self.child,
            "settings": dict(self.settings),
            "used": self.used.json(),
            "compared": self.compared.json(),
        }


Lineage = tuple[Step, ...]


def write(lineage: Sequence[Step]) -> list[Json]:
    """The JSON of a lineage, for a statement's predicate."""
    return [step.json() for step in lineage]


def read(values: object, child: str) -> Lineage:
    """Read :func:`write`'s JSON.

    Args:
        values: from a document whose signatures were checked, or that is checked later.
        child: SHA-256 of the model that devices run, where it has to end.

    Raises:
        TrustError: ``bad-lineage``: malformed, or not one step from each file to the next.
    """
    if not isinstance(values, list) or len(values) > MOST_STEPS:
        raise _bad("it is not a list of a few steps")
    try:
        lineage = tuple(_step(value) for value in values)
    except InputError as error:
        raise _bad(error.message) from error
    for step, after in itertools.pairwise(lineage):
        if step.child != after.parent:
            raise _bad(f"the step {after.method!r} begins with another file than it was handed")
    if lineage and lineage[-1].child != child:
        raise _bad("it ends with another file than the model")
    return lineage


def origin(lineage: Sequence[Step], child: str) -> str:
    """SHA-256 of the exported model that ``child`` was made from: itself, without steps."""
    return lineage[0].parent if lineage else child


def _step(value: object) -> Step:
    table = _table(value)
    settings = table.table("settings")
    step = Step(
        method=table.text("method", choices=METHODS),
        parent=_digest(table, "parent"),
        child=_digest(table, "child"),
        used=_used(table.table("used")),
        compared=_comparison(table.table("compared")),
        settings={name: settings.text(name) for name in settings.values},
    )
    table.done()
    return step


def _used(table: Table) -> Used:
    used = Used(
        kind=table.text("kind", choices=KINDS),
        name=table.text("name"),
        sha256=_digest(table, "sha256"),
        tuned=table.integer("tuned", low=1, high=2**53),
        compared=table.integer("compared", low=1, high=2**53),
    )
    table.done()
    return used


def _comparison(table: Table) -> Comparison:
    sizes = table.table("bytes")
    before, after = (sizes.integer(end, low=1, high=2**53) for end in _ENDS)
    sizes.done()
    comparison = Comparison(
        agreement=table.number("agreement", low=0, high=1),
        drift=table.number("drift", low=0, high=1e9),
        accuracy=_pair(table.table("accuracy"), 1.0) if table.has("accuracy") else None,
        sizes=(before, after),
        microseconds=_pair(table.table("microseconds"), 1e12),
        machine=table.text("machine"),
    )
    table.done()
    return comparison


def _pair(table: Table, high: float) -> tuple[float, float]:
    before, after = (table.number(end, low=0, high=high) for end in _ENDS)
    table.done()
    return before, after


def _ends(values: tuple[float, float]) -> Json:
    return {end: number(value) for end, value in zip(_ENDS, values, strict=True)}


def _digest(table: Table, key: str) -> str:
    text = table.text(key)
    if not _DIGEST.fullmatch(text):
        raise table.error(key, f"{key} is no SHA-256")
    return text


def _table(value: object) -> Table:
    if not isinstance(value, dict):
        raise InputError("a step is not an object")
    values: dict[str, Any] = value
    return Table(values, source="lineage", json_numbers=True)


def _bad(why: str) -> TrustError:
    return TrustError(f"the model's lineage does not hold: {why}", code="bad-lineage")
