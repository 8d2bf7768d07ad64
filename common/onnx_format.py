"""What may a model file hold? What :mod:`common.onnx_grammar` lists; everything else is refused.

The rule: the bytes are walked before any runtime sees them, and each part of them has to be one
that is listed: its field, its type, how often it may stand, and for a node its operator. Left out,
and so refused wherever they stand: operators that are not listed and other domains, graphs inside
of nodes (branches, loops), functions of the model's own, training, tensors in other files, and
numbers that are not finite. A file with more parts than a model has is refused at that count, so
that a refusal takes no longer than a load.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from common.errors import TrustError
from common.onnx_grammar import (
    CONTRIB,
    CONTRIB_OPERATORS,
    GRAMMAR,
    OPERATORS,
    REFUSED,
    STANDARD,
)

MAX_MODEL_BYTES = 512 * 2**20
MAX_FIELDS = 100_000  # of all messages together: what bounds the time of a walk
MAX_NODES = 5_000
MAX_TENSORS = 5_000
MAX_ELEMENTS = 2**40  # of one dimension

# Which wire types a kind may have: 0 varint, 1 eight bytes, 2 so many bytes, 5 four bytes.
_WIRES = {
    "int": (0,),
    "float": (5,),
    "text": (2,),
    "packed": (2,),
    "ints": (0, 2),
    "floats": (5, 2),
}
_NEVER_EMPTY = ("NodeProto", "TensorProto", "GraphProto")
# The grammar as it is looked up: (name, may it be repeated, wire types, message if it is one).
_TABLE = {
    kind: {
        number: (
            name.rstrip("*"),
            name[-1] == "*",
            _WIRES.get(what, (2,)),
            what * (what in GRAMMAR),
        )
        for number, (name, what) in fields.items()
    }
    for kind, fields in GRAMMAR.items()
}

# TensorProto.DataType to (numpy's name, the field besides raw_data that may hold it).
DATA_TYPES = {
    1: ("<f4", "float_data"),
    2: ("<u1", "int32_data"),
    3: ("<i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("<u1", "int32_data"),  # bool
    10: ("<f2", "raw_data"),
    11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"),
    13: ("<u8", "uint64_data"),
}
_DATA = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "raw_data")
_FIXED = {"float_data": "<f4", "double_data": "<f8"}  # the others are packed varints

Value = int | memoryview


def check(model: bytes) -> None:
    """Raise :class:`TrustError` unless ``model`` is an ONNX file of listed parts alone.

    Codes: ``unknown-operator`` names the operator, ``external-data`` a tensor in another file,
    ``bad-model`` everything else. Nothing is loaded.
    """
    if len(model) > MAX_MODEL_BYTES:
        raise not_usable(f"{len(model)} bytes are over {MAX_MODEL_BYTES}")
    _Walk().message(memoryview(model), "ModelProto")


def not_usable(why: str, code: str = "bad-model") -> TrustError:
    """The refusal of a model file."""
    return TrustError(
        f"the ONNX model cannot be used: {why}",
        hint="obtain the release again from its source; if it is still refused, tell the releaser",
        code=code,
    )


class _Walk:
    """One pass over a file, and what it has counted so far."""

    def __init__(self) -> None:
        self._fields = self._nodes = self._tensors = 0
        self._initializers: set[bytes] = set()

    def message(self, data: memoryview, kind: str) -> dict[str, list[Value]]:
        """Check a message and all that is in it; returns its scalars by name."""
        grammar = _TABLE[kind]
        found: dict[str, list[Value]] = {}
        for number, wire, value in _fields(data):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise not_usable(f"it has more than {MAX_FIELDS} parts")
            if number not in grammar:
                raise _unlisted(kind, number)
            name, repeated, wires, inner = grammar[number]
            if wire not in wires:
                raise not_usable(f"{kind}.{name} is of wire type {wire}")
            values = found.get(name)
            if values is None:
                values = found[name] = []
            elif not repeated:
                raise not_usable(f"{kind}.{name} stands there twice")
            if not inner:
                values.append(value)
            elif value:  # an empty message of any kind but these three says nothing
                assert isinstance(value, memoryview)
                self._inner(value, name, inner)
            elif inner in _NEVER_EMPTY:
                raise not_usable(f"{kind}.{name} is empty")
        return found

    def _inner(self, data: memoryview, name: str, kind: str) -> None:
        found = self.message(data, kind)
        if kind == "NodeProto":
            self._nodes += 1
            if self._nodes > MAX_NODES:
                raise not_usable(f"it has more than {MAX_NODES} nodes")
            _check_operator(found)
        elif kind == "TensorProto":
            self._tensors += 1
            if self._tensors > MAX_TENSORS:
                raise not_usable(f"it has more than {MAX_TENSORS} tensors")
            if name == "initializer":
                self._name(_text(found, "name"))
            _check_tensor(found)
        elif kind == "AttributeProto":
            _check_attribute(found)
        elif kind == "OperatorSetIdProto":
            domain = _text(found, "domain")
            if domain not in (*STANDARD, CONTRIB):
                raise not_usable(f"it wants operators of {domain!r:.80}", "unknown-operator")

    def _name(self, name: str) -> None:
        if name.encode() in self._initializers:
            raise not_usable(f"two of its tensors are called {name!r:.80}")
        self._initializers.add(name.encode())


def _check_operator(node: dict[str, list[Value]]) -> None:
    domain, operator = _text(node, "domain"), _text(node, "op_type")
    known = OPERATORS if domain in STANDARD else CONTRIB_OPERATORS if domain == CONTRIB else ()
    if operator not in known:
        full = f"{domain}.{operator}" if domain else operator
        raise not_usable(
            f"its operator {full!r:.120} is not one that a device runs", "unknown-operator"
        )
    if operator == "Dropout" and any(node.get("input", ())[2:]):
        raise not_usable("its Dropout is told whether it trains: it would draw random numbers")


def _check_attribute(attribute: dict[str, list[Value]]) -> None:
    for value in (*attribute.get("f", ()), *attribute.get("floats", ())):
        if not _finite(value, "<f4"):
            raise not_usable(f"attribute {_text(attribute, 'name')!r:.80} is not a finite number")


def _check_tensor(tensor: dict[str, list[Value]]) -> None:
    """The element type, as many elements as the shape says, and finite ones."""
    name = _text(tensor, "name")
    if any(tensor.get("data_location", ())):
        raise _elsewhere()
    (data_type,) = tensor.get("data_type", [0])
    if data_type not in DATA_TYPES:
        raise not_usable(f"tensor {name!r:.80} has elements of type {data_type}")
    dtype, typed = DATA_TYPES[data_type]
    sizes = [size for value in tensor.get("dims", ()) for size in _integers(value)]
    if len(sizes) > 16 or not all(size <= MAX_ELEMENTS for size in sizes):
        raise not_usable(f"tensor {name!r:.80} has a malformed shape")
    held = [field for field in _DATA if field in tensor]
    if len(held) > 1 or not set(held) <= {typed, "raw_data"}:
        raise not_usable(f"tensor {name!r:.80} has its elements in {held}")
    elements = 0
    if held:
        (content,) = tensor[held[0]]
        stored = dtype if held == ["raw_data"] else _FIXED.get(held[0])
        elements = _count(content, stored)
        if stored and np.dtype(stored).kind == "f" and not _finite(content, stored):
            raise not_usable(f"tensor {name!r:.80} holds a value that is not a finite number")
    if elements != prod(sizes):
        raise not_usable(f"tensor {name!r:.80} has {elements} elements for shape {sizes}")


def _count(content: Value, stored: str | None) -> int:
    """How many elements: of a fixed width, or varints, which each end in a byte below 128."""
    assert isinstance(content, memoryview)
    if stored is None:
        return int(np.count_nonzero(np.frombuffer(content, np.uint8) < 0x80))
    width = np.dtype(stored).itemsize
    return len(content) // width if len(content) % width == 0 else -1


def _finite(value: Value, dtype: str) -> bool:
    assert isinstance(value, memoryview)
    if len(value) % np.dtype(dtype).itemsize:
        return False
    return bool(np.isfinite(np.frombuffer(value, dtype)).all())


def _integers(value: Value) -> Iterator[int]:
    """One varint, or those that are packed into one field."""
    if isinstance(value, int):
        yield value
        return
    if len(value) > 160:  # sixteen of the longest
        raise not_usable("it holds a malformed shape")
    position = 0
    while position < len(value):
        number, position = varint(value, position)
        yield number


def _text(found: dict[str, list[Value]], name: str) -> str:
    (value,) = found.get(name, [memoryview(b"")])
    assert isinstance(value, memoryview)
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise not_usable(f"its {name} is not text") from error


def _unlisted(kind: str, number: int) -> TrustError:
    name = REFUSED.get((kind, number), f"field {number}")
    if name == "external_data":
        return _elsewhere()
    return not_usable(f"it holds {kind}.{name}, which no model here needs")


def _elsewhere() -> TrustError:
    return TrustError(
        "the model keeps weights in another file, which its digest does not cover",
        hint="export the model with its weights inside",
        code="external-data",
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Field number, wire type and value of a protobuf message."""
    position, end = 0, len(message)
    while position < end:
        key = message[position]
        position += 1
        if key > 127:
            key, position = varint(message, position - 1)
        wire = key & 7
        value: Value
        if wire == 0:
            value, position = varint(message, position)
        else:
            if wire == 2:
                length, position = varint(message, position)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:  # groups (3, 4) are not used by ONNX
                raise not_usable(f"it has a field of wire type {wire}")
            if length > end - position:
                raise not_usable("it is cut off")
            value = message[position : position + length]
            position += length
        yield key >> 3, wire, value


def varint(message: memoryview, position: int) -> tuple[int, int]:
    if position < len(message) and message[position] < 0x80:  # nearly always
        return message[position], position + 1
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise not_usable("it is cut off")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise not_usable("it holds a number of over 64 bits")
