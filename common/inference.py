"""Run an ONNX model from bytes that somebody has verified, and from nothing else.

The rule: a model is the bytes that were handed over. No path is ever opened: a model that names
another file for its weights is refused, because a digest of the model would not cover them. Its
input and output have the names and shapes that the schema implies, or it is not loaded. Known
answers say whether this machine computes what the releaser computed; they are synthetic, so they
tell nothing about anybody.

A model takes records in the schema's own units (a pixel of 0 to 255 stays 0 to 255): whatever
scaling it needs is inside it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from common.canonical import CanonicalError, decode, encode, number, parse_number
from common.data.schema import Schema
from common.errors import DataError, TrustError

Array = NDArray[np.float32]

INPUT = "input"
OUTPUT = "probabilities"
_OUTPUTS = [OUTPUT]
MAX_MODEL_BYTES = 512 * 2**20

ANSWERS_VERSION = 1
ANSWERS_SEED = b"privet known answers v1"
GREATEST_TOLERANCE = 0.01  # a releaser must not be able to declare the check void

_FATAL_ONLY = 4  # onnxruntime's severity levels: 0 verbose … 4 fatal
_runtime_errors = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
_FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(kind for kind in _runtime_errors if isinstance(kind, type) and issubclass(kind, Exception)),
)

onnxruntime.disable_telemetry_events()
onnxruntime.set_default_logger_severity(_FATAL_ONLY)


@dataclass(frozen=True)
class Latency:
    """Time of one single-record call in microseconds: median and 99th percentile."""

    p50: float
    p99: float


class Session:
    """An ONNX model in memory, from ``input`` to ``probabilities``.

    The input is float32 (B, *shape), the output float32 (B, classes). One thread, no logging, no
    telemetry. Safe to call from several threads.

    Args:
        model: verified bytes of an ONNX file.
        schema: what the model must fit.

    Raises:
        TrustError: not a loadable model, it names other files, or it does not fit the schema.
    """

    def __init__(self, model: bytes, schema: Schema) -> None:
        if len(model) > MAX_MODEL_BYTES:
            raise _not_usable(f"{len(model)} bytes are over {MAX_MODEL_BYTES}")
        refuse_external_data(model)
        self.schema = schema
        try:
            self._session = onnxruntime.InferenceSession(
                model, options(), providers=["CPUExecutionProvider"]
            )
        except _FAILURES as error:
            raise _not_usable(f"the ONNX runtime cannot load it: {str(error)[:200]}") from error
        self._check_interface()

    def predict(self, records: NDArray[Any]) -> Array:
        """Class probabilities of records.

        Args:
            records: numbers of shape (B, *schema.shape), in the schema's units, finite; B >= 0.

        Returns:
            (B, classes) float32, finite.

        Raises:
            DataError: wrong shape, not numbers, or not finite; or the model has no answer.
        """
        shape = self.schema.shape
        if records.ndim == 0 or records.shape[1:] != shape:
            raise DataError(
                f"records of shape {records.shape} where (B, {_plain(shape)}) is expected"
            )
        if records.dtype.kind not in "fiu":
            raise DataError(f"records are {records.dtype}, not numbers")
        batch = np.ascontiguousarray(records, dtype=np.float32)  # (B, *shape)
        if not all_of(np.isfinite(batch)):
            raise DataError("a record holds a value that is not a finite number")
        return self.answer(batch)

    def answer(self, batch: Array) -> Array:
        """:meth:`predict` of records that were checked: (B, *shape) float32, finite."""
        if not len(batch):
            return np.zeros((0, len(self.schema.classes)), np.float32)
        try:
            (result,) = self._session.run(_OUTPUTS, {INPUT: batch})
        except _FAILURES as error:
            raise DataError(f"the model cannot be run: {str(error)[:200]}") from error
        wanted = (len(batch), len(self.schema.classes))
        if result.shape != wanted or not all_of(np.isfinite(result)):
            raise DataError("the model has no finite probabilities for these records")
        probabilities: Array = result
        return probabilities

    def latency(self, samples: int = 1000) -> Latency:
        """Measure ``samples`` calls with one record each, after ten to warm up."""
        lower, _ = self.schema.bounds()
        record = np.array(lower, np.float32).reshape(1, *self.schema.shape)
        for _ in range(10):
            self.predict(record)
        times = np.empty(samples)
        for index in range(samples):
            start = time.perf_counter_ns()
            self.predict(record)
            times[index] = time.perf_counter_ns() - start
        p50, p99 = np.percentile(times / 1000, [50, 99])
        return Latency(float(p50), float(p99))

    def _check_interface(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        names = [node.name for node in inputs], [node.name for node in outputs]
        if names != ([INPUT], [OUTPUT]):
            raise _not_usable(f"it has {names[0]} and {names[1]}, not {INPUT!r} and {OUTPUT!r}")
        wanted = ((inputs[0], self.schema.shape), (outputs[0], (len(self.schema.classes),)))
        for node, rest in wanted:
            free_batch = node.shape and not isinstance(node.shape[0], int)
            if node.type != "tensor(float)" or not free_batch or tuple(node.shape[1:]) != rest:
                raise _not_usable(
                    f"{node.name!r} is {node.type} of shape {node.shape}, where the schema implies "
                    f"tensor(float) of shape (batch, {_plain(rest)})"
                )


def all_of(mask: NDArray[np.bool_]) -> bool:
    """``mask.all()``, of a few numbers in a quarter of the time: whether no byte of it is zero."""
    return b"\0" not in mask.tobytes()


@dataclass(frozen=True, eq=False)
class KnownAnswers:
    """Inputs with the probabilities that a model must give for them, on whatever machine it runs.

    Args:
        inputs: (N, *shape) float32, synthetic, within the schema's public bounds; N >= 1.
        probabilities: (N, classes) float32.
        tolerance: greatest absolute difference of one probability, in (0, 0.01].
    """

    inputs: Array
    probabilities: Array
    tolerance: float

    @classmethod
    def make(
        cls,
        schema: Schema,
        predict: Callable[[Array], NDArray[Any]],
        *,
        count: int = 8,
        tolerance: float = 1e-4,
    ) -> KnownAnswers:
        """Ask ``predict`` (best: another runtime than the device's) about synthetic records."""
        inputs = synthetic_records(schema, count)
        return cls(inputs, np.asarray(predict(inputs), np.float32), tolerance)

    def encode(self) -> bytes:
        """Canonical JSON; numbers as strings that come back to the same bits."""
        pairs = zip(self.inputs, self.probabilities, strict=True)
        return encode(
            {
                "schema_version": ANSWERS_VERSION,
                "tolerance": number(self.tolerance),
                "vectors": [
                    {INPUT: _write(record), OUTPUT: _write(expected)} for record, expected in pairs
                ],
            }
        )

    @classmethod
    def decode(cls, data: bytes, schema: Schema) -> KnownAnswers:
        """Read :meth:`encode`'s bytes; :class:`TrustError` on anything else."""
        try:
            document = decode(data)
            version, vectors = document["schema_version"], document["vectors"]
            tolerance = parse_number(document["tolerance"])
            if version != ANSWERS_VERSION or len(document) != 3 or not isinstance(vectors, list):
                raise CanonicalError("unknown fields or version")
            if any(set(vector) != {INPUT, OUTPUT} for vector in vectors):
                raise CanonicalError("a vector has other fields than input and probabilities")
            inputs = [_read(vector[INPUT], schema.shape) for vector in vectors]
            expected = [_read(vector[OUTPUT], (len(schema.classes),)) for vector in vectors]
        except (CanonicalError, KeyError, TypeError) as error:
            raise TrustError(f"the known answers are malformed: {error}") from error
        if not vectors or not 0 < tolerance <= GREATEST_TOLERANCE:
            raise TrustError(
                f"known answers need a vector and a tolerance in (0, {GREATEST_TOLERANCE}]: found "
                f"{len(vectors)} and {tolerance}"
            )
        return cls(np.stack(inputs), np.stack(expected), tolerance)

    def check(self, session: Session) -> float:
        """The greatest difference found; :class:`TrustError` if it is over the tolerance."""
        try:
            found = session.predict(self.inputs)
        except DataError as error:
            raise TrustError(f"the model fails its known answers: {error}") from error
        difference = float(np.abs(found - self.probabilities).max())
        if not difference <= self.tolerance:
            raise TrustError(
                f"the model's answer to a known input is {difference:.3g} off, where "
                f"{self.tolerance:g} is tolerated",
                hint="this machine does not compute what the releaser computed: do not use the "
                "model here; report the machine and the runtime's version",
                code="wrong-answer",
            )
        return difference


def synthetic_records(schema: Schema, count: int) -> Array:
    """``count`` fixed records, (count, *shape) float32, in 256 levels over the public bounds.

    The levels are the bytes of SHA-256(seed, counter): the same on every machine, from no data.
    """
    lower, upper = (np.array(bound, np.float64) for bound in schema.bounds())  # (size,)
    needed = count * schema.size
    blocks = (
        hashlib.sha256(ANSWERS_SEED + index.to_bytes(8, "big")).digest()
        for index in range(-(-needed // 32))
    )
    levels = np.frombuffer(b"".join(blocks), np.uint8)[:needed].reshape(count, schema.size)
    records = lower + (upper - lower) * (levels / 255.0)
    return records.astype(np.float32).reshape(count, *schema.shape)


# -- external data: where ONNX can hold a tensor, by protobuf field number ----------------------
# Field numbers are those of onnx.proto (ONNX IR 3 and later); a test holds them against the onnx
# package. onnxruntime has its own refusal, but only where its optimiser happens to read the tensor.

MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TensorProto
_MAX_NESTING = 32


def refuse_external_data(model: bytes) -> None:
    """Raise :class:`TrustError` if any tensor of the model lives outside of these bytes.

    Refused: any ``external_data``, and a ``data_location`` other than 0 (here).
    """
    _walk(memoryview(model), "ModelProto", 0)


def _walk(message: memoryview, kind: str, depth: int) -> None:
    if depth > _MAX_NESTING:
        raise _not_usable(f"its graphs nest deeper than {_MAX_NESTING}")
    for field, value in _fields(message):
        elsewhere = field == EXTERNAL_DATA or (field == DATA_LOCATION and value != 0)
        if kind == "TensorProto" and elsewhere:
            raise TrustError(
                "the model keeps weights in another file, which its digest does not cover",
                hint="export the model with its weights inside",
                code="external-data",
            )
        inner = MESSAGES[kind].get(field)
        if inner is not None and isinstance(value, memoryview):
            _walk(value, inner, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Field number and value of a protobuf message: integer, bytes, or None for fixed width."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire = key & 7
        value: int | memoryview | None = None
        if wire == 0:
            value, position = _varint(message, position)
        elif wire == 1:
            position += 8
        elif wire == 2:
            length, position = _varint(message, position)
            value = message[position : position + length]
            position += length
        elif wire == 5:
            position += 4
        else:  # groups (3, 4) are not used by ONNX
            raise _not_usable(f"it has a field of wire type {wire}")
        if position > len(message):
            raise _not_usable("it is cut off")
        yield key >> 3, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _not_usable("it is cut off")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise _not_usable("it holds a number of over 64 bits")


def options() -> Any:
    """What the runtime is told for every model: one thread, silence, ONNX and nothing else."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = _FATAL_ONLY
    # The other format that the runtime detects by itself is not the one that was checked above.
    chosen.add_session_config_entry("session.load_model_format", "ONNX")
    return chosen


def _not_usable(why: str) -> TrustError:
    return TrustError(
        f"the ONNX model cannot be used: {why}",
        hint="obtain the release again from its source; if it is still refused, tell the releaser",
        code="bad-model",
    )


def _plain(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _write(values: Array) -> list[str]:
    return [number(value) for value in values.ravel().tolist()]


def _read(values: object, shape: tuple[int, ...]) -> Array:
    if not isinstance(values, list) or len(values) != int(np.prod(shape)):
        raise CanonicalError(f"expected {int(np.prod(shape))} numbers")
    return np.array([parse_number(value) for value in values], np.float32).reshape(shape)
