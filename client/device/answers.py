"""What is said of a record: a class, or that the model does not know?

The rules: without a threshold the answer is the likeliest class. A class with a threshold is the
answer wherever its probability reaches it, the likeliest of them if several do, even where another
class is likelier: that is a decision threshold, 0.2 for a screening that must not miss anything.
Where none reaches its own, the answer is the likeliest class if it has no threshold, and otherwise
*undecided*. So nobody is told "no" because "yes" was not sure enough: 0.8 for ``yes`` makes an
answer of 0.75 undecided, and not the opposite, which the model thinks unlikelier still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.inference import Array

UNDECIDED = "undecided"


@dataclass(frozen=True)
class Prediction:
    """What is said of one record.

    Args:
        label: a class; None where the thresholds leave it undecided.
        probability: of that class, in [0, 1]; of the likeliest one where undecided.
    """

    label: str | None
    probability: float


@dataclass(frozen=True)
class Thresholds:
    """The least probabilities at which classes are the answer, in (0, 1], by their names.

    >>> screening = Thresholds({"ill": 0.2})
    >>> screening.decide(np.array([[0.7, 0.3], [0.9, 0.1]], np.float32), ("well", "ill")).tolist()
    [1, 0]

    Raises:
        InputError: one is not in (0, 1].
    """

    least: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            if not 0 < least <= 1:
                raise InputError(
                    f"the threshold of {name!r} is {least:g}", hint="it is above 0, and 1 at most"
                )

    @classmethod
    def read(cls, words: Sequence[str], classes: Sequence[str]) -> Thresholds:
        """Read ``CLASS=0.8``, or ``0.8`` for every class that is not named.

        Raises:
            InputError: not of that form, of another class, or twice of one.
        """
        given: dict[str, float] = {}
        for word in words:
            name, _, number = word.rpartition("=")
            if name in given:
                raise InputError(f"{word!r} is a second threshold for the same", hint="give one")
            if name and name not in classes:
                raise InputError(
                    f"the model has no class {name!r}", hint=f"its classes: {', '.join(classes)}"
                )
            given[name] = _probability(number, word)
        if given and UNDECIDED in classes:
            raise InputError(
                f"a class of this model is called {UNDECIDED!r}, so an answer could not be told "
                "from none",
                hint="leave the threshold out, and decide on --probabilities",
            )
        if "" in given:
            rest = given.pop("")
            given = {name: given.get(name, rest) for name in classes}
        return cls(given)

    def decide(self, probabilities: Array, classes: Sequence[str]) -> NDArray[np.int64]:
        """Indexes into ``classes``, (B,) int64; -1: undecided. ``probabilities``: (B, classes)."""
        likeliest: NDArray[np.int64] = probabilities.argmax(axis=1)  # (B,)
        if not self.least or not len(probabilities):
            return likeliest
        # Compared as float32, which is what the model says: 0.7 is reached by its nearest float32.
        least = np.array([self.least.get(name, math.inf) for name in classes], np.float32)  # (C,)
        reached = np.where(probabilities >= least, probabilities, -1)  # (B, C)
        otherwise = np.where(np.isfinite(least)[likeliest], -1, likeliest)  # (B,)
        chosen: NDArray[np.int64] = np.where(
            reached.max(axis=1) >= 0, reached.argmax(axis=1), otherwise
        )
        return chosen


@dataclass(frozen=True, eq=False)
class Answers:
    """What is said of a batch of records.

    Args:
        classes: of the model.
        probabilities: (B, classes) float32.
        chosen: (B,) int64, indexes into ``classes``; -1: undecided.
        names: of the records, where they have any (the files of a folder); else empty.
    """

    classes: tuple[str, ...]
    probabilities: Array
    chosen: NDArray[np.int64]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def predictions(self) -> Iterator[Prediction]:
        """One for each record, in their order."""
        best = self.probabilities.argmax(axis=1)
        for row, chosen, likeliest in zip(
            self.probabilities, self.chosen.tolist(), best.tolist(), strict=True
        ):
            if chosen < 0:
                yield Prediction(None, float(row[likeliest]))
            else:
                yield Prediction(self.classes[chosen], float(row[chosen]))

    def rows(self, *, every: bool) -> Iterator[dict[str, Any]]:
        """Each record's answer as JSON: ``file`` if it has a name, ``class``, ``probability``.

        Args:
            every: with ``probabilities`` of all classes, by name, too.
        """
        for index, prediction in enumerate(self.predictions()):
            row: dict[str, Any] = {"file": self.names[index]} if self.names else {}
            row |= {"class": prediction.label, "probability": prediction.probability}
            if every:
                values = self.probabilities[index].tolist()
                row["probabilities"] = dict(zip(self.classes, values, strict=True))
            yield row


def _probability(text: str, word: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"{word!r} is no threshold", hint="write CLASS=0.8, or 0.8 for every class"
        ) from error
