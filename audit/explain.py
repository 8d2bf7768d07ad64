"""What could an attacker learn? One page of plain language about one bundle's epsilon and delta.

The rules: every number is computed from the bundle, by the standard library alone (see
:mod:`audit.meaning`), and is an upper bound, rounded up. The bound of the stated pair alone is
given beside the one of the whole curve. What is not protected is said as plainly.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace

from audit.meaning import Case, Meaning, cases, curve
from audit.verify import Verdict, exposure
from audit.wording import called, plain, up
from common.canonical import Json, parse_number
from common.privacy import accountant
from common.privacy.events import ADJACENCY

WIDTH = 79

SOURCES = (
    "Wasserman and Zhou 2010 (arXiv 0811.2501)",
    "Kairouz, Oh and Viswanath 2015 (arXiv 1311.0776)",
    "Dong, Roth and Su 2022 (arXiv 1905.02383)",
    "Vadhan 2017, The Complexity of Differential Privacy, lemma 2.2",
)


@dataclass(frozen=True)
class Explanation:
    """What one bundle's privacy means.

    Args:
        name: the plan's.
        authenticated: as in the verdict.
        repeatable: the noise could be computed again: it protects nobody.
        epsilon, delta: the headline.
        unit: ``record`` or ``client``: what the limits are about.
        stated: what the pair (epsilon, delta) alone allows.
        meaning: what the whole curve allows, as computed here.
        cases: people who are in the data more than once, the plain case first.
        sections: heading and paragraphs of the page, in order.
    """

    name: str
    authenticated: bool
    repeatable: bool
    epsilon: float
    delta: float
    unit: str
    stated: Meaning
    meaning: Meaning
    cases: tuple[Case, ...]
    sections: tuple[tuple[str, tuple[str, ...]], ...]

    def json(self) -> Json:
        return {
            "name": self.name,
            "verdict": called(self.authenticated),
            "protects_nobody": self.repeatable,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "adjacency": ADJACENCY,
            "stated_pair_alone": self.stated.json(),
            "whole_curve": self.meaning.json(),
            "cases": [case.json() for case in self.cases],
            "no_privacy": {"found_of_100": 100, "right_of_100": 100},
            "blind_guess": {"found_of_100": 1, "right_of_100": 50},
            "sections": [
                {"heading": heading, "paragraphs": list(paragraphs)}
                for heading, paragraphs in self.sections
            ],
            "sources": list(SOURCES),
        }

    def text(self) -> str:
        """The page, in lines of at most ``WIDTH`` characters."""
        parts = []
        for heading, paragraphs in self.sections:
            lines = [heading.upper()]
            for paragraph in paragraphs:
                hang = "  " if paragraph.startswith("- ") else ""
                lines.append(textwrap.fill(paragraph, WIDTH, subsequent_indent=hang))
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


def explain(verdict: Verdict) -> Explanation:
    """Explain a bundle that verifies.

    Args:
        verdict: from :func:`audit.verify.verify`; the page says first if nobody vouched for it.
    """
    plan, privacy = verdict.plan, verdict.plan.privacy
    epsilon, delta = parse_number(verdict.claims["epsilon"]), privacy.delta
    event = exposure(plan, verdict.clients)
    # No claim among them: a headline that is too low must not lower what is computed here.
    points = [(accountant.epsilon([event], delta), delta), *curve(event)]
    bare = Explanation(
        name=plan.name,
        authenticated=verdict.authenticated,
        repeatable=any("simulated" in client.noise for client in verdict.clients),
        epsilon=epsilon,
        delta=delta,
        unit=privacy.unit,
        stated=Meaning.of(epsilon, delta),
        meaning=Meaning.least(points),
        cases=cases(event, points, privacy.unit, len(verdict.clients)),
        sections=(),
    )
    return replace(bare, sections=_sections(bare, verdict))


# -- the page --------------------------------------------------------------------------------------


def _sections(it: Explanation, verdict: Verdict) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (
        ("What this is about", tuple(_about(it))),
        ("What an attacker could learn", tuple(_could(it))),
        ("What an attacker could not learn", tuple(_could_not(it))),
        (f"One {it.unit} is not always one person", tuple(_people(it))),
        ("What delta is", tuple(_delta(it))),
        ("What is not protected at all", tuple(f"- {what}." for what in unprotected(verdict))),
        ("Where this comes from", ("; ".join(SOURCES) + ".",)),
    )


def _about(it: Explanation) -> Iterable[str]:
    if not it.authenticated:
        yield (
            "Nobody vouched for the keys in this bundle. Everything below is worth as much as the "
            "word of whoever handed it over."
        )
    if it.repeatable:
        yield (
            "The noise of this run can be computed again by whoever knows its seed: it protects "
            "nobody. What follows would hold for the same plan with cryptographic noise."
        )
    released = "every model, this bundle"
    released = released if it.unit == "client" else f"every update, {released}"
    yield (
        f"{it.name}: epsilon {up(it.epsilon)} at delta {plain(it.delta)}, for each {it.unit}, "
        f"{ADJACENCY}. Epsilon compares two worlds that differ in one {it.unit}: in one it was "
        "used, in the other it never was. The smaller epsilon is, the more alike they look to "
        f"anybody who sees everything that was released: {released}."
    )
    if it.unit == "client":
        yield (
            "Anybody but the coordinator: with central trust it saw each client's update without "
            "noise, and nothing here limits what it could learn."
        )


def _could(it: Explanation) -> Iterable[str]:
    found, right = it.meaning.found, it.meaning.right
    yield (
        f"Take the strongest attacker there can be, who knows every other {it.unit}, and asks: was "
        "this one used?"
    )
    yield (
        f"- Of 100 people whose {it.unit} was used, an attacker who accepts one wrong accusation "
        f"in 100 finds at most {found}. A blind guess finds 1; without any privacy it could be "
        "all 100."
    )
    yield (
        f"- Of 100 people about whom a coin decided whether they were used, the attacker is right "
        f"about at most {right}. A blind guess is right about 50; without any privacy, 100."
    )
    yield it.meaning.words
    if it.stated.found > found or it.stated.right > right:
        yield (
            "(Epsilon and delta alone, without the schedule behind them, would allow "
            f"{it.stated.found} and {it.stated.right}.)"
        )


def _could_not(it: Explanation) -> Iterable[str]:
    yield (
        "Do better than that: by more computing, by knowing more, or by waiting for better "
        "attacks. The limit is a property of the noise, not of what attackers are able to do "
        f"today. And it limits the rest: who can hardly tell whether a {it.unit} was used can "
        "hardly read from the model what was in it."
    )
    yield (
        "It does not keep anybody from learning what is true of people in general. If the model "
        "shows that a habit makes ill, it says so about all who have it, used or not: no "
        f"{it.unit} caused that, and none could have prevented it by staying away."
    )


def _people(it: Explanation) -> Iterable[str]:
    if it.unit != "record":
        yield "The limits are for a whole client with all of its records, whoever they belong to."
        return
    yield (
        "The limits above are for one record. Who has several records, or is known to several "
        "clients, is protected less. At most so many of 100 people are found (with one wrong "
        "accusation in 100), and the attacker is right about so many of 100 from even odds; these "
        "are bounds, and where records come together they are loose ones:"
    )
    for case in it.cases:
        yield f"- {case.who}: {case.meaning.found} found, {case.meaning.right} right"
    yield (
        "What the same data was used for in other federations comes on top, and is not in this "
        "bundle."
    )


def _delta(it: Explanation) -> Iterable[str]:
    one_in = math.floor((1 + 1e-12) / it.delta)  # 1 / 1e-5 is a hair below 100,000
    if it.unit == "client":
        yield (
            "A small chance that is left out of the promise of epsilon: here one in "
            f"{one_in:,}. At worst, a method with this delta could publish each client's part "
            f"outright with that chance. So far fewer than {one_in:,} clients should be enrolled; "
            "how many are is not in the bundle, on purpose. Gaussian noise does not fail all at "
            "once like that, and the numbers of people above count all of it."
        )
        return
    yield (
        f"A small chance that is left out of the promise of epsilon: here one in {one_in:,}. At "
        "worst, a method with this delta could publish each record outright with that chance: of "
        f"a client's 1,000 records, {up(1000 * it.delta)} are to be expected at most. So a client "
        f"should hold far fewer than {one_in:,} records; how many it holds is not in the bundle, "
        "on purpose. Gaussian noise does not fail all at once like that: what it gives away grows "
        "slowly as luck gets worse, and the numbers of people above count all of it."
    )


def unprotected(verdict: Verdict) -> tuple[str, ...]:
    """What no epsilon covers, as sentences without their full stop."""
    plan = verdict.plan
    rounds = max(client.rounds for client in verdict.clients)
    if plan.privacy.trust == "central":
        return (
            "Anything against the coordinator: it sees who takes part, and each update",
            f"The schedule: {plan.rounds} rounds planned, {rounds} charged, and every parameter of "
            "the plan",
            f"What a record looks like: the schema, with {len(plan.schema.classes)} classes and "
            "their names",
            "That a site takes part, from whoever sees its network: when messages are sent, how "
            "long an answer takes, and how large it is",
            "Anything on the machines that hold the data or noise the sum, and anything that a "
            "dishonest one lets out: the ledger shows what was signed, not what was done",
        )
    return (
        "That a site takes part, and in which rounds: the coordinator sees it",
        f"The schedule: {plan.rounds} rounds planned, {rounds} charged to the most exposed client, "
        "and every parameter of the plan",
        f"What a record looks like: the schema, with {len(plan.schema.classes)} classes and their "
        "names",
        "When messages are sent, how long an answer takes, and how large it is",
        "Roughly how much data a client has: one record more or less is hidden, a hundred times as "
        "many are not",
        "Anything on the machines that hold the data, and anything that a dishonest one lets out: "
        "the ledgers show what was signed, not what was done",
    )
