"""One page about a bundle that verifies, for a person who has to decide whether to believe it.

The rules: the verdict comes first, then the epsilon and what it means, then everything that they
rest on, and last what they do not show. A bound is rounded up, never down. Whatever a signer wrote
is text to show, never markup to run. The page is one file that fetches nothing, and the same input
gives the same bytes.

What the page says is found elsewhere: ``audit.findings``, ``audit.explain``, ``audit.checklist``;
here it is laid out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from audit import findings
from audit.checklist import Item
from audit.explain import explain
from audit.plots import accuracy_plot, budget_plot
from audit.recompute import OWN_RDP, Recomputation, Recomputed, recompute
from audit.verify import Verdict, exposure
from audit.wording import plain, ranges, share, shown, size, up
from common.canonical import CanonicalError, Json, parse_number
from common.errors import TrustError
from common.plan import Plan
from common.privacy import accountant
from common.privacy.reference import DISCRETIZATION

# A page stays readable, and far below 200 kB, however large the federation or talkative the signer.
MOST_CLIENTS, MOST_ROUNDS = 100, 100
MOST_SUBJECTS, MOST_ACCOUNTANTS = 20, 20


def render_bundle(
    verdict: Verdict,
    recomputation: Recomputation | None = None,
    items: Sequence[Item] = (),
) -> str:
    """A self-contained HTML page about a published bundle, for an auditor.

    Args:
        verdict: from :func:`audit.verify.verify`.
        recomputation: from :func:`audit.recompute.recompute_all`; without it the page says that
            the headline was not computed again.
        items: from :func:`audit.checklist.checklist`.

    Raises:
        TrustError: a claim that only the report reads is malformed.
    """
    summary = recomputation.summary if recomputation else None
    return _render(verdict, summary, None, recomputation=recomputation, items=items)


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
    return _render(verdict, recompute(verdict), _run(summary, metrics, verdict.plan))


def _render(
    verdict: Verdict,
    recomputed: Recomputed | None,
    run: Json | None,
    *,
    recomputation: Recomputation | None = None,
    items: Sequence[Item] = (),
) -> str:
    plan, most = verdict.plan, verdict.most_exposed
    curve = findings.spending(plan, most)
    page = _environment().get_template("report.html.j2")
    return page.render(
        verdict=verdict,
        plan=plan,
        privacy=plan.privacy,
        version=shown(verdict.claims.get("version", "not stated")),
        subjects=[
            (shown(name), shown(digest))
            for name, digest in sorted(verdict.subjects.items())[:MOST_SUBJECTS]
        ],
        simulated=findings.simulated(verdict),
        repeatable=findings.repeatable(verdict),
        headline=parse_number(verdict.claims["epsilon"]),
        within_plan=findings.within_plan(verdict),
        explained=explain(verdict),
        protects=findings.PROTECTS[plan.privacy.trust],
        noise_added_by=findings.NOISE_ADDED_BY[plan.privacy.trust],
        recomputed=recomputed,
        recomputation=recomputation,
        accountants=_accountants(verdict, recomputed),
        discretisation=DISCRETIZATION,
        orders=ranges(accountant.ORDERS),
        filter_orders=sorted({client.order for client in verdict.clients}),
        clients=_clients(verdict),
        most=most,
        budget_plot=Markup(  # noqa: S704 - drawn by audit.plots from numbers alone
            budget_plot(curve, most.rounds, most.epsilon_filter, most.budget)
        ),
        checklist=[
            (item, [(answer, shown(answer.text, most=2000)) for answer in item.answers])
            for item in items
        ],
        limits=findings.limits(verdict, one_machine=run is not None),
        stated_limits=findings.stated_limits(verdict),
        run=run,
    )


def _accountants(
    verdict: Verdict, recomputed: Recomputed | None
) -> list[tuple[str, float, float | None]]:
    """Name, epsilon as stated, and as recomputed here, or None."""
    privacy = verdict.plan.privacy
    exposed = exposure(verdict.plan, verdict.clients)
    again = {OWN_RDP: accountant.epsilon([exposed], privacy.delta)}
    if recomputed is not None:
        again |= recomputed.declared
    stated = sorted(verdict.claims["accountants"].items())[:MOST_ACCOUNTANTS]
    try:
        return [(shown(name), parse_number(value), again.get(name)) for name, value in stated]
    except CanonicalError as error:
        raise TrustError(
            f"an accountant's epsilon in the statement is malformed: {error}"
        ) from error


def _clients(verdict: Verdict) -> Json:
    """Rows of the clients' table, the most exposed first; the rest as a count and a range."""
    ranked, heads = findings.ranked(verdict), findings.ledgers(verdict)
    rest = ranked[MOST_CLIENTS:]
    return {
        "rows": [
            {"spend": client, "ledger": heads[client.pseudonym]} for client in ranked[:MOST_CLIENTS]
        ],
        "rest": len(rest),
        "rest_most": rest[0].epsilon_filter if rest else None,
    }


def _run(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], plan: Plan) -> Json:
    """What the page says about a run besides its privacy; with central trust not who answered."""
    points = [
        (int(line["round"]), float(line["accuracy"]))
        for line in metrics
        if line["accuracy"] is not None
    ]
    shown = () if plan.central else metrics
    troubled = [
        {**line, "reasons": _reasons(line["dropped"])}
        for line in shown
        if line["dropped"] or not line["changed"]
    ]
    return {
        "summary": summary,
        "points": points,
        "accuracy_plot": Markup(accuracy_plot(_thinned(points))) if points else None,  # noqa: S704
        "troubled": troubled[:MOST_ROUNDS],
        "troubled_rest": max(0, len(troubled) - MOST_ROUNDS),
        "reasons": _reasons(code for line in shown for code in line["dropped"].values()),
    }


def _reasons(dropped: Mapping[str, str] | Iterable[str]) -> list[tuple[str, int]]:
    """Why replies did not count, and how often; by code, never by client."""
    codes = dropped.values() if isinstance(dropped, Mapping) else dropped
    counts = Counter(shown(code) for code in codes)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = math.ceil(len(points) / findings.MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"up": up, "share": share, "plain": plain, "size": size}
    return environment
