"""One page about a bundle that verifies, for a person who has to decide whether to believe it.

The rules: the verdict comes first, then the epsilon and what it means, then everything that they
rest on, and last what they do not show. A bound is rounded up, never down. Whatever a signer wrote
is text to show, never markup to run. The page is one file that fetches nothing, and the same input
gives the same bytes.

Sources of the plain meaning of (epsilon, delta): Wasserman and Zhou 2010 (arXiv 0811.2501),
theorem 2.4; Kairouz, Oh and Viswanath 2015 (arXiv 1311.0776).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from audit.ledgers import Spend
from audit.plots import accuracy_plot, budget_plot
from audit.recompute import Recomputed, recompute
from audit.verify import Verdict, exposure
from common.canonical import CanonicalError, Json, parse_number
from common.errors import TrustError
from common.plan import Plan
from common.privacy import accountant
from common.privacy.filter import Budget
from common.privacy.reference import DISCRETIZATION

FALSE_POSITIVE_RATE = 0.01
OWN_ACCOUNTANT = "rdp (privet)"

# A page stays readable, and far below 200 kB, however large the federation or talkative the signer.
MOST_CLIENTS, MOST_ROUNDS, MOST_POINTS = 100, 100, 200
MOST_LIMITS, MOST_SUBJECTS, MOST_ACCOUNTANTS, MOST_CHARACTERS = 20, 20, 20, 400

# What no bundle can show, whoever signed it: the end of audit/verify.py's docstring.
LIMITS = (
    "That the machine which signed an entry did what the entry says. A host that lies can skip the "
    "noise and sign all the same.",
    "That a client kept no second ledger for the same data.",
    "That the end of a ledger was not cut off together with the statement that names its head.",
    "What the same data sets spent in other federations. An owner’s budget is for the whole life "
    "of the data; the share shown here is this federation’s part of it.",
)
UNAUTHENTICATED_LIMIT = (
    "Who made this bundle. The keys that its signatures fit came inside it; anybody can make keys."
)
ONE_MACHINE_LIMIT = (
    "That two parties agreed. This run made both signers’ keys, and the fingerprints that they "
    "were checked against, on one machine: here, “verified” says that the parts fit."
)

_PROTECTS = {
    "local": "each record, against everyone: the server, other clients, and all who get the model",
    "distributed": "each record, against the server and any coalition below the threshold",
    "central": "each client, against all who see the model, but not against the server",
}
_NOISE_ADDED_BY = {
    "local": "each client, in full, before anything leaves it",
    "distributed": "all clients together, under secure aggregation",
    "central": "the server, which sees each clipped update",
}


@dataclass(frozen=True)
class Meaning:
    """What (epsilon, delta) allows an attacker who has to say whether a record was used.

    The attacker is the strongest that the definition knows: it sees everything that was released
    and knows every other record.

    Args:
        epsilon: > 0.
        delta: in [0, 1).
        false_positive_rate: how often the attacker may accuse wrongly, in (0, 1).
        true_positive_rate: greatest chance that such an attacker finds a record that was used.
        posterior: greatest chance to be right for one that starts at 50 %.
    """

    epsilon: float
    delta: float
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

        >>> meaning = Meaning.of(1.0, 1e-5)
        >>> round(meaning.true_positive_rate, 5), round(meaning.posterior, 5)
        (0.02719, 0.73106)
        """
        # Through exp(-epsilon), which cannot overflow.
        small, accused = math.exp(-epsilon), false_positive_rate
        growing = math.exp(min(epsilon, 700.0)) * accused + delta
        shrinking = 1 - small * (1 - accused - delta)
        return cls(
            epsilon=epsilon,
            delta=delta,
            false_positive_rate=accused,
            true_positive_rate=min(1.0, growing, shrinking),
            posterior=(1 + delta * small) / (1 + small),
        )

    @property
    def words(self) -> str:
        """How much that is, in one sentence."""
        if self.true_positive_rate <= 0.05:
            return "That is hardly better than guessing."
        if self.true_positive_rate <= 0.5:
            return "That is a real limit: most attempts must fail."
        if self.true_positive_rate <= 0.9:
            return "That is a limit, but not a strong one."
        return (
            "By itself that rules out little. Attackers who know less do worse, but how much worse "
            "is not something that this number promises."
        )

    def json(self) -> Json:
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "false_positive_rate": self.false_positive_rate,
            "true_positive_rate": self.true_positive_rate,
            "posterior": self.posterior,
        }


def meaning(verdict: Verdict) -> Meaning:
    """What the headline means."""
    return Meaning.of(parse_number(verdict.claims["epsilon"]), verdict.plan.privacy.delta)


def within_plan(verdict: Verdict) -> bool:
    """Whether no ledger spent more than the plan declares; else the headline is for the most."""
    return exposure(verdict.plan, verdict.clients) == verdict.plan.event()


def bundle_json(verdict: Verdict, recomputed: Recomputed | None = None) -> Json:
    """The same findings for a machine: what ``privet audit report --format json`` prints."""
    return {
        **verdict.json(),
        "recomputed": recomputed.json() if recomputed else None,
        "within_plan": within_plan(verdict),
        "meaning": meaning(verdict).json(),
        "limits": [*_limits(verdict, run=False), *_stated_limits(verdict)],
    }


def render_bundle(verdict: Verdict, recomputed: Recomputed | None = None) -> str:
    """A self-contained HTML page about a published bundle, for an auditor.

    Args:
        verdict: from :func:`audit.verify.verify`.
        recomputed: from :func:`audit.recompute.recompute`; without it the page says that the
            headline was not computed again.

    Raises:
        TrustError: a claim that only the report reads is malformed.
    """
    return _render(verdict, recomputed, None)


def render_run(
    verdict: Verdict, summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> str:
    """The same page about a run on one machine: how good and how fast its model is, as well.

    Args:
        verdict: what the approver found.
        summary: the contents of ``summary.json``.
        metrics: the lines of ``metrics.jsonl``, one a round.

    Raises:
        TrustError: the headline is not what its accountant gives, or a claim is malformed.
    """
    # Free of cost in the process that has just approved the release: the accountants remember.
    return _render(verdict, recompute(verdict), _run(summary, metrics))


def _render(verdict: Verdict, recomputed: Recomputed | None, run: Json | None) -> str:
    plan, most = verdict.plan, verdict.most_exposed
    page = _environment().get_template("report.html.j2")
    return page.render(
        verdict=verdict,
        plan=plan,
        privacy=plan.privacy,
        version=_shown(verdict.claims.get("version", "not stated")),
        subjects=[
            (_shown(name), _shown(digest))
            for name, digest in sorted(verdict.subjects.items())[:MOST_SUBJECTS]
        ],
        simulated=_simulated(verdict),
        repeatable=_repeatable(verdict),
        headline=parse_number(verdict.claims["epsilon"]),
        within_plan=within_plan(verdict),
        meaning=meaning(verdict),
        protects=_PROTECTS[plan.privacy.trust],
        noise_added_by=_NOISE_ADDED_BY[plan.privacy.trust],
        recomputed=recomputed,
        accountants=_accountants(verdict, recomputed),
        discretisation=DISCRETIZATION,
        orders=_ranges(accountant.ORDERS),
        filter_orders=sorted({client.order for client in verdict.clients}),
        clients=_clients(verdict),
        most=most,
        budget_plot=Markup(  # noqa: S704 - drawn by audit.plots from numbers alone
            budget_plot(_curve(plan, most), most.rounds, most.epsilon_filter, most.budget)
        ),
        limits=_limits(verdict, run=run is not None),
        stated_limits=_stated_limits(verdict),
        run=run,
    )


def _simulated(verdict: Verdict) -> bool:
    # Fail closed: only a plain "no" from the signers, and no ledger that says otherwise, is a no.
    return verdict.claims.get("simulated") is not False or _repeatable(verdict)


def _repeatable(verdict: Verdict) -> bool:
    return any("simulated" in client.noise for client in verdict.clients)


def _accountants(
    verdict: Verdict, recomputed: Recomputed | None
) -> list[tuple[str, float, float | None]]:
    """Name, epsilon as stated, and as recomputed here, or None."""
    privacy = verdict.plan.privacy
    exposed = exposure(verdict.plan, verdict.clients)
    again = {OWN_ACCOUNTANT: accountant.epsilon([exposed], privacy.delta)}
    if recomputed is not None:
        again |= recomputed.declared
    stated = sorted(verdict.claims["accountants"].items())[:MOST_ACCOUNTANTS]
    try:
        return [(_shown(name), parse_number(value), again.get(name)) for name, value in stated]
    except CanonicalError as error:
        raise TrustError(
            f"an accountant's epsilon in the statement is malformed: {error}"
        ) from error


def _curve(plan: Plan, client: Spend) -> list[tuple[int, float]]:
    """epsilon_filter after k rounds of the plan, in the client's own terms, for the plot."""
    budget = Budget(client.budget, client.delta, client.order)
    last = max(plan.rounds, client.rounds)
    stride = math.ceil(last / MOST_POINTS)
    rounds = sorted({*range(0, last + 1, stride), 1, client.rounds, last})
    return [(k, budget.spent([plan.privacy.event(k)] if k else [])) for k in rounds]


def _clients(verdict: Verdict) -> Json:
    """Rows of the clients' table, the most exposed first; the rest as a count and a range."""
    ranked = sorted(verdict.clients, key=lambda client: (-client.epsilon_filter, client.pseudonym))
    rest = ranked[MOST_CLIENTS:]
    return {
        "rows": ranked[:MOST_CLIENTS],
        "rest": len(rest),
        "rest_most": rest[0].epsilon_filter if rest else None,
    }


def _limits(verdict: Verdict, *, run: bool) -> list[str]:
    """What the page does not show, whatever the signers say."""
    own = [ONE_MACHINE_LIMIT] if run else []
    if not verdict.authenticated:
        own.append(UNAUTHENTICATED_LIMIT)
    return [*own, *LIMITS]


def _stated_limits(verdict: Verdict) -> list[str]:
    stated = verdict.claims.get("limits")
    return [_shown(text) for text in stated[:MOST_LIMITS]] if isinstance(stated, list) else []


def _run(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Json:
    """What the page says about a run besides its privacy."""
    points = [
        (int(line["round"]), float(line["accuracy"]))
        for line in metrics
        if line["accuracy"] is not None
    ]
    troubled = [
        {**line, "reasons": _reasons(line["dropped"])}
        for line in metrics
        if line["dropped"] or not line["changed"]
    ]
    return {
        "summary": summary,
        "points": points,
        "accuracy_plot": Markup(accuracy_plot(_thinned(points))) if points else None,  # noqa: S704
        "troubled": troubled[:MOST_ROUNDS],
        "troubled_rest": max(0, len(troubled) - MOST_ROUNDS),
        "reasons": _reasons(code for line in metrics for code in line["dropped"].values()),
    }


def _reasons(dropped: Mapping[str, str] | Iterable[str]) -> list[tuple[str, int]]:
    """Why replies did not count, and how often; by code, never by client."""
    codes = dropped.values() if isinstance(dropped, Mapping) else dropped
    counts = Counter(_shown(code) for code in codes)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


# -- how values are written ---------------------------------------------------------------------


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"up": _up, "share": _share, "plain": _plain, "size": _size}
    return environment


def _up(value: float, places: int = 2) -> str:
    """An upper bound in decimals, rounded up.

    >>> _up(5.99963), _up(6.6491, 3)
    ('6.00', '6.650')
    """
    scale = 10**places
    # What is a hair above a written decimal is that decimal: 0.1 + 0.2 is 0.30, not 0.31.
    return f"{math.ceil(value * scale - 1e-9) / scale:.{places}f}"


def _share(value: float, places: int = 1) -> str:
    """A greatest share in percent, rounded up."""
    return f"{_up(100 * value, places)} %"


def _plain(value: float) -> str:
    """A small number as people write it.

    >>> _plain(1e-05), _plain(0.5)
    ('1e-5', '0.5')
    """
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e+")


def _size(count: int) -> str:
    """Bytes in the unit that keeps the number small.

    >>> _size(999), _size(2736)
    ('999 B', '2.7 kB')
    """
    if count < 1000:
        return f"{count} B"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, runs of three or more as first–last.

    >>> _ranges([2, 3, 4, 6])
    '2–4, 6'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _shown(text: object) -> str:
    """A signer's words, without what could disturb the line: control and direction characters."""
    cut = str(text)
    cut = cut if len(cut) <= MOST_CHARACTERS else cut[:MOST_CHARACTERS] + "…"
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in cut)
