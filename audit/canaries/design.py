"""What is fixed before a run of canaries, what it is held against, and what it shows. Values.

The rule: everything that could be tuned to an outcome (how many canaries, guesses and thresholds,
which levels) is a :class:`Design`, written down before anything is trained. Each value is JSON
there and back, to the bit.

The standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from audit.canaries.bounds import METHODS
from audit.canaries.interval import PLD, RDP
from common.canonical import Json, number, parse_number
from common.privacy.events import Event

SCORES = ("likelihood-ratio", "difference")
# So many noise values make the noise multiplier known to 0.5 %, at 99 %.
NOISE_VALUES = 130_000


def spare_rows(canaries: int, steps: int) -> int:
    """Rows that no record has: where steps are few, they show the noise."""
    return max(0, math.ceil(NOISE_VALUES / steps) - 2 * canaries // 5)


@dataclass(frozen=True)
class Design:
    """What is fixed before anything is trained.

    Args:
        canaries: m >= 200, each included by a fair coin.
        guesses: r, even: the r / 2 highest scores are guessed "in", the r / 2 lowest "out".
        calibration: the first so many canaries only say where thresholds lie, by their pooled
            scores and without their coins; the others are counted.
        ranks: in (0, 1), where thresholds lie among the calibration scores.
        confidence: of each lower bound; 1 - confidence is divided by the number of scores.
        interval: confidence of the noise and epsilon intervals.
        alarm: the chance that a correct engine is called wrong, over all that is looked at here.
    """

    canaries: int = 1000
    guesses: int = 200
    calibration: int = 100
    ranks: tuple[float, ...] = (0.3, 0.5, 0.7)
    confidence: float = 0.95
    interval: float = 0.99
    alarm: float = 5e-6

    def __post_init__(self) -> None:
        if not 0 < self.calibration < self.canaries:
            raise ValueError("calibration must leave canaries to count")
        if self.guesses % 2 or not 0 < self.guesses <= self.canaries:
            raise ValueError("guesses must be even, and at most as many as canaries")
        if not self.ranks or not all(0 < rank < 1 for rank in self.ranks):
            raise ValueError("ranks must be in (0, 1)")
        if not all(0 < share < 1 for share in (self.confidence, self.interval, self.alarm)):
            raise ValueError("confidence, interval and alarm must be in (0, 1)")

    @property
    def level(self) -> float:
        """Of one bound by one score."""
        return (1 - self.confidence) / len(SCORES)

    @property
    def alarm_level(self) -> float:
        """Of one look: three methods by two scores, and two at the noise."""
        return self.alarm / (len(METHODS) * len(SCORES) + 2)

    def json(self) -> Json:
        return {
            "canaries": self.canaries,
            "guesses": self.guesses,
            "calibration": self.calibration,
            "ranks": [number(rank) for rank in self.ranks],
            "scores": list(SCORES),
            "methods": list(METHODS),
            "confidence": number(self.confidence),
            "interval": number(self.interval),
            "alarm": number(self.alarm),
        }

    @classmethod
    def from_json(cls, value: Json) -> Design:
        """Read a design back; ValueError or KeyError unless it is one of this version."""
        design = cls(
            canaries=_count(value["canaries"]),
            guesses=_count(value["guesses"]),
            calibration=_count(value["calibration"]),
            ranks=tuple(parse_number(rank) for rank in value["ranks"]),
            confidence=parse_number(value["confidence"]),
            interval=parse_number(value["interval"]),
            alarm=parse_number(value["alarm"]),
        )
        if design.json() != value:
            raise ValueError("the design is not one that this version knows")
        return design


@dataclass(frozen=True)
class Claim:
    """What the audited steps are said to cost.

    Args:
        event: the declared mechanism, with the steps that are run.
        delta: in (0, 1).
        epsilon: of ``event`` at ``delta``.
        method: the accountant that gave ``epsilon``.
        mu: the declared trade-off curve is not below that of mu-GDP where canaries look.
    """

    event: Event
    delta: float
    epsilon: float
    method: str
    mu: float

    def json(self) -> Json:
        return {
            "event": self.event.json(),
            "delta": number(self.delta),
            "epsilon": number(self.epsilon),
            "method": self.method,
            "mu": number(self.mu),
        }

    @classmethod
    def from_json(cls, value: Json) -> Claim:
        if value["method"] not in (PLD, RDP):
            raise ValueError(f"no accountant is called {value['method']!r:.40}")
        claim = cls(
            event=Event.from_json(value["event"]),
            delta=parse_number(value["delta"]),
            epsilon=parse_number(value["epsilon"]),
            method=value["method"],
            mu=parse_number(value["mu"]),
        )
        if claim.json() != value or not (claim.event.noise_multiplier and 0 < claim.delta < 1):
            raise ValueError("the claim has other fields than it should, or claims nothing")
        return claim


@dataclass(frozen=True)
class Observed:
    """What a run showed of each canary, without its coin. Figures are in units of C.

    Args:
        scores: for each of :data:`SCORES`, one number a canary: higher means "in".
        sums: each canary's coordinate, summed over the steps.
        squares: the same, squared before it is summed.
        spare_values: how many noise values rows gave that no record has.
        spare_squares: the sum of their squares.
    """

    scores: dict[str, tuple[float, ...]]
    sums: tuple[float, ...]
    squares: tuple[float, ...]
    spare_values: int
    spare_squares: float

    def json(self) -> Json:
        return {
            "scores": {name: [number(x) for x in self.scores[name]] for name in SCORES},
            "sums": [number(x) for x in self.sums],
            "squares": [number(x) for x in self.squares],
            "spare_values": self.spare_values,
            "spare_squares": number(self.spare_squares),
        }

    @classmethod
    def from_json(cls, value: Json, canaries: int, steps: int) -> Observed:
        """Read an observation back; ValueError or KeyError unless a test could have made it."""

        def numbers(texts: Sequence[object]) -> tuple[float, ...]:
            if len(texts) != canaries:
                raise ValueError(f"{len(texts)} figures for {canaries} canaries")
            return tuple(parse_number(text) for text in texts)

        observed = cls(
            scores={name: numbers(value["scores"][name]) for name in SCORES},
            sums=numbers(value["sums"]),
            squares=numbers(value["squares"]),
            spare_values=_count(value["spare_values"], least=0),
            spare_squares=parse_number(value["spare_squares"]),
        )
        most = spare_rows(canaries, steps) * steps
        if observed.spare_values > most:
            raise ValueError(f"spare_values: {observed.spare_values}, and a test has {most}")
        if min(observed.spare_squares, *observed.squares) < 0:
            raise ValueError("a sum of squares is negative")
        if observed.json() != value:
            raise ValueError("the observation has other fields than it should")
        return observed


def _count(value: object, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r:.40} is not a count")
    return value
