"""Is this bundle true? Every signature, chain and number in it, checked against the others.

The rules: nothing is believed that can be recomputed. Every epsilon that the statement claims is
computed again from the entries that the clients signed. The first thing that is wrong is named,
with the entry. And keys that come inside a bundle prove nothing: without fingerprints from
somewhere else the verdict is "self-consistent, unauthenticated", never "verified".

What this cannot show: that the machine which signed an entry did what the entry says, that a client
did not keep a second ledger for the same data, or that a chain's end was not cut off together with
the statement that names its head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.bundle import SIGNERS, Bundle, Trust
from common.canonical import CanonicalError, Json, digest, encode, number, parse_number
from common.errors import PlanError, TrustError
from common.keys import PublicKey
from common.ledger.entry import Entry, Kind, events, verify_chain
from common.plan import Plan
from common.privacy import accountant
from common.privacy.events import ADJACENCY, Event, merge
from common.privacy.filter import Budget
from common.statement import INTOTO_TYPE, PLAN_TYPE, Envelope, read_privacy_statement

# Two machines' libm may differ in the last bits; two methods differ far more than this.
TOLERANCE = 1e-9
FLOOR_TOLERANCE = 1e-6  # a headline is rounded on its own grid


@dataclass(frozen=True)
class Spend:
    """What one client's ledger says it spent.

    Args:
        pseudonym: the client's name in this federation.
        rounds: intents; each is charged, disclosed or not.
        disclosed: intents that led to a disclosure.
        epsilon_filter: by Rényi cost at the owner's order; what the filter has charged.
        epsilon_rdp: the least over the pinned orders.
        budget: what the owner allows.
        delta: of the budget.
        order: the Rényi order that the owner's filter adds up at.
        noise: kinds of noise, ``cryptographic`` or ``simulated``.
    """

    pseudonym: str
    rounds: int
    disclosed: int
    epsilon_filter: float
    epsilon_rdp: float
    budget: float
    delta: float
    order: int
    noise: tuple[str, ...]
    events: tuple[Event, ...] = field(repr=False)

    def json(self) -> Json:
        return {
            "pseudonym": self.pseudonym,
            "rounds": self.rounds,
            "disclosed": self.disclosed,
            "epsilon_filter": self.epsilon_filter,
            "epsilon_rdp": self.epsilon_rdp,
            "budget": self.budget,
            "delta": self.delta,
            "order": self.order,
            "noise": list(self.noise),
        }


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

    def json(self) -> Json:
        return {
            "verdict": "verified" if self.authenticated else "self-consistent, unauthenticated",
            "plan": self.plan.digest,
            "name": self.plan.name,
            "subjects": dict(self.subjects),
            "epsilon": self.claims["epsilon"],
            "delta": self.claims["delta"],
            "simulated": self.claims["simulated"],
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
        spends = [
            _check_ledger(pseudonym, entries, plan, bundle, claims)
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
        checks=_said(len(spends), sum(map(len, bundle.ledgers.values())), trust is not None),
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
    steps = (sum(event.steps for event in spend.events) for spend in spends)
    return plan.exposure(max(steps, default=0))


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
    if claims.get("clients", len(claims["ledgers"])) != len(claims["ledgers"]):
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


def _check_ledger(
    pseudonym: str,
    entries: Sequence[Entry],
    plan: Plan,
    bundle: Bundle,
    claims: Mapping[str, Any],
) -> Spend:
    """One client's entries: chain and signatures, then each intent against plan and approval."""
    federation = bundle.signers["coordinator"].fingerprint
    try:
        if not entries:
            raise TrustError("it is empty")
        # Once more than Bundle.read: an approver's bundle was never read from files.
        verify_chain(entries, bundle.clients[pseudonym])
        claimed = claims["ledgers"][pseudonym]
        if (claimed["head"], claimed["entries"]) != (entries[-1].digest, len(entries)):
            raise TrustError(
                "ends elsewhere than the statement says: its end was cut off or added to"
            )
        if (entries[0].client, entries[0].federation) != (pseudonym, federation):
            raise TrustError("entry 0: belongs to another client or federation")
        simulated = _approval(entries, plan)["simulated"] is True
        for entry in entries:
            if entry.kind is Kind.INTENT:
                _check_intent(entry, plan, simulated)
    except TrustError as error:
        raise TrustError(f"ledger {pseudonym[:12]}…: {error}") from error
    return spend(pseudonym, entries, plan)


def spend(pseudonym: str, entries: Sequence[Entry], plan: Plan) -> Spend:
    """Add up what one client's entries spent, in its owner's own terms.

    Raises:
        TrustError: the plan was never approved, or more was spent than the owner allows.
    """
    terms = _approval(entries, plan)
    spent = merge(events(entries))
    budget = _budget(terms)
    charged = budget.spent(spent)
    if charged > budget.epsilon * (1 + TOLERANCE):
        raise TrustError(
            f"ledger {pseudonym[:12]}…: spent epsilon {charged:.6g} of a budget of "
            f"{budget.epsilon:g}"
        )
    intents = [entry for entry in entries if entry.kind is Kind.INTENT]
    return Spend(
        pseudonym=pseudonym,
        rounds=len(intents),
        disclosed=sum(entry.kind is Kind.DISCLOSURE for entry in entries),
        epsilon_filter=charged,
        epsilon_rdp=accountant.epsilon(spent, plan.privacy.delta),
        budget=budget.epsilon,
        delta=budget.delta,
        order=budget.order,
        noise=tuple(sorted({entry.body["noise"] for entry in intents})),
        events=spent,
    )


def _budget(terms: Json) -> Budget:
    """An owner's budget; a client that signs nonsense must not stop the audit."""
    epsilon, delta = parse_number(terms["budget"]), parse_number(terms["delta"])
    order = terms["order"]
    if type(order) is not int or not 2 <= order <= max(accountant.ORDERS):
        raise CanonicalError(f"{order!r:.40} is not a Rényi order")
    if not (epsilon > 0 and 0 < delta < 1):
        raise CanonicalError(f"({epsilon}, {delta}) is not a budget")
    return Budget(epsilon, delta, order)


def _approval(entries: Sequence[Entry], plan: Plan) -> Json:
    """The owner's terms, from the approval of this plan, which must come before any intent."""
    for entry in entries:
        if entry.kind is Kind.INTENT:
            break
        if entry.kind is Kind.APPROVAL and entry.body["plan"] == plan.digest:
            terms: Json = entry.body["terms"]
            return terms
    raise TrustError("there is no approval of the plan before its first intent")


def _check_intent(entry: Entry, plan: Plan, simulated: bool) -> None:
    body, privacy = entry.body, plan.privacy
    expected = {
        "plan": plan.digest,
        "event": privacy.event().json(),
        "clipping_norm": number(privacy.clipping_norm),
        "divisor": number(privacy.divisor),
    }
    for name, value in expected.items():
        if body[name] != value:
            raise TrustError(f"entry {entry.seq}: its {name} is not the plan's")
    if not 1 <= body["round"] <= plan.rounds:
        raise TrustError(f"entry {entry.seq}: round {body['round']} is not in the plan")
    if body["noise"] not in ("cryptographic", "simulated"):
        raise TrustError(f"entry {entry.seq}: unknown kind of noise {body['noise']!r:.40}")
    if body["noise"] == "simulated" and not simulated:
        raise TrustError(f"entry {entry.seq}: simulated noise on data that is not simulated")


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


def _said(clients: int, entries: int, authenticated: bool) -> list[str]:
    who = "keys vouched for from outside" if authenticated else "keys that came with the bundle"
    return [
        f"every file is the one that the manifest lists; signatures by {who}",
        "plan signed by the coordinator; statement signed by coordinator and approver",
        f"{entries} entries of {clients} ledgers: order, links, signatures, and the heads that the "
        "statement names",
        "every intent has the plan's event, clipping norm and divisor, after the owner's approval",
        "every client's spending is within the budget that its owner stated",
        "epsilon_filter and the Rényi epsilon recomputed from the entries",
        "the headline lies between what an attack on the mechanism achieves and its Rényi bound",
    ]
