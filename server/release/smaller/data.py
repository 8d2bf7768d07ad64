"""On what records may a model be made smaller? Public ones that somebody vouches for, or synthetic.

The rule: what calibrates, tunes or teaches a model is an access to those records, as training is.
Nothing here can charge a client's budget for it, so private records are refused: whoever names a
file declares in words that it is public, and those words are signed with the model. Records that a
step works with are never those that it is measured on: they are split by place, every other one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.binding import Binding, load_test
from common.data.records import Records
from common.data.schema import Schema
from common.data.source import FashionMnist, load
from common.data.table import Csv
from common.errors import InputError
from common.inference import synthetic_records
from common.lineage import PUBLIC, SYNTHETIC, Used

FASHION = "fashion-mnist"
SYNTHETIC_RECORDS = 512
LEAST = 20  # records: fewer say nothing about a class


@dataclass(frozen=True)
class Tuning:
    """Records to make a model smaller with.

    Args:
        kind, name: see :class:`common.lineage.Used`.
        features: (N, *schema.shape) float32, in the schema's units; N >= 20.
        labels: (N,) int64, or None: nobody knows.
    """

    kind: str
    name: str
    features: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    def __post_init__(self) -> None:
        if len(self.features) < LEAST:
            raise InputError(
                f"{self.name} has {len(self.features)} records, which say nothing about a model",
                hint=f"name a public data set of {LEAST} records or more",
                code="too-few-records",
            )

    @property
    def part(self) -> NDArray[np.float32]:
        """What a step works with: every other record, from the second. (N // 2, *shape)"""
        return self.features[1::2]

    @property
    def rest(self) -> NDArray[np.float32]:
        """What models are compared on: the others. (N - N // 2, *shape)"""
        return self.features[::2]

    @property
    def answers(self) -> NDArray[np.int64] | None:
        """The labels of :attr:`rest`."""
        return None if self.labels is None else self.labels[::2]

    def used(self) -> Used:
        """What a lineage says of these records."""
        seen = hashlib.sha256(np.ascontiguousarray(self.features, "<f4").tobytes())
        if self.labels is not None:
            seen.update(self.labels.astype("<i8").tobytes())
        return Used(self.kind, self.name, seen.hexdigest(), len(self.part), len(self.rest))


def synthetic(schema: Schema, count: int = SYNTHETIC_RECORDS) -> Tuning:
    """Fixed values within the public bounds: from nobody, and like nobody's."""
    features = synthetic_records(schema, count)
    return Tuning(SYNTHETIC, "synthetic records within the schema's bounds", features, None)


def public(source: str, declared: str, schema: Schema) -> Tuning:
    """Records that the operator declares public.

    Args:
        source: ``fashion-mnist`` (its official test images), or a CSV file with the plan's columns.
        declared: who published them, in words; signed with the model.

    Raises:
        InputError: ``not-declared``: nobody says that they are public.
        DataError: they are not there, or do not fit the schema.
    """
    if not declared.strip():
        raise InputError(
            f"nobody declares that {source} is public",
            hint="say in --public who published it; on private records a model must not be tuned",
            code="not-declared",
        )
    if source == FASHION:
        records = load(FashionMnist("test"), schema)
    else:
        records = load(Csv(str(Path(source).absolute()), {}), schema)
    return _tuning(records, declared.strip())


def of_binding(binding: Binding, schema: Schema) -> Tuning:
    """A run's own public test set.

    Raises:
        InputError: ``not-public``: it has none, or one that was held out of private records.
    """
    if binding.test != "public":
        raise InputError(
            "the run has no public test set, and held-out records are somebody's",
            hint="name one with --data and --public, or calibrate with --synthetic",
            code="not-public",
        )
    named = "Fashion-MNIST, test images" if binding.source == FASHION else "the public test set"
    return _tuning(load_test(binding, schema), named)


def _tuning(records: Records, name: str) -> Tuning:
    return Tuning(PUBLIC, name, records.features, records.labels)
