"""What happened to somebody's records, as values: frozen, comparable, and JSON there and back.

The rule: an event states parameters that are public, and nothing that depends on the data. A
field's meaning never changes; a new meaning is a new kind. An event without noise is a legal value
whose cost is infinite, because the honest record of a mistake must be expressible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from common.canonical import MAX_INTEGER, CanonicalError, Json, number, parse_number

MECHANISM = "poisson-subsampled-gaussian"
ADJACENCY = "add-or-remove-one"  # of everything that is charged, stated and signed
REPLACE_ONE = "replace-one"  # to compare with work that states it; through PLD only


@dataclass(frozen=True)
class Event:
    """``steps`` adaptive uses of one Poisson-subsampled Gaussian mechanism.

    Each step samples every record independently with probability ``sampling_rate`` (0 < q <= 1),
    sums contributions of L2 norm at most C, and adds Gaussian noise of standard deviation
    ``noise_multiplier`` x C to each coordinate (sigma >= 0; 0 means no noise and infinite epsilon).
    Adjacency is add-or-remove-one.

    Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1; Mironov et al. 2019 (arXiv
    1908.10530).
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1], not {self.sampling_rate}")
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise ValueError(f"noise_multiplier must be finite and >= 0: {self.noise_multiplier}")
        if not 1 <= self.steps <= MAX_INTEGER:
            raise ValueError(f"steps must be from 1 to 2^53 - 1, not {self.steps}")

    def json(self) -> Json:
        return {
            "mechanism": MECHANISM,
            "sampling_rate": number(self.sampling_rate),
            "noise_multiplier": number(self.noise_multiplier),
            "steps": self.steps,
        }

    @classmethod
    def from_json(cls, value: object) -> Event:
        """Read an event back, to the bit; :class:`CanonicalError` on anything else."""
        keys = {"mechanism", "sampling_rate", "noise_multiplier", "steps"}
        if not isinstance(value, dict) or set(value) != keys or value["mechanism"] != MECHANISM:
            raise CanonicalError(f"not a privacy event: {value!r:.120}")
        steps = value["steps"]
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise CanonicalError(f"steps must be an integer, not {steps!r:.40}")
        try:
            return cls(
                parse_number(value["sampling_rate"]), parse_number(value["noise_multiplier"]), steps
            )
        except ValueError as error:
            raise CanonicalError(f"not a privacy event: {error}") from error


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Add up the steps of equal mechanisms: a million steps become one line, at the same cost."""
    totals: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.sampling_rate, event.noise_multiplier)
        totals[key] = totals.get(key, 0) + event.steps
    return tuple(Event(q, sigma, steps) for (q, sigma), steps in totals.items())
