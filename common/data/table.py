"""How is a CSV table read? Line by line, each as if there were no other.

The rule is that of :mod:`common.data.source`, for lines: no quote and no byte of one changes what
another says. An error names the file, the line and the column, and quotes at most a few characters.
"""

from __future__ import annotations

import codecs
import csv
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from common.data.records import MOST_RECORDS, Records, note_left_out
from common.data.schema import Column, Schema
from common.errors import DataError

MOST_VALUES = 2**31  # 8 GiB of float32
MOST_BYTES = 2**24  # of a line


@dataclass(frozen=True)
class Csv:
    """A CSV file with a header: UTF-8, numeric features, one column with the class.

    A line is a record. Lines end in LF or CRLF, and each is read by itself: a quoted cell ends on
    its line, so no quote and no byte of one line changes how another one is read.

    Args:
        path: of the file.
        columns: the plan's name of a column to its local header, where they differ.
        partition_by: local header whose values become ``Records.groups``.
    """

    path: str
    columns: Mapping[str, str] = field(default_factory=dict)
    partition_by: str | None = None


def load_csv(source: Csv, schema: Schema, *, strict: bool) -> Records:
    """Read a table; see :func:`common.data.source.load`."""
    if schema.kind != "table":
        raise DataError(
            f"a CSV file holds a table, but the plan's schema describes {schema.kind} records",
            hint='set kind = "table" in [plan.schema], or choose another source',
        )
    try:
        with open(source.path, "rb") as file:
            return _read_rows(_lines(file), source, schema, strict=strict)
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {source.path}",
            hint="set path in [data]; a relative path counts from the experiment file",
            code="no-such-file",
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {source.path}: {error}") from error


def _read_rows(lines: Iterator[bytes], source: Csv, schema: Schema, *, strict: bool) -> Records:
    header = cells(next(lines, b"").removeprefix(codecs.BOM_UTF8), f"{source.path}, line 1")
    row = _Row(source, schema, header)
    values, labels, groups = array("f"), array("q"), list[str]()
    places, extent, left_out = array("q"), 0, list[DataError]()
    for place, line in enumerate(lines):
        extent = place + 1
        where = f"{source.path}, line {place + 2}"
        try:
            found = row.read(line, where)
        except DataError as error:
            if strict:
                raise
            left_out = [left_out[0] if left_out else error]
            continue
        if found is None:
            continue
        values.extend(found[0])
        labels.append(found[1])
        groups.append(found[2])
        places.append(place)
        # Only where the data is judged: in a round, the one record too many would switch off all.
        if strict and (len(labels) > MOST_RECORDS or len(values) > MOST_VALUES):
            raise DataError(f"{where}: too many records for this machine's memory")
    if strict and not labels:
        raise DataError(f"{source.path} has a header but no records")
    if left_out:
        note_left_out(extent - len(labels), left_out[0].message)
    return Records(
        np.array(values, dtype=np.float32).reshape(-1, *schema.shape),
        np.array(labels, dtype=np.int64),
        tuple(groups) if source.partition_by is not None else None,
        np.array(places, dtype=np.int64),
        extent,
    )


class _Row:
    """What a line of a file with a certain header says, under a schema: of that line alone."""

    def __init__(self, source: Csv, schema: Schema, header: list[str]) -> None:
        self._cells, self._places = len(header), _places(header, source, schema)
        self._schema, self._partition_by = schema, source.partition_by
        self._label_of = {name: index for index, name in enumerate(schema.classes)}

    def read(self, line: bytes, where: str) -> tuple[list[float], int, str] | None:
        """Features, label and group; None for an empty line, as editors leave at the end."""
        row, places, schema = cells(line, where), self._places, self._schema
        if not row:
            return None
        if len(row) != self._cells:
            raise DataError(f"{where}: {len(row)} cells, but the header has {self._cells}")
        values = [_number(row[places[c.name]], c, where) for c in schema.columns]
        label = _label(row[places[schema.target]], self._label_of, schema.target, where)
        if self._partition_by is None:
            return values, label, ""
        return values, label, _group(row[places[_PARTITION]], self._partition_by, where)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Physical lines; of one above MOST_BYTES the beginning, which is too long for a record."""
    while line := file.readline(MOST_BYTES + 1):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(MOST_BYTES + 1)


def cells(line: bytes, where: str) -> list[str]:
    """The cells of one line, read as if there were no other."""
    if len(line) > MOST_BYTES:
        raise DataError(f"{where}: over {MOST_BYTES} bytes")
    try:
        return next(csv.reader([line.decode()], strict=True), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8", hint="save the file as UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{where}: cannot read its cells: {error}",
            hint="a quoted cell ends on its own line, with a quote inside of it doubled; lines end "
            "in LF or CRLF",
        ) from error


_PARTITION = "\0partition"  # no header can have this name


def _places(header: list[str], source: Csv, schema: Schema) -> dict[str, int]:
    """Where each of the plan's columns stands in a row."""
    wanted = [*(column.name for column in schema.columns), schema.target]
    for name in source.columns:
        if name not in wanted:
            raise DataError(
                f"[data.columns] maps {name!r}, which is not a column of the plan's schema",
                hint=f"the plan's columns: {_some(wanted)}",
            )
    local = {name: source.columns.get(name, name) for name in wanted}
    if source.partition_by is not None:
        local[_PARTITION] = source.partition_by
    places = {}
    for name, heading in local.items():
        if header.count(heading) != 1:
            problem = "no column" if heading not in header else "more than one column"
            raise DataError(
                f"{source.path}, line 1: {problem} {heading!r}",
                hint=f"its columns: {_some(header)}; map names that differ under [data.columns]",
            )
        places[name] = header.index(heading)
    return places


def _number(cell: str, column: Column, where: str) -> float:
    """A cell as a finite number within its column's public bounds."""
    try:
        if "_" in cell or not cell.isascii():
            raise ValueError
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problem = "is empty" if not cell.strip() else f"holds {_short(cell)}, not a finite number"
        raise DataError(
            f"{where}: column {column.name!r} {problem}",
            hint="fill in or remove that record before training",
        )
    if not column.lower <= value <= column.upper:
        raise DataError(
            f"{where}: column {column.name!r} is {value:g}, outside its bounds {column.lower:g} to "
            f"{column.upper:g}",
            hint="mend the record, or agree on wider bounds in the plan's schema",
        )
    return value


def _label(cell: str, label_of: Mapping[str, int], target: str, where: str) -> int:
    label = label_of.get(cell.strip())
    if label is None:
        raise DataError(
            f"{where}: column {target!r} holds {_short(cell)}, which is not a class of the plan",
            hint=f"the plan's classes: {_some(list(label_of))}",
        )
    return label


def _group(cell: str, heading: str, where: str) -> str:
    if not cell.strip() or len(cell) > 200:
        raise DataError(f"{where}: column {heading!r} must name the record's client")
    return cell.strip()


def _short(cell: str) -> str:
    return repr(cell if len(cell) <= 24 else cell[:24] + "…")


def _some(items: list[str]) -> str:
    shown = ", ".join(_short(item) for item in items[:12])
    return shown + (f", and {len(items) - 12} more" if len(items) > 12 else "")
