"""How long an auditor waits: whole commands over bundles of 100 and 1,000 ledger entries.

Each time is of a process of its own, from its start to its verdict, as somebody at a terminal has
it. The peer of the offline check is the same bundle with dp-accounting's second opinion.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from audit.receipt import Receipt
from benchmarks.harness import Row, at_most, main, plain
from common.bundle import SIGNERS, Bundle, Trust
from common.canonical import Json, digest, encode, number
from common.data.schema import Schema
from common.keys import Identity, SigningKey
from common.ledger import Entry, Head, Kind, SignedHead
from common.ledger.entry import spent_json
from common.ledger.head import CLIENT, COORDINATOR
from common.plan import Cohort, Optimizer, Plan, Privacy, Release
from common.privacy import accountant, reference
from common.privacy.events import ADJACENCY
from common.privacy.filter import Budget
from common.statement import INTOTO_TYPE, PLAN_TYPE, Envelope, privacy_statement

_TIME = "2030-01-01T00:00:00Z"
_BUDGET = Budget.of(8.0, 1e-5)
_TORCH = """
import sys
from audit.__main__ import main
main(sys.argv[1:])
print("torch" in sys.modules)
"""


def measure(quick: bool) -> list[Row]:
    """Medians of whole commands; bytes of the longest ledger's receipt."""
    rows: list[Row] = []
    times = 1 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        for entries, goal in ((100, 0.5), (1000, 2.0)):
            path = Path(folder) / str(entries)
            trust = _publish(path, entries)
            offline = _median([sys.executable, "-m", "audit", "verify"], path, trust, times)
            figure = f"audit verify, own accountant, {entries} entries"
            rows.append(at_most(figure, offline, "s", goal))
            again = _median([sys.executable, "-m", "privet", "audit", "verify"], path, trust, times)
            figure = f"privet audit verify, with dp-accounting, {entries} entries"
            rows.append(at_most(figure, again, "s", 3.0))
        rows.append(plain("torch imported by audit verify", _torch(path, trust), "modules"))
        bundle = Bundle.read(path)
        size = len(Receipt.of(bundle, next(iter(bundle.clients))).encode())
        rows.append(at_most("receipt of a ledger of 1000 entries", size, "bytes", 1024))
    return rows


def _median(command: list[str], path: Path, trust: Path, times: int) -> float:
    taken = []
    for _ in range(times + 1):  # the first reads Python's files from disk
        began = time.perf_counter()
        subprocess.run(
            [*command, str(path), "--trust", str(trust)], check=True, stdout=subprocess.DEVNULL
        )
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _torch(path: Path, trust: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _TORCH, "verify", str(path), "--trust", str(trust)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout.splitlines()[-1] == "True")


# -- a genuine bundle, as a run of so many rounds would leave it ---------------------------------


def _publish(path: Path, entries: int) -> Path:
    """One client's bundle with so many entries; the path of its trust file."""
    keys = {role: SigningKey.generate() for role in SIGNERS}
    federation = keys[COORDINATOR].public.fingerprint
    rounds = (entries - 2) // 2
    plan = _plan(rounds)
    who = Identity.derive(b"1" * 32, federation)
    chain = _chain(plan, who, keys[COORDINATOR], rounds)
    note = _note(chain, who, keys[COORDINATOR])
    bundle = Bundle(
        plan=Envelope.sign(PLAN_TYPE, plan.encode(), [keys[COORDINATOR]]).encode(),
        statement=_statement(plan, who, chain, list(keys.values())),
        signers={role: key.public for role, key in keys.items()},
        clients={who.pseudonym: who.key.public},
        ledgers={who.pseudonym: chain},
        heads={who.pseudonym: note},
    )
    bundle.write(path)
    trust = Trust(
        {role: key.fingerprint for role, key in bundle.signers.items()},
        {name: key.fingerprint for name, key in bundle.clients.items()},
    )
    trust.write(path.with_suffix(".trust"))
    return path.with_suffix(".trust")


def _plan(rounds: int) -> Plan:
    steps, rate = 5, 0.05
    sigma = reference.calibrate(rate, steps * rounds, 4.0, 1e-5)
    return Plan(
        name="benchmark",
        task="classification",
        model="softmax",
        rounds=rounds,
        schema=Schema("image", (1, 8, 8), ("no", "yes")),
        cohort=Cohort(1, 1, 60.0),
        optimizer=Optimizer(1.0),
        privacy=Privacy("local", rate, sigma, 1.0, steps, 10.0, 1e-5),
        release=Release("benchmark"),
    )


def _chain(plan: Plan, who: Identity, coordinator: SigningKey, rounds: int) -> list[Entry]:
    federation, chain = coordinator.public.fingerprint, list[Entry]()
    event = plan.privacy.event()

    def seen() -> Json:
        head = Head.of(federation, who.pseudonym, chain)
        return {"entries": len(chain), "signature": head.sign(coordinator)}

    def add(kind: Kind, body: Json) -> None:
        last = chain[-1] if chain else None
        chain.append(Entry.sign(who, federation, last, kind, body, _TIME))

    terms = {
        "budget": number(_BUDGET.epsilon),
        "delta": number(_BUDGET.delta),
        "order": _BUDGET.order,
        "spare_rounds": 1,
        "simulated": False,
        "least_noise_multiplier": "0.0",
        "greatest_sampling_rate": "1.0",
        "most_rounds": 10**6,
        "valid_from": None,
        "valid_until": None,
    }
    add(
        Kind.APPROVAL,
        {"plan": plan.digest, "terms": terms, "code": "c" * 64, "model": "softmax"}
        | {"features": ["pixels"], "policy": "a" * 64, "data": "b" * 64},
    )
    for round_ in range(1, rounds + 1):
        add(
            Kind.INTENT,
            {"plan": plan.digest, "run": "e" * 32, "incarnation": 0, "round": round_}
            | {"request": digest(b"%d" % round_), "model": "f" * 64, "event": event.json()}
            | {"clipping_norm": number(plan.privacy.clipping_norm), "noise": "cryptographic"}
            | {"divisor": number(plan.privacy.divisor), "countersigned": seen()}
            | {"spent": spent_json(chain, _BUDGET.order, event)},
        )
        spent = spent_json(chain, _BUDGET.order)
        add(Kind.DISCLOSURE, {"intent": len(chain) - 1, "update": "9" * 64, "spent": spent})
    spent = spent_json(chain, _BUDGET.order)
    add(Kind.COUNTERSIGNATURE, {"countersigned": seen(), "spent": spent})
    return chain


def _note(chain: list[Entry], who: Identity, coordinator: SigningKey) -> bytes:
    head = Head.of(coordinator.public.fingerprint, who.pseudonym, chain)
    note = SignedHead.of(head).with_signature(CLIENT, who.key.public, head.sign(who.key))
    return note.with_signature(COORDINATOR, coordinator.public, head.sign(coordinator)).encode()


def _statement(plan: Plan, who: Identity, chain: list[Entry], keys: list[SigningKey]) -> bytes:
    event = plan.event()
    schedule = [event]
    epsilon = reference.pld_epsilon(schedule, plan.privacy.delta)
    rdp = number(accountant.epsilon(schedule, plan.privacy.delta))
    predicate = {
        "plan": plan.digest,
        "schema": digest(encode(plan.schema.json())),
        "name": plan.release.name,
        "version": 1,
        "trust": plan.privacy.trust,
        "unit": plan.privacy.unit,
        "adjacency": ADJACENCY,
        "delta": number(plan.privacy.delta),
        "epsilon": number(epsilon),
        "epsilon_filter": number(_BUDGET.spent(schedule)),
        "accountants": {
            "pld (dp-accounting)": number(epsilon),
            "rdp (dp-accounting)": rdp,
            "rdp (privet)": rdp,
        },
        "event": event.json(),
        "noise": ["cryptographic"],
        "simulated": False,
        "rounds": plan.rounds,
        "ledgers": {
            who.pseudonym: {
                "head": chain[-1].digest,
                "entries": len(chain),
                "countersigned": len(chain),
            }
        },
        "limits": [],
        "clients": 1,
    }
    statement = privacy_statement({"model.onnx": "ab" * 32}, predicate)
    return Envelope.sign(INTOTO_TYPE, statement, keys).encode()


if __name__ == "__main__":
    main("audit", measure)
