"""The fifteen items: each one there, filled from the bundle or plainly not stated, and signed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from audit.attest import attest
from audit.checklist import Item, approved_codes, checklist, fields
from audit.recompute import Recomputation, recompute_all
from audit.verify import Verdict, check
from common.bundle import Bundle
from common.canonical import digest, encode, number
from common.errors import TrustError, UnauthenticatedError
from common.keys import SigningKey
from common.statement import INTOTO_TYPE, Envelope, read_privacy_statement

from .bundle_fixtures import (
    DELTA,
    PLAN,
    ROUNDS,
    STEPS,
    World,
    exact_epsilon,
    read_attestation,
    trust_in,
)

AUDITOR = SigningKey.from_seed(b"u" * 32)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return World().bundle()


@pytest.fixture(scope="module")
def verdict(bundle: Bundle) -> Verdict:
    return check(bundle, trust_in(bundle), signatures=2)


@pytest.fixture(scope="module")
def again(verdict: Verdict) -> Recomputation:
    return recompute_all(verdict)


@pytest.fixture(scope="module")
def items(bundle: Bundle, verdict: Verdict, again: Recomputation) -> tuple[Item, ...]:
    codes = approved_codes(bundle, verdict.plan)
    return checklist(verdict, again, codes=codes, software={"dp-accounting": "0.6.0"})


# reference/privacy-audit.md, section 1 (d): the machine fields of the fifteen items.
FIELDS = {
    1: {"trust_model"},
    2: {"released", "unprotected"},
    3: {"unit", "contribution_cap"},
    4: {"adjacency"},
    5: {"epsilon", "delta", "curve"},
    6: {"events"},
    7: {"sampling.assumed", "sampling.executed"},
    8: {"accountant"},
    9: {"accesses", "tuning"},
    10: {"scope"},
    11: {"rng", "fp", "sidechannels"},
    12: {"software", "audit"},
    13: {"data_governance"},
    14: {"utility"},
    15: {"meaning"},
}


def test_all_fifteen_items_and_their_fields_are_there_each_once(items) -> None:
    assert [item.number for item in items] == list(range(1, 16))
    for item in items:
        assert FIELDS[item.number] <= {answer.field for answer in item.answers}
    names = [answer.field for item in items for answer in item.answers]
    assert len(names) == len(set(names))
    assert all(answer.source for item in items for answer in item.answers)


def test_what_no_bundle_knows_is_not_stated_and_never_made_up(items) -> None:
    missing = {answer.field for item in items for answer in item.answers if answer.value is None}
    assert missing == {
        "units_per_person",
        "delta_against_records",
        "tuning",
        "refresh_period",
        "audit.empirical",
        "data_governance",
        "utility",
    }
    assert all(
        answer.text == "not stated" for item in items for answer in item.answers if not answer.value
    )
    assert [item.number for item in items if not item.stated] == [3, 5, 9, 10, 12, 13, 14]


def test_values_are_those_of_plan_statement_and_ledgers(items) -> None:
    value = fields(items)
    assert value["unit"] == "record"
    assert value["adjacency"] == "add-or-remove-one"
    assert value["epsilon"] == number(exact_epsilon(ROUNDS * STEPS))
    assert value["delta"] == number(DELTA)
    assert value["events"] == {
        "mechanism": "poisson-subsampled-gaussian",
        "sampling_rate": "1.0",
        "noise_multiplier": "4.0",
        "steps": str(ROUNDS * STEPS),
    }
    assert value["clipping_norm"] == "1.5"
    assert value["rng"] == "cryptographic"
    assert value["software"] == [f"training code SHA-256 {'d' * 64}"]
    assert "dp-accounting 0.6.0" in value["accountant"]["pld (dp-accounting)"]
    assert value["policy.budget"] == ["epsilon 8 at delta 1e-5, Rényi order 4"]


def test_the_curve_is_an_upper_bound_of_the_exact_one(items) -> None:
    curve = fields(items)["curve"]
    assert len(curve) == 30
    for place, cost in curve.items():
        delta, epsilon = float(place.removeprefix("delta ")), float(cost.removeprefix("epsilon "))
        if delta <= 0.01:  # above, this mechanism's exact epsilon is below zero
            assert epsilon >= exact_epsilon(ROUNDS * STEPS, delta)


def test_the_meaning_is_in_the_last_item_and_bounds_the_best_attack(items) -> None:
    meaning = fields(items)["meaning"]
    epsilon = exact_epsilon(ROUNDS * STEPS)
    alone = "the second by epsilon and delta alone, at most"
    assert float(meaning[alone]) == pytest.approx(
        (math.exp(epsilon) + DELTA) / (1 + math.exp(epsilon)), rel=1e-12
    )
    assert 0.5 < float(meaning["posterior from a prior of 50 %, at most"]) < float(meaning[alone])


def test_without_other_code_nothing_of_it_is_claimed(verdict) -> None:
    value = fields(checklist(verdict))
    assert set(value["accountant"]) == {"rdp (privet)"}
    assert value["epsilon_replace_one"] is None
    assert value["software"] is None


def test_repeatable_noise_is_called_what_it_is(verdict) -> None:
    first, *rest = verdict.clients
    repeatable = replace(verdict, clients=[replace(first, noise=("simulated",)), *rest])
    assert fields(checklist(repeatable))["rng"] == (
        "cryptographic, simulated (repeatable: protects nobody)"
    )


def test_the_checklist_can_be_signed_and_is_the_same_each_time(items, verdict, again) -> None:
    data = [item.json() for item in items]
    assert encode({"checklist": data})  # raises on a float
    assert json.loads(json.dumps(data))[4]["item"] == 5
    assert fields(checklist(verdict, again)) == fields(checklist(verdict, again))


# -- the auditor's statement -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed(bundle, verdict, again, items) -> bytes:
    return attest(
        verdict,
        again,
        items,
        bundle_statement=digest(bundle.statement),
        trust=trust_in(bundle),
        key=AUDITOR,
    )


def test_an_auditor_s_statement_is_about_the_model_and_this_bundle(signed, bundle, items) -> None:
    subjects, said = read_attestation(signed, AUDITOR.public)
    assert subjects == {"model.onnx": "ab" * 32}
    assert said["statement"] == digest(bundle.statement)
    assert said["plan"] == PLAN.digest
    assert said["verdict"] == "verified"
    assert said["trusted"] == {role: key.fingerprint for role, key in bundle.signers.items()}
    assert float(said["epsilon"]) == pytest.approx(exact_epsilon(ROUNDS * STEPS), abs=1e-6)
    assert said["checklist"] == fields(items)
    assert {name: entry["head"] for name, entry in said["ledgers"].items()} == {
        name: entries[-1].digest for name, entries in bundle.ledgers.items()
    }


def test_it_is_an_in_toto_statement_in_dsse_by_itself(signed) -> None:
    envelope = Envelope.decode(signed)
    assert envelope.payload_type == INTOTO_TYPE
    document = json.loads(envelope.payload)
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "urn:privet:attestation:audit:v1"
    assert document["subject"] == [{"name": "model.onnx", "digest": {"sha256": "ab" * 32}}]


def test_nobody_else_s_key_reads_it_and_it_is_no_privacy_statement(signed) -> None:
    with pytest.raises(TrustError) as caught:
        read_attestation(signed, SigningKey.from_seed(b"x" * 32).public)
    assert caught.value.code == "bad-signature"
    with pytest.raises(TrustError, match="not a Privet privacy statement"):
        read_privacy_statement(Envelope.decode(signed).payload)


def test_a_privacy_statement_is_no_audit_even_if_the_auditor_signed_it(bundle) -> None:
    payload = Envelope.decode(bundle.statement).payload
    cosigned = Envelope.sign(INTOTO_TYPE, payload, [AUDITOR]).encode()
    with pytest.raises(TrustError, match="not a Privet audit statement"):
        read_attestation(cosigned, AUDITOR.public)


def test_the_same_audit_by_the_same_key_is_the_same_bytes(
    signed, bundle, verdict, again, items
) -> None:
    once_more = attest(
        verdict,
        again,
        items,
        bundle_statement=digest(bundle.statement),
        trust=trust_in(bundle),
        key=AUDITOR,
    )
    assert once_more == signed


def test_nothing_is_signed_about_a_bundle_that_nobody_vouched_for(bundle, again, items) -> None:
    with pytest.raises(UnauthenticatedError):
        attest(
            check(bundle, None, signatures=2),
            again,
            items,
            bundle_statement=digest(bundle.statement),
            trust=trust_in(bundle),
            key=AUDITOR,
        )
