"""How are records read? Three sources, one result: raw float32 features and integer labels.

The rule: whether something is a record, and which, is a question about that one record. Where the
data is judged (before an approval), one that the schema does not allow is an error that names it.
Where rounds are served, it is no record, and all others stay what they are and where they are:
otherwise one line more could switch off the rest, and an update would move by far more than one
record's bound. Nothing is guessed or repaired. These errors are for the data owner, on the owner's
machine.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.cache import cache_home
from common.data.records import MOST_RECORDS, Records, note_left_out
from common.data.schema import Schema
from common.data.table import Csv, load_csv
from common.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


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
        return load_csv(source, schema, strict=strict)
    name = "digits" if isinstance(source, Digits) else "fashion-mnist"
    images, labels = _digits() if isinstance(source, Digits) else _fashion(source)
    _check_images(name, images, schema)
    fit = _fit(name, images, labels, schema, strict=strict)
    features = images.reshape(-1, *schema.shape).astype(np.float32)
    records = Records(features, labels.astype(np.int64))
    return records if fit.all() else records.take(np.flatnonzero(fit))


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
    note_left_out(int((~fit).sum()), f"{name}, image {first} {problem}")
    return fit


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
