"""What does a request of the Open Inference Protocol ask, and what is said to it? Pure values.

The rules: one input, ``input``, FP32 of shape [records, *schema.shape], typed or raw; two outputs,
``probabilities`` FP32 [records, classes] and ``label`` BYTES [records], in the form that the input
came in. What a message claims is checked against its length before anything is made of it, and no
error repeats a value that was sent. The protocol: github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from client.device.serving import open_inference_pb2 as oip
from common.data.schema import Schema
from common.errors import DataError
from common.inference import INPUT, OUTPUT, Array

LABEL = "label"
FP32, BYTES = "FP32", "BYTES"
PLATFORM = "onnxruntime_onnx"

# What a typed tensor of FP32 must not bring along.
_OTHERS = tuple(
    field.name
    for field in oip.InferTensorContents.DESCRIPTOR.fields
    if field.name != "fp32_contents"
)


def read_records(request: oip.ModelInferRequest, schema: Schema, most: int) -> Array:
    """The records of a request, (records, *schema.shape) float32, not checked for bounds yet.

    Args:
        most: how many records one request may hold.

    Raises:
        DataError: it is not one such tensor; says what was expected.
    """
    if len(request.inputs) != 1:
        raise DataError(f"{len(request.inputs)} inputs, where one named {INPUT!r} is expected")
    tensor = request.inputs[0]
    if tensor.name != INPUT or tensor.datatype != FP32:
        raise DataError(f"the model takes one tensor named {INPUT!r} of {FP32}")
    shape = tuple(tensor.shape)
    if len(shape) != 1 + len(schema.shape) or shape[1:] != schema.shape or shape[0] < 0:
        expected = ", ".join(map(str, schema.shape))
        raise DataError(f"the input's shape is not [records, {expected}]")
    if shape[0] > most:
        raise DataError(f"{shape[0]} records, where one request may hold {most}")
    size = math.prod(shape)
    if request.raw_input_contents:
        data = request.raw_input_contents
        if tensor.HasField("contents") or len(data) != 1 or len(data[0]) != 4 * size:
            raise DataError(f"raw contents must be one tensor of {4 * size} bytes, nothing else")
        flat = np.frombuffer(data[0], "<f4")
    else:
        values = tensor.contents.fp32_contents
        if len(values) != size or any(getattr(tensor.contents, name) for name in _OTHERS):
            raise DataError(f"typed contents must be {size} values in fp32_contents, and no others")
        flat = np.fromiter(values, np.float32, size)
    return flat.reshape(shape)


def wanted_outputs(request: oip.ModelInferRequest) -> tuple[str, ...]:
    """Which outputs a request wants, in its order; both if it names none.

    Raises:
        DataError: it names another, or one twice.
    """
    names = tuple(output.name for output in request.outputs) or (OUTPUT, LABEL)
    if not set(names) <= {OUTPUT, LABEL} or len(set(names)) != len(names):
        raise DataError(f"the model's outputs are {OUTPUT!r} and {LABEL!r}, each asked for once")
    return names


def write_answer(
    request: oip.ModelInferRequest,
    outputs: Sequence[str],
    probabilities: Array,
    schema: Schema,
    *,
    name: str,
    version: int,
) -> oip.ModelInferResponse:
    """The answer to a request.

    Args:
        outputs: of :func:`wanted_outputs`.
        probabilities: (records, classes) float32.
        name, version: of the model that answered.
    """
    response = oip.ModelInferResponse(model_name=name, model_version=str(version), id=request.id)
    raw = bool(request.raw_input_contents)
    for output in outputs:
        tensor = response.outputs.add(name=output)
        if output == OUTPUT:
            tensor.datatype = FP32
            tensor.shape.extend(probabilities.shape)
            if raw:
                response.raw_output_contents.append(probabilities.astype("<f4").tobytes())
            else:
                tensor.contents.fp32_contents.extend(probabilities.ravel().tolist())
            continue
        labels = [schema.classes[index].encode() for index in probabilities.argmax(axis=1)]
        tensor.datatype = BYTES
        tensor.shape.append(len(labels))
        if raw:  # each element after its length in four bytes, little-endian
            packed = b"".join(struct.pack("<I", len(label)) + label for label in labels)
            response.raw_output_contents.append(packed)
        else:
            tensor.contents.bytes_contents.extend(labels)
    return response


def metadata(name: str, version: int, schema: Schema) -> oip.ModelMetadataResponse:
    """What the model takes and gives; -1 stands for the number of records."""
    response = oip.ModelMetadataResponse(name=name, versions=[str(version)], platform=PLATFORM)
    response.inputs.add(name=INPUT, datatype=FP32, shape=[-1, *schema.shape])
    response.outputs.add(name=OUTPUT, datatype=FP32, shape=[-1, len(schema.classes)])
    response.outputs.add(name=LABEL, datatype=BYTES, shape=[-1])
    return response
