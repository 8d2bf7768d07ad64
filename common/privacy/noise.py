"""Where randomness comes from: one keyed stream for sampling and for Gaussian noise.

The rule: every random bit that protects a record is a bit of an AES-256-CTR keystream, under a key
from the operating system that is used for one round and never stored. The global generators of
numpy and torch are not touched. A stream keyed from a *seed* exists so that a simulation can be
repeated; it is a different class, it names itself ``simulated``, and the ledger records that name.

Why not ``torch.normal``: Mersenne Twister's state can be recovered from its outputs, and then the
noise subtracted. Why float64 and a grid: floating-point Gaussians leave gaps in their low bits that
can tell two inputs apart (Mironov 2012; Jin et al. 2021, arXiv 2112.05307), so noise is drawn in
float64 and :func:`add_gaussian` rounds the noised *sum* to a fixed grid, which hides the low bits
of both. Rounding is post-processing. Left for later: the sum of four (Holohan and Braghin 2021,
arXiv 2107.10138).
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

_TWO_PI = 2 * np.pi


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
        bits = self.integers(count) >> np.uint64(11)
        return (bits.astype(np.float64) + 1.0) * 2.0**-53

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
        """``count`` standard normal values, float64: shape (count,). Box and Muller 1958."""
        pairs = (count + 1) // 2
        uniform = self.uniform(2 * pairs)
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))  # (pairs,)
        angle = _TWO_PI * uniform[pairs:]  # (pairs,)
        values = np.empty(2 * pairs)
        np.multiply(radius, np.cos(angle), out=values[:pairs])
        np.multiply(radius, np.sin(angle), out=values[pairs:])
        return values[:count]


def add_gaussian(
    total: NDArray[np.float64], *, clip: float, noise_multiplier: float, stream: Stream
) -> NDArray[np.float64]:
    """``total`` + N(0, (noise_multiplier x clip)^2), rounded to the grid.

    Args:
        total: the sum of clipped contributions, float64, any shape.
        clip: the greatest L2 norm of one contribution, > 0.
        noise_multiplier: sigma >= 0, in units of ``clip``.
        stream: where the noise comes from.
    """
    noise = stream.gaussian(total.size).reshape(total.shape)
    noise *= noise_multiplier * clip
    noise += total
    grid = clip * 2.0**-GRID_BITS
    noise /= grid
    np.rint(noise, out=noise)
    noise *= grid
    return noise
