"""A lying server gets a refusal. Pure: a chain of entries, a policy, a request, a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb, exp, log
from typing import Any

import numpy as np
import pytest

from client.guard import Admission, intent_body, judge, read_request
from common.canonical import Json, decode, encode, number
from common.errors import Refusal
from common.ledger import Entry, Kind
from common.ledger.entry import spent_json
from common.plan import Plan
from common.policy import Policy
from common.privacy.accountant import rdp
from common.privacy.events import Event
from common.privacy.filter import Budget
from common.statement import RECEIPT_TYPE, REQUEST_TYPE, Envelope
from common.wire import MAX_ENVELOPE_BYTES, Arrays, RoundRequest, digest_arrays
from tests.world import (
    COORDINATOR,
    FEDERATION,
    PLAN,
    POLICY,
    PRIVACY,
    RUN,
    SHAPES,
    STRANGER,
    ask,
    model,
    seen,
    who,
)

WHO = who("clinic-a")
BOUND: Json = {"plan": PLAN.digest, "code": "c" * 64, "model": "softmax", "features": ["height"]}
ORDER = POLICY.budget.order
SEALED: Json = {"terms": {}, "policy": "a" * 64, "data": "b" * 64}
OTHER_PLAN = replace(PLAN, rounds=2)


class Chain:
    """One client's entries, in memory."""

    def __init__(self, *, approved: bool = True, bound: Json = BOUND) -> None:
        self.entries: list[Entry] = []
        if approved:
            self.add(Kind.APPROVAL, {**bound, **SEALED})

    def add(self, kind: Kind, body: Json) -> Entry:
        last = self.entries[-1] if self.entries else None
        entry = Entry.sign(WHO, FEDERATION, last, kind, body, "2030-01-01T00:00:00Z")
        self.entries.append(entry)
        return entry

    def begin(self, request: RoundRequest, plan: Plan = PLAN, noise: str = "simulated") -> Entry:
        """As after a kill: an intent, and nothing more."""
        body = intent_body(request, plan, noise, ORDER, self.entries)
        return self.add(Kind.INTENT, body)

    def serve(self, request: RoundRequest, plan: Plan = PLAN) -> Entry:
        intent = self.begin(request, plan)
        spent = spent_json(self.entries, ORDER)
        body = {"intent": intent.seq, "update": "a" * 64, "spent": spent}
        return self.add(Kind.DISCLOSURE, body)

    def spent(self) -> list[Event]:
        return [entry.event() for entry in self.entries if entry.kind is Kind.INTENT]


def decide(chain: Chain, request: RoundRequest | None = None, **changes: Any) -> Admission:
    arguments: dict[str, Any] = {
        "client": "clinic-a",
        "pseudonym": WHO.pseudonym,
        "coordinator": COORDINATOR.public,
        "plans": {PLAN.digest: PLAN},
        "shapes": SHAPES,
        "policy": POLICY,
        "chain": tuple(chain.entries),
        "spent": chain.spent(),
        "noise": "simulated",
        "bound": BOUND,
        "now": "2030-01-01T00:00:00Z",
    }
    arrays: Arrays = changes.pop("arrays", model())
    return judge(request or ask(), arrays, **(arguments | changes))


def refused(chain: Chain, request: RoundRequest | None = None, **changes: Any) -> str:
    """The code of the refusal; the chain is as it was."""
    before = list(chain.entries)
    with pytest.raises(Refusal) as caught:
        decide(chain, request, **changes)
    assert chain.entries == before
    return caught.value.code


# -- what is served ------------------------------------------------------------------------------


def test_an_honest_request_is_admitted_with_all_that_its_cost_depends_on() -> None:
    admission = decide(Chain())
    assert admission.answered is None
    assert admission.plan is PLAN
    assert admission.intent == {
        "plan": PLAN.digest,
        "run": RUN,
        "incarnation": 0,
        "round": 1,
        "request": ask().digest,
        "model": digest_arrays(model()),
        "event": Event(0.5, 2.0, 2).json(),
        "clipping_norm": "1.0",
        "divisor": "4.0",
        "noise": "simulated",
        "spent": {"order": ORDER, "cost": number(rdp([PRIVACY.event()], ORDER))},
        "countersigned": {"entries": 0, "signature": seen()["signature"]},
    }


def test_the_same_request_is_answered_by_what_was_disclosed_then() -> None:
    chain = Chain()
    disclosure = chain.serve(ask())
    assert decide(chain, ask()).answered is disclosure


def test_rounds_may_be_skipped_but_not_repeated() -> None:
    chain = Chain()
    chain.serve(ask(2))
    assert decide(chain, ask(3, nonce=2)).answered is None
    assert refused(chain, ask(1, nonce=2)) == "stale-round"


def test_a_restored_server_may_ask_an_old_round_again_as_a_new_incarnation() -> None:
    chain = Chain()
    chain.serve(ask(1))
    chain.serve(ask(2, nonce=2))
    admission = decide(chain, ask(2, nonce=3, incarnation=1))
    assert admission.answered is None  # a new spend, not the old bytes


def test_another_run_of_the_plan_has_rounds_of_its_own() -> None:
    chain = Chain()
    chain.serve(ask(3))
    assert decide(chain, ask(1, nonce=2, run="f" * 32)).answered is None


# -- what is not ---------------------------------------------------------------------------------


def test_a_plan_that_was_never_approved_is_refused() -> None:
    assert refused(Chain(approved=False)) == "not-approved"


def test_a_plan_that_is_in_the_directory_but_not_in_the_ledger_is_refused() -> None:
    plans = {PLAN.digest: PLAN, OTHER_PLAN.digest: OTHER_PLAN}
    request = ask(plan=OTHER_PLAN.digest)
    for bound in (BOUND, BOUND | {"plan": OTHER_PLAN.digest}):
        assert refused(Chain(), request, plans=plans, bound=bound) == "not-approved"


def test_an_approval_in_the_ledger_without_the_plan_itself_is_refused() -> None:
    assert refused(Chain(), plans={}, bound={}) == "not-approved"


@pytest.mark.parametrize(
    "changed",
    [{"code": "d" * 64}, {"model": "theirs:model"}, {"features": ["height", "income"]}],
    ids=lambda changed: next(iter(changed)),
)
def test_an_approval_of_other_code_model_or_columns_does_not_count(changed: Json) -> None:
    chain = Chain()
    assert refused(chain, bound=BOUND | changed) == "not-approved"
    chain.add(Kind.APPROVAL, {**BOUND, **changed, **SEALED})
    assert decide(chain, bound=BOUND | changed).answered is None


def broken(name: str) -> Arrays:
    arrays = model()
    match name:
        case "modified":
            arrays["bias"] = arrays["bias"] + np.float32(1e-7)
        case "missing":
            del arrays["bias"]
        case "added":
            arrays["more"] = np.zeros(2, np.float32)
        case "renamed":
            arrays["b"] = arrays.pop("bias")
        case "transposed":
            arrays["weight"] = np.zeros((4, 1), np.float32)
        case "scalar":
            arrays["bias"] = np.zeros((), np.float32)
        case "float64":
            arrays["bias"] = arrays["bias"].astype(np.float64)  # type: ignore[assignment]
        case "empty":
            arrays = {}
    return arrays


@pytest.mark.parametrize(
    "name",
    ["modified", "missing", "added", "renamed", "transposed", "scalar", "float64", "empty"],
)
def test_arrays_that_are_not_the_plans_model_are_refused(name: str) -> None:
    arrays = broken(name)
    assert refused(Chain(), arrays=arrays) == "wrong-model"  # signed for other arrays
    if name != "modified":  # … or even for these
        assert refused(Chain(), ask(1, arrays), arrays=arrays) == "wrong-model"


@pytest.mark.parametrize("round_", [0, 4, 10**6])
def test_a_round_that_the_plan_does_not_have_is_refused(round_: int) -> None:
    assert refused(Chain(), ask(round_)) == "stale-round"


def test_no_round_is_served_twice_under_another_name() -> None:
    chain = Chain()
    chain.serve(ask(2))
    for request in (
        ask(2, nonce=2),  # the same round, a new nonce, the same incarnation
        ask(1, nonce=3),  # an old round
        ask(2, model(1.0), nonce=1),  # the same nonce, another model
    ):
        arrays = model() if request.model == digest_arrays(model()) else model(1.0)
        assert refused(chain, request, arrays=arrays) == "stale-round"


def test_an_incarnation_never_goes_back() -> None:
    chain = Chain()
    chain.serve(ask(1, incarnation=3))
    for incarnation in (0, 1, 2):
        for round_ in (1, 2, 3):
            stale = ask(round_, nonce=9, incarnation=incarnation)
            assert refused(chain, stale) == "stale-round"
    assert decide(chain, ask(2, nonce=9, incarnation=3)).answered is None


def test_a_round_that_was_begun_and_not_finished_is_forfeited() -> None:
    chain = Chain()
    chain.begin(ask(1), noise="cryptographic")
    for noise in ("cryptographic", "simulated"):
        assert refused(chain, ask(1), noise=noise) == "forfeited"
    assert refused(chain, ask(1, nonce=2)) == "stale-round"
    chain.serve(ask(2, nonce=3))  # another request's disclosure is not this one's
    assert refused(chain, ask(1)) == "forfeited"
    assert decide(chain, ask(3, nonce=4)).answered is None


def test_a_seeded_round_that_was_begun_is_finished_under_the_same_entry() -> None:
    chain = Chain()
    begun = chain.begin(ask(1))
    assert decide(chain, ask(1)).begun == begun
    assert refused(chain, ask(1), noise="cryptographic") == "forfeited"
    assert refused(chain, ask(1, nonce=2)) == "stale-round"


@pytest.mark.parametrize(
    "narrowed",
    [
        {"least_noise_multiplier": 2.1},
        {"greatest_sampling_rate": 0.4},
        {"most_rounds": 2},
        {"budget": Budget.of(20.0, 1e-6)},
    ],
    ids=lambda narrowed: next(iter(narrowed)),
)
def test_a_policy_that_was_narrowed_after_approval_holds_at_once(narrowed: Json) -> None:
    assert refused(Chain(), policy=replace(POLICY, **narrowed)) == "below-floor"


def test_repeatable_noise_needs_data_that_is_simulated() -> None:
    policy = replace(POLICY, simulated=False)
    assert refused(Chain(), policy=policy) == "below-floor"
    assert decide(Chain(), policy=policy, noise="cryptographic").intent["noise"] == "cryptographic"


def rounds_within(policy: Policy) -> int:
    """How many rounds of the plan a budget covers, by the formula of Mironov et al. 2019."""
    q, sigma, order = PRIVACY.sampling_rate, PRIVACY.noise_multiplier, policy.budget.order
    terms = (
        comb(order, k) * q**k * (1 - q) ** (order - k) * exp((k * k - k) / (2 * sigma**2))
        for k in range(order + 1)
    )
    a_round = PRIVACY.steps * log(sum(terms)) / (order - 1)
    delta = policy.budget.delta
    fixed = log(1 - 1 / order) - (log(delta) + log(order)) / (order - 1)
    return int((policy.budget.epsilon - fixed) / a_round)


def test_a_server_that_starts_again_and_again_gets_no_more_than_the_budget() -> None:
    policy = replace(POLICY, budget=Budget.of(4.0, 1e-5), spare_rounds=1000)
    chain = Chain()
    most = rounds_within(policy)
    for attempt in range(most):
        request = ask(1, nonce=attempt + 1, incarnation=attempt)
        assert decide(chain, request, policy=policy).answered is None
        chain.serve(request)
    assert policy.budget.spent(chain.spent()) <= 4.0
    again = ask(1, nonce=most + 1, incarnation=most)
    assert refused(chain, again, policy=policy) == "budget-exhausted"
    # What was answered is still answered; everything new is refused.
    assert decide(chain, ask(1, nonce=1), policy=policy).answered is not None
    assert refused(chain, ask(2, nonce=999, run="e" * 32), policy=policy) == "budget-exhausted"


def test_a_plan_gets_its_rounds_and_the_spare_ones_whatever_the_budget_holds() -> None:
    policy, chain = replace(POLICY, budget=Budget.of(1000.0, 1e-5), spare_rounds=2), Chain()
    for attempt in range(PLAN.rounds + 2):
        chain.serve(ask(1, nonce=attempt + 1, run=f"{attempt:032x}"))
    assert refused(chain, ask(1, nonce=99, run="e" * 32), policy=policy) == "no-rounds-left"
    assert refused(chain, ask(2, nonce=99, incarnation=9), policy=policy) == "no-rounds-left"


def test_a_request_for_another_client_is_refused() -> None:
    assert refused(Chain(), ask(client="clinic-b")) == "wrong-client"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.01e4, -1e30])
def test_a_model_of_huge_or_meaningless_values_is_refused(value: float) -> None:
    arrays = model(value)
    assert refused(Chain(), ask(1, arrays), arrays=arrays) == "wrong-model"


def test_work_for_other_federations_counts_against_the_same_budget() -> None:
    elsewhere = [Event(0.5, 2.0, 2 * rounds_within(POLICY))]
    assert refused(Chain(), spent=elsewhere) == "budget-exhausted"
    assert decide(Chain(), spent=[Event(0.5, 2.0, 2)]).answered is None


def test_a_round_that_was_begun_stays_charged() -> None:
    policy = replace(POLICY, budget=Budget.of(4.0, 1e-5), spare_rounds=1000)
    chain = Chain()
    for attempt in range(rounds_within(policy)):
        chain.begin(ask(1, nonce=attempt + 1, incarnation=attempt))
    assert refused(chain, ask(1, nonce=99, incarnation=99), policy=policy) == "budget-exhausted"


def test_a_request_without_noise_is_never_admitted() -> None:
    silent = replace(PLAN, privacy=replace(PRIVACY, noise_multiplier=0.0))
    code = refused(
        Chain(bound=(bound := BOUND | {"plan": silent.digest})),
        ask(plan=silent.digest),
        plans={silent.digest: silent},
        policy=replace(POLICY, approved_plans=(silent.digest,)),
        bound=bound,
    )
    assert code == "budget-exhausted"


# -- the envelope --------------------------------------------------------------------------------


def read(envelope: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        read_request(envelope, COORDINATOR.public)
    return caught.value.code


def payload(**changes: Any) -> bytes:
    fields = {"schema_version": 2, **ask().__dict__, **changes}
    return encode({name: value for name, value in fields.items() if value is not None})


def sealed(data: bytes, kind: str = REQUEST_TYPE, keys: Sequence[Any] = (COORDINATOR,)) -> bytes:
    return Envelope.sign(kind, data, list(keys)).encode()


def test_a_request_that_the_coordinator_signed_is_read() -> None:
    assert read_request(ask().sign(COORDINATOR), COORDINATOR.public) == ask()
    assert read_request(sealed(payload()), COORDINATOR.public) == ask()


def test_another_coordinators_signature_does_not_count() -> None:
    assert read(ask().sign(STRANGER)) == "bad-signature"
    forged = Envelope.decode(ask().sign(STRANGER))
    named = replace(forged, signatures=((FEDERATION, forged.signatures[0][1]),))
    assert read(named.encode()) == "bad-signature"


def test_a_signature_over_another_round_does_not_count() -> None:
    honest = Envelope.decode(ask(1).sign(COORDINATOR))
    moved = replace(honest, payload=payload(round=2))
    assert read(moved.encode()) == "bad-signature"


def test_a_coordinators_signature_over_another_kind_of_document_does_not_count() -> None:
    assert read(sealed(payload(), RECEIPT_TYPE)) == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"round": -1},
        {"round": 2**31},
        {"round": True},
        {"round": "1"},
        {"round": None},
        {"incarnation": -1},
        {"plan": "x" * 64},
        {"plan": "../../etc"},
        {"nonce": ""},
        {"nonce": "ab"},
        {"run": None},
        {"model": ["a"]},
        {"seed": 1},
        {"schema_version": 1},
        {"schema_version": None},
    ],
    ids=str,
)
def test_a_signed_request_with_odd_fields_is_malformed(changes: Json) -> None:
    assert read(sealed(payload(**changes))) == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"payload":"","payloadType":"","signatures":[]}',
        sealed(b"{}"),
        sealed(b"not json"),
        sealed(b' {"round":1}'),
        sealed(payload(nonce="a" * 64) + b" "),
        b" " * (MAX_ENVELOPE_BYTES + 1),
    ],
    ids=range(12),
)
def test_bytes_that_are_no_request_are_malformed(data: bytes) -> None:
    assert read(data) == "malformed"


def test_every_flipped_bit_of_an_envelope_is_refused() -> None:
    honest = bytearray(ask().sign(COORDINATOR))
    generator = np.random.default_rng(1)
    for position in generator.integers(0, len(honest), 200):
        changed = bytearray(honest)
        changed[position] ^= 1 << int(generator.integers(8))
        try:
            same = decode(bytes(changed)) == decode(bytes(honest))
        except ValueError:
            same = False
        assert not same
        assert read(bytes(changed)) in ("malformed", "bad-signature")
