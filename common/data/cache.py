"""Values that took long to compute, kept on disk: a cache can be lost, torn or full, never wrong.

The rule: a file's name holds the digest of what it was computed from and the digest of what it
holds, and both must fit before it is used; anything else is computed again. The cache is not
synced: a file that a crash tore does not fit its own name. It holds values derived from records,
so its directory is readable by its owner alone, and deleting it is always safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Blocks = Callable[[], Iterable[Array]]


def cache_home() -> Path:
    """``$PRIVET_CACHE_HOME``, else ``privet`` in ``$XDG_CACHE_HOME``, else ``~/.cache/privet``."""
    if chosen := os.environ.get("PRIVET_CACHE_HOME"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "privet"


def feature_cache(name: str, key: bytes, shape: tuple[int, ...], compute: Blocks) -> Array:
    """The float32 array of ``shape`` that ``compute`` gives, from disk where it already is.

    Args:
        name: of the features, safe as a file name.
        key: all that the values depend on: the extractor's identity and version, and the raw bytes.
        shape: of the whole array.
        compute: yields the array in blocks along the first axis, in order.

    Returns:
        An array mapped from the file; writing to the array never reaches the file. A cache that
        cannot be written costs time, never the run: the array is then computed in memory.
    """
    stem = f"{name}-{hashlib.sha256(key).hexdigest()}"
    folder = cache_home() / "features"
    for path in folder.glob(f"{stem}.*.npy"):
        found = _open(path, shape)
        if found is not None:
            return found
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stored = _open(_write(folder, stem, shape, compute), shape)
    except OSError:
        stored = None
    if stored is None:
        stored = np.concatenate(list(compute()))
    return stored


def _open(path: Path, shape: tuple[int, ...]) -> Array | None:
    """Map a file, if it is whole: its name ends in the digest of its bytes."""
    try:
        if _digest(path) != path.name.split(".")[-2]:
            return None
        array = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None


def _write(folder: Path, stem: str, shape: tuple[int, ...], compute: Blocks) -> Path:
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            written = 0
            for block in compute():
                written += file.write(np.ascontiguousarray(block, dtype="<f4").data)
        if written != 4 * math.prod(shape):
            raise ValueError(f"computed {written // 4} values for an array of shape {shape}")
        path = folder / f"{stem}.{_digest(temporary)}.npy"
        return temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
