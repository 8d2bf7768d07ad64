"""What can the strongest attacker do at a given privacy? Numbers, and what they are computed from.

The rules: each is an upper bound. The attacker sees everything that was released and knows every
other record. A pair (epsilon, delta) is one point of what a mechanism discloses, and by itself
rules out far less than the mechanism does, so bounds are the least over a whole curve of such
pairs, each of which the same schedule satisfies.

Sources: what (epsilon, delta) means for a test: Wasserman and Zhou 2010 (arXiv 0811.2501), theorem
2.4; Kairouz, Oh and Viswanath 2015 (arXiv 1311.0776). A curve says more than its points: Dong, Roth
and Su 2022 (arXiv 1905.02383). Groups: Vadhan 2017, "The Complexity of Differential Privacy", lemma
2.2, before its geometric sum is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from common.canonical import Json
from common.privacy import accountant
from common.privacy.events import Event

FALSE_POSITIVE_RATE = 0.01
# Pinned, and exact decimals: the curve is the same on every machine.
CURVE = tuple(float(f"{digit}e-{places}") for places in range(10, 0, -1) for digit in (1, 2, 5))

Point = tuple[float, float]  # (epsilon, delta)


@dataclass(frozen=True)
class Meaning:
    """What an attacker can do who has to say whether a record was used.

    Args:
        false_positive_rate: how often the attacker may accuse wrongly, in (0, 1).
        true_positive_rate: greatest chance that such an attacker finds a record that was used.
        posterior: greatest chance to be right for one that starts at 50 %.
    """

    false_positive_rate: float
    true_positive_rate: float
    posterior: float

    @classmethod
    def of(
        cls, epsilon: float, delta: float, false_positive_rate: float = FALSE_POSITIVE_RATE
    ) -> Meaning:
        """The region of all tests between two neighbouring data sets (Kairouz et al. 2015).

        (epsilon, delta)-DP is the same as, for every test with false positive rate a and true
        positive rate b: b <= e^epsilon a + delta, and 1 - a <= e^epsilon (1 - b) + delta. Their sum
        bounds the chance to be right from even odds, (1 - a + b) / 2, which is the posterior of
        the truth on average: (e^epsilon + delta) / (1 + e^epsilon).

        Args:
            epsilon: >= 0.
            delta: in [0, 1].
            false_positive_rate: in (0, 1).

        >>> meaning = Meaning.of(1.0, 1e-5)
        >>> round(meaning.true_positive_rate, 5), round(meaning.posterior, 5)
        (0.02719, 0.73106)
        """
        # Through exp(-epsilon), which cannot overflow.
        small, accused = math.exp(-epsilon), false_positive_rate
        growing = math.exp(min(epsilon, 700.0)) * accused + delta
        shrinking = 1 - small * (1 - accused - delta)
        return cls(
            false_positive_rate=accused,
            true_positive_rate=min(1.0, growing, shrinking),
            posterior=min(1.0, (1 + delta * small) / (1 + small)),
        )

    @classmethod
    def least(
        cls, points: Iterable[Point], false_positive_rate: float = FALSE_POSITIVE_RATE
    ) -> Meaning:
        """What is left when every one of ``points`` holds: the least of each bound."""
        each = [cls.of(epsilon, delta, false_positive_rate) for epsilon, delta in points]
        return cls(
            false_positive_rate=false_positive_rate,
            true_positive_rate=min(meaning.true_positive_rate for meaning in each),
            posterior=min(meaning.posterior for meaning in each),
        )

    @property
    def found(self) -> int:
        """Of 100 people whose record was used, how many the attacker finds at most."""
        return of_hundred(self.true_positive_rate)

    @property
    def right(self) -> int:
        """Of 100 people about whom a coin decided, for how many the attacker is right at most."""
        return of_hundred(self.posterior)

    @property
    def words(self) -> str:
        """How much that is, in one sentence."""
        if self.true_positive_rate <= 0.05 and self.posterior <= 0.6:
            return "That is hardly better than guessing."
        if self.true_positive_rate <= 0.5:
            return "That is a real limit: with so few wrong accusations, most attempts must fail."
        if self.true_positive_rate <= 0.9:
            return "That is a limit, but not a strong one."
        return (
            "By itself that rules out little. Attackers who know less do worse, but how much worse "
            "is not something that this number promises."
        )

    def json(self) -> Json:
        return {
            "false_positive_rate": self.false_positive_rate,
            "true_positive_rate": self.true_positive_rate,
            "posterior": self.posterior,
            "found_of_100": self.found,
            "right_of_100": self.right,
        }


@dataclass(frozen=True)
class Case:
    """One way of being in the data, and what the attacker can do then."""

    who: str
    meaning: Meaning

    def json(self) -> Json:
        return {"who": self.who, **self.meaning.json()}


def curve(event: Event) -> list[Point]:
    """Pairs (epsilon, delta) that ``event`` satisfies, by our Rényi accountant, delta rising."""
    return [(accountant.epsilon([event], delta), delta) for delta in CURVE]


def in_group(points: Iterable[Point], size: int) -> list[Point]:
    """What holds for ``size`` records that come and go together, of what holds for each.

    (k epsilon, delta (1 + e^epsilon + ... + e^((k - 1) epsilon))), by going there in k steps.

    >>> [(epsilon, round(delta, 6)) for epsilon, delta in in_group([(1.0, 0.001)], 2)]
    [(2.0, 0.003718)]
    """
    return [
        (
            size * epsilon,
            min(1.0, delta * math.fsum(math.exp(min(j * epsilon, 700.0)) for j in range(size))),
        )
        for epsilon, delta in points
    ]


def cases(event: Event, points: Sequence[Point], unit: str, clients: int) -> tuple[Case, ...]:
    """Ways of being in the data: alone, with more records, or at more clients.

    Args:
        points: pairs that ``event`` satisfies; see :func:`curve`.
        unit: ``record`` or ``client``.
        clients: how many took part, >= 1.
    """
    plain = Case(f"one {unit}", Meaning.least(points))
    if unit != "record":
        return (plain,)
    together = [
        Case(f"{size} records at one client", Meaning.least(in_group(points, size)))
        for size in (2, 10)
    ]
    # The same person at several clients: their steps are composed, whoever took them.
    apart = [
        Case(
            f"one record at each of {count} clients",
            Meaning.least(curve(replace(event, steps=event.steps * count))),
        )
        for count in sorted({2, clients})
        if 1 < count <= clients
    ]
    return (plain, *together, *apart)


def of_hundred(share: float) -> int:
    """A greatest share as a number of people out of 100, rounded up."""
    return min(100, math.ceil(100 * share - 1e-9))
