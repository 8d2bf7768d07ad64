"""An auditor's own word: the result of an audit as an in-toto Statement, signed by the auditor.

The rules: it is about the model files by their SHA-256, and about exactly one bundle, by the digest
of its privacy statement. An auditor signs only what is authenticated and was computed again by
other code. Numbers are strings; there is no date in it, so the same audit by the same key is the
same bytes. Whoever reads it needs the auditor's fingerprint from somewhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

from audit.checklist import Item, fields
from audit.findings import ledgers, limits, simulated, stated_limits, within_plan
from audit.recompute import Recomputation
from audit.verify import Verdict
from common.bundle import Trust
from common.canonical import Json, number
from common.errors import UnauthenticatedError
from common.keys import SigningKey
from common.privacy.events import ADJACENCY
from common.statement import AUDIT_PREDICATE, INTOTO_TYPE, Envelope, statement


def attest(
    verdict: Verdict,
    recomputation: Recomputation,
    items: Sequence[Item],
    *,
    bundle_statement: str,
    trust: Trust,
    key: SigningKey,
) -> bytes:
    """A DSSE envelope with the auditor's statement, as canonical bytes.

    Args:
        verdict, recomputation, items: what the audit found.
        bundle_statement: SHA-256 of the bundle's ``statement.dsse.json``.
        trust: the fingerprints from outside that the audit went by.
        key: the auditor's.

    Raises:
        UnauthenticatedError: nobody vouched for the bundle's signers.
    """
    if not verdict.authenticated:
        raise UnauthenticatedError(
            "an auditor signs nothing about a bundle that nobody vouched for",
            hint="get the signers' fingerprints by another way and pass them with --trust FILE",
        )
    predicate = _predicate(verdict, recomputation, items, bundle_statement, trust)
    payload = statement(dict(verdict.subjects), AUDIT_PREDICATE, predicate)
    return Envelope.sign(INTOTO_TYPE, payload, [key]).encode()


def _predicate(
    verdict: Verdict,
    recomputation: Recomputation,
    items: Sequence[Item],
    bundle_statement: str,
    trust: Trust,
) -> Json:
    plan, most = verdict.plan, verdict.most_exposed
    again = recomputation.summary
    return {
        "verdict": "verified",
        "statement": bundle_statement,
        "plan": plan.digest,
        "name": plan.release.name,
        "version": verdict.claims["version"],
        "trusted": dict(trust.signers),
        "simulated": simulated(verdict),
        "unit": plan.privacy.unit,
        "adjacency": ADJACENCY,
        "delta": number(plan.privacy.delta),
        "epsilon": number(recomputation.stated),
        "epsilon_spent": number(again.spent),
        "epsilon_filter": number(most.epsilon_filter),
        "accountants": {name: number(value) for name, value in again.declared.items()},
        "greatest_difference": number(recomputation.worst),
        "within_plan": within_plan(verdict),
        "ledgers": ledgers(verdict),
        "checks": [str(check) for check in verdict.checks],
        "checklist": fields(items),
        "limits": [*limits(verdict), *stated_limits(verdict)],
    }
