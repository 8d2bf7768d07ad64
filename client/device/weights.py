"""Is this a safetensors file that every reader reads alike, with finite numbers in it?

The rule: bytes that two parsers could disagree about are refused. The public parsers accept a
header of megabytes, a key twice, half a million empty tensors, and NaN; this one does not. Nothing
is loaded.

Format: 8 bytes little-endian header length, a JSON header of ``name -> {dtype, shape,
data_offsets}``, then the tensors, without holes or overlap.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

import numpy as np

from common.errors import TrustError

MAX_HEADER_BYTES = 64 * 2**10
METADATA = "__metadata__"

# Item sizes in bytes; a dtype that is not here is refused.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def check(data: bytes) -> None:
    """Raise :class:`TrustError` unless ``data`` is a well-formed file of finite numbers."""
    if len(data) < 8:
        raise _bad("it is shorter than its header's length")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    header, body = data[8 : 8 + length], memoryview(data)[8 + length :]
    if len(header) != length or not header.startswith(b"{"):
        raise _bad("its header is cut off or not an object")
    tensors = _tensors(header)
    end = 0
    for start, stop, name, dtype in sorted(tensors):
        if start != end or stop > len(body):
            raise _bad(
                f"tensor {name!r} has bytes {start} to {stop}, not from {end} in {len(body)}"
            )
        _check_finite(body[start:stop], name, dtype)
        end = stop
    if end != len(body):
        raise _bad(f"its tensors end at byte {end} of {len(body)}")


def _tensors(header: bytes) -> list[tuple[int, int, str, str]]:
    """(first byte, byte after the last, name, dtype) of every tensor."""
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad(f"its header is not JSON: {error}") from error
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad("its metadata are not texts")
    if not entries:
        raise _bad("it holds no tensor")
    return [_tensor(name, entry) for name, entry in entries.items()]


def _tensor(name: str, entry: Any) -> tuple[int, int, str, str]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(f"tensor {name!r} has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise _bad(f"tensor {name!r} has dtype {dtype!r:.40}")
    if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
        raise _bad(f"tensor {name!r} has a malformed shape or offsets")
    start, stop = offsets
    if stop - start != prod(shape) * SIZES[dtype] or stop == start:
        raise _bad(f"tensor {name!r} has {stop - start} bytes for shape {shape} of {dtype}")
    return start, stop, name, dtype


def _check_finite(content: memoryview, name: str, dtype: str) -> None:
    if dtype == "BF16":  # the upper half of a float32: all exponent bits set is not finite
        finite = ((np.frombuffer(content, "<u2") & 0x7F80) != 0x7F80).all()
    elif dtype in _FLOATS:
        finite = np.isfinite(np.frombuffer(content, _FLOATS[dtype])).all()
    else:
        return
    if not finite:
        raise _bad(f"tensor {name!r} holds a value that is not a finite number")


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**53 for item in value
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return result


def _bad(why: str) -> TrustError:
    return TrustError(
        f"the weights are not a sound safetensors file: {why}",
        hint="obtain the release again from its source; if it is still refused, tell the releaser",
        code="bad-weights",
    )
