"""Ask an ONNX model from bytes that somebody has verified, and hold it to its known answers.

The rule: its input and output have the names and shapes that the schema implies, or it is not
loaded. Known answers say whether this machine computes what the releaser computed; they are
synthetic, so they tell nothing about anybody.

A model takes records in the schema's own units (a pixel of 0 to 255 stays 0 to 255): whatever
scaling it needs is inside it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.canonical import CanonicalError, decode, encode, number, parse_number
from common.data.schema import Schema
from common.errors import DataError, OperationError, TrustError
from common.onnx_runtime import (
    FAILURES,
    best_ordered,
    load,
    load_optimized,
    not_usable,
    optimized,
)

Array = NDArray[np.float32]

INPUT = "input"
OUTPUT = "probabilities"
_OUTPUTS = [OUTPUT]

ANSWERS_VERSION = 1
ANSWERS_SEED = b"privet known answers v1"
GREATEST_TOLERANCE = 0.01  # a releaser must not be able to declare the check void


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
        weights: the verified bytes that ``model`` refers to, if it is what
            :func:`common.onnx_runtime.optimized` gave. They are used where they are, and so have to
            stay as they are. The weights of a model in floats are put into the order that batches
            want when the first one comes; until then most of them are there once.
        known: what is asked again once they are in that order; None: nothing.

    Raises:
        TrustError: not a loadable model, it holds what no model here needs, or it does not fit the
            schema.
    """

    def __init__(
        self,
        model: bytes,
        schema: Schema,
        weights: memoryview | None = None,
        known: KnownAnswers | None = None,
    ) -> None:
        self.schema = schema
        self._weights, self._known = weights, known  # weights: as long as the runtime reads them
        self._classes = len(schema.classes)
        self._lock = threading.Lock()
        ordered = weights is None or best_ordered(model, weights)
        loaded = load(model) if weights is None else load_optimized(model, weights, ordered=ordered)
        self._check_interface(loaded)
        self._alone: Any = _runner(loaded)
        self._together: Any = self._alone if ordered else None
        self._graph = b"" if ordered else model

    @classmethod
    def optimized(cls, model: bytes, schema: Schema) -> Session:
        """A model as a device runs it once an update has prepared it for its starts."""
        try:
            graph, begins = optimized(model)
        except OSError:  # a system that cannot
            return cls(model, schema)
        held = np.empty(len(model) + 16, np.uint8)
        shift = -(held.ctypes.data + begins) % 16
        weights = held.data[shift : shift + len(model)]
        weights[:] = model
        return cls(graph, schema, weights.toreadonly())

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
        return self._ask(self.runtime(count), batch)

    def runtime(self, count: int) -> Any:
        """The runtime's own call for so many records, as :meth:`answer` makes it."""
        return self._alone if count == 1 else self._together or self.expect_batches()

    def _ask(self, run: Any, batch: Array) -> Array:
        count = len(batch)
        try:
            probabilities: Array = run(_OUTPUTS, {INPUT: batch}, None)[0]
        except FAILURES as error:
            raise DataError(f"the model cannot be run: {str(error)[:200]}") from error
        if probabilities.shape != (count, self._classes) or not all_of(np.isfinite(probabilities)):
            raise DataError("the model has no finite probabilities for these records")
        return probabilities

    def expect_batches(self) -> Any:
        """Do now what the first batch would wait for.

        Raises:
            OperationError: ``no-memory``: there is none for it.
            TrustError: the model fails its known answer.
        """
        with self._lock:
            if self._together is None:
                self._together = self._ordered()
                self._graph = b""
            return self._together

    def _ordered(self) -> Any:
        assert self._weights is not None
        try:
            run = _runner(load_optimized(self._graph, self._weights, ordered=True))
        except TrustError as error:  # it was loaded before: only memory is another
            raise OperationError(
                "there is not enough memory to answer several records at once",
                hint="ask about one at a time, or leave more memory to this process",
                code="no-memory",
            ) from error
        if self._known is not None:
            twice = self._known.twice()
            twice.hold(self._ask(run, twice.inputs))
        return run

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

    def _check_interface(self, loaded: Any) -> None:
        inputs, outputs = loaded.get_inputs(), loaded.get_outputs()
        names = [node.name for node in inputs], [node.name for node in outputs]
        if names != ([INPUT], [OUTPUT]):
            raise not_usable(f"it has {names[0]} and {names[1]}, not {INPUT!r} and {OUTPUT!r}")
        wanted = ((inputs[0], self.schema.shape), (outputs[0], (len(self.schema.classes),)))
        for node, rest in wanted:
            free_batch = node.shape and not isinstance(node.shape[0], int)
            if node.type != "tensor(float)" or not free_batch or tuple(node.shape[1:]) != rest:
                raise not_usable(
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
            each = range(len(self.inputs)) if len(self.inputs) > 1 else ()
            alone = [session.predict(self.inputs[one : one + 1]) for one in each]
        except DataError as error:
            raise TrustError(f"the model fails its known answers: {error}") from error
        # Together and alone: a record's answer may not hang on which others were asked with it.
        return max(self.hold(one) for one in ([found, np.concatenate(alone)] if alone else [found]))

    def twice(self) -> KnownAnswers:
        """The same with each input twice."""
        inputs, probabilities = (np.repeat(x, 2, axis=0) for x in (self.inputs, self.probabilities))
        return KnownAnswers(inputs, probabilities, self.tolerance)

    def hold(self, found: Array) -> float:
        """How far (N, classes) probabilities are off; :class:`TrustError` if over the tolerance."""
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


def _runner(loaded: Any) -> Any:
    """The runtime's call; its Python part looks at each for what no model here has: a tenth of a
    short call."""
    return getattr(loaded, "_sess", loaded).run


def _plain(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _write(values: Array) -> list[str]:
    return [number(value) for value in values.ravel().tolist()]


def _read(values: object, shape: tuple[int, ...]) -> Array:
    if not isinstance(values, list) or len(values) != int(np.prod(shape)):
        raise CanonicalError(f"expected {int(np.prod(shape))} numbers")
    return np.array([parse_number(value) for value in values], np.float32).reshape(shape)
