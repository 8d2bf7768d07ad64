"""Which reader is for which file? The suffix says so, or that it is a folder.

The rule: what cannot fit the model is refused before anything is predicted, and so is a format
whose package is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from client.device.reading.arrays import open_npy
from client.device.reading.images import open_images
from client.device.reading.rows import open_csv, open_parquet, open_stream
from client.device.reading.source import Source
from common.data.schema import Schema
from common.errors import DataError, InputError

_READERS = {".csv": open_csv, ".npy": open_npy, ".parquet": open_parquet}


def open_source(source: str | Path | BinaryIO, schema: Schema) -> Source:
    """Records from a ``.csv``, ``.npy`` or ``.parquet`` file, a folder of images, or a CSV stream.

    Raises:
        DataError: it is missing or unreadable, or cannot fit ``schema``. Iterating raises it too,
            at the record that does not fit.
        InputError: it is none of these, or what reads it is not installed.
    """
    if not isinstance(source, str | Path):
        return open_stream(source, schema)
    path = Path(source)
    if path.is_dir():
        return open_images(path, schema)
    if path.suffix not in _READERS:
        raise InputError(
            f"{path} is neither .csv, .npy or .parquet nor a folder of images",
            hint="convert it to one of these",
        )
    try:
        return _READERS[path.suffix](path, schema)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", code="no-such-file") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'it is damaged'}") from error
