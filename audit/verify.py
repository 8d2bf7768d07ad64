"""Is this bundle true? Every signature, chain and number in it, checked against the others.

The rules: nothing is believed that can be recomputed. Every epsilon that the statement claims is
computed again from the entries that the clients signed. The first thing that is wrong is named,
with the entry. And keys that come inside a bundle prove nothing: without fingerprints from
somewhere else the verdict is "self-consistent, unauthenticated", never "verified".

What this cannot show: that the machine which signed an entry did what the entry says, that a client
did not keep a second ledger for the same data, or that what a chain says after the coordinator's
last countersignature was not cut off together with the statement that names its head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.ledgers import TOLERANCE, Spend, check_ledger
from audit.wording import called
from common.bundle import SIGNERS, Bundle, Trust
from common.canonical import Json, digest, encode, number, parse_number
from common.errors import PlanError, TrustError
from common.keys import PublicKey
from common.lineage import read as read_lineage
from common.plan import Plan
from common.privacy import accountant
from common.privacy.events import ADJACENCY, Event
from common.release import MODEL
from common.statement import INTOTO_TYPE, PLAN_TYPE, Envelope, read_privacy_statement

FLOOR_TOLERANCE = 1e-6  # a headline is rounded on its own grid


@dataclass(frozen=True)
class Verdict:
    """What holds about a bundle. It exists only if nothing in the bundle was wrong.

    Args:
        authenticated: the signers' and clients' fingerprints came from outside.
        plan: what was agreed.
        subjects: model file to SHA-256.
        claims: the statement's predicate.
        clients: what each client spent.
        checks: what was checked, in plain words.
    """

    authenticated: bool
    plan: Plan
    subjects: Mapping[str, str]
    claims: Mapping[str, Any]
    clients: Sequence[Spend]
    checks: Sequence[str]

    @property
    def most_exposed(self) -> Spend:
        """The client that spent most."""
        return max(self.clients, key=lambda client: client.epsilon_filter)

    @property
    def spender(self) -> str:
        """Whose spending :attr:`most_exposed` is, in words."""
        central = self.plan.privacy.trust == "central"
        return "the coordinator's ledger" if central else "most exposed client"

    def json(self) -> Json:
        return {
            "verdict": called(self.authenticated),
            "plan": self.plan.digest,
            "name": self.plan.name,
            "subjects": dict(self.subjects),
            "epsilon": self.claims["epsilon"],
            "delta": self.claims["delta"],
            "simulated": self.claims["simulated"],
            "trust": self.plan.privacy.trust,
            "unit": self.plan.privacy.unit,
            "spender": self.spender,
            "clients": [client.json() for client in self.clients],
            "checks": list(self.checks),
        }


def verify(path: Path, trust: Trust | None = None) -> Verdict:
    """Check a published bundle directory from end to end.

    Args:
        path: the bundle.
        trust: fingerprints from outside; without them nobody is authenticated.

    Raises:
        InputError: there is no bundle.
        TrustError: names the first thing that is wrong.
    """
    return check(Bundle.read(path), trust, signatures=len(SIGNERS))


def check(bundle: Bundle, trust: Trust | None, *, signatures: int) -> Verdict:
    """The same for a bundle in memory; an approver asks for one signature less."""
    if trust is not None:
        _match(bundle.signers, trust.signers, "signer")
        _match(bundle.clients, trust.clients, "client")
    coordinator = bundle.signers["coordinator"]
    payload = Envelope.decode(bundle.statement).verify(
        INTOTO_TYPE, bundle.signers.values(), signatures
    )
    subjects, claims = read_privacy_statement(payload)
    plan = _plan(bundle.plan, coordinator)
    try:
        _check_claims(plan, claims)
        read_lineage(claims["lineage"], subjects[MODEL])
        spends = [
            check_ledger(
                pseudonym,
                entries,
                plan,
                key=bundle.clients[pseudonym],
                coordinator=coordinator,
                claimed=claims["ledgers"][pseudonym],
                note=bundle.heads.get(pseudonym),
            )
            for pseudonym, entries in sorted(bundle.ledgers.items())
        ]
        _check_totals(spends, bundle, claims)
        _check_headline(plan, exposure(plan, spends), claims)
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError(f"the statement or a ledger is malformed: {error}") from error
    return Verdict(
        authenticated=trust is not None,
        plan=plan,
        subjects=subjects,
        claims=claims,
        clients=spends,
        checks=_said(plan, spends, trust is not None),
    )


def _match(keys: Mapping[str, PublicKey], fingerprints: Mapping[str, str], what: str) -> None:
    for name, key in keys.items():
        if fingerprints.get(name) != key.fingerprint:
            raise TrustError(
                f"{what} {name[:16]} has key {key.fingerprint[:16]}…, which the trust file "
                "does not vouch for",
                hint="get the fingerprints again from whoever runs the federation",
                code="untrusted-key",
            )
    if missing := sorted(set(fingerprints) - set(keys)):
        raise TrustError(
            f"the bundle leaves out {what} {missing[0][:16]}", code="incomplete-bundle"
        )


def _plan(envelope: bytes, coordinator: PublicKey) -> Plan:
    try:
        return Plan.decode(Envelope.decode(envelope).verify(PLAN_TYPE, [coordinator]))
    except PlanError as error:
        raise TrustError(f"the signed plan is malformed: {error}") from error


def exposure(plan: Plan, spends: Sequence[Spend]) -> Event:
    """What the headline must cover: the declared plan, or the most that a ledger spent."""
    rounds = max((spend.rounds for spend in spends), default=0)
    return plan.exposure(rounds * plan.privacy.steps)


def _check_claims(plan: Plan, claims: Mapping[str, Any]) -> None:
    """What the statement says of the plan."""
    expected = {
        "plan": plan.digest,
        "schema": digest(encode(plan.schema.json())),
        "name": plan.release.name,
        "trust": plan.privacy.trust,
        "adjacency": ADJACENCY,
        "unit": plan.privacy.unit,
        "delta": number(plan.privacy.delta),
    }
    for name, value in expected.items():
        if claims[name] != value:
            raise TrustError(f"the statement's {name} is not what plan and ledgers give")
    if type(claims["simulated"]) is not bool:
        raise TrustError("the statement does not say in so many words whether it is simulated")
    for name, low, high in (("version", 1, 2**53), ("rounds", 0, plan.rounds)):
        if type(claims[name]) is not int or not low <= claims[name] <= high:
            raise TrustError(f"the statement's {name} is not a count from {low}")
    limits = claims["limits"]
    if not isinstance(limits, list) or not all(isinstance(limit, str) for limit in limits):
        raise TrustError("the statement's limits are not sentences")
    if plan.privacy.trust == "central":
        if "clients" in claims or len(claims["ledgers"]) != 1:
            raise TrustError(
                "with central trust a bundle holds the coordinator's ledger alone, and nothing of "
                "who or how many took part"
            )
    elif claims.get("clients", len(claims["ledgers"])) != len(claims["ledgers"]):
        raise TrustError("the statement counts other clients than it names ledgers")


def _check_headline(plan: Plan, event: Event, claims: Mapping[str, Any]) -> None:
    """The numbers called epsilon against our own accountant, for what plan and ledgers give."""
    if claims["event"] != event.json():
        raise TrustError("the statement's event is not what plan and ledgers give")
    own = accountant.epsilon([event], plan.privacy.delta)
    if not _equal(parse_number(claims["accountants"]["rdp (privet)"]), own):
        raise TrustError(f"the statement's Rényi epsilon is not {own!r}, which the plan costs")
    headline = parse_number(claims["epsilon"])
    floor = accountant.epsilon_floor(event, plan.privacy.delta)
    if not floor * (1 - FLOOR_TOLERANCE) <= headline <= own * (1 + TOLERANCE):
        raise TrustError(
            f"the headline epsilon {headline} is not between {floor:.6g}, which an attack on the "
            f"plan achieves, and its Rényi bound {own:.6g}"
        )


def _check_totals(spends: Sequence[Spend], bundle: Bundle, claims: Mapping[str, Any]) -> None:
    ledgers = set(bundle.ledgers)
    if set(claims["ledgers"]) != ledgers or set(bundle.clients) != ledgers or not spends:
        raise TrustError("the statement names other ledgers than the bundle holds")
    most = max(spend.epsilon_filter for spend in spends)
    if not _equal(parse_number(claims["epsilon_filter"]), most):
        raise TrustError(f"the statement's epsilon_filter is not {most!r}, which the ledgers give")
    if sorted({kind for spend in spends for kind in spend.noise}) != claims["noise"]:
        raise TrustError("the statement names other kinds of noise than the ledgers")
    if any("simulated" in spend.noise for spend in spends) and claims["simulated"] is not True:
        raise TrustError("simulated noise in a statement that does not say so")


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _said(plan: Plan, spends: Sequence[Spend], authenticated: bool) -> list[str]:
    clients, entries = len(spends), sum(spend.entries for spend in spends)
    seen = sum(spend.countersigned for spend in spends)
    who = "keys vouched for from outside" if authenticated else "keys that came with the bundle"
    if plan.privacy.trust == "central":
        return [
            f"every file is the one that the manifest lists; signatures by {who}",
            "plan signed by the coordinator; statement signed by coordinator and approver",
            f"{entries} entries of the coordinator's own ledger: order, links, signatures, and the "
            "head that the statement names; nobody else countersigned them",
            "every intent of this plan has its event and divisor, and a clipping norm that the "
            "plan allows, after the operator's approval",
            "the coordinator's spending, on whatever plan, is within the floors, dates, rounds and "
            "budget that its operator stated, for each client",
            "the bundle names no client, and not how many took part",
            "epsilon_filter and the Rényi epsilon recomputed from the entries",
            "the headline lies between what an attack on the mechanism achieves and its Rényi "
            "bound",
        ]
    return [
        f"every file is the one that the manifest lists; signatures by {who}",
        "plan signed by the coordinator; statement signed by coordinator and approver",
        f"{entries} entries of {clients} ledgers: order, links, signatures, and the heads that the "
        "statement names",
        f"the coordinator countersigned {seen} of these entries, as they are here",
        "every intent of this plan has its event, clipping norm and divisor, after the owner's "
        "approval",
        "every client's spending, on whatever plan, is within the floors, dates, rounds and budget "
        "that its owner stated",
        "epsilon_filter and the Rényi epsilon recomputed from the entries",
        "the headline lies between what an attack on the mechanism achieves and its Rényi bound",
    ]
