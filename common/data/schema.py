"""What does a record look like? Shape, names and *public* bounds, the same for every holder.

The rule: a schema is part of the plan, so it is public and agreed before anybody looks at their
data. Bounds come from knowledge about the field (a pixel is 0 to 255, an age 0 to 120), never from
the records: a minimum or a mean taken from data is a release that nobody accounted for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

from common.canonical import Json, number
from common.config import Table


@dataclass(frozen=True)
class Column:
    """A numeric column and its public bounds, lower < upper, in the column's own unit."""

    name: str
    lower: float
    upper: float


@dataclass(frozen=True)
class Schema:
    """The features and the classes of a classification task.

    Args:
        kind: ``image`` (shape (C, H, W), one pair of bounds) or ``table`` (shape (F,), one pair per
            column).
        shape: of one record's features, without a batch axis.
        columns: for a table, its features in order; empty for an image.
        lower, upper: bounds of a pixel; for a table each column has its own.
        target: for a table, the column that holds the class.
        classes: the names of the classes; a label is an index into them.
    """

    kind: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    lower: float = 0.0
    upper: float = 1.0
    target: str = ""

    @property
    def size(self) -> int:
        """How many numbers one record has."""
        return prod(self.shape)

    def bounds(self) -> tuple[list[float], list[float]]:
        """Lower and upper bounds, flat, one per feature: two lists of length ``size``."""
        if self.kind == "table":
            return [c.lower for c in self.columns], [c.upper for c in self.columns]
        return [self.lower] * self.size, [self.upper] * self.size

    def json(self) -> Json:
        if self.kind == "image":
            return {
                "kind": "image",
                "shape": list(self.shape),
                "lower": number(self.lower),
                "upper": number(self.upper),
                "classes": list(self.classes),
            }
        return {
            "kind": "table",
            "target": self.target,
            "columns": [
                {"name": c.name, "lower": number(c.lower), "upper": number(c.upper)}
                for c in self.columns
            ],
            "classes": list(self.classes),
        }

    @classmethod
    def read(cls, table: Table) -> Schema:
        """Read ``[plan.schema]``; raises :class:`~common.errors.PlanError` with the line."""
        kind = table.text("kind", choices=("image", "table"))
        classes = table.texts("classes", least=2, most=10_000)
        if kind == "image":
            shape = table.integers("shape", low=1, high=4096)
            if len(shape) != 3:
                raise table.error("shape", "an image's shape is [channels, height, width]")
            lower, upper = _bounds(table, 0.0)
            schema = cls("image", shape, classes, lower=lower, upper=upper)
        else:
            columns = tuple(_column(item) for item in table.tables("columns"))
            if not 1 <= len(columns) <= 10_000:
                raise table.error("columns", "a table needs 1 to 10000 columns")
            names = [column.name for column in columns]
            target = table.text("target")
            if len({*names, target}) != len(names) + 1:
                raise table.error(
                    "columns", "two columns, or a column and the target, share a name"
                )
            schema = cls("table", (len(columns),), classes, columns, target=target)
        if schema.size > 10**7:
            raise table.error("shape", f"a record of {schema.size} numbers is over 10 million")
        table.done()
        return schema


def _column(table: Table) -> Column:
    name = table.text("name")
    column = Column(name, *_bounds(table))
    table.done()
    return column


def _bounds(table: Table, *default: float) -> tuple[float, float]:
    """Lower and upper, which differ also as models see them."""
    lower = table.number("lower", *default)
    upper = table.number("upper", above=lower)
    try:
        as_seen = struct.unpack("<2f", struct.pack("<2f", lower, upper))
    except OverflowError as error:
        raise table.error("upper", "bounds must be numbers that float32 can hold") from error
    if as_seen[0] == as_seen[1]:
        raise table.error("upper", f"lower and upper are both {as_seen[0]:g} as float32")
    return lower, upper
