"""Predict with the installed model, after verifying it once more.

The rule: the model that answers is the bytes that were verified, authenticated at this start, by
the owner's policy of today, not of the day of the update. What an update worked out from the same
bytes on this machine, and sealed, is not worked out again: who signed them, and what the runtime
makes of them. A record outside of the schema's public bounds is refused rather than guessed at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from client.device import slots
from client.device.bounds import Bounds, batch_of
from client.device.home import DeviceHome
from client.device.prepared import Prepared
from client.device.release import Candidate
from client.device.terms import check_again
from common.inference import Array, Latency
from common.release import MODEL, STATEMENT

if TYPE_CHECKING:
    from client.device.answers import Answers, Prediction, Thresholds
    from client.device.reading.source import Batch, Source


def installed(home: DeviceHome) -> Candidate:
    """What is installed in a device's directory, verified by the owner's policy of now.

    Raises:
        OperationError: nothing is installed yet.
        TrustError: it was changed on disk, or the owner's policy no longer allows it.
    """
    return slots.of_current(home, lambda pointer: _candidate(home, pointer))


def _candidate(home: DeviceHome, pointer: slots.Current) -> Candidate:
    prepared = slots.ready(home, pointer.release)
    if prepared is not None and (found := _ready(home, pointer, prepared)) is not None:
        return found
    from client.device.verify import verify  # what an update has prepared needs none of it

    return verify(
        slots.read(home, pointer.release, slots.NEEDED),
        home.policy,
        home.keys(),
        successors=home.successors,
        floor=pointer.version,
        name=pointer.name,
        known=pointer.sealed,
    )


def _ready(home: DeviceHome, pointer: slots.Current, prepared: Prepared) -> Candidate | None:
    """What an update has prepared, if the owner's terms of now allow it; None: it cannot be used.

    Nothing is loaded before they do.
    """
    release, claims = pointer.release, prepared.claims
    files = slots.read(home, release, slots.PUBLIC)
    check_again(home, claims, prepared.signers, files[STATEMENT])
    session = prepared.session(slots.open_sealed(home, release, MODEL, prepared.shift))
    return Candidate(claims, files, pointer.digests, prepared.signers, session) if session else None


class Predictor:
    """A verified model, ready to answer. Make one with :meth:`load`."""

    def __init__(self, model: Candidate) -> None:
        claims = model.claims
        self.name, self.version = claims.name, claims.version
        self.simulated, self.schema = claims.simulated, claims.schema
        self._session = model.session
        self._bounds, self._batch = Bounds(self.schema), batch_of(self.schema)

    @classmethod
    def load(cls, home: DeviceHome | Path | str) -> Predictor:
        """Load what is installed in a device's directory.

        Raises:
            InputError: there is no device.
            OperationError: nothing is installed yet.
            TrustError: it was changed on disk, or the owner's policy no longer allows it.
        """
        return cls(installed(home if isinstance(home, DeviceHome) else DeviceHome(Path(home))))

    def probabilities(self, records: NDArray[Any]) -> Array:
        """Class probabilities, (B, classes) float32.

        Args:
            records: numbers of shape (B, *schema.shape), in the schema's units and bounds.

        Raises:
            DataError: wrong shape, not finite, or out of bounds; names the record (from 0).
        """
        checked = self._bounds.check(records)
        if len(checked) <= self._batch:
            return self._session.answer(checked)
        return self.run(checked)

    def expect_batches(self) -> None:
        """Do now what the first batch would wait for: putting the weights into another order.

        Raises:
            OperationError: there is no memory for that.
            TrustError: this machine does not compute what the releaser did.
        """
        self._session.expect_batches()

    def check(self, records: NDArray[Any]) -> Array:
        """Records as float32; refuses what the model knows nothing about: :meth:`probabilities`."""
        return self._bounds.check(records)

    def run(self, records: Array) -> Array:
        """:meth:`probabilities` of what :meth:`check` gave."""
        if len(records) <= self._batch:
            return self._session.answer(records)
        parts = [
            self._session.answer(records[start : start + self._batch])
            for start in range(0, len(records), self._batch)
        ]
        return np.concatenate(parts)

    def predict(
        self, records: NDArray[Any], thresholds: Thresholds | None = None
    ) -> list[Prediction]:
        """What is said of every record; see :meth:`probabilities`."""
        return list(self._answers(self.probabilities(records), thresholds).predictions())

    def predict_file(
        self, source: str | Path | BinaryIO, thresholds: Thresholds | None = None
    ) -> list[Prediction]:
        """What is said of every record of a file; see :meth:`open` for which and for the errors."""
        batches = self.stream(self.open(source), thresholds)
        return [prediction for answers in batches for prediction in answers.predictions()]

    def open(self, source: str | Path | BinaryIO) -> Source:
        """Records for this model, to be given to :meth:`stream`.

        Args:
            source: a ``.csv``, ``.npy`` or ``.parquet`` file, a folder of PNG and JPEG images, or
                CSV as a binary stream. Of a table, the schema's columns may stand in any order,
                among others; the target is not needed.

        Raises:
            DataError: names the file, and the line and column where there is one.
            InputError: it is none of these, or what reads it is not installed.
        """
        from client.device.reading.opening import open_source  # arrays alone need no reader

        return open_source(source, self.schema)

    def stream(
        self, source: Iterable[Batch], thresholds: Thresholds | None = None
    ) -> Iterator[Answers]:
        """Answers batch by batch, as they are computed; memory does not grow with the source.

        Raises:
            DataError: at the first record that does not fit; what came before it was answered.
        """
        for batch in source:
            yield self._answers(self.run(batch.records), thresholds, batch.names)

    def latency(self, samples: int = 1000) -> Latency:
        """Time of a single record on this device."""
        return self._session.latency(samples)

    def _answers(
        self, probabilities: Array, thresholds: Thresholds | None, names: tuple[str, ...] = ()
    ) -> Answers:
        from client.device import answers  # probabilities alone need none of it

        classes = self.schema.classes
        decided = (thresholds or answers.Thresholds()).decide(probabilities, classes)
        return answers.Answers(classes, probabilities, decided, names)
