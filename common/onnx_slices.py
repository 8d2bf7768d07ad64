"""Which numbers of a rewritten model lie, as they are, in the file that it was rewritten from?

The rule: a runtime that rewrites a model (fuses its nodes, orders its weights anew) leaves most of
the large tensors alone. Those are not kept a second time: in their place stands where in the first
file they are, as ONNX's external data have it. Both files are read as :mod:`common.onnx_format` has
checked or a runtime written them, so nothing is checked here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.onnx_format import varint

LEAST = 1024  # bytes; smaller ones stay where they are

# Numbers of fields in onnx.proto.
_GRAPH, _INITIALIZER = 7, 5  # of ModelProto, GraphProto
_RAW, _EXTERNAL, _LOCATION = 9, 13, 14  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_ELSEWHERE = b"\x01"  # TensorProto.EXTERNAL
_BYTES = 2  # the wire type


@dataclass(frozen=True)
class _Field:
    """Of a message: where it begins, where its content does, and where both end."""

    number: int
    begin: int
    start: int
    end: int


def refer(graph: bytes, model: bytes, name: str) -> tuple[bytes, int]:
    """A model without the tensors that ``model`` holds: they are said to lie in a file ``name``.

    Args:
        graph: an ONNX file, made from ``model``.
        model: an ONNX file.

    Returns:
        The new file, and where in ``model`` the largest of those tensors begins; 0 without one.
    """
    first = memoryview(model)
    known = {_digest(first[start:end]): start for start, end in _large(first)}
    sizes: dict[int, int] = {}  # of what is referred to, by where it begins

    def tensor(content: memoryview) -> bytes:
        raw = [content[one.start : one.end] for one in _fields(content) if one.number == _RAW]
        begins = known.get(_digest(raw[0])) if raw else None
        if begins is None:
            return bytes(content)
        sizes[begins] = len(raw[0])
        kept = (content[one.begin : one.end] for one in _fields(content) if one.number != _RAW)
        return b"".join(kept) + _elsewhere(name, begins, len(raw[0]))

    def weights(content: memoryview) -> bytes:
        return _changed(content, _INITIALIZER, tensor)

    changed = _changed(memoryview(graph), _GRAPH, weights)
    return changed, max(sizes, key=sizes.__getitem__, default=0)


def _digest(content: memoryview) -> bytes:
    return hashlib.sha256(content).digest()


def _large(model: memoryview) -> Iterator[tuple[int, int]]:
    """Where the large tensors' bytes begin and end in a model."""
    for graph in _fields(model):
        for weight in _fields(model, graph) if graph.number == _GRAPH else ():
            for one in _fields(model, weight) if weight.number == _INITIALIZER else ():
                if one.number == _RAW and one.end - one.start >= LEAST:
                    yield one.start, one.end


def _changed(message: memoryview, number: int, change: Callable[[memoryview], bytes]) -> bytes:
    """A message, with the content of each field of that number changed."""
    return b"".join(
        _field(number, change(message[one.start : one.end]))
        if one.number == number
        else message[one.begin : one.end]
        for one in _fields(message)
    )


def _fields(data: memoryview, within: _Field | None = None) -> Iterator[_Field]:
    """The fields of a message: of all the data, or of what lies in one field of them."""
    position, end = (within.start, within.end) if within else (0, len(data))
    while position < end:
        begin = position
        key, start = varint(data, begin)
        wire = key & 7
        if wire == 0:
            position = varint(data, start)[1]
        elif wire == _BYTES:
            length, start = varint(data, start)
            position = start + length
        else:
            position = start + (8 if wire == 1 else 4)
        yield _Field(key >> 3, begin, start, position)


def _elsewhere(name: str, offset: int, length: int) -> bytes:
    entries = {"location": name, "offset": str(offset), "length": str(length)}
    said = (
        _field(_EXTERNAL, _field(_KEY, key.encode()) + _field(_VALUE, value.encode()))
        for key, value in entries.items()
    )
    return b"".join(said) + _varint(_LOCATION << 3) + _ELSEWHERE


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
