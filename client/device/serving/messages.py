"""What does a request of the Open Inference Protocol ask, and what is said to it? Pure values.

The rules: one input, ``input``, FP32 of shape [records, *schema.shape], typed or raw; two outputs,
``probabilities`` FP32 [records, classes] and ``label`` BYTES [records], in the form that the input
came in. What a message claims is checked against its length before anything is made of it, and no
error repeats a value that was sent. The protocol: github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

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
_BOTH = (OUTPUT, LABEL)
_LITTLE = np.dtype("<f4")
_HEADS = 64  # beginnings of answers that are kept
_FORMS = 16  # questions that are kept, each with the bytes that it began with, if those are short
_SHORT = 512


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks, but for its values.

    Args:
        number: of the caller's, which comes back with the answer.
        outputs: that are wanted, in this order.
        raw: whether the values came in the raw form, in which they go back as well.
        shape: of the values, (records, *schema.shape).
    """

    number: str
    outputs: tuple[str, ...]
    raw: bool
    shape: tuple[int, ...]


class Exchange:
    """Requests to one model, and the answers to them.

    Programs ask the same question again and again, and only the values differ. They come last in
    the raw form, so a message that is as long as one that was read, and as far as the values the
    same, asks the same: by protobuf's rules, nothing after a length can change what was before it.

    Args:
        name, version: of the model, which its answers bear.
        schema: of its records.
        most: how many records one request may hold.
    """

    def __init__(self, name: str, version: int, schema: Schema, most: int) -> None:
        self._name, self._version, self._most = name, str(version), most
        self._shape, self._size = schema.shape, schema.size
        self._labels = [label.encode() for label in schema.classes]
        # Raw, each label comes after its length in four bytes, little-endian.
        self._packed = [struct.pack("<I", len(label)) + label for label in self._labels]
        self._head = lru_cache(_HEADS)(self._write_head)
        self._asked: dict[int, tuple[bytes, Question]] = {}  # by the length of the whole message

    def again(self, message: bytes) -> tuple[Question, Array] | None:
        """:meth:`read` of a message that asks what another one asked; None: it is a new one."""
        head, question = self._asked.get(len(message), _NEVER)
        if question is None or not message.startswith(head):
            return None
        return question, np.frombuffer(message[len(head) :], _LITTLE).reshape(question.shape)

    def read(self, request: oip.ModelInferRequest, message: bytes) -> tuple[Question, Array]:
        """What a request asks, and the records, float32, not checked for bounds yet.

        Args:
            message: that the request was read from.

        Raises:
            DataError: it is not one such tensor, or wants other outputs; says what was expected.
        """
        outputs = _wanted(request)
        shape = self._shape_of(request)
        tensor, size = request.inputs[0], math.prod(shape)
        raw = bool(data := request.raw_input_contents)
        question = Question(request.id, outputs, raw, shape)
        if raw:
            if len(data) != 1 or len(data[0]) != 4 * size or tensor.HasField("contents"):
                raise DataError(
                    f"raw contents must be one tensor of {4 * size} bytes, nothing else"
                )
            values = data[0]
            self._keep(question, request, message, values)
            flat = np.frombuffer(values, _LITTLE)
        else:
            typed = tensor.contents.fp32_contents
            if len(typed) != size or any(getattr(tensor.contents, name) for name in _OTHERS):
                raise DataError(
                    f"typed contents must be {size} values in fp32_contents, and no others"
                )
            flat = np.fromiter(typed, np.float32, size)
        return question, flat.reshape(shape)

    def _shape_of(self, request: oip.ModelInferRequest) -> tuple[int, ...]:
        inputs = request.inputs
        if len(inputs) != 1:
            raise DataError(f"{len(inputs)} inputs, where one named {INPUT!r} is expected")
        tensor = inputs[0]
        if tensor.name != INPUT or tensor.datatype != FP32:
            raise DataError(f"the model takes one tensor named {INPUT!r} of {FP32}")
        shape = tuple(tensor.shape[:])
        if len(shape) != 1 + len(self._shape) or shape[1:] != self._shape or shape[0] < 0:
            expected = ", ".join(map(str, self._shape))
            raise DataError(f"the input's shape is not [records, {expected}]")
        if shape[0] > self._most:
            raise DataError(f"{shape[0]} records, where one request may hold {self._most}")
        return shape

    def _keep(
        self, question: Question, request: oip.ModelInferRequest, message: bytes, values: bytes
    ) -> None:
        """Know the question again, if its message ends with the values; the request loses them."""
        head = message[: len(message) - len(values)]
        if question.number or not values or len(head) > _SHORT:
            return  # with a number of its own, the next one differs
        request.ClearField("raw_input_contents")
        last = oip.ModelInferRequest(raw_input_contents=[values])
        if request.SerializeToString() + last.SerializeToString() != message:
            return
        if len(self._asked) == _FORMS:
            self._asked.clear()
        self._asked[len(message)] = head, question

    def answer(self, question: Question, probabilities: Array) -> bytes:
        """A ``ModelInferResponse`` as it is sent.

        Args:
            probabilities: (records, classes) float32.
        """
        if not question.raw:
            return self._typed(question, probabilities)
        # Serialized messages, one after the other, are those messages merged.
        parts = [self._head(question.outputs, *probabilities.shape)]
        if question.number:
            parts.append(oip.ModelInferResponse(id=question.number).SerializeToString())
        for output in question.outputs:
            if output == OUTPUT:
                contents = probabilities.astype(_LITTLE, copy=False).tobytes()
            else:
                likeliest = probabilities.argmax(axis=1).tolist()
                contents = b"".join([self._packed[index] for index in likeliest])
            parts += _before(len(contents)), contents
        return b"".join(parts)

    def _write_head(self, outputs: tuple[str, ...], records: int, classes: int) -> bytes:
        """All that is the same in the raw answers to so many records."""
        return self._begin(outputs, records, classes).SerializeToString()

    def _typed(self, question: Question, probabilities: Array) -> bytes:
        response = self._begin(question.outputs, *probabilities.shape)
        response.id = question.number
        for tensor in response.outputs:
            if tensor.name == OUTPUT:
                tensor.contents.fp32_contents.extend(probabilities.ravel().tolist())
            else:
                labels = [self._labels[index] for index in probabilities.argmax(axis=1).tolist()]
                tensor.contents.bytes_contents.extend(labels)
        return response.SerializeToString()

    def _begin(
        self, outputs: tuple[str, ...], records: int, classes: int
    ) -> oip.ModelInferResponse:
        response = oip.ModelInferResponse(model_name=self._name, model_version=self._version)
        for output in outputs:
            if output == OUTPUT:
                response.outputs.add(name=OUTPUT, datatype=FP32, shape=[records, classes])
            else:
                response.outputs.add(name=LABEL, datatype=BYTES, shape=[records])
        return response


_NEVER = (b"", None)


@lru_cache(_HEADS)
def _before(size: int) -> bytes:
    """What comes before so many bytes of raw contents in a serialized answer."""
    whole = oip.ModelInferResponse(raw_output_contents=[b"\0" * size]).SerializeToString()
    return whole[: len(whole) - size]


def _wanted(request: oip.ModelInferRequest) -> tuple[str, ...]:
    """Which outputs a request wants, in its order; both if it names none."""
    names = tuple(output.name for output in request.outputs) or _BOTH
    if not set(names) <= set(_BOTH) or len(set(names)) != len(names):
        raise DataError(f"the model's outputs are {OUTPUT!r} and {LABEL!r}, each asked for once")
    return names


def metadata(name: str, version: int, schema: Schema) -> oip.ModelMetadataResponse:
    """What the model takes and gives; -1 stands for the number of records."""
    response = oip.ModelMetadataResponse(name=name, versions=[str(version)], platform=PLATFORM)
    response.inputs.add(name=INPUT, datatype=FP32, shape=[-1, *schema.shape])
    response.outputs.add(name=OUTPUT, datatype=FP32, shape=[-1, len(schema.classes)])
    response.outputs.add(name=LABEL, datatype=BYTES, shape=[-1])
    return response
