"""How are rows of a table read to be predicted? From CSV, of a file or a stream, and from Parquet.

The rule is that of :mod:`client.device.reading.source`. The schema's columns may stand in any
order, among others; the target is not needed. A line of CSV is read by itself, as in training.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from client.device.bounds import UNKNOWN, batch_of
from client.device.reading.source import Batch, Source, check_table, missing
from common.data.schema import Column, Schema
from common.data.table import MOST_BYTES, cells
from common.errors import DataError

_CHUNK = 2**20  # bytes of CSV at a time; of a pipe, what it has


def open_stream(file: BinaryIO, schema: Schema) -> Source:
    """CSV from a stream that is open; see :func:`open_csv`."""
    check_table(schema, "the stream")
    return Source("the stream", "bytes", 0, lambda: _csv(file, "the stream", schema))


def open_csv(path: Path, schema: Schema) -> Source:
    """A CSV file in UTF-8, with a header."""
    check_table(schema, path)

    def batches() -> Iterator[Batch]:
        with open(path, "rb") as file:
            yield from _csv(file, str(path), schema)

    return Source(str(path), "bytes", path.stat().st_size, batches)


def _csv(file: BinaryIO, name: str, schema: Schema) -> Iterator[Batch]:
    """The rows of a CSV stream; what a pipe has brought is a batch, however little."""
    most, row, number = batch_of(schema), None, 0
    for lines, done in _blocks(file, name):
        values: list[list[float]] = []
        for line in lines:
            number += 1
            where = f"{name}, line {number}"
            if row is None:
                header = cells(line.removeprefix(codecs.BOM_UTF8), where)
                row = _Row([cell.strip() for cell in header], schema, where)
            elif found := row.read(line, where):
                values.append(found)
            if len(values) == most:
                yield Batch(np.array(values, np.float32), done)
                values = []
        if values:
            yield Batch(np.array(values, np.float32), done)
    if row is None:
        _Row([], schema, f"{name}, line 1")  # raises: there is no header


def _blocks(file: BinaryIO, name: str) -> Iterator[tuple[list[bytes], int]]:
    """Whole lines as they come, and how many bytes were read."""
    rest, done = b"", 0
    read = getattr(file, "read1", file.read)
    while chunk := read(_CHUNK):
        done += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > MOST_BYTES:
            raise DataError(f"{name}: a line has over {MOST_BYTES} bytes")
        if lines:
            yield lines, done
    if rest:
        yield [rest], done


class _Row:
    """What a line says under a header and a schema; columns in any order, among others."""

    def __init__(self, header: Sequence[str], schema: Schema, where: str) -> None:
        self._cells, self._columns = len(header), schema.columns
        for column in schema.columns:
            if header.count(column.name) != 1:
                raise DataError(
                    f"{where}: column {column.name!r} is there {header.count(column.name)} times, "
                    "not once",
                    hint=f"the header must name {', '.join(c.name for c in schema.columns)}",
                )
        self._places = [header.index(column.name) for column in schema.columns]

    def read(self, line: bytes, where: str) -> list[float]:
        """The features; nothing for an empty line."""
        row = cells(line.removesuffix(b"\r"), where)
        if not row:
            return []
        if len(row) != self._cells:
            raise DataError(f"{where}: {len(row)} fields where the header has {self._cells}")
        return [
            _value(row[place], column, where)
            for column, place in zip(self._columns, self._places, strict=True)
        ]


def _value(cell: str, column: Column, where: str) -> float:
    try:
        if "_" in cell or not cell.isascii():  # Python's own liberties
            raise ValueError
        value = float(cell)
    except ValueError as error:
        what = "is not a number" if cell.strip() else "is empty"
        raise DataError(f"{where}, column {column.name!r} {what}") from error
    if not (math.isfinite(value) and column.lower <= value <= column.upper):
        raise DataError(
            f"{where}, column {column.name!r} is outside of {column.lower:g} to {column.upper:g}",
            hint=UNKNOWN,
        )
    return value


# -- Parquet ---------------------------------------------------------------------------------------


def open_parquet(path: Path, schema: Schema) -> Source:
    """A Parquet file of numeric columns; a row group of it is in memory at a time."""
    check_table(schema, path)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise missing("Parquet files", "parquet") from error
    names = [column.name for column in schema.columns]
    try:
        with parquet.ParquetFile(path) as file:
            rows, found = file.metadata.num_rows, file.schema_arrow
    except pa.ArrowException as error:
        raise DataError(f"cannot read {path}: it is no Parquet file, or damaged") from error
    for name in names:
        places = found.get_all_field_indices(name)
        if len(places) != 1:
            raise DataError(
                f"{path}: column {name!r} is there {len(places)} times, not once",
                hint=f"the file must have {', '.join(names)}",
            )
        kind = found.field(places[0]).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataError(f"{path}: column {name!r} is {kind}, not numbers")

    def batches() -> Iterator[Batch]:
        start = 0
        try:
            with parquet.ParquetFile(path) as opened:
                for part in opened.iter_batches(batch_of(schema), columns=names):
                    columns = [part.column(name) for name in names]
                    values = np.empty((len(part), len(names)))
                    for index, (column, name) in enumerate(zip(columns, names, strict=True)):
                        if column.null_count:
                            place = start + int(np.argmax(column.is_null().to_numpy(False)))
                            raise DataError(f"{path}, row {place} (from 0): {name!r} is empty")
                        values[:, index] = column.to_numpy(zero_copy_only=False)
                    _check_columns(values, schema, path, start)
                    start += len(values)
                    yield Batch(values.astype(np.float32), start)
        except pa.ArrowException as error:
            raise DataError(f"cannot read {path}: it is damaged") from error

    return Source(str(path), "records", rows, batches)


def _check_columns(values: NDArray[np.float64], schema: Schema, path: Path, first: int) -> None:
    lower, upper = (np.array(bound) for bound in schema.bounds())  # (F,)
    within = (values >= lower) & (values <= upper)  # (b, F)
    if not within.all():
        row, place = (int(one[0]) for one in np.nonzero(~within))
        column = schema.columns[place]
        raise DataError(
            f"{path}, row {first + row} (from 0), column {column.name!r} is outside of "
            f"{column.lower:g} to {column.upper:g}",
            hint=UNKNOWN,
        )
