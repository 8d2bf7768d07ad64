"""What was found about a bundle, as values: what every form of the report is made from.

The rules: a finding is a function of a verdict that holds, and what no bundle can show is said
every time, whatever the signers say. A signer's "no" counts only if it is a plain no.
"""

from __future__ import annotations

import math

from audit.explain import explain
from audit.ledgers import Spend
from audit.recompute import Recomputation, Recomputed
from audit.verify import Verdict, exposure
from audit.wording import shown
from common.canonical import Json
from common.plan import Plan
from common.privacy.filter import Budget

MOST_POINTS, MOST_LIMITS = 200, 20

# What no bundle can show, whoever signed it: the end of audit/verify.py's docstring.
LIMITS = (
    "That the machine which signed an entry did what the entry says. A host that lies can skip the "
    "noise and sign all the same.",
    "That a client kept no second ledger for the same data.",
    "That what a ledger said after the coordinator’s last countersignature was not cut off, "
    "together with the statement that names its head.",
    "What the same data sets spent in other federations. An owner’s budget is for the whole life "
    "of the data; the share shown here is this federation’s part of it.",
)
CENTRAL_LIMITS = (
    "That the coordinator did what its ledger says: that it drew clients by chance, clipped, and "
    "drew the noise. It saw every drawn client’s update, and this ledger is its own word.",
    "That the coordinator kept no second ledger for the same clients.",
    "That what the ledger said after its last entry here was not cut off, together with the "
    "statement that names its head: no client countersigns it.",
    "What the same clients spent in other federations. The budget shown here is the operator’s; "
    "an owner’s own ledger has what that owner’s data has cost.",
)
UNAUTHENTICATED_LIMIT = (
    "Who made this bundle. The keys that its signatures fit came inside it; anybody can make keys."
)
ONE_MACHINE_LIMIT = (
    "That two parties agreed. This run made both signers’ keys, and the fingerprints that they "
    "were checked against, on one machine: here, “verified” says that the parts fit."
)

PROTECTS = {
    "local": "each record, against everyone: the server, other clients, and all who get the model",
    "distributed": "each record, against the server and any coalition below the threshold",
    "central": "each client, against all who see the model, but not against the server",
}
NOISE_ADDED_BY = {
    "local": "each client, in full, before anything leaves it",
    "distributed": "all clients together, under secure aggregation",
    "central": "the server, which sees each clipped update",
}


def bundle_json(verdict: Verdict, recomputed: Recomputed | Recomputation | None = None) -> Json:
    """All findings but the checklist, for a machine."""
    return {
        **verdict.json(),
        "ledgers": ledgers(verdict),
        "recomputed": recomputed.json() if recomputed else None,
        "within_plan": within_plan(verdict),
        "meaning": explain(verdict).json(),
        "limits": [*limits(verdict), *stated_limits(verdict)],
    }


def within_plan(verdict: Verdict) -> bool:
    """Whether no ledger spent more than the plan declares; else the headline is for the most."""
    return exposure(verdict.plan, verdict.clients) == verdict.plan.event()


def repeatable(verdict: Verdict) -> bool:
    """Whether any ledger names noise that somebody could compute again."""
    return any("simulated" in client.noise for client in verdict.clients)


def simulated(verdict: Verdict) -> bool:
    """Whether this protects nobody; only a plain "no" from signers and ledgers is a no."""
    return verdict.claims.get("simulated") is not False or repeatable(verdict)


def ranked(verdict: Verdict) -> list[Spend]:
    """The clients, the most exposed first."""
    return sorted(verdict.clients, key=lambda client: (-client.epsilon_filter, client.pseudonym))


def ledgers(verdict: Verdict) -> Json:
    """Pseudonym to the head that its ledger was checked to end at, its length, and how far the
    coordinator countersigned it."""
    claimed = verdict.claims["ledgers"]
    return {
        client.pseudonym: {
            "head": claimed[client.pseudonym]["head"],
            "entries": client.entries,
            "countersigned": client.countersigned,
        }
        for client in verdict.clients
    }


def spending(plan: Plan, client: Spend) -> list[tuple[int, float]]:
    """(k, epsilon_filter after k rounds of the plan), in the client's own terms, thinned out.

    It goes on to the plan's last round, or to the client's where that is later.
    """
    budget = Budget(client.budget, client.delta, client.order)
    last = max(plan.rounds, client.rounds)
    stride = math.ceil(last / MOST_POINTS)
    rounds = sorted({*range(0, last + 1, stride), 1, client.rounds, last})
    return [(k, budget.spent([plan.privacy.event(k)] if k else [])) for k in rounds]


def limits(verdict: Verdict, *, one_machine: bool = False) -> list[str]:
    """What the findings do not show, whatever the signers say."""
    own = [ONE_MACHINE_LIMIT] if one_machine else []
    if not verdict.authenticated:
        own.append(UNAUTHENTICATED_LIMIT)
    central = verdict.plan.privacy.trust == "central"
    return [*own, *(CENTRAL_LIMITS if central else LIMITS)]


def stated_limits(verdict: Verdict) -> list[str]:
    """What the signers themselves say that their claim does not show."""
    stated = verdict.claims.get("limits")
    return [shown(text) for text in stated[:MOST_LIMITS]] if isinstance(stated, list) else []
