"""What is a data set, once it is read? Raw float32 features, integer labels, and where each stood.

The rule: every record keeps its place in its source, and which of them are held out is a question
about places alone, so a line that is no record moves none of the others.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

log = logging.getLogger("privet.data")

MOST_RECORDS = 10**7


@dataclass(frozen=True)
class Records:
    """Records as they are, before any preprocessing.

    Args:
        features: (N, *schema.shape) float32, in raw units, within the schema's bounds.
        labels: (N,) int64, indexes into ``schema.classes``.
        groups: (N) values of the partition column, where one was asked for.
        places: (N,) int64, ascending: where each record stands in its source, from 0. A line of a
            CSV file has a place even if it holds no record, so none moves another.
        extent: how many places the source has; -1: records are at each of them, and these N.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: tuple[str, ...] | None = None
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    extent: int = -1

    def __post_init__(self) -> None:
        if self.extent < 0:
            object.__setattr__(self, "places", np.arange(len(self.labels)))
            object.__setattr__(self, "extent", len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indexes: NDArray[np.int64]) -> Records:
        """The records at ``indexes``, ascending, each still at its place."""
        groups = None if self.groups is None else tuple(self.groups[i] for i in indexes)
        places = self.places[indexes]
        return Records(self.features[indexes], self.labels[indexes], groups, places, self.extent)


def split(records: Records, share: float) -> tuple[Records, Records]:
    """Keep records for training, and hold out ``share`` of them, rounded up: (kept, held out).

    Which ones depends on each record's place alone: those whose place has the least SHA-256. No
    seed moves them, so runs with different seeds are measured on the same records; and a line that
    is no record has a place, so it moves none of the others.
    """
    extent = records.extent
    held = math.ceil(share * extent)
    if not 0 < held < extent:
        raise DataError(
            f"holding out {share:g} of {extent} records leaves nothing to train on or to test"
        )
    places = sorted(range(extent), key=lambda i: hashlib.sha256(b"%d" % i).digest())
    chosen = np.zeros(extent, dtype=bool)
    chosen[places[:held]] = True
    chosen = chosen[records.places]
    return records.take(np.flatnonzero(~chosen)), records.take(np.flatnonzero(chosen))


def note_left_out(count: int, first: object) -> None:
    """For the owner, in this machine's log: nothing of it may reach the server."""
    log.warning("%d of the data's rows are no records; the first: %s", count, first)
