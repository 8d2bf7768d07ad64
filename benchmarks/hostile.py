"""Files that would harm whoever loads them, each made to be refused for one reason.

What the public loaders did with them: a header of 99 MB and half a million empty tensors are
accepted (seconds of work), so are a key twice and NaN; weights in a second file are loaded, though
a digest of the model does not cover them; a pickle runs code where it is not forbidden.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EMPTY = 500_000  # tensors
HEADER = 99 * 10**6  # bytes
BOMB = 200 * 10**6  # bytes, unpacked

_ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@cache
def weights() -> dict[str, bytes]:
    """Safetensors files, by what is wrong with them."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"t{number}": empty for number in range(EMPTY)})
    return {
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "a header of 99 MB of spaces": _safetensors("{" + " " * HEADER + "}"),
        "half a million empty tensors": _safetensors(many),
        "a key twice": _safetensors(f'{{"w":{_ENTRY},"w":{_ENTRY}}}', bytes(4)),
        "not a number": _safetensors(f'{{"w":{_ENTRY}}}', struct.pack("<f", float("nan"))),
        "an infinite number": _safetensors(f'{{"w":{_ENTRY}}}', struct.pack("<f", float("inf"))),
        "two tensors in one place": _safetensors(f'{{"w":{_ENTRY},"v":{_ENTRY}}}', bytes(4)),
        "bytes that belong to no tensor": _safetensors(f'{{"w":{_ENTRY}}}', bytes(8)),
        "a shape beyond 64 bits": _safetensors(
            f'{{"w":{_ENTRY.replace("[1]", f"[{2**40},{2**40}]")}}}', bytes(4)
        ),
        "lists in lists": _safetensors('{"w":' + "[" * 60_000),
        **archives(),
    }


@cache
def models() -> dict[str, bytes]:
    """ONNX files, by what is wrong with them."""
    changes: Mapping[str, Callable[[onnx.ModelProto], None]] = {
        "weights in a second file": _outside,
        "weights in a file elsewhere": lambda model: _outside(model, "../../../weights.bin"),
        "an operator of somebody's own": lambda model: _node(model, "Evil", domain="com.example"),
        "an unknown operator": lambda model: _node(model, "RunCommand"),
        "an operator that draws random numbers": lambda model: _node(model, "RandomNormalLike"),
        "a loop": _loop,
        "a function that takes an operator's name": _function,
        "operators of another domain": lambda model: model.opset_import.append(
            helper.make_opsetid("com.example", 1)
        ),
        "not a number": lambda model: _fill(model, float("nan")),
        "an infinite number": lambda model: _fill(model, float("inf")),
        "fewer elements than the shape says": lambda model: model.graph.initializer[0].dims.append(
            2**31
        ),
        "a name twice": lambda model: model.graph.initializer.append(model.graph.initializer[0]),
    }
    files = {}
    for name, change in changes.items():
        model = sound()
        change(model)
        files[name] = model.SerializeToString()
    node = helper.make_node("Identity", ["input"], ["x"]).SerializeToString()
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[0]).SerializeToString()
    shape = _field(1, _field(2, _field(1, b"") * EMPTY))  # TypeProto.tensor_type.shape.dim
    return {
        **files,
        "half a million empty tensors": _stuffed(
            b"".join(_field(5, tensor + _field(8, b"t%d" % n)) for n in range(EMPTY))
        ),
        "half a million nodes": _stuffed(_field(1, node) * EMPTY),
        "half a million dimensions": _stuffed(_field(13, _field(2, shape))),
        "half a million remarks": sound().SerializeToString() + _field(14, b"") * EMPTY,
        "graphs in graphs": _nested(10_000),
        **archives(),
    }


@cache
def archives() -> dict[str, bytes]:
    """Containers with a sound model in them, or with far more than they weigh."""
    model = sound().SerializeToString()
    zeros = bytes(BOMB)
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.onnx", model)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model.onnx", zeros)
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../model.onnx"), io.BytesIO())
    return {
        "a zip file": zipped.getvalue(),
        "a zip bomb": bomb.getvalue(),
        "a gzip bomb": gzip.compress(zeros, 1, mtime=0),
        "a gzip file": gzip.compress(model, mtime=0),
        "a tar file": tarred.getvalue(),
        "a pickle": pickle.dumps({"w": [0.0]}),
    }


def sound() -> onnx.ModelProto:
    """A linear model of four inputs and three classes that is refused for nothing."""
    weight, bias = np.zeros((4, 3), np.float32), np.zeros(3, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["input", "weight", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _safetensors(header: str, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + body


def _outside(model: onnx.ModelProto, location: str = "weights.bin") -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def _node(model: onnx.ModelProto, operator: str, domain: str = "") -> None:
    model.graph.node.append(helper.make_node(operator, ["input"], ["x"], domain=domain))


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "for ever", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", "", "input"], ["x"], body=body))


def _function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(
        helper.make_function("", "Gemm", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
    )


def _fill(model: onnx.ModelProto, value: float) -> None:
    array = np.full(3, value, np.float32)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(array, "bias"))


def _stuffed(more: bytes) -> bytes:
    """A sound model, with more in its graph. By hand: a library takes seconds for so much."""
    model = sound()
    graph = model.graph.SerializeToString() + more
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + _field(7, graph)


def _nested(depth: int) -> bytes:
    """A node with an attribute with a graph with a node …: written by hand, for no library does."""
    data = b""
    for _ in range(depth):
        for number in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            data = _field(number, data)
    return b"\x08\x08" + _field(7, data)


def _field(number: int, content: bytes) -> bytes:
    """One field of a protobuf message that holds bytes."""
    digits, length = bytearray([number << 3 | 2]), len(content)
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes([*digits, length]) + content
