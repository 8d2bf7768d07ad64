"""How are records read? Three sources, one result: raw float32 features and integer labels.

The rule: whether something is a record, and which, is a question about that one record. Where the
data is judged (before an approval), one that the schema does not allow is an error that names the
file, the line and the column, and quotes at most a few characters. Where rounds are served, it is
no record, and all others stay what they are and where they are: otherwise one line more could
switch off the rest, and an update would move by far more than one record's bound. Nothing is
guessed or repaired. These errors are for the data owner, on the owner's machine.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import logging
import math
import struct
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.data.cache import cache_home
from common.data.schema import Column, Schema
from common.errors import DataError

log = logging.getLogger("privet.data")

MOST_RECORDS = 10**7
MOST_VALUES = 2**31  # 8 GiB of float32
MOST_BYTES = 2**24  # of a line
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Records:
    """Records as they are, before any preprocessing.

    Args:
        features: (N, *schema.shape) float32, in raw units, within the schema's bounds.
        labels: (N,) int64, indexes into ``schema.classes``.
        groups: (N) values of the partition column, where one was asked for.
        places: (N,) int64, ascending: where each record stands in its source, from 0. A line of a
            CSV file has a place even if it holds no record, so none moves another.
        extent: how many places the source has; -1: records are at each of them, and these N.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: tuple[str, ...] | None = None
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    extent: int = -1

    def __post_init__(self) -> None:
        if self.extent < 0:
            object.__setattr__(self, "places", np.arange(len(self.labels)))
            object.__setattr__(self, "extent", len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indexes: NDArray[np.int64]) -> Records:
        """The records at ``indexes``, ascending, each still at its place."""
        groups = None if self.groups is None else tuple(self.groups[i] for i in indexes)
        places = self.places[indexes]
        return Records(self.features[indexes], self.labels[indexes], groups, places, self.extent)


@dataclass(frozen=True)
class Digits:
    """The 1,797 digits of 8 x 8 pixels, 0 to 16, of scikit-learn (Alpaydin and Kaynak 1998)."""


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels (arXiv 1708.07747).

    Args:
        part: ``train`` or ``test``, the official ones.
        path: a folder with the four idx files (``.gz``); otherwise Debian's, else the user's cache,
            filled by a checked download.
    """

    part: str = "train"
    path: str | None = None


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


Source = Digits | FashionMnist | Csv


def load(source: Source, schema: Schema, *, strict: bool = True) -> Records:
    """Read all records of a source.

    Args:
        strict: a record that does not fit is an error; otherwise it is left out, and only what no
            single record can cause is an error.

    Raises:
        DataError: the data is missing or does not fit ``schema``.
        NetworkError: Fashion-MNIST is not on this machine and could not be fetched.
    """
    if isinstance(source, Csv):
        return _load_csv(source, schema, strict=strict)
    name = "digits" if isinstance(source, Digits) else "fashion-mnist"
    images, labels = _digits() if isinstance(source, Digits) else _fashion(source)
    _check_images(name, images, schema)
    fit = _fit(name, images, labels, schema, strict=strict)
    features = images.reshape(-1, *schema.shape).astype(np.float32)
    records = Records(features, labels.astype(np.int64))
    return records if fit.all() else records.take(np.flatnonzero(fit))


def split(records: Records, share: float) -> tuple[Records, Records]:
    """Keep records for training, and hold out ``share`` of them, rounded up: (kept, held out).

    Which ones depends on each record's place alone: those whose place has the least SHA-256. No
    seed moves them, so runs with different seeds are measured on the same records; and a line that
    is no record has a place, so it moves none of the others.
    """
    extent = records.extent
    held = math.ceil(share * extent)
    if not 0 < held < extent:
        raise DataError(
            f"holding out {share:g} of {extent} records leaves nothing to train on or to test"
        )
    places = sorted(range(extent), key=lambda i: hashlib.sha256(b"%d" % i).digest())
    chosen = np.zeros(extent, dtype=bool)
    chosen[places[:held]] = True
    chosen = chosen[records.places]
    return records.take(np.flatnonzero(~chosen)), records.take(np.flatnonzero(chosen))


def _check_images(name: str, images: NDArray[np.generic], schema: Schema) -> None:
    shape = (1, *images.shape[1:])
    if schema.kind != "image" or schema.shape != shape:
        raise DataError(
            f"{name} has images of shape {shape}, but the plan's schema describes "
            f"{schema.kind} records of shape {schema.shape}",
            hint=f'set kind = "image" and shape = {list(shape)} in [plan.schema]',
        )
    if len(schema.classes) != 10:
        raise DataError(f"{name} has 10 classes, but the plan's schema has {len(schema.classes)}")


def _fit(
    name: str,
    images: NDArray[np.generic],
    labels: NDArray[np.integer],
    schema: Schema,
    *,
    strict: bool,
) -> NDArray[np.bool_]:
    """Which images the schema allows, each judged by itself: (N,). If strict, all, or an error."""
    pixels = images.reshape(len(images), -1)
    least, most = pixels.min(axis=1), pixels.max(axis=1)  # NaN, where a pixel is NaN: not within
    within = (least >= schema.lower) & (most <= schema.upper)
    known = (labels >= 0) & (labels < len(schema.classes))
    fit: NDArray[np.bool_] = within & known
    if fit.all():
        return fit
    first = int(np.argmin(fit))
    if within[first]:
        problem = f"has label {labels[first]}, but the plan has {len(schema.classes)} classes"
        hint = "mend the record, or get the files again"
    else:
        problem = (
            f"has pixels from {float(least[first]):g} to {float(most[first]):g}, outside the "
            f"schema's bounds {schema.lower:g} to {schema.upper:g}"
        )
        hint = "set lower and upper in [plan.schema] to the bounds of a pixel"
    if strict:
        raise DataError(f"{name}, image {first} (from 0) {problem}", hint=hint)
    _left_out(int((~fit).sum()), f"{name}, image {first} {problem}")
    return fit


def _left_out(count: int, first: object) -> None:
    """For the owner, in this machine's log: nothing of it may reach the server."""
    log.warning("%d of the data's rows are no records; the first: %s", count, first)


# -- digits --------------------------------------------------------------------------------------


def _digits() -> tuple[NDArray[np.generic], NDArray[np.integer]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed",
            hint="pip install scikit-learn, or choose another source",
        ) from error
    bundle = load_digits()
    return bundle.images, bundle.target


# -- Fashion-MNIST -------------------------------------------------------------------------------


def _fashion(source: FashionMnist) -> tuple[NDArray[np.generic], NDArray[np.integer]]:
    prefix = {"train": "train", "test": "t10k"}[source.part]
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    folder = fashion_folder(source.path)
    images = read_idx(folder / f"{names[0]}.gz", (28, 28))
    labels = read_idx(folder / f"{names[1]}.gz", ())
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"{folder} has {len(images)} images but {len(labels)} labels for {source.part}",
            hint="one of the two files is not what its name says; get both again",
        )
    return images, labels


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read a gzipped idx file of unsigned bytes: (N, *shape) uint8.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, each axis' length
    as a big-endian 32-bit integer, then the values (yann.lecun.com/exdb/mnist, "file formats").

    Raises:
        DataError: no such file, not gzip, another shape, or shorter or longer than its header says.
    """
    axes = 1 + len(shape)
    try:
        with gzip.open(path) as file:
            header = file.read(4 + 4 * axes)
            if len(header) != 4 + 4 * axes or header[:4] != bytes([0, 0, 8, axes]):
                raise DataError(f"{path} is not an idx file of bytes with {axes} axes")
            count, *found = struct.unpack(f">{axes}I", header[4:])
            if tuple(found) != shape or count > MOST_RECORDS:
                raise DataError(
                    f"{path} holds {count} records of shape {tuple(found)}, not {shape}"
                )
            size = count * math.prod(shape)
            data = file.read(size + 1)
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {path}", hint=FASHION_HINT, code="no-such-file"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}", hint="get the file again") from error
    if len(data) != size:
        found_bytes = "more" if len(data) > size else f"{len(data)} bytes"
        raise DataError(f"{path} should hold {size} bytes of values but holds {found_bytes}")
    return np.frombuffer(data, np.uint8).reshape(count, *shape)


FASHION_HINT = "apt-get install dataset-fashion-mnist, or set path in [data] to its folder"


def fashion_folder(path: str | None) -> Path:
    """Where Fashion-MNIST is: the given folder, else Debian's package, else the cache."""
    if path is not None:
        return Path(path)
    return DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else cache_home() / "fashion-mnist"


# -- CSV -----------------------------------------------------------------------------------------


def _load_csv(source: Csv, schema: Schema, *, strict: bool) -> Records:
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
    header = _cells(next(lines, b"").removeprefix(codecs.BOM_UTF8), f"{source.path}, line 1")
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
        _left_out(extent - len(labels), left_out[0].message)
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
        row, places, schema = _cells(line, where), self._places, self._schema
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


def _cells(line: bytes, where: str) -> list[str]:
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
