"""A small genuine bundle, made by hand: full batches, so every number in it has a closed form."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from common.bundle import Bundle, Trust
from common.canonical import digest, encode, number
from common.data.schema import Schema
from common.keys import Identity, PublicKey, SigningKey
from common.ledger import Entry, Head, Kind, SignedHead
from common.ledger.entry import spent_json
from common.ledger.head import CLIENT, COORDINATOR
from common.plan import Cohort, Optimizer, Plan, Privacy, Release
from common.privacy.accountant import ORDERS
from common.privacy.events import Event
from common.statement import (
    AUDIT_PREDICATE,
    INTOTO_TYPE,
    PLAN_TYPE,
    Envelope,
    privacy_statement,
    read_statement,
)

Json = dict[str, Any]

SIGMA, STEPS, ROUNDS, DELTA, ORDER, BUDGET = 4.0, 2, 2, 1e-5, 4, 8.0
PRIVACY = Privacy("local", 1.0, SIGMA, 1.5, STEPS, 10.0, DELTA)
PLAN = Plan(
    name="clinics",
    task="classification",
    model="softmax",
    rounds=ROUNDS,
    schema=Schema("image", (1, 2, 2), ("no", "yes")),
    cohort=Cohort(2, 1, 60.0),
    optimizer=Optimizer(1.0),
    privacy=PRIVACY,
    release=Release("clinics"),
)
TERMS = {
    "budget": number(BUDGET),
    "delta": number(DELTA),
    "order": ORDER,
    "spare_rounds": 1,
    "simulated": False,
    "least_noise_multiplier": "0.0",
    "greatest_sampling_rate": "1.0",
    "most_rounds": 10**6,
    "valid_from": None,
    "valid_until": None,
}
TIME = "2026-01-01T00:00:00Z"


def filter_epsilon(steps: int, order: int = ORDER, delta: float = DELTA) -> float:
    """Mironov 2017, corollary 3, with Canonne, Kamath, Steinke 2020, proposition 12."""
    cost = steps * order / (2 * SIGMA**2)
    return cost + math.log((order - 1) / order) - math.log(delta * order) / (order - 1)


def renyi_epsilon(steps: int, delta: float = DELTA) -> float:
    return min(filter_epsilon(steps, order, delta) for order in ORDERS)


@cache
def exact_epsilon(steps: int, delta: float = DELTA) -> float:
    """The root of Balle and Wang 2018, theorem 8, by bisection."""
    mu = math.sqrt(steps) / SIGMA

    def tail(z: float) -> float:
        return math.erfc(-z / math.sqrt(2)) / 2

    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        reached = tail(mu / 2 - middle / mu) - math.exp(middle) * tail(-mu / 2 - middle / mu)
        low, high = (middle, high) if reached > delta else (low, middle)
    return high


def same(value: Any) -> Any:
    return value


@dataclass
class World:
    """Two clients, a coordinator and an approver; and a place to put each lie."""

    coordinator: SigningKey = field(default_factory=lambda: SigningKey.from_seed(b"c" * 32))
    approver: SigningKey = field(default_factory=lambda: SigningKey.from_seed(b"a" * 32))
    plan: Plan = PLAN

    @property
    def federation(self) -> str:
        return self.coordinator.public.fingerprint

    def identity(self, client: int) -> Identity:
        return Identity.derive(bytes([client]) * 32, self.federation)

    def intent(self, number_: int) -> Json:
        return {
            "plan": self.plan.digest,
            "run": "e" * 32,
            "incarnation": 0,
            "round": number_,
            "request": hashlib.sha256(b"%d" % number_).hexdigest(),
            "model": "f" * 64,
            "event": self.plan.privacy.event().json(),
            "clipping_norm": number(self.plan.privacy.clipping_norm),
            "divisor": number(self.plan.privacy.divisor),
            "noise": "cryptographic",
        }

    def approval(self, **changes: Any) -> Json:
        return {
            "plan": self.plan.digest,
            "terms": {**TERMS, **changes},
            "code": "d" * 64,
            "model": "softmax",
            "features": ["pixels"],
            "policy": "a" * 64,
            "data": "b" * 64,
        }

    def history(self, rounds: int = ROUNDS, **terms: Any) -> list[tuple[Kind, Json]]:
        """Approval, intent and disclosure for each round, and the coordinator's last word."""
        bodies: list[tuple[Kind, Json]] = [(Kind.APPROVAL, self.approval(**terms))]
        for i in range(1, rounds + 1):
            bodies.append((Kind.INTENT, self.intent(i)))
            bodies.append((Kind.DISCLOSURE, {"intent": len(bodies) - 1, "update": "9" * 64}))
        return [*bodies, (Kind.COUNTERSIGNATURE, {})]

    def chain(self, client: int, bodies: list[tuple[Kind, Json]]) -> list[Entry]:
        entries: list[Entry] = []
        for kind, body in bodies:
            last = entries[-1] if entries else None
            body = {**self.filled(client, entries, kind, body), **body}
            entry = Entry.sign(self.identity(client), self.federation, last, kind, body, TIME)
            entries.append(entry)
        return entries

    def filled(self, client: int, entries: list[Entry], kind: Kind, body: Json) -> Json:
        """What an honest client adds: what it has spent, and what the coordinator has seen."""
        if kind in (Kind.APPROVAL, Kind.ENROLMENT):
            return {}
        more = [Event.from_json(body["event"])] if kind is Kind.INTENT else []
        spent = {"spent": spent_json(entries, ORDER, *more)}
        if kind is Kind.DISCLOSURE:
            return spent
        return {**spent, "countersigned": self.countersigned(client, entries)}

    def head(self, client: int, entries: Sequence[Entry]) -> Head:
        return Head.of(self.federation, self.identity(client).pseudonym, entries)

    def countersigned(self, client: int, entries: Sequence[Entry]) -> Json:
        signature = self.head(client, entries).sign(self.coordinator)
        return {"entries": len(entries), "signature": signature}

    def note(self, client: int, entries: Sequence[Entry]) -> bytes:
        """The head of these entries, signed by client and coordinator."""
        head, who = self.head(client, entries), self.identity(client).key
        note = SignedHead.of(head).with_signature(CLIENT, who.public, head.sign(who))
        key = self.coordinator
        return note.with_signature(COORDINATOR, key.public, head.sign(key)).encode()

    def claims(self, ledgers: dict[str, list[Entry]]) -> Json:
        """What an honest coordinator states, in closed form."""
        intents = max(sum(e.kind is Kind.INTENT for e in chain) for chain in ledgers.values())
        steps = max(self.plan.rounds, intents) * self.plan.privacy.steps
        noise = {e.body["noise"] for chain in ledgers.values() for e in chain if "noise" in e.body}
        return {
            "plan": self.plan.digest,
            "schema": digest(encode(self.plan.schema.json())),
            "name": self.plan.release.name,
            "version": 1,
            "trust": "local",
            "unit": "record",
            "adjacency": "add-or-remove-one",
            "delta": number(DELTA),
            "epsilon": number(exact_epsilon(steps)),
            "epsilon_filter": number(filter_epsilon(intents * STEPS)),
            "accountants": {
                "pld (dp-accounting)": number(exact_epsilon(steps)),
                "rdp (dp-accounting)": number(renyi_epsilon(steps)),
                "rdp (privet)": number(renyi_epsilon(steps)),
            },
            "event": {**self.plan.event().json(), "steps": steps},
            "noise": sorted(noise),
            "simulated": "simulated" in noise,
            "rounds": self.plan.rounds,
            "ledgers": {
                name: {
                    "head": chain[-1].digest,
                    "entries": len(chain),
                    "countersigned": len(chain),
                }
                for name, chain in ledgers.items()
            },
            "limits": ["It says nothing about accuracy."],
            "lineage": [],
            "clients": len(ledgers),
        }

    def bundle(
        self,
        histories: list[list[tuple[Kind, Json]]] | None = None,
        claim: Callable[[Json], Json] = same,
        chain: Callable[[list[Entry]], list[Entry]] = same,
    ) -> Bundle:
        """A bundle of these histories.

        ``claim`` changes the statement before both sign it; ``chain`` changes the first client's
        entries after the statement named their head.
        """
        histories = histories or [self.history(), self.history(1)]
        chains = [self.chain(i, bodies) for i, bodies in enumerate(histories)]
        ledgers = {self.identity(i).pseudonym: entries for i, entries in enumerate(chains)}
        predicate = claim(self.claims(ledgers))
        statement = privacy_statement({"model.onnx": "ab" * 32}, predicate)
        first = self.identity(0).pseudonym
        return Bundle(
            plan=Envelope.sign(PLAN_TYPE, self.plan.encode(), [self.coordinator]).encode(),
            statement=Envelope.sign(
                INTOTO_TYPE, statement, [self.coordinator, self.approver]
            ).encode(),
            signers={"coordinator": self.coordinator.public, "approver": self.approver.public},
            clients={
                self.identity(i).pseudonym: self.identity(i).key.public for i in range(len(chains))
            },
            ledgers={**ledgers, first: chain(ledgers[first])},
            heads={
                self.identity(i).pseudonym: self.note(i, entries)
                for i, entries in enumerate(chains)
            },
        )


def trust_in(bundle: Bundle) -> Trust:
    return Trust(
        {role: key.fingerprint for role, key in bundle.signers.items()},
        {name: key.fingerprint for name, key in bundle.clients.items()},
    )


def files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def rewrite(path: Path, name: str, data: bytes) -> None:
    """Replace a file of a bundle and list it in the manifest, as whoever publishes it could."""
    import json

    (path / name).write_bytes(data)
    manifest = json.loads((path / "bundle.json").read_bytes())
    manifest["files"][name] = digest(data)
    (path / "bundle.json").write_bytes(encode(manifest))


def read_attestation(data: bytes, auditor: PublicKey) -> tuple[dict[str, str], Json]:
    """Subjects and predicate of an auditor's statement, as whoever knows the key reads it."""
    payload = Envelope.decode(data).verify(INTOTO_TYPE, [auditor])
    return read_statement(payload, AUDIT_PREDICATE, "audit statement")
