"""How are records read from a ``.npy`` file? As numpy's own format says, and no pickle.

The rule is that of :mod:`client.device.reading.source`. Of an array in C order a batch is read at a
time; one in Fortran order has its records all over the file, and is looked up in a map of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.device.bounds import Bounds, batch_of
from client.device.reading.source import Batch, Source
from common.data.schema import Schema
from common.errors import DataError

_NPY = "write it with numpy.save, as numbers"


def open_npy(path: Path, schema: Schema) -> Source:
    """An array of shape (B, *schema.shape) of floats or integers."""
    array = _mapped(path)
    bounds, most = Bounds(schema), batch_of(schema)
    bounds.check_kind(array.shape, array.dtype, str(path))
    # Read where that can be: a file that another program cuts off meanwhile is then an error.
    parts = _slices if not array.flags.c_contiguous else _reads

    def batches() -> Iterator[Batch]:
        start = 0
        for part in parts(array, path, most):
            records = bounds.check(part, first=start, source=str(path))
            start += len(records)
            yield Batch(records, start)

    return Source(str(path), "records", len(array), batches)


def _mapped(path: Path) -> np.memmap[Any, Any]:
    """The array of a ``.npy`` file; nothing in it is run, and no more is read than there is."""
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError, OverflowError) as error:
        raise DataError(f"cannot read {path}: {error}", hint=_NPY) from error
    if not isinstance(array, np.memmap):
        array.close()
        raise DataError(f"{path} is an archive, not an array", hint=_NPY)
    return array


def _reads(array: np.memmap[Any, Any], path: Path, most: int) -> Iterator[NDArray[Any]]:
    shape, each = array.shape[1:], math.prod(array.shape[1:])
    with open(path, "rb") as file:
        file.seek(array.offset)
        for start in range(0, len(array), most):
            count = min(most, len(array) - start)
            flat = np.fromfile(file, array.dtype, count * each)
            if len(flat) != count * each:
                raise DataError(f"{path} was cut off while it was read")
            yield flat.reshape(count, *shape)


def _slices(array: np.memmap[Any, Any], _path: Path, most: int) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), most):
        yield array[start : start + most]
