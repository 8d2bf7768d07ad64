"""How few bytes can an update travel in? Both ends of a plan's coding.

The rules: coding comes after the noise, so it is post-processing and costs no privacy. The length
of a coded update follows from the plan and the model alone: nothing in it declares a name, a type,
a shape or a count, so there is no such claim to believe, and a server compares lengths before it
reads a byte. What is left to declare (scales, indices, values) is checked before anything is
allocated for it, and only the one form that :meth:`Codec.encode` writes is read. Decoding is exact:
the same bytes give the same float32 on every machine.

``fp16`` is IEEE 754 half precision, rounded to nearest, ties to even: 2 bytes a value.

``int8`` is one scale a tensor, symmetric: scale = max|x| / 127 as float32, q = round(x / scale)
from -127 to 127, and q * scale comes out: a byte a value and four a tensor. Rounding is
deterministic. Stochastic rounding (QSGD, Alistarh et al. 2017, arXiv 1610.02132) would keep the
mean of each value exact, at the price of at least twice the variance of the error, and of random
bits. Here every value carries Gaussian noise many steps wide already, which is a dither: what
rounding adds has a mean of nearly zero.

``top-k`` sends the ``fraction`` of values with the greatest magnitude, ties by the lower index, as
index and value in the order of indices: 8 bytes each. What is not sent is not lost: the client adds
it to its next update (error feedback; Stich, Cordonnier and Jaggi 2018, arXiv 1809.07599;
Karimireddy et al. 2019, arXiv 1901.09847). Values beyond the plan's ``update_bound`` are sent as
the bound, and the rest of them stays behind too. A reply that the server drops takes with it what
it carried: a client does not learn which of its replies counted.

The residual is state, and costs no privacy either. Let U_t be the noised update of round t, which
the ledger has been charged for whether or not a byte of it leaves. The residual e_t is a function
of U_1 … U_t, and what is sent in round t is a function of U_t and e_(t-1): of outputs of mechanisms
that are paid for, and of nothing else that depends on a record. By adaptive composition and
post-processing the sequence of what is sent costs what U_1 … U_t cost, which is what the plan says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from common.compression import Compression
from common.errors import TrustError
from common.wire import Arrays

RESIDUAL = "residual"
_LEAST_SCALE = float(np.finfo(np.float32).tiny)  # a smaller one would lose bits of q * scale
_GREATEST_SCALE = float(np.finfo(np.float32).max) / 127
_NOT_FINITE_HALF = 0x7C00  # all bits of the exponent: an infinity, or no number


class Codec:
    """Both ends of a plan's compression for one model.

    Args:
        compression: the plan's.
        shapes: parameter shapes by name; the values' order is that of the sorted names.
        bound: the plan's ``update_bound``.

    ``size`` is the length in bytes of every coded update.
    """

    def __init__(
        self, compression: Compression, shapes: Mapping[str, tuple[int, ...]], bound: float
    ) -> None:
        self._method = compression.method
        self._shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        self._lengths = [math.prod(shape) for shape in self._shapes.values()]
        self._starts = [0, *np.cumsum(self._lengths).tolist()]
        self._values = sum(self._lengths)
        self._sent = min(self._values, math.ceil(compression.fraction * self._values))
        self._bound = np.float32(bound)
        if float(self._bound) > bound:
            self._bound = np.nextafter(self._bound, np.float32(0))
        self.size = {
            "fp16": 2 * self._values,
            "int8": 4 * len(self._lengths) + self._values,
            "top-k": 8 * self._sent,
        }[self._method]

    def encode(self, update: Arrays, kept: Arrays) -> tuple[bytes, Arrays]:
        """An update as :attr:`size` bytes, and what to keep for the next one.

        An update that is not finite is coded as one that is not, so that the server drops it and
        says why; what was kept stays as it was.

        Args:
            update: float32 by name.
            kept: what the last call gave; empty at first, or if it was lost.
        """
        parts = [np.asarray(update[name], np.float32).reshape(-1) for name in self._shapes]
        flat = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if self._method == "fp16":
            with np.errstate(over="ignore"):  # an infinity, and dropped: no bound is so high
                return flat.astype("<f2").tobytes(), {}
        if self._method == "int8":
            return self._to_int8(flat), {}
        return self._to_largest(flat, kept)

    def decode(self, data: bytes) -> Arrays:
        """The update in hostile bytes, float32 by name; arrays of its own, not views of ``data``.

        Raises:
            TrustError: ``malformed`` (another length, or not as :meth:`encode` writes), or
                ``not-finite``.
        """
        if len(data) != self.size:
            raise _malformed(f"{len(data)} bytes, and the plan's coding takes {self.size}")
        flat = {"fp16": _from_half, "int8": self._from_int8, "top-k": self._from_largest}[
            self._method
        ](data)
        parts = (flat[a:b] for a, b in zip(self._starts, self._starts[1:], strict=False))
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    # -- a byte a value --------------------------------------------------------------------------

    def _to_int8(self, flat: NDArray[np.float32]) -> bytes:
        scales = np.zeros(len(self._lengths), "<f4")
        steps = np.zeros(self._values, np.int8)
        for index, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            values = flat[start:end]
            scale = np.float32(np.abs(values).max(initial=0.0) / np.float32(127))
            if not np.isfinite(scale):
                scales[index] = np.nan
            elif scale >= _LEAST_SCALE:
                scales[index] = scale
                steps[start:end] = np.rint(values.astype(np.float64) / float(scale))
        return scales.tobytes() + steps.tobytes()

    def _from_int8(self, data: bytes) -> NDArray[np.float32]:
        count = len(self._lengths)
        scales = np.frombuffer(data, "<f4", count)
        steps = np.frombuffer(data, np.int8, self._values, offset=4 * count)
        if not np.isfinite(scales).all():
            raise TrustError("a scale is not finite", code="not-finite")
        if np.signbit(scales).any() or (scales > _GREATEST_SCALE).any():
            raise _malformed("a scale is negative, or beyond what float32 can hold")
        if (steps == -128).any():
            raise _malformed("-128 is no step of a symmetric scale")
        for scale, start, end in zip(scales, self._starts, self._starts[1:], strict=False):
            greatest = int(np.abs(steps[start:end]).max(initial=0))
            if greatest != (127 if scale else 0) or 0 < scale < _LEAST_SCALE:
                raise _malformed("a scale is not that of its tensor's greatest value")
        flat = steps.astype(np.float32)
        flat *= np.repeat(scales, self._lengths)
        return flat

    # -- the largest values ----------------------------------------------------------------------

    def _to_largest(self, flat: NDArray[np.float32], kept: Arrays) -> tuple[bytes, Arrays]:
        before = kept.get(RESIDUAL)
        if before is None or before.shape != flat.shape:
            before = np.zeros_like(flat)
        with np.errstate(over="ignore", invalid="ignore"):  # looked at in the next line
            rest = flat + before
        if not np.isfinite(rest).all():
            chosen, sent = np.arange(self._sent), np.full(self._sent, np.nan, np.float32)
            rest = before
        else:
            chosen = largest(rest, self._sent)
            sent = np.clip(rest[chosen], -self._bound, self._bound)
            rest[chosen] -= sent
        return chosen.astype("<u4").tobytes() + sent.astype("<f4").tobytes(), {RESIDUAL: rest}

    def _from_largest(self, data: bytes) -> NDArray[np.float32]:
        indices = np.frombuffer(data, "<u4", self._sent)
        values = np.frombuffer(data, "<f4", self._sent, offset=4 * self._sent)
        if (indices[1:] <= indices[:-1]).any() or (indices[-1:] >= self._values).any():
            raise _malformed("the indices are not within the model and strictly increasing")
        if not np.isfinite(values).all():
            raise TrustError("a value is not finite", code="not-finite")
        flat = np.zeros(self._values, np.float32)
        flat[indices] = values
        return flat


def codec_for(
    compression: Compression | None, shapes: Mapping[str, tuple[int, ...]], bound: float
) -> Codec | None:
    """The codec that a plan asks for; None if its updates travel as they are."""
    return Codec(compression, shapes, bound) if compression else None


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Where the ``count`` values of greatest magnitude are, increasing; ties by the lower index.

    >>> largest(np.array([1, -3, 2, 3, -2], np.float32), 3).tolist()
    [1, 2, 3]
    """
    if count == 0:
        return np.zeros(0, np.int64)
    size = np.abs(values)
    least = np.partition(size, len(size) - count)[len(size) - count]
    chosen = size > least
    ties = np.flatnonzero(size == least)
    chosen[ties[: count - int(chosen.sum())]] = True
    return np.flatnonzero(chosen)


def _from_half(data: bytes) -> NDArray[np.float32]:
    bits = np.frombuffer(data, "<u2")
    if ((bits & _NOT_FINITE_HALF) == _NOT_FINITE_HALF).any():
        raise TrustError("a value is not finite", code="not-finite")
    return np.frombuffer(data, "<f2").astype(np.float32)


def _malformed(why: str) -> TrustError:
    return TrustError(f"not an update in the plan's coding: {why}", code="malformed")
