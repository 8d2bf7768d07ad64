"""Where randomness comes from: one keyed stream for sampling and for Gaussian noise.

The rule: every random bit that protects a record is a bit of an AES-256-CTR keystream, under a key
from the operating system that is used for one round and never stored. The global generators of
numpy and torch are not touched. A stream keyed from a *seed* exists so that a simulation can be
repeated; it is a different class, it names itself ``simulated``, and the ledger records that name.

Why not ``torch.normal``: Mersenne Twister's state can be recovered from its outputs, and then the
noise subtracted. Why float64 and a grid: floating-point Gaussians leave gaps in their low bits that
can tell two inputs apart (Mironov 2012; Jin et al. 2021, arXiv 2112.05307), so noise is drawn in
float64 and :func:`add_gaussian` rounds the noised *sum* to a fixed grid, which hides the low bits
of both. Rounding is post-processing.

Why a sum of four, as an option (Holohan and Braghin 2021, arXiv 2107.10138, section 5.1): whoever
holds one float64 Gaussian can guess the noiseless value and look for the two uniform values that
give the rest, about 2^53 trials. Half the sum of four, from two pairs of Box and Muller, has the
same distribution, and four uniform values behind it: three must be searched to find the last,
about 2^159 trials.

Why not a method that rejects: its time tells something of the noise (Jin et al. again). Here every
value takes the same steps.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

CRYPTOGRAPHIC = "cryptographic"
SIMULATED = "simulated"

# Noised sums are rounded to multiples of clip x 2^-20: a millionth of one record's greatest
# influence, far below the noise, far above a float64's last bits at any size that clipping allows.
GRID_BITS = 20

# Values drawn at a time by add_gaussian, so that what is between stays in the cache. The noise does
# not depend on it, as long as it is a multiple of four.
_BLOCK = 1 << 14

# e^(i angle) for 2^12 angles, evenly around the circle: what Stream.gaussian turns from.
_TABLE_BITS = 12
_TABLE = np.exp(2j * np.pi * np.arange(1 << _TABLE_BITS) / (1 << _TABLE_BITS))
_STEP_BITS = 64 - _TABLE_BITS


class Stream:
    """A stream of random values from AES-256-CTR under one key.

    Args:
        key: 32 bytes, used for nothing else.
        kind: what the ledger says of it: ``cryptographic`` or ``simulated``.
    """

    def __init__(self, key: bytes, kind: str) -> None:
        if len(key) != 32:
            raise ValueError("a stream key has 32 bytes")
        self.kind = kind
        # A fresh key for each stream, so the counter may start at zero (NIST SP 800-38A, B.2).
        self._cipher: CipherContext = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def cryptographic(cls) -> Stream:
        """A stream that nobody can repeat: what every deployment uses."""
        return cls(os.urandom(32), CRYPTOGRAPHIC)

    @classmethod
    def simulated(cls, seed: int, *labels: str | int) -> Stream:
        """A stream that ``seed`` and labels repeat. It protects nobody: for simulations only."""
        text = "\x1f".join(["privet/simulated-noise/v1", str(seed), *map(str, labels)])
        return cls(hashlib.sha256(text.encode()).digest(), SIMULATED)

    def integers(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit integers: shape (count,)."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """``count`` values in (0, 1], each of 2^53 equally likely: shape (count,)."""
        return _uniform(self.integers(count))

    def poisson_sample(self, records: int, rate: float) -> NDArray[np.intp]:
        """Include each of ``records`` with probability ``rate``; the indices, ascending.

        The rate is exact to 2^-64. The draw for a record does not depend on how many others there
        are after it.
        """
        if rate >= 1:
            return np.arange(records, dtype=np.intp)
        threshold = np.uint64(int(rate * 2**64))
        return np.flatnonzero(self.integers(records) < threshold)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """``count`` standard normal values, float64: shape (count,). Box and Muller 1958.

        Two integers give two values, so drawing an even count and then another gives the values
        that drawing both at once gives. The first integer's upper 53 bits are the radius, at most
        sqrt(2 x 53 ln 2) = 8.57: a normal value goes further once in 2^56. The second's 64 bits are
        the angle.
        """
        words = self.integers(count + count % 2).reshape(-1, 2)  # (pairs, 2)
        radius = np.log(_uniform(words[:, 0]))
        radius *= -2.0
        np.sqrt(radius, out=radius)
        # numpy's sine and cosine took more than half of the time. The table has the angle's upper
        # bits; for the rest, below 0.0016, these series are within 1e-16.
        step = (words[:, 1] & ((1 << _STEP_BITS) - 1)).astype(np.float64)
        step *= 2 * np.pi / 2.0**64
        square = step * step
        cosine = 1.0 - square * (1 / 2 - square * (1 / 24))
        sine = step * (1.0 - square * (1 / 6))
        pairs = np.empty(len(words), np.complex128)
        np.multiply(radius, cosine, out=pairs.real)
        np.multiply(radius, sine, out=pairs.imag)
        pairs *= _TABLE[(words[:, 1] >> _STEP_BITS).view(np.int64)]
        return pairs.view(np.float64)[:count]


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    values = (words >> 11).astype(np.float64)
    values += 1.0
    values *= 2.0**-53
    return values


def add_gaussian(
    total: NDArray[np.float64],
    *,
    clip: float,
    noise_multiplier: float,
    stream: Stream,
    draws: int = 1,
    out: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """``total`` + N(0, (noise_multiplier x clip)^2), rounded to the grid.

    Args:
        total: the sum of clipped contributions, float64, any shape.
        clip: the greatest L2 norm of one contribution, > 0.
        noise_multiplier: sigma >= 0, in units of ``clip``.
        stream: where the noise comes from.
        draws: the normal values behind each value of the noise: 1, or 4 for the sum of four.
        out: where to write the result, as numpy's ``out``; it may be ``total`` itself, and may not
            overlap it otherwise.

    Raises:
        ValueError: ``draws`` is neither, or ``out`` is not a contiguous float64 array of
            ``total``'s shape. Nothing has been drawn or written.
    """
    if draws not in (1, 4):
        raise ValueError(f"noise is drawn once or as a sum of four, not of {draws}: set 1 or 4")
    if out is None:
        out = np.empty(total.shape)
    elif out.shape != total.shape or out.dtype != np.float64 or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype} {out.shape}: a contiguous float64 {total.shape} is needed"
        )
    sums, noised = total.reshape(-1), out.reshape(-1)
    scale = noise_multiplier * clip / draws**0.5
    grid = clip * 2.0**-GRID_BITS
    for start in range(0, sums.size, _BLOCK // draws):
        part = slice(start, start + _BLOCK // draws)
        noise = stream.gaussian(draws * sums[part].size)
        while noise.size > sums[part].size:
            noise = noise[0::2] + noise[1::2]
        noise *= scale
        noise += sums[part]
        noise /= grid
        np.rint(noise, out=noise)
        np.multiply(noise, grid, out=noised[part])
    return out
