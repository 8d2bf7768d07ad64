"""Run an ONNX model from bytes that somebody has verified, and from nothing else.

The rule: a model is the bytes that were handed over, and no path is ever opened. They hold what
:mod:`common.onnx_format` lists, and its input and output have the names and shapes that the schema
implies, or it is not loaded. Known answers say whether this machine computes what the releaser
computed; they are synthetic, so they tell nothing about anybody.

What this runtime made of a model can be kept (:func:`optimized`) and loaded in less than half of
the time, by whoever is sure that it is what was kept.

A model takes records in the schema's own units (a pixel of 0 to 255 stays 0 to 255): whatever
scaling it needs is inside it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
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
_MODEL = "model"  # what an optimized graph calls the file that holds its weights

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

# All that models may hold in this process, weights and values in between, besides verified bytes
# that are read where they lie: a file of a few bytes can ask for any amount.
MAX_RUNTIME_BYTES = 2 * 2**30

onnxruntime.disable_telemetry_events()
onnxruntime.set_default_logger_severity(_FATAL_ONLY)
onnxruntime.create_and_register_allocator(
    onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    ),
    onnxruntime.OrtArenaCfg({"max_mem": MAX_RUNTIME_BYTES, "arena_extend_strategy": 0}),
)


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
        weights: the verified bytes that ``model`` refers to, if it is what :func:`optimized` gave.
            They are used where they are, and so have to stay as they are.

    Raises:
        TrustError: not a loadable model, it holds what no model here needs, or it does not fit the
            schema.
    """

    def __init__(self, model: bytes, schema: Schema, weights: memoryview | None = None) -> None:
        self.schema = schema
        self._weights = weights  # held as long as the runtime reads them
        self._session = load(model) if weights is None else _load_optimized(model, weights)
        self._check_interface()
        # Its Python part looks at each call for what no model here has: a tenth of a short call.
        self._run = getattr(self._session, "_sess", self._session).run
        self._classes = len(schema.classes)

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
        count = len(batch)
        if not count:
            return np.zeros((0, self._classes), np.float32)
        try:
            probabilities: Array = self._run(_OUTPUTS, {INPUT: batch}, None)[0]
        except _FAILURES as error:
            raise DataError(f"the model cannot be run: {str(error)[:200]}") from error
        if probabilities.shape != (count, self._classes) or not all_of(np.isfinite(probabilities)):
            raise DataError("the model has no finite probabilities for these records")
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


def load(model: bytes) -> Any:
    """Any ONNX file in the runtime, once it was seen to hold nothing but what models here need.

    Constants are not folded: what they come to at loading is outside of what memory is bounded by,
    and an exporter has folded them already.

    Raises:
        TrustError: it holds something else, or cannot be loaded.
    """
    from common import onnx_format  # what was optimized before needs no walk

    onnx_format.check(model)
    return _session(model, options(), disabled_optimizers=["ConstantFolding"])


def optimized(model: bytes) -> tuple[bytes, int]:
    """What this runtime makes of a model on this processor, to be loaded as :class:`Session`.

    It is kept in memory alone, never in a file.

    Args:
        model: verified bytes of an ONNX file.

    Returns:
        An ONNX file without the tensors that ``model`` holds as they are; and where in ``model``
        the largest of them begins, which is read where it is if it lies at a multiple of its
        element's size in memory.

    Raises:
        TrustError: as :func:`load`.
        OSError: this system has no files in memory.
    """
    from common import onnx_format, onnx_slices

    onnx_format.check(model)
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "no files in memory")
    file = os.memfd_create("optimized", os.MFD_CLOEXEC)
    try:
        chosen = options()
        chosen.optimized_model_filepath = f"/proc/self/fd/{file}"
        chosen.add_session_config_entry("session.save_model_format", "ONNX")
        _session(model, chosen, disabled_optimizers=["ConstantFolding"])
        graph = os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
    return onnx_slices.refer(graph, model, _MODEL)


def _load_optimized(graph: bytes, weights: memoryview) -> Any:
    chosen = options()
    chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Reads them where they lie, but for what is not at a multiple of its element's size.
    direct = "session.use_external_initializer_file_buffers_directly"
    try:
        chosen.add_session_config_entry(direct, "1")
        chosen.add_external_initializers_from_files_in_memory([_MODEL], [weights], [len(weights)])
    except _FAILURES as error:
        raise _not_loadable(error) from error
    return _session(graph, chosen)


def _session(model: bytes, chosen: Any, **more: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(
            model, chosen, providers=["CPUExecutionProvider"], **more
        )
    except _FAILURES as error:
        raise _not_loadable(error) from error


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
            each = range(len(self.inputs)) if len(self.inputs) > 1 else ()
            alone = [session.predict(self.inputs[one : one + 1]) for one in each]
        except DataError as error:
            raise TrustError(f"the model fails its known answers: {error}") from error
        # Together and alone: a record's answer may not hang on which others were asked with it.
        both = [found, np.concatenate(alone)] if alone else [found]
        difference = float(np.abs(np.stack(both) - self.probabilities).max())
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


def options() -> Any:
    """What the runtime is told for every model: one thread, silence, ONNX and nothing else."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = _FATAL_ONLY
    # The other format that the runtime detects by itself is not the one that was checked above.
    chosen.add_session_config_entry("session.load_model_format", "ONNX")
    chosen.add_session_config_entry("session.use_env_allocators", "1")
    return chosen


def _not_usable(why: str) -> TrustError:
    from common.onnx_format import not_usable

    return not_usable(why)


def _not_loadable(error: Exception) -> TrustError:
    return _not_usable(f"the ONNX runtime cannot load it: {str(error)[:200]}")


def _plain(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _write(values: Array) -> list[str]:
    return [number(value) for value in values.ravel().tolist()]


def _read(values: object, shape: tuple[int, ...]) -> Array:
    if not isinstance(values, list) or len(values) != int(np.prod(shape)):
        raise CanonicalError(f"expected {int(np.prod(shape))} numbers")
    return np.array([parse_number(value) for value in values], np.float32).reshape(shape)
