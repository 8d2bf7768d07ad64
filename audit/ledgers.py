"""Is one chain true, and what does it say was spent? A client's, or the coordinator's own.

The rules: an intent counts from the moment it was written, disclosed or not. It may only stand
after the owner's approval of its plan, and within the terms of the latest one: floors, rounds,
dates, budget. That holds for every plan of the coordinator; only the bundle's own plan is at hand,
and its intents are held against it too. What an entry claims was spent is computed again. A
countersignature that an entry stores must be the coordinator's, over exactly the entries that stand
before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.canonical import CanonicalError, Json, number, parse_number
from common.errors import TrustError
from common.keys import PublicKey
from common.ledger import Entry, Head, Kind, SignedHead, merkle, verify_chain
from common.ledger.head import CLIENT, COORDINATOR
from common.plan import Plan
from common.policy import unit_of
from common.privacy import accountant
from common.privacy.events import Event, merge
from common.privacy.filter import Budget

# Two machines' libm may differ in the last bits; two methods differ far more than this.
TOLERANCE = 1e-9
# A chain that needs more than these was made to keep an auditor busy.
MOST_MECHANISMS, MOST_ORDERS = 100, 10


@dataclass(frozen=True)
class Spend:
    """What one client's ledger says it spent.

    Args:
        pseudonym: the client's name in this federation.
        rounds: intents of this plan; each is charged, disclosed or not.
        disclosed: those of them that led to a disclosure.
        other_rounds: intents of other plans of the same coordinator, which share the budget.
        epsilon_filter: by Rényi cost at the owner's order; what the filter has charged.
        epsilon_rdp: the least over the pinned orders.
        budget: what the owner allows.
        delta: of the budget.
        order: the Rényi order that the owner's filter adds up at.
        noise: kinds of noise, ``cryptographic`` or ``simulated``.
        entries: how many the chain has.
        countersigned: how many of them the coordinator's last countersignature covers.
        events: what all intents cost, merged.
    """

    pseudonym: str
    rounds: int
    disclosed: int
    other_rounds: int
    epsilon_filter: float
    epsilon_rdp: float
    budget: float
    delta: float
    order: int
    noise: tuple[str, ...]
    entries: int
    countersigned: int
    events: tuple[Event, ...] = field(repr=False)

    def json(self) -> Json:
        return {
            "pseudonym": self.pseudonym,
            "rounds": self.rounds,
            "disclosed": self.disclosed,
            "other_rounds": self.other_rounds,
            "epsilon_filter": self.epsilon_filter,
            "epsilon_rdp": self.epsilon_rdp,
            "budget": self.budget,
            "delta": self.delta,
            "order": self.order,
            "noise": list(self.noise),
            "entries": self.entries,
            "countersigned": self.countersigned,
        }


def check_ledger(
    pseudonym: str,
    entries: Sequence[Entry],
    plan: Plan,
    *,
    key: PublicKey,
    coordinator: PublicKey,
    claimed: Mapping[str, Any],
    note: bytes | None,
) -> Spend:
    """Check one client's entries from the first to the last.

    Args:
        pseudonym: whose ledger it is said to be.
        entries: oldest first.
        plan: what the bundle is about.
        key: the client's.
        coordinator: whose countersignatures count.
        claimed: what the statement says of this ledger: its head, its length, how far it was seen.
        note: the head that both signed; None if the coordinator had no receipt of this client.

    Raises:
        TrustError: names the ledger and the first entry that is wrong.
    """
    try:
        if not entries:
            raise TrustError("it is empty")
        verify_chain(entries, key)
        if (claimed["head"], claimed["entries"]) != (entries[-1].digest, len(entries)):
            raise TrustError(
                "ends elsewhere than the statement says: its end was cut off or added to"
            )
        if (entries[0].client, entries[0].federation) != (pseudonym, coordinator.fingerprint):
            raise TrustError("entry 0: belongs to another client or federation")
        roots = merkle.prefix_roots([entry.leaf for entry in entries])
        covered = _covered(entries, roots, key, coordinator, note)
        if covered != claimed["countersigned"]:
            raise TrustError(f"the coordinator countersigned {covered} entries, not as stated")
        for entry in entries:
            _check_countersigned(entry, roots, coordinator)
        return spend(pseudonym, entries, plan, countersigned=covered)
    except TrustError as error:
        raise TrustError(f"ledger {pseudonym[:12]}…: {error}") from error


def spend(pseudonym: str, entries: Sequence[Entry], plan: Plan, *, countersigned: int = 0) -> Spend:
    """Add up what one client's entries spent, each intent within the terms then in force.

    Raises:
        TrustError: the plan was never approved, a term was broken, or an entry claims another cost.
    """
    approvals: dict[str, Json] = {}
    total, rounds = _Total(), Counter[str]()
    disclosed, noise, terms = 0, set[str](), Json()
    for entry in entries:
        if entry.kind is Kind.APPROVAL:
            approvals[entry.body["plan"]] = entry.body["terms"]
        elif entry.kind is Kind.INTENT:
            asked = entry.body["plan"]
            if asked not in approvals:
                raise TrustError(f"entry {entry.seq}: spends on a plan that was not approved")
            terms = approvals[asked]
            rounds[asked] += 1
            noise.add(entry.body["noise"])
            total.add(entry)
            _check_noise(entry, terms)
            _check_budget(entry, total, terms)
            _check_terms(entry, terms, rounds[asked])
            if asked == plan.digest:
                _check_plan(entry, plan, terms, rounds[asked])
        elif entry.kind is Kind.DISCLOSURE:
            disclosed += entries[entry.body["intent"]].body["plan"] == plan.digest
        elif entry.kind is Kind.ENROLMENT:
            raise TrustError(f"entry {entry.seq}: a client's own enrolment is never published")
        if "spent" in entry.body:
            _check_spent(entry, total)
    if plan.digest not in approvals:
        raise TrustError("there is no approval of the plan")
    units = {unit_of(terms) for terms in approvals.values()}
    if units != {plan.privacy.unit}:
        raise TrustError(
            f"its budgets are for {' and '.join(sorted(units))}, and the plan protects each "
            f"{plan.privacy.unit}"
        )
    budget = _budget(terms or approvals[plan.digest])
    charged = merge(total.events)
    return Spend(
        pseudonym=pseudonym,
        rounds=rounds[plan.digest],
        disclosed=disclosed,
        other_rounds=rounds.total() - rounds[plan.digest],
        epsilon_filter=budget.spent(charged),
        epsilon_rdp=accountant.epsilon(charged, plan.privacy.delta),
        budget=budget.epsilon,
        delta=budget.delta,
        order=budget.order,
        noise=tuple(sorted(noise)),
        entries=len(entries),
        countersigned=countersigned,
        events=charged,
    )


class _Total:
    """A running cost, so that a long chain is added up once and not once an entry."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._costs: dict[int, float] = {}
        self._mechanisms: set[tuple[float, float]] = set()

    def add(self, entry: Entry) -> None:
        event = entry.event()
        self._mechanisms.add((event.sampling_rate, event.noise_multiplier))
        if len(self._mechanisms) > MOST_MECHANISMS:
            raise TrustError(f"entry {entry.seq}: one mechanism more than {MOST_MECHANISMS}")
        self.events.append(event)
        for order in self._costs:
            self._costs[order] += accountant.rdp([event], order)

    def cost(self, order: int) -> float:
        if order not in self._costs:
            if len(self._costs) >= MOST_ORDERS:
                raise TrustError(f"adds up at more than {MOST_ORDERS} Rényi orders")
            self._costs[order] = accountant.rdp(self.events, order)
        return self._costs[order]


def _covered(
    entries: Sequence[Entry],
    roots: Sequence[bytes],
    key: PublicKey,
    coordinator: PublicKey,
    note: bytes | None,
) -> int:
    """How many entries the coordinator vouches for by the note, once both signed these."""
    if note is None:
        return 0
    head = SignedHead.decode(note).verify({CLIENT: key, COORDINATOR: coordinator})
    if (head.federation, head.client) != (entries[0].federation, entries[0].client):
        raise TrustError("the countersigned head is another ledger's")
    if head.entries > len(entries):
        raise TrustError(
            f"the coordinator countersigned {head.entries} entries and {len(entries)} are here: "
            "the end was cut off, or the ledger was rolled back"
        )
    if roots[head.entries].hex() != head.root:
        raise TrustError(
            f"its first {head.entries} entries are not those that the coordinator countersigned: "
            "there are two histories"
        )
    return head.entries


def _check_countersigned(entry: Entry, roots: Sequence[bytes], coordinator: PublicKey) -> None:
    seen = entry.body.get("countersigned")
    if seen is None:
        return
    size = seen["entries"]
    if size > entry.seq:
        raise TrustError(f"entry {entry.seq}: was countersigned before it was written")
    head = Head(entry.federation, entry.client, size, roots[size].hex())
    if not head.signed_by(coordinator, seen["signature"]):
        raise TrustError(
            f"entry {entry.seq}: the coordinator did not countersign the {size} entries before it"
        )


def _check_spent(entry: Entry, total: _Total) -> None:
    stated = entry.body["spent"]
    cost = total.cost(_order(stated["order"]))
    if not math.isclose(parse_number(stated["cost"]), cost, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise TrustError(f"entry {entry.seq}: its spent is not {cost!r}, which the intents cost")


def _check_plan(entry: Entry, plan: Plan, terms: Json, rounds: int) -> None:
    """An intent of the bundle's plan, which is at hand, against that plan."""
    body, privacy = entry.body, plan.privacy
    expected = {"event": privacy.event().json(), "divisor": number(privacy.divisor)}
    adaptive = plan.central.adaptive if plan.central else None
    if adaptive is None:
        expected["clipping_norm"] = number(privacy.clipping_norm)
    else:  # it follows what only the coordinator saw; the cost does not depend on it
        norm = parse_number(body["clipping_norm"])
        if not adaptive.least_norm <= norm <= adaptive.greatest_norm:
            raise TrustError(f"entry {entry.seq}: its clipping_norm is not within the plan's")
    for name, value in expected.items():
        if body[name] != value:
            raise TrustError(f"entry {entry.seq}: its {name} is not the plan's")
    if not 1 <= body["round"] <= plan.rounds:
        raise TrustError(f"entry {entry.seq}: round {body['round']} is not in the plan")
    broken = {
        "more rounds than the owner allows": plan.rounds > terms["most_rounds"],
        "more rounds than the plan has, spare ones included": rounds
        > plan.rounds + terms["spare_rounds"],
        "a greater delta than the owner's": privacy.delta > parse_number(terms["delta"]),
    }
    _refuse(entry, broken)


def _check_noise(entry: Entry, terms: Json) -> None:
    if entry.body["noise"] not in ("cryptographic", "simulated"):
        raise TrustError(f"entry {entry.seq}: unknown kind of noise {entry.body['noise']!r:.40}")
    if entry.body["noise"] == "simulated" and terms["simulated"] is not True:
        raise TrustError(f"entry {entry.seq}: simulated noise on data that is not simulated")


def _check_terms(entry: Entry, terms: Json, rounds: int) -> None:
    """An intent of any plan against the owner's terms, by what the entry itself says."""
    event, day = entry.event(), entry.time[:10]
    broken = {
        "less noise than the owner's least": event.noise_multiplier
        < parse_number(terms["least_noise_multiplier"]),
        "a greater sampling rate than the owner allows": event.sampling_rate
        > parse_number(terms["greatest_sampling_rate"]),
        "more rounds than the owner allows": rounds > terms["most_rounds"] + terms["spare_rounds"],
        "outside of the period that the owner allows": not (
            (terms["valid_from"] or "") <= day <= (terms["valid_until"] or "9")
        ),
    }
    _refuse(entry, broken)


def _refuse(entry: Entry, broken: Mapping[str, bool]) -> None:
    for what, is_broken in broken.items():
        if is_broken:
            raise TrustError(f"entry {entry.seq}: {what}")


def _check_budget(entry: Entry, total: _Total, terms: Json) -> None:
    budget = _budget(terms)
    if entry.body["spent"]["order"] != budget.order:
        raise TrustError(f"entry {entry.seq}: adds up at another order than the owner's")
    spent = accountant.to_epsilon(total.cost(budget.order), budget.order, budget.delta)
    if spent > budget.epsilon * (1 + TOLERANCE):
        raise TrustError(
            f"entry {entry.seq}: epsilon_filter {spent:.6g} is over policy.budget "
            f"{budget.epsilon:g}"
        )


def _budget(terms: Json) -> Budget:
    """An owner's budget; a client that signs nonsense must not stop the audit."""
    epsilon, delta = parse_number(terms["budget"]), parse_number(terms["delta"])
    if not (epsilon > 0 and 0 < delta < 1):
        raise CanonicalError(f"({epsilon}, {delta}) is not a budget")
    return Budget(epsilon, delta, _order(terms["order"]))


def _order(order: object) -> int:
    if type(order) is not int or not 2 <= order <= max(accountant.ORDERS):
        raise CanonicalError(f"{order!r:.40} is not a Rényi order")
    return order
