"""What should be reported about a privacy claim, and is it? Fifteen items, filled or not stated.

The rules: each item has machine fields, each field a value and where it comes from, or it is *not
stated*: an empty field is shown, never left out and never filled with what was meant. What only the
signers say is marked as theirs. Numbers are strings, so that the checklist can be signed.

Source of the items: NIST SP 800-226 (2025), "Guidelines for Evaluating Differential Privacy
Guarantees"; Ponomareva et al. 2023 (arXiv 2303.00654), section 5.3; the fields that OpenDP's
deployment registry asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from audit.explain import explain, unprotected
from audit.findings import NOISE_ADDED_BY, PROTECTS, repeatable
from audit.meaning import curve
from audit.recompute import LIBRARY_RDP, OWN_RDP, PLD, Recomputation
from audit.verify import Verdict, exposure
from audit.wording import plain, ranges, up
from common.bundle import Bundle
from common.canonical import Json, number
from common.ledger.entry import Kind
from common.plan import Plan, Privacy
from common.privacy.accountant import ORDERS
from common.privacy.events import ADJACENCY
from common.privacy.reference import DISCRETIZATION

# Where a value comes from.
PLAN = "plan, signed by the coordinator"
LEDGERS = "ledgers, signed by the clients"
OWN_LEDGER = "ledger, signed by the coordinator"
STATEMENT = "statement, signed by coordinator and approver"
COMPUTED = "computed here from plan and ledgers"
DESIGN = "how Privet is built: no bundle can show it"
NOBODY = "not stated"

Value = str | list[str] | dict[str, str]


@dataclass(frozen=True)
class Answer:
    """One machine field: its value as canonical JSON without numbers, or None: not stated.

    Args:
        field: as the checklist names it.
        value: what holds; None where the bundle does not say.
        source: where the value comes from, or why there is none.
        brief: the value for a person, where there is a shorter way to say it.
    """

    field: str
    value: Value | None
    source: str
    brief: str = ""

    def json(self) -> Json:
        return {"field": self.field, "value": self.value, "source": self.source}

    @property
    def text(self) -> str:
        """The value in one line."""
        if self.value is None:
            return NOBODY
        if self.brief:
            return self.brief
        if isinstance(self.value, str):
            return self.value
        if isinstance(self.value, dict):
            return "; ".join(f"{name}: {value}" for name, value in self.value.items())
        return "; ".join(self.value)


@dataclass(frozen=True)
class Item:
    """One of the fifteen."""

    number: int
    title: str
    answers: tuple[Answer, ...]

    @property
    def stated(self) -> bool:
        """Whether every field of it has a value."""
        return all(answer.value is not None for answer in self.answers)

    def json(self) -> Json:
        return {
            "item": self.number,
            "title": self.title,
            "answers": [answer.json() for answer in self.answers],
        }


def checklist(
    verdict: Verdict,
    recomputation: Recomputation | None = None,
    *,
    codes: Iterable[str] = (),
    software: Mapping[str, str] | None = None,
) -> tuple[Item, ...]:
    """The fifteen items for a bundle that verifies.

    Args:
        verdict: from :func:`audit.verify.verify`.
        recomputation: of its numbers by other code, if that was done.
        codes: SHA-256 of the training code that the owners approved, from their ledgers.
        software: name to version of what recomputed.
    """
    it = _Facts(verdict, recomputation, sorted(set(codes)), dict(software or {}))
    parts = (
        ("Threat model: who is trusted with what", _trust(it)),
        ("What is released, and what is not protected", _released(it)),
        ("Unit of privacy, and the bound on a contribution", _unit(it)),
        ("Adjacency", _adjacency(it)),
        ("Epsilon, delta, and the whole curve", _epsilon(it)),
        ("Mechanism and its parameters", _mechanism(it)),
        ("Sampling, as assumed and as executed", _sampling(it)),
        ("Accountant", _accountant(it)),
        ("Every access to the data, and tuning", _accesses(it)),
        ("Composition, over what and how long", _scope(it)),
        ("Randomness, floating point, side channels", _randomness(it)),
        ("Implementation and audits", _implementation(it)),
        ("The data before training", _nothing("data_governance", "no bundle says so")),
        ("Utility, also for subgroups", _nothing("utility", "no accuracy is signed or published")),
        ("Meaning in plain language", _meaning(it)),
    )
    return tuple(
        Item(count, title, tuple(answers)) for count, (title, answers) in enumerate(parts, 1)
    )


def approved_codes(bundle: Bundle, plan: Plan) -> list[str]:
    """SHA-256 of the training code that each owner approved with ``plan``, each one once."""
    return sorted(
        {
            str(entry.body["code"])
            for entries in bundle.ledgers.values()
            for entry in entries
            if entry.kind is Kind.APPROVAL and entry.body["plan"] == plan.digest
        }
    )


def fields(items: Iterable[Item]) -> dict[str, Value | None]:
    """Machine field to value, None where it is not stated."""
    return {answer.field: answer.value for item in items for answer in item.answers}


@dataclass(frozen=True)
class _Facts:
    verdict: Verdict
    again: Recomputation | None
    codes: list[str]
    software: dict[str, str]

    @property
    def plan(self) -> Plan:
        return self.verdict.plan

    @property
    def privacy(self) -> Privacy:
        return self.verdict.plan.privacy

    @property
    def central(self) -> bool:
        return self.privacy.trust == "central"

    @property
    def ledgers(self) -> str:
        """Where a value comes from that a ledger states."""
        return OWN_LEDGER if self.central else LEDGERS


def _trust(it: _Facts) -> Iterable[Answer]:
    trust = it.privacy.trust
    yield Answer(
        "trust_model",
        f"{trust}: noise is added by {NOISE_ADDED_BY[trust]}; protects {PROTECTS[trust]}",
        PLAN,
    )


def _released(it: _Facts) -> Iterable[Answer]:
    files, central = ", ".join(sorted(it.verdict.subjects)), it.central
    yield Answer(
        "released",
        [
            "each drawn client's clipped update without noise, to the coordinator, which is trusted"
            if central
            else "each client's noised update in each round, to the coordinator",
            "the global model after each round, to the clients",
            f"the final model ({files}), to everyone",
            "this bundle: plan, statement, and "
            + ("the coordinator's entries" if central else "the clients' entries under pseudonyms"),
        ],
        DESIGN,
    )
    open_ = unprotected(it.verdict)
    yield Answer("unprotected", list(open_), PLAN + "; " + DESIGN, brief=". ".join(open_) + ".")


def _unit(it: _Facts) -> Iterable[Answer]:
    unit, clip = it.privacy.unit, plain(it.privacy.clipping_norm)
    yield Answer("unit", unit, PLAN)
    yield Answer(
        "contribution_cap",
        f"each {unit}'s contribution to a {'round' if it.central else 'step'} has L2 norm at most "
        + (f"the round's clipping norm, at first {clip}" if it.central else clip),
        PLAN,
    )
    yield Answer(
        "units_per_person", None, f"how many {unit}s a person has is known to nobody who signs"
    )


def _adjacency(it: _Facts) -> Iterable[Answer]:
    yield Answer("adjacency", ADJACENCY, PLAN)
    replaced = None if it.again is None else number(it.again.replace_one)
    source = COMPUTED + ", by PLD; to compare with work that states it" if replaced else NOBODY
    yield Answer("epsilon_replace_one", replaced, source)


def _epsilon(it: _Facts) -> Iterable[Answer]:
    claims = it.verdict.claims
    yield Answer("epsilon", str(claims["epsilon"]), STATEMENT)
    yield Answer("delta", str(claims["delta"]), STATEMENT)
    yield Answer(
        "delta_against_records",
        None,
        f"the number of {it.privacy.unit}s is private, and never published",
    )
    points = curve(exposure(it.plan, it.verdict.clients))
    yield Answer(
        "curve",
        {f"delta {plain(delta)}": f"epsilon {number(epsilon)}" for epsilon, delta in points},
        COMPUTED + ", by Rényi orders",
        brief=", ".join(f"{up(epsilon)} at δ = {plain(delta)}" for epsilon, delta in points[::3]),
    )


def _mechanism(it: _Facts) -> Iterable[Answer]:
    event = exposure(it.plan, it.verdict.clients)
    yield Answer(
        "events",
        {name: str(value) for name, value in event.json().items()},
        PLAN + "; " + it.ledgers,
    )
    yield Answer("clipping_norm", number(it.privacy.clipping_norm), PLAN)
    yield Answer("divisor", number(it.privacy.divisor), PLAN)


def _sampling(it: _Facts) -> Iterable[Answer]:
    rate = plain(it.privacy.sampling_rate)
    what = "enrolled client" if it.central else "record"
    step, who = ("round", "the coordinator") if it.central else ("step", "its client")
    yield Answer(
        "sampling.assumed",
        f"Poisson: every {what} independently, with chance {rate} a {step}",
        PLAN,
    )
    yield Answer(
        "sampling.executed",
        f"the same: every charged round names that mechanism at rate {rate}, as {who} signed",
        it.ledgers,
    )


def _accountant(it: _Facts) -> Iterable[Answer]:
    named = {OWN_RDP: f"Rényi orders {ranges(ORDERS)}; an upper bound"}
    if it.again is not None:
        library = " ".join(["dp-accounting", it.software.get("dp-accounting", "")]).strip()
        named[LIBRARY_RDP] = f"{library}, the same orders; an upper bound"
        named[PLD] = (
            f"{library}, losses in steps of {plain(DISCRETIZATION)} rounded pessimistically; an "
            "upper bound"
        )
    yield Answer("accountant", named, COMPUTED)


def _accesses(it: _Facts) -> Iterable[Answer]:
    yield Answer(
        "accesses",
        [
            "plain training in the rounds that the ledger charges, of clients that were drawn"
            if it.central
            else "the training steps that the ledgers charge",
            "none to scale features: bounds are public, and part of the plan",
            "none to report: a reply carries no loss, accuracy or count",
            "a client checks its data locally before it approves, and sends nothing of that",
        ],
        DESIGN,
    )
    yield Answer("tuning", None, "how the plan's parameters were found, no signer says")


def _scope(it: _Facts) -> Iterable[Answer]:
    terms = sorted({(one.budget, one.delta, one.order) for one in it.verdict.clients})
    shown = [
        f"epsilon {plain(budget)} at delta {plain(delta)}, Rényi order {order}"
        for budget, delta, order in terms[:10]
    ]
    yield Answer(
        "scope",
        [
            f"all {max(one.rounds for one in it.verdict.clients)} charged rounds of this "
            "federation, cut off ones included",
            "other federations on the same data: not in this bundle",
            "each client, drawn or not: every round is charged to all who are enrolled"
            if it.central
            else "each record at one client: the greatest over clients, not the sum",
            "relied on as post-processing: "
            + ("the server's optimizer, the next clipping norm" if it.central else "averaging")
            + (", export" if it.central else ", the optimizer, export"),
        ],
        COMPUTED,
    )
    yield Answer("policy.budget", shown, it.ledgers)
    yield Answer("refresh_period", None, "a budget is for the whole life of the data")


def _randomness(it: _Facts) -> Iterable[Answer]:
    kinds = sorted({kind for client in it.verdict.clients for kind in client.noise})
    remark = " (repeatable: protects nobody)" if repeatable(it.verdict) else ""
    yield Answer("rng", (", ".join(kinds) or "no noise was drawn") + remark, it.ledgers)
    yield Answer(
        "fp",
        f"noise in float64, {it.privacy.noise_draws} normal value"
        f"{'s' if it.privacy.noise_draws > 1 else ''} for each; the noised sum is rounded to "
        "a fixed grid",
        PLAN + "; " + DESIGN,
    )
    yield Answer(
        "sidechannels",
        "when messages are sent, how large they are and who is silent can be seen"
        + (" on the network, and by the coordinator" if it.central else ""),
        DESIGN,
    )


def _implementation(it: _Facts) -> Iterable[Answer]:
    codes = [
        f"{'server' if it.central else 'training'} code SHA-256 {code}" for code in it.codes[:10]
    ]
    yield Answer("software", codes or None, it.ledgers if codes else NOBODY)
    yield Answer("audit", [str(check) for check in it.verdict.checks], COMPUTED)
    yield Answer("audit.empirical", None, "no attack or conformance test of this run is in it")


def _meaning(it: _Facts) -> Iterable[Answer]:
    means = explain(it.verdict)
    yield Answer(
        "meaning",
        {
            "true positive rate at a false positive rate of 1 %, at most": number(
                means.meaning.true_positive_rate
            ),
            "posterior from a prior of 50 %, at most": number(means.meaning.posterior),
            "the first by epsilon and delta alone, at most": number(
                means.stated.true_positive_rate
            ),
            "the second by epsilon and delta alone, at most": number(means.stated.posterior),
        },
        COMPUTED,
    )


def _nothing(field: str, why: str) -> Iterable[Answer]:
    yield Answer(field, None, why)
