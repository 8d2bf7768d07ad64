"""What of a release is ready for the next start, so that it is not worked out again?

The rule: a device prepares what passed every check of an update, on this machine, and binds it to
what it was made for: the release's files, the runtime, the processor, and what checks here. So
what opens was made by this device, for this start; what does not open counts for nothing, and the
release is verified in full, as ever. Nothing is refused because of it.

It holds the graph as the runtime optimized it, what the release claims and who signed that, and one
known answer. The weights stay in the release's own model, which is authenticated at each start.
What the owner may change since, the policy, is not in it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import cryptography
import numpy as np
import onnxruntime
from numpy._core import _multiarray_umath  # type: ignore[attr-defined]

from client.device.release import Claims
from common.canonical import Json, encode
from common.config import Table
from common.errors import TrustError
from common.inference import Array, KnownAnswers, Session

CHECKS = 2  # counts up when a release has to pass more than before, and when this form changes
_HEAD = struct.Struct("<II")  # length of the JSON, first byte of the largest tensor in the model
_FLOAT = np.dtype("<f4")
# What numpy found of this processor when it was imported; it has no public name for all of them.
_FEATURES: Mapping[str, bool] = vars(_multiarray_umath)["__cpu_features__"]


def most(model: int) -> int:
    """Bytes that what is prepared of a model of so many bytes may have.

    Some of its weights may be in it twice, as the runtime orders them anew, or in a wider type.
    """
    return 2 * model + 2**20


def made_for() -> dict[str, str | int]:
    """What has to be the same when it is used: our checks, what verified the signatures, the
    runtime, the processor."""
    present = " ".join(name for name, has in _FEATURES.items() if has)
    runtime = f"{onnxruntime.__version__} {onnxruntime.get_build_info()}"
    signatures = cryptography.__version__
    return {
        "checks": CHECKS,
        "runtime": runtime,
        "processor": present,
        "signatures": signatures,
    }


@dataclass(frozen=True, eq=False)
class Prepared:
    """A release, ready to be loaded.

    Args:
        claims: what it says.
        signers: fingerprints of the keys that have signed its statement.
        graph: as :func:`~common.onnx_runtime.optimized` gave it.
        begins: where in the model the largest of its tensors does.
        answers: one of the known answers.
    """

    claims: Claims
    signers: frozenset[str]
    graph: bytes
    begins: int
    answers: KnownAnswers

    @property
    def shift(self) -> int:
        """Where the model's first byte has to lie in memory, for its tensor to lie at 16."""
        return -self.begins % 16

    def session(self, model: memoryview) -> Session | None:
        """The model, once it gave the known answer; None if it does not."""
        try:
            session = Session(self.graph, self.claims.schema, model, known=self.answers)
            self.answers.check(session)
        except TrustError:
            return None
        return session

    def encode(self) -> bytes:
        document = {
            "claims": self.claims.json(),
            "signers": sorted(self.signers),
            "tolerance": repr(self.answers.tolerance),
        }
        head = encode(document)
        numbers = (self.answers.inputs, self.answers.probabilities)
        return b"".join(
            (
                _HEAD.pack(len(head), self.begins),
                head,
                *(part.astype(_FLOAT).tobytes() for part in numbers),
                self.graph,
            )
        )

    @classmethod
    def decode(cls, data: memoryview) -> Prepared:
        """Read :meth:`encode`'s bytes, which this device wrote."""
        length, begins = _HEAD.unpack_from(data)
        at = _HEAD.size + length
        head: Json = json.loads(bytes(data[_HEAD.size : at]))
        claims = Claims.read(Table(head["claims"], json_numbers=True))
        inputs, at = _records(data, at, claims.schema.shape)
        expected, at = _records(data, at, (len(claims.schema.classes),))
        answers = KnownAnswers(inputs, expected, float(head["tolerance"]))
        return cls(claims, frozenset(head["signers"]), bytes(data[at:]), begins, answers)


def _records(data: memoryview, at: int, shape: tuple[int, ...]) -> tuple[Array, int]:
    """One record, (1, *shape) float32, and what follows it."""
    size = int(np.prod(shape))
    values = np.frombuffer(data, _FLOAT, size, at).astype(np.float32)
    return values.reshape(1, *shape), at + size * _FLOAT.itemsize
