"""An owner rewrites a ledger, with the right key and a willing publisher, and is contradicted
by the head that the coordinator countersigned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from audit.ledgers import MOST_MECHANISMS, spend
from audit.verify import check, verify
from common.bundle import Bundle
from common.canonical import CanonicalError, number
from common.errors import TrustError
from common.ledger import Entry, Kind, SignedHead
from common.privacy.events import Event

from .bundle_fixtures import PLAN, Json, World, trust_in

WORLD = World()
FIRST = WORLD.identity(0).pseudonym
TRUE = WORLD.history()  # approval, intent, disclosure, intent, disclosure, countersignature
Bodies = list[tuple[Kind, Json]]


def lie(bodies: Bodies, seen: Bodies = TRUE, **claims: object) -> Bundle:
    """``bodies`` signed and stated by all, beside the head of what the coordinator saw."""
    note = WORLD.note(0, WORLD.chain(0, seen))

    def claim(statement: Json) -> Json:
        ledger = {**statement["ledgers"][FIRST], "countersigned": len(seen), **claims}
        return {**statement, "ledgers": {**statement["ledgers"], FIRST: ledger}}

    bundle = WORLD.bundle([bodies, WORLD.history(1)], claim=claim)
    return replace(bundle, heads={**bundle.heads, FIRST: note})


def refusal(bundle: Bundle) -> str:
    with pytest.raises(TrustError) as caught:
        check(bundle, trust_in(bundle), signatures=2)
    return str(caught.value)


def other(body: tuple[Kind, Json], **changes: object) -> tuple[Kind, Json]:
    return body[0], {**body[1], **changes}


REWRITTEN = [TRUE[0], other(TRUE[1], run="9" * 32), *TRUE[2:]]
ATTACKS: dict[str, Bodies] = {
    "truncation": TRUE[:3],
    "dropped middle": [TRUE[0], *[other(b) for b in TRUE[3:4]], other(TRUE[4], intent=1), TRUE[5]],
    "swap": [TRUE[0], TRUE[3], TRUE[2], TRUE[1], TRUE[4], TRUE[5]],
    "duplicate": [*TRUE[:3], TRUE[1], other(TRUE[2], intent=3), TRUE[5]],
    "fork": [*TRUE[:3], other(TRUE[3], request="7" * 64), *TRUE[4:]],
    "owner rewrite": REWRITTEN,
    "rollback": TRUE[:1],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_rewritten_history_is_contradicted_by_the_countersigned_head(attack: str) -> None:
    said = refusal(lie(ATTACKS[attack]))
    assert f"ledger {FIRST[:12]}…" in said
    assert "the end was cut off" in said or "there are two histories" in said


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_that_head_it_is_the_statement_alone_that_names_it(attack: str) -> None:
    """What the countersignature adds: here all agree on the lie, and nothing contradicts it."""
    bundle = lie(ATTACKS[attack], countersigned=0)
    alone = replace(bundle, heads={k: v for k, v in bundle.heads.items() if k != FIRST})
    if attack == "rollback":
        assert check(alone, trust_in(alone), signatures=2).authenticated
    chain = alone.ledgers[FIRST]
    assert spend(FIRST, chain, PLAN).rounds == sum(e.kind is Kind.INTENT for e in chain)


def test_a_statement_that_claims_more_or_less_was_seen_is_refused() -> None:
    for seen in (0, 5, 7):
        assert "countersigned 6 entries, not as stated" in refusal(lie(TRUE, countersigned=seen))


def test_a_head_left_out_is_missed() -> None:
    bundle = WORLD.bundle()
    assert "countersigned 0 entries" in refusal(replace(bundle, heads={}))


def test_an_honest_ledger_may_go_on_after_what_was_seen() -> None:
    bundle = lie(TRUE, TRUE[:3])
    verdict = check(bundle, trust_in(bundle), signatures=2)
    seen = {client.pseudonym: client.countersigned for client in verdict.clients}
    assert seen[FIRST] == 3
    assert "countersigned 7 of these entries" in " ".join(verdict.checks)


def test_a_head_that_the_client_signed_alone_does_not_count() -> None:
    bundle = WORLD.bundle()
    note = SignedHead.decode(bundle.heads[FIRST])
    alone = {name: pair for name, pair in note.signatures.items() if name == "client"}
    forged = replace(note, signatures=alone).encode()
    said = refusal(replace(bundle, heads={**bundle.heads, FIRST: forged}))
    assert "not signed by the coordinator" in said


def test_another_clients_head_does_not_count() -> None:
    bundle = WORLD.bundle()
    other_ = next(name for name in bundle.heads if name != FIRST)
    said = refusal(replace(bundle, heads={**bundle.heads, FIRST: bundle.heads[other_]}))
    assert "not signed by the client" in said


def stored(change: Callable[[Json], Json]) -> Bodies:
    """The second intent stores another countersignature than it was handed."""
    entries = WORLD.chain(0, TRUE)
    body = {**TRUE[3][1], "countersigned": change(entries[3].body["countersigned"])}
    return [*TRUE[:3], (Kind.INTENT, body), *TRUE[4:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda seen: {**seen, "entries": 2}, "did not countersign the 2 entries before it"),
        (lambda seen: {**seen, "entries": 0}, "did not countersign the 0 entries before it"),
        (lambda seen: {**seen, "entries": 4}, "countersigned before it was written"),
        (lambda seen: {**seen, "signature": "0" * 128}, "did not countersign the 3 entries"),
    ],
)
def test_a_countersignature_in_an_entry_is_the_coordinators_over_what_stands_before(
    change: Callable[[Json], Json], words: str
) -> None:
    bodies = stored(change)
    assert words in refusal(lie(bodies, bodies))


@pytest.mark.parametrize("position", [1, 2, 3, 5])
def test_what_an_entry_says_was_spent_is_added_up_again(position: int) -> None:
    entries = WORLD.chain(0, TRUE)
    true = entries[position].body["spent"]
    less = {**true, "cost": number(float(true["cost"]) * 0.999)}
    bodies = [*TRUE[:position], other(TRUE[position], spent=less), *TRUE[position + 1 :]]
    assert f"entry {position}: its spent is not" in refusal(lie(bodies, bodies))


def test_an_intent_adds_up_at_its_owners_order() -> None:
    spent = {"order": 5, "cost": number(2 * 5 / (2 * 4.0**2))}
    bodies = [TRUE[0], other(TRUE[1], spent=spent), *TRUE[2:]]
    assert "entry 1: adds up at another order than the owner's" in refusal(lie(bodies, bodies))


# -- the owner's terms -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"least_noise_multiplier": "4.5"}, "less noise than the owner's least"),
        ({"greatest_sampling_rate": "0.5"}, "a greater sampling rate than the owner allows"),
        ({"most_rounds": 1}, "more rounds than the owner allows"),
    ],
)
def test_a_floor_that_the_plan_undercuts_is_named(terms: Json, words: str) -> None:
    bodies = WORLD.history(**terms)
    assert f"entry 1: {words}" in refusal(lie(bodies, bodies))


def test_rounds_beyond_the_spare_ones_are_refused() -> None:
    more = [(Kind.INTENT, {**WORLD.intent(2), "incarnation": i}) for i in (1, 2)]
    assert "entry 7: more rounds than the plan has" in refusal(lie([*TRUE, *more]))


def test_an_owner_may_allow_more_and_each_spend_is_held_against_its_own_time() -> None:
    """A budget of 3.5 covers the first round only; a second approval allows the other."""
    first = WORLD.history(1, budget="3.5")[:3]
    second = [(Kind.APPROVAL, WORLD.approval()), (Kind.INTENT, WORLD.intent(2))]
    bundle = WORLD.bundle([[*first, *second], WORLD.history(1)])
    most = check(bundle, trust_in(bundle), signatures=2).most_exposed
    assert (most.rounds, most.budget) == (2, 8.0)
    late = [*first, second[1], second[0]]
    assert "entry 3: epsilon_filter" in refusal(WORLD.bundle([late, WORLD.history(1)]))


def test_another_plan_of_the_same_coordinator_is_charged_but_is_not_this_plans_round() -> None:
    other_plan = "5" * 64
    before: Bodies = [
        (Kind.APPROVAL, {**WORLD.approval(), "plan": other_plan}),
        (Kind.INTENT, {**WORLD.intent(1), "plan": other_plan, "run": "6" * 32}),
    ]
    after = [other(b, intent=b[1]["intent"] + 2) if "intent" in b[1] else b for b in TRUE]
    chain = WORLD.chain(0, [*before, *after])
    spent = spend(FIRST, chain, PLAN)
    assert (spent.rounds, spent.other_rounds, spent.disclosed) == (2, 1, 2)
    assert sum(event.steps for event in spent.events) == 6
    unapproved = WORLD.chain(0, [before[1], *after])
    with pytest.raises(TrustError, match="entry 0: spends on a plan that was not approved"):
        spend(FIRST, unapproved, PLAN)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"least_noise_multiplier": "4.5"}, "less noise than the owner's least"),
        ({"greatest_sampling_rate": "0.5"}, "a greater sampling rate"),
        ({"most_rounds": 0, "spare_rounds": 0}, "more rounds than the owner allows"),
        ({"valid_until": "2025-12-31"}, "outside of the period"),
        ({"valid_from": "2026-01-02"}, "outside of the period"),
        ({"budget": "3.0"}, "over policy.budget"),
    ],
)
def test_another_plan_too_is_held_against_its_owners_terms(terms: Json, words: str) -> None:
    plan = {"plan": "5" * 64}
    before: Bodies = [
        (Kind.APPROVAL, {**WORLD.approval(**terms), **plan}),
        (Kind.INTENT, {**WORLD.intent(1), **plan}),
    ]
    after = [other(b, intent=b[1]["intent"] + 2) if "intent" in b[1] else b for b in TRUE]
    with pytest.raises(TrustError, match=f"entry 1: .*{words}"):
        spend(FIRST, WORLD.chain(0, [*before, *after]), PLAN)


def test_a_plan_with_a_greater_delta_than_its_owners_is_named() -> None:
    bodies = WORLD.history(delta="1e-06")
    assert "entry 1: a greater delta than the owner's" in refusal(lie(bodies, bodies))


def test_a_chain_made_to_keep_an_auditor_busy_is_refused() -> None:
    approval = (Kind.APPROVAL, {**WORLD.approval(), "plan": "5" * 64})
    busy = [
        (Kind.INTENT, {**WORLD.intent(1), "plan": "5" * 64, "event": Event(1.0, s, 1).json()})
        for s in [1000.0 + k for k in range(MOST_MECHANISMS + 1)]
    ]
    with pytest.raises(TrustError, match="one mechanism more"):
        spend(FIRST, WORLD.chain(0, [approval, *busy]), PLAN)


@pytest.mark.parametrize("cost", ["-1.0", "-1e+300"])
def test_a_negative_cost_cannot_even_be_written(cost: str) -> None:
    spent = {"order": 4, "cost": cost}
    with pytest.raises(CanonicalError, match="never negative"):
        WORLD.chain(0, [TRUE[0], other(TRUE[1], spent=spent)])


def test_the_bundle_on_disk_holds_the_heads(tmp_path: Path) -> None:
    WORLD.bundle().write(tmp_path / "b")
    assert sum(c.countersigned for c in verify(tmp_path / "b").clients) == 6 + 4
    (tmp_path / "b" / "heads" / f"{FIRST}.note").unlink()
    with pytest.raises(TrustError, match="heads"):
        verify(tmp_path / "b")


def test_time_never_goes_back(tmp_path: Path) -> None:
    chain = WORLD.chain(0, TRUE)
    earlier = Entry.sign(
        WORLD.identity(0), WORLD.federation, chain[2], Kind.INTENT, chain[3].body,
        "2025-12-31T23:59:59Z",
    )  # fmt: skip
    bundle = replace(
        WORLD.bundle(), ledgers={**WORLD.bundle().ledgers, FIRST: [*chain[:3], earlier]}
    )
    assert "entry 3: is older than the entry before it" in refusal(bundle)
