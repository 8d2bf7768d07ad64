"""Is this a safetensors file that every reader reads alike, with finite numbers in it?

The rule: bytes that two parsers could disagree about are refused. The public parsers accept a
header of megabytes, a key twice, half a million empty tensors, and NaN; this one does not. Nothing
is loaded. A release names every tensor, and a device holds the file to exactly those.

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
MAX_NAME = 256
METADATA = "__metadata__"

# Item sizes in bytes; a dtype that is not here is refused.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


# A tensor's name to its dtype, as the format spells it, and its shape.
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def check(data: bytes) -> Tensors:
    """The tensors that the file holds, once it is well-formed and all its numbers are finite.

    Raises:
        TrustError: it is not; nothing of it should be used.
    """
    if len(data) < 8:
        raise _bad("it is shorter than its header's length")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    header, body = data[8 : 8 + length], memoryview(data)[8 + length :]
    if len(header) != length or not header.startswith(b"{"):
        raise _bad("its header is cut off or not an object")
    found = _tensors(header)
    end = 0
    for start, stop, name, dtype, _ in sorted(found):
        if start != end or stop > len(body):
            raise _bad(
                f"tensor {name!r} has bytes {start} to {stop}, not from {end} in {len(body)}"
            )
        _check_finite(body[start:stop], name, dtype)
        end = stop
    if end != len(body):
        raise _bad(f"its tensors end at byte {end} of {len(body)}")
    return {name: (dtype, shape) for _, _, name, dtype, shape in found}


_Entry = tuple[int, int, str, str, tuple[int, ...]]


def _tensors(header: bytes) -> list[_Entry]:
    """(first byte, byte after the last, name, dtype, shape) of every tensor."""
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


def _tensor(name: str, entry: Any) -> _Entry:
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        raise _bad(f"a tensor is called {name[:40]!r}")
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
    return start, stop, name, dtype, tuple(shape)


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
