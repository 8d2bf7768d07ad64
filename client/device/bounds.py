"""Does the model know about such a record? Shape, kind of number, and the schema's public bounds.

The rule: what is let through is float32, of the schema's shape, and within its bounds as float32,
which is what the model sees. Anything else is refused rather than guessed at, and no error repeats
a value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.schema import Schema
from common.errors import DataError
from common.inference import Array, all_of

RECORDS = 256  # of a batch, at most
BYTES = 16 * 2**20  # of a batch, unless a single record has more


def batch_of(schema: Schema) -> int:
    """Records in a batch: bounded, so that memory does not grow with a file's length."""
    return max(1, min(RECORDS, BYTES // (4 * schema.size)))


class Bounds:
    """What a schema allows, ready to be compared with."""

    def __init__(self, schema: Schema) -> None:
        self._shape = schema.shape
        if schema.kind == "image":  # one pair for all pixels
            self._lower = np.array(schema.lower, np.float32)
            self._upper = np.array(schema.upper, np.float32)
        else:
            self._lower, self._upper = (np.array(one, np.float32) for one in schema.bounds())
        self._batch = batch_of(schema)
        # From 0 on, floats are in the order of their bits, and whatever is below or not a number
        # has greater ones: one comparison says all. (-0.0 is looked at again, and let through.)
        from_zero = not self._lower.any() and (self._upper >= 0).all()
        self._greatest = np.abs(self._upper).view(np.uint32) if from_zero else None

    def check(self, records: NDArray[Any], *, first: int = 0, source: str = "") -> Array:
        """The records as float32, (B, *schema.shape).

        Args:
            first: number of the first of them, for the error.
            source: where they come from, for the error.

        Raises:
            DataError: wrong shape, not numbers, not finite or out of bounds; names the record.
        """
        if self._are_within(records):
            return records
        self.check_kind(records.shape, records.dtype, source)
        for start in range(0, len(records), self._batch):
            with np.errstate(over="ignore"):  # too large for float32: infinite, and refused
                batch = np.asarray(records[start : start + self._batch], np.float32)
            self._check_batch(batch, first + start, source)
        return np.ascontiguousarray(records, np.float32)

    def _are_within(self, records: NDArray[Any]) -> bool:
        """Whether they are a small batch as the model takes it, within the bounds; else: unsure."""
        if (
            type(records) is not np.ndarray
            or records.dtype != np.float32
            or records.shape[1:] != self._shape
            or len(records) > self._batch
            or not records.flags.c_contiguous
        ):
            return False
        if self._greatest is not None:
            return all_of(records.view(np.uint32) <= self._greatest)
        return all_of((records >= self._lower) & (records <= self._upper))

    def check_kind(self, shape: tuple[int, ...], dtype: np.dtype[Any], source: str = "") -> None:
        """Refuse what cannot be records, whatever the values; see :meth:`check`."""
        if not shape or shape[1:] != self._shape or dtype.kind not in "fiu":
            raise DataError(
                f"{_of(source)}{dtype} of shape {shape}, where numbers of shape "
                f"(records, {', '.join(map(str, self._shape))}) are expected"
            )

    def _check_batch(self, batch: Array, first: int, source: str) -> None:
        within = (batch >= self._lower) & (batch <= self._upper)
        each = within.reshape(len(batch), -1).all(axis=1)  # (b,)
        if not each.all():
            raise DataError(
                f"{_of(source)}record {first + int(np.argmin(each))} holds a value outside of the "
                "schema's bounds",
                hint=UNKNOWN,
            )


UNKNOWN = "the model knows nothing about such a value; check its unit"


def _of(source: str) -> str:
    return f"{source}: " if source else ""
