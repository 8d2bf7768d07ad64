"""Predict with the installed model, after verifying it once more.

The rule: the model that answers is the bytes that were verified at this start: digests, signatures
and the owner's policy of today, not of the day of the update. A record outside of the schema's
public bounds is refused rather than guessed at, and an error names the file, the line and the
column.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from client.device import slots
from client.device.home import DeviceHome
from client.device.verify import Candidate, verify
from common.data.schema import Column, Schema
from common.errors import DataError
from common.inference import Array, Latency

BATCH = 256  # records a call: keeps memory bounded whatever a file's length


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of one record, and its probability in [0, 1]."""

    label: str
    probability: float


class Predictor:
    """A verified model, ready to answer. Make one with :meth:`load`."""

    def __init__(self, model: Candidate) -> None:
        self.name = model.name
        self.version = model.version
        self.simulated = model.simulated
        self.schema = model.schema
        self._session = model.session
        self._bounds = tuple(
            np.array(bound, np.float32).reshape(self.schema.shape) for bound in self.schema.bounds()
        )

    @classmethod
    def load(cls, home: DeviceHome) -> Predictor:
        """Load what is installed.

        Raises:
            OperationError: nothing is installed yet.
            TrustError: it was changed on disk, or the owner's policy no longer allows it.
        """
        pointer, files = slots.load(home)
        return cls(
            verify(
                files,
                home.policy,
                home.keys(),
                floor=pointer.version,
                name=pointer.name,
                known=pointer.sealed,
            )
        )

    def probabilities(self, records: NDArray[Any]) -> Array:
        """Class probabilities, (B, classes) float32.

        Args:
            records: numbers of shape (B, *schema.shape), in the schema's units and bounds.

        Raises:
            DataError: wrong shape, not finite, or out of bounds; names the record (from 0).
        """
        self.check(records)
        return self.run(records)

    def check(self, records: NDArray[Any]) -> None:
        """Refuse records that the model knows nothing about; see :meth:`probabilities`."""
        _check_records(records, self.schema, *self._bounds)

    def run(self, records: NDArray[Any]) -> Array:
        """:meth:`probabilities` of records that :meth:`check` let pass."""
        if len(records) <= BATCH:
            return self._session.predict(records)
        parts = [
            self._session.predict(records[start : start + BATCH])
            for start in range(0, len(records), BATCH)
        ]
        return np.concatenate(parts)

    def predict(self, records: NDArray[Any]) -> list[Prediction]:
        """The likeliest class of every record; see :meth:`probabilities`."""
        rows = self.probabilities(records)  # (B, classes)
        best = rows.argmax(axis=1)  # (B,)
        return [
            Prediction(self.schema.classes[index], float(row[index]))
            for row, index in zip(rows, best.tolist(), strict=True)
        ]

    def predict_csv(self, path: Path) -> list[Prediction]:
        """Predict every row of a CSV file with a header.

        The schema's columns may stand in any order, among others; the target is not needed.

        Raises:
            DataError: names the file, the line and the column.
        """
        return self.predict(read_csv(path, self.schema))

    def predict_npy(self, path: Path) -> list[Prediction]:
        """Predict every record of a ``.npy`` file, shape (B, *schema.shape). Runs no pickle."""
        records = read_npy(path)
        try:
            return self.predict(records)
        except DataError as error:
            raise DataError(f"{path}: {error.message}", hint=error.hint) from error

    def latency(self, samples: int = 1000) -> Latency:
        """Time of a single record on this device."""
        return self._session.latency(samples)


def read_csv(path: Path, schema: Schema) -> NDArray[np.float64]:
    """The features of a CSV file, (B, F) float64, checked against the schema's bounds."""
    if schema.kind != "table":
        raise DataError(
            f"{path}: this model takes images of shape {schema.shape}, not rows of a table",
            hint="save the images as a .npy file",
        )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(file, path, schema))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", code="no-such-file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", hint="it must be CSV in UTF-8") from error
    return np.array(rows, np.float64).reshape(len(rows), schema.size)


def read_npy(path: Path) -> NDArray[Any]:
    """An array from a ``.npy`` file; nothing in it is run, and no more is read than there is."""
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", code="no-such-file") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}", hint=_NPY) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path} is an archive, not an array", hint=_NPY)
    return array


_NPY = "write it with numpy.save, as numbers"


def _rows(file: TextIO, path: Path, schema: Schema) -> Iterator[list[float]]:
    reader = csv.reader(file, strict=True)
    header = next(reader, [])
    positions = _positions(header, path, schema)
    for row in reader:
        if not row:
            continue  # an empty line
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {reader.line_num}: {len(row)} fields where the header has "
                f"{len(header)}"
            )
        yield [
            _value(row[position], column, f"{path}, line {reader.line_num}")
            for column, position in zip(schema.columns, positions, strict=True)
        ]


def _positions(header: Sequence[str], path: Path, schema: Schema) -> list[int]:
    names = [name.strip() for name in header]
    for column in schema.columns:
        if names.count(column.name) != 1:
            raise DataError(
                f"{path}, line 1: column {column.name!r} is there {names.count(column.name)} "
                "times, not once",
                hint=f"the header must name {', '.join(c.name for c in schema.columns)}",
            )
    return [names.index(column.name) for column in schema.columns]


def _value(text: str, column: Column, place: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise DataError(f"{place}, column {column.name!r}: {text!r:.40} is not a number") from error
    if not (math.isfinite(value) and column.lower <= value <= column.upper):
        raise DataError(
            f"{place}, column {column.name!r}: {value:g} is outside of {column.lower:g} to "
            f"{column.upper:g}",
            hint="the model knows nothing about such a value; check the column's unit",
        )
    return value


def _check_records(records: NDArray[Any], schema: Schema, lower: Array, upper: Array) -> None:
    """Shape, kind and bounds, compared in float32, which is what the model sees."""
    if records.ndim == 0 or records.shape[1:] != schema.shape or records.dtype.kind not in "fiu":
        raise DataError(
            f"{records.dtype} of shape {records.shape}, where numbers of shape "
            f"(records, {', '.join(map(str, schema.shape))}) are expected"
        )
    for start in range(0, len(records), BATCH):
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused
            batch = np.asarray(records[start : start + BATCH], np.float32)
        within = ((batch >= lower) & (batch <= upper)).reshape(len(batch), -1).all(axis=1)  # (b,)
        if not within.all():
            raise DataError(
                f"record {start + int(np.argmin(within))} holds a value outside of the schema's "
                "bounds",
                hint="the model knows nothing about such a value; check its unit",
            )
