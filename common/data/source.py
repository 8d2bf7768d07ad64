"""How are records read? Three sources, one result: raw float32 features and integer labels.

The rule: a source either gives every record exactly as the schema says, or an error that names the
file, the line and the column. Nothing is guessed, repaired or left out, and a message quotes at
most a few characters of the data. These errors are for the data owner, on the owner's machine.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import struct
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.data.cache import cache_home
from common.data.schema import Column, Schema
from common.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

MOST_RECORDS = 10**7
MOST_VALUES = 2**31  # 8 GiB of float32
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Records:
    """Records as they are, before any preprocessing.

    Args:
        features: (N, *schema.shape) float32, in raw units, within the schema's bounds.
        labels: (N,) int64, indexes into ``schema.classes``.
        groups: (N) values of the partition column, where one was asked for.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indexes: NDArray[np.int64]) -> Records:
        """The records at ``indexes``, in that order."""
        groups = None if self.groups is None else tuple(self.groups[i] for i in indexes)
        return Records(self.features[indexes], self.labels[indexes], groups)


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

    Args:
        path: of the file.
        columns: the plan's name of a column to its local header, where they differ.
        partition_by: local header whose values become ``Records.groups``.
    """

    path: str
    columns: Mapping[str, str] = field(default_factory=dict)
    partition_by: str | None = None


Source = Digits | FashionMnist | Csv


def load(source: Source, schema: Schema) -> Records:
    """Read all records of a source.

    Raises:
        DataError: the data is missing or does not fit ``schema``.
        NetworkError: Fashion-MNIST is not on this machine and could not be fetched.
    """
    if isinstance(source, Csv):
        return _load_csv(source, schema)
    name = "digits" if isinstance(source, Digits) else "fashion-mnist"
    images, labels = _digits() if isinstance(source, Digits) else _fashion(source)
    _check_images(name, images, labels, schema)
    features = images.reshape(-1, *schema.shape).astype(np.float32)
    return Records(features, labels.astype(np.int64))


def split(records: Records, share: float) -> tuple[Records, Records]:
    """Keep records for training, and hold out ``share`` of them, rounded up: (kept, held out).

    Which ones depends on each record's place alone: those whose place has the least SHA-256. No
    seed moves them, so runs with different seeds are measured on the same records.
    """
    held = math.ceil(share * len(records))
    if not 0 < held < len(records):
        raise DataError(
            f"holding out {share:g} of {len(records)} records leaves nothing to train on or to test"
        )
    places = sorted(range(len(records)), key=lambda i: hashlib.sha256(b"%d" % i).digest())
    chosen = np.zeros(len(records), dtype=bool)
    chosen[places[:held]] = True
    return records.take(np.flatnonzero(~chosen)), records.take(np.flatnonzero(chosen))


def _check_images(
    name: str, images: NDArray[np.generic], labels: NDArray[np.generic], schema: Schema
) -> None:
    shape = (1, *images.shape[1:])
    if schema.kind != "image" or schema.shape != shape:
        raise DataError(
            f"{name} has images of shape {shape}, but the plan's schema describes "
            f"{schema.kind} records of shape {schema.shape}",
            hint=f'set kind = "image" and shape = {list(shape)} in [plan.schema]',
        )
    if len(schema.classes) != 10 or int(labels.max()) > 9:
        raise DataError(f"{name} has 10 classes, but the plan's schema has {len(schema.classes)}")
    least, most = float(images.min()), float(images.max())
    if least < schema.lower or most > schema.upper:
        raise DataError(
            f"{name} has pixels from {least:g} to {most:g}, outside the schema's bounds "
            f"{schema.lower:g} to {schema.upper:g}",
            hint="set lower and upper in [plan.schema] to the bounds of a pixel",
        )


# -- digits --------------------------------------------------------------------------------------


def _digits() -> tuple[NDArray[np.generic], NDArray[np.generic]]:
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


def _fashion(source: FashionMnist) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
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


def _load_csv(source: Csv, schema: Schema) -> Records:
    if schema.kind != "table":
        raise DataError(
            f"a CSV file holds a table, but the plan's schema describes {schema.kind} records",
            hint='set kind = "table" in [plan.schema], or choose another source',
        )
    try:
        with open(source.path, encoding="utf-8-sig", newline="") as file:
            return _read_rows(csv.reader(file, strict=True), source, schema)
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {source.path}",
            hint="set path in [data]; a relative path counts from the experiment file",
            code="no-such-file",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source.path} is not UTF-8", hint="save the file as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {source.path}: {error}") from error


def _read_rows(rows: Reader, source: Csv, schema: Schema) -> Records:
    header = next(rows, [])
    places = _places(header, source, schema)
    label_of = {name: index for index, name in enumerate(schema.classes)}
    values, labels, groups = array("f"), array("q"), list[str]()
    for row in rows:
        if not row:
            continue  # an empty line, as editors leave at the end
        where = f"{source.path}, line {rows.line_num}"
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} cells, but the header has {len(header)}")
        for column in schema.columns:
            values.append(_number(row[places[column.name]], column, where))
        labels.append(_label(row[places[schema.target]], label_of, schema.target, where))
        if source.partition_by is not None:
            groups.append(_group(row[places[_PARTITION]], source.partition_by, where))
        if len(labels) > MOST_RECORDS or len(values) > MOST_VALUES:
            raise DataError(f"{where}: too many records for this machine's memory")
    if not labels:
        raise DataError(f"{source.path} has a header but no records")
    return Records(
        np.array(values, dtype=np.float32).reshape(-1, *schema.shape),
        np.array(labels, dtype=np.int64),
        tuple(groups) if source.partition_by is not None else None,
    )


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
