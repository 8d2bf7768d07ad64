"""A true bundle is verified, and every lie that we could think of is refused and named."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from audit.recompute import recompute
from audit.verify import check, verify
from audit.wording import up
from common.bundle import Trust
from common.canonical import digest, encode, number
from common.errors import TrustError
from common.keys import PublicKey, SigningKey
from common.ledger import Entry, Kind
from common.privacy.events import Event
from common.statement import INTOTO_TYPE, PLAN_TYPE, Envelope, read_privacy_statement

from .bundle_fixtures import (
    BUDGET,
    DELTA,
    PLAN,
    ROUNDS,
    STEPS,
    TIME,
    Json,
    World,
    exact_epsilon,
    files,
    filter_epsilon,
    renyi_epsilon,
    rewrite,
    trust_in,
)

ROOT = Path(__file__).resolve().parents[2]
WORLD = World()
FIRST, SECOND = (WORLD.identity(i).pseudonym for i in range(2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A genuine bundle on disk."""
    WORLD.bundle().write(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def trust() -> Trust:
    return trust_in(WORLD.bundle())


# -- the truth -------------------------------------------------------------------------------------


def test_a_true_bundle_is_verified_and_its_numbers_are_the_closed_forms(path, trust) -> None:
    verdict = verify(path, trust)
    assert verdict.authenticated
    assert verdict.json()["verdict"] == "verified"
    assert verdict.plan == PLAN
    assert dict(verdict.subjects) == {"model.onnx": "ab" * 32}
    most = verdict.most_exposed
    assert (most.pseudonym, most.rounds, most.disclosed) == (FIRST, 2, 2)
    assert most.epsilon_filter == pytest.approx(filter_epsilon(ROUNDS * STEPS), rel=1e-12)
    assert most.epsilon_rdp == pytest.approx(renyi_epsilon(ROUNDS * STEPS), rel=1e-12)
    assert (most.budget, most.delta, most.noise) == (BUDGET, DELTA, ("cryptographic",))
    other = next(c for c in verdict.clients if c.pseudonym == SECOND)
    assert other.epsilon_filter == pytest.approx(filter_epsilon(STEPS), rel=1e-12)


def test_without_fingerprints_from_outside_nobody_is_authenticated(path: Path) -> None:
    verdict = verify(path)
    assert not verdict.authenticated
    assert verdict.json()["verdict"] == "self-consistent, unauthenticated"


def test_a_true_bundle_is_recomputed_by_code_that_is_not_ours(path, trust) -> None:
    recomputed = recompute(verify(path, trust))
    assert recomputed.spent == pytest.approx(exact_epsilon(ROUNDS * STEPS), abs=1e-6)


def test_rounds_asked_again_after_a_crash_count_beyond_the_plan() -> None:
    bodies = [*WORLD.history(), (Kind.INTENT, {**WORLD.intent(2), "incarnation": 1})]
    bundle = WORLD.bundle([bodies, WORLD.history()])
    verdict = check(bundle, trust_in(bundle), signatures=2)
    assert verdict.most_exposed.rounds == 3
    recompute(verdict)
    # A headline for the declared plan alone would hide the third.
    for claim in (put(event=PLAN.event().json()), put(epsilon=number(exact_epsilon(4)))):
        with pytest.raises(TrustError):
            check(WORLD.bundle([bodies, WORLD.history()], claim=claim), None, signatures=2)


def test_an_intent_that_was_never_disclosed_is_charged_all_the_same() -> None:
    bodies = WORLD.history()[:-2]
    verdict = check(WORLD.bundle([bodies]), None, signatures=2)
    assert (verdict.most_exposed.rounds, verdict.most_exposed.disclosed) == (2, 1)
    assert verdict.most_exposed.epsilon_filter == pytest.approx(filter_epsilon(4), rel=1e-12)


def test_simulated_noise_on_simulated_data_is_true_where_the_statement_says_so() -> None:
    bodies = WORLD.history(simulated=True)
    bodies = [(k, {**b, "noise": "simulated"} if k is Kind.INTENT else b) for k, b in bodies]
    verdict = check(WORLD.bundle([bodies]), None, signatures=2)
    assert verdict.most_exposed.noise == ("simulated",)


def test_the_statement_that_we_publish_has_the_fields_that_are_checked_here() -> None:
    pytest.importorskip("onnxruntime")
    from server.release.release import privacy_predicate

    published = privacy_predicate(
        PLAN, version=1, event=PLAN.event(), epsilon=1.0, epsilon_filter=1.0, accountants={},
        noise=["cryptographic"],
        simulated=False, rounds=2, ledgers={}, clients=2,
    )  # fmt: skip
    _, predicate = read_privacy_statement(
        Envelope.decode(WORLD.bundle().statement).verify(
            INTOTO_TYPE, [WORLD.coordinator.public]
        )
    )  # fmt: skip
    assert set(published) == set(predicate)
    for name in ("plan", "schema", "name", "trust", "unit", "adjacency", "delta", "event"):
        assert published[name] == predicate[name]


# -- altered files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.figures)])
def test_no_altered_byte_of_any_file_is_accepted(path: Path, trust: Trust, share: float) -> None:
    chance = random.Random(1)
    undetected = []
    for name, good in files(path).items():
        for position in range(len(good)):
            if chance.random() >= share:
                continue
            broken = bytearray(good)
            broken[position] ^= 1 << position % 8
            (path / name).write_bytes(broken)
            try:
                verify(path, trust)
                undetected.append((name, position))
            except TrustError as error:
                assert str(error)
        (path / name).write_bytes(good)
    assert undetected == []
    assert verify(path, trust).authenticated


def test_no_altered_byte_of_a_ledger_is_accepted_even_with_a_new_manifest(path, trust) -> None:
    name = f"ledgers/{FIRST}.jsonl"
    good = (path / name).read_bytes()
    manifest = (path / "bundle.json").read_bytes()
    starts = [i for i in range(len(good)) if i == 0 or good[i - 1] == 0x0A]
    for position in sorted({*range(0, len(good), 5), *(start - 1 for start in starts[1:])}):
        broken = bytearray(good)
        broken[position] ^= 1 if position % 2 else 0x20
        (path / name).write_bytes(broken)
        (path / "bundle.json").write_bytes(
            manifest.replace(digest(good).encode(), digest(bytes(broken)).encode())
        )
        with pytest.raises(TrustError, match=rf"ledger {FIRST[:12]}…, entry (\d+)") as caught:
            verify(path, trust)
        # The entry that is wrong is named; where a line's end went, it may be the one after.
        entry = sum(start <= position for start in starts) - 1
        named = int(str(caught.value).partition("entry ")[2].split(":")[0])
        assert named in (entry, entry + 1)
        assert named == entry or good[position] == 0x0A


@pytest.mark.parametrize("cut", [1, 2, 100])
@pytest.mark.parametrize("name", ["bundle.json", "plan.dsse.json", "statement.dsse.json", "ledger"])
def test_a_truncated_file_is_refused(path: Path, trust: Trust, name: str, cut: int) -> None:
    file = path / (f"ledgers/{FIRST}.jsonl" if name == "ledger" else name)
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(TrustError):
        verify(path, trust)


# -- altered histories -----------------------------------------------------------------------------


def swapped(entries: list[Entry]) -> list[Entry]:
    return [entries[0], entries[2], entries[1], *entries[3:]]


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda e: e[:-1], "its end was cut off"),
        (lambda e: e[:-2], "its end was cut off"),
        (lambda e: [], "it is empty"),
        (lambda e: e[1:], "entry 0: numbered 1; one is missing or moved"),
        (lambda e: [*e[:2], *e[3:]], "entry 2: numbered 3"),
        (swapped, "entry 1: numbered 2"),
        (lambda e: [*e, e[-1]], "entry 6: numbered 5"),
        (lambda e: [e[0], e[0], *e[1:]], "entry 1: numbered 0"),
        (lambda e: [*e[:2], replace(e[2], seq=2, prev=e[0].digest), *e[3:]], "entry 2: does not"),
        (lambda e: [replace(e[0], time="2025-01-01T00:00:00Z"), *e[1:]], "entry 0: signature"),
        (lambda e: [*e[:-1], replace(e[-1], signature=bytes(64))], "entry 5: signature"),
    ],
    ids=["cut", "cut two", "all", "first", "middle", "swap", "repeat", "twice", "prev", "time"]
    + ["signature"],
)
def test_entries_dropped_moved_or_altered_are_named(tmp_path, trust, attack, words: str) -> None:
    bundle = WORLD.bundle(chain=attack)
    # An approver checks a bundle that was never written.
    with pytest.raises(TrustError) as caught:
        check(bundle, trust, signatures=1)
    assert words in str(caught.value)
    bundle.write(tmp_path / "b")
    with pytest.raises(TrustError) as caught:
        verify(tmp_path / "b", trust)
    assert words in str(caught.value)
    assert FIRST[:12] in str(caught.value)


def test_a_history_that_its_owner_wrote_anew_does_not_fit_the_statement(trust: Trust) -> None:
    anew = WORLD.chain(0, WORLD.history(1))
    with pytest.raises(TrustError, match="ends elsewhere than the statement says"):
        check(WORLD.bundle(chain=lambda _: anew), trust, signatures=2)


def test_an_entry_more_than_the_statement_counts_is_refused(trust: Trust) -> None:
    more = WORLD.chain(0, [*WORLD.history(), (Kind.INTENT, WORLD.intent(2))])
    with pytest.raises(TrustError, match="ends elsewhere"):
        check(WORLD.bundle(chain=lambda _: more), trust, signatures=2)


def test_another_clients_entries_are_refused(trust: Trust) -> None:
    theirs = WORLD.chain(1, WORLD.history())
    with pytest.raises(TrustError, match="signature is not by key"):
        check(WORLD.bundle(chain=lambda _: theirs), trust, signatures=2)


def test_entries_for_another_federation_are_refused(trust: Trust) -> None:
    elsewhere = World(coordinator=SigningKey.from_seed(b"z" * 32))
    who = WORLD.identity(0)
    entries: list[Entry] = []
    for kind, body in WORLD.history():
        last = entries[-1] if entries else None
        body = {**elsewhere.filled(0, entries, kind, body), **body}
        entries.append(Entry.sign(who, elsewhere.federation, last, kind, body, TIME))

    def claim(claims: Json) -> Json:
        head = {"head": entries[-1].digest, "entries": len(entries), "countersigned": 0}
        return {**claims, "ledgers": {**claims["ledgers"], FIRST: head}}

    with pytest.raises(TrustError, match="entry 0: belongs to another"):
        check(WORLD.bundle(claim=claim, chain=lambda _: entries), trust, signatures=2)


# -- lies that everybody signed --------------------------------------------------------------------


def changed(position: int, **changes: object) -> list[tuple[Kind, Json]]:
    """A history whose entry at ``position`` says something else."""
    bodies = WORLD.history()
    kind, body = bodies[position]
    bodies[position] = (kind, {**body, **changes})
    return bodies


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (changed(1, event=Event(1.0, 3.0, STEPS).json()), "entry 1: its event is not the plan's"),
        (changed(3, event=Event(0.5, 4.0, STEPS).json()), "entry 3: its event is not the plan's"),
        (changed(3, event=Event(1.0, 4.0, 1).json()), "entry 3: its event is not the plan's"),
        (changed(3, clipping_norm="99.0"), "entry 3: its clipping_norm is not the plan's"),
        (changed(3, divisor="1.0"), "entry 3: its divisor is not the plan's"),
        (changed(3, plan="0" * 64), "entry 3: spends on a plan that was not approved"),
        (changed(3, noise="none"), "entry 3: unknown kind of noise"),
        (changed(3, noise="simulated"), "entry 3: simulated noise on data that is not simulated"),
        (changed(3, round=3), "entry 3: round 3 is not in the plan"),
        (changed(3, round=0), "entry 3: round 0 is not in the plan"),
        (WORLD.history()[1:2], "entry 0: spends on a plan that was not approved"),
        ([*WORLD.history()[1:2], WORLD.history()[0]], "entry 0: spends on a plan that was not"),
        (changed(0, plan="0" * 64), "entry 1: spends on a plan that was not approved"),
        (WORLD.history(budget="3.5"), f"epsilon_filter {filter_epsilon(4):.6g} is over policy"),
        (WORLD.history(budget="0.0"), "not a budget"),
        (WORLD.history(budget="-1.0"), "not a budget"),
        (WORLD.history(budget=8), "a number is written as a short string"),
        (WORLD.history(delta="0.0"), "not a budget"),
        (WORLD.history(delta="2.0"), "not a budget"),
        (WORLD.history(order=1), "not a Rényi order"),
        (WORLD.history(order=10**9), "not a Rényi order"),
        (WORLD.history(order="4"), "not a Rényi order"),
        (WORLD.history(order=True), "not a Rényi order"),
        (changed(0, terms=None), "malformed"),
        (changed(0, terms={}), "malformed"),
        (changed(0, terms=["budget"]), "malformed"),
    ],
)
def test_what_a_client_signed_is_held_against_plan_and_approval(trust, history, words) -> None:
    with pytest.raises(TrustError) as caught:
        check(WORLD.bundle([history, WORLD.history(1)]), trust, signatures=2)
    assert words in str(caught.value)


def test_the_word_false_is_not_a_permission_to_simulate(trust: Trust) -> None:
    for value in ("false", "true", 1, None):
        bodies = WORLD.history(simulated=value)
        bodies = [(k, {**b, "noise": "simulated"} if k is Kind.INTENT else b) for k, b in bodies]
        with pytest.raises(TrustError, match="simulated noise on data that is not simulated"):
            check(WORLD.bundle([bodies, WORLD.history(1)]), trust, signatures=2)


def put(**changes: object) -> Callable[[Json], Json]:
    return lambda claims: {**claims, **changes}


def drop(name: str) -> Callable[[Json], Json]:
    return lambda claims: {k: v for k, v in claims.items() if k != name}


def ledgers(**changes: object) -> Callable[[Json], Json]:
    """Another head, count or client in what the statement says of ledgers."""
    return lambda claims: {
        **claims,
        "ledgers": {**claims["ledgers"], FIRST: {**claims["ledgers"][FIRST], **changes}},
    }


TRUE = exact_epsilon(ROUNDS * STEPS)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (put(epsilon=number(TRUE * 0.99)), "headline epsilon"),
        (put(epsilon="0.001"), "headline epsilon"),
        (put(epsilon="0.0"), "headline epsilon"),
        (put(epsilon="-1.0"), "headline epsilon"),
        (put(epsilon=number(renyi_epsilon(4) * 1.001)), "headline epsilon"),
        (put(epsilon="2"), "canonical spelling"),
        (put(epsilon=2), "short string"),
        (put(epsilon_filter=number(filter_epsilon(2))), "statement's epsilon_filter is not"),
        (put(epsilon_filter="0.0"), "statement's epsilon_filter is not"),
        (put(accountants={"rdp (privet)": "1.0"}), "statement's Rényi epsilon is not"),
        (put(accountants={}), "malformed"),
        (put(accountants=None), "malformed"),
        (put(event=Event(1.0, 4.0, 1).json()), "statement's event is not"),
        (put(event=Event(0.1, 4.0, 4).json()), "statement's event is not"),
        (put(delta="1e-06"), "statement's delta is not"),
        (put(plan="0" * 64), "statement's plan is not"),
        (put(schema="0" * 64), "statement's schema is not"),
        (put(name="other"), "statement's name is not"),
        (put(trust="central"), "statement's trust is not"),
        (put(unit="client"), "statement's unit is not"),
        (put(adjacency="replace-one"), "statement's adjacency is not"),
        (put(noise=["simulated"]), "other kinds of noise"),
        (put(noise=[]), "other kinds of noise"),
        (put(noise="cryptographic"), "other kinds of noise"),
        (put(clients=1), "counts other clients"),
        (put(version=0), "version is not a count"),
        (put(version="1"), "version is not a count"),
        (put(version=True), "version is not a count"),
        (put(rounds=-1), "rounds is not a count"),
        (put(rounds=3), "rounds is not a count"),
        (put(limits=None), "limits are not sentences"),
        (put(limits=[1]), "limits are not sentences"),
        (put(ledgers={}), ""),
        (put(ledgers=None), "malformed"),
        (put(ledgers=[]), ""),
        (ledgers(head="0" * 64), "ends elsewhere"),
        (ledgers(entries=4), "ends elsewhere"),
        (lambda c: {**c, "ledgers": {**c["ledgers"], "0" * 32: {}}, "clients": 3}, "other ledgers"),
        *((drop(name), "malformed") for name in WORLD.bundle and (
            "plan", "schema", "trust", "unit", "delta", "epsilon", "epsilon_filter", "event",
            "noise", "ledgers", "accountants", "simulated", "version", "rounds", "limits",
        )),
    ],
)  # fmt: skip
def test_a_statement_that_both_signed_is_still_recomputed(trust, claim, words: str) -> None:
    with pytest.raises(TrustError) as caught:
        check(WORLD.bundle(claim=claim), trust, signatures=2)
    assert words in str(caught.value)


def test_simulated_noise_must_be_said(trust: Trust) -> None:
    bodies = WORLD.history(simulated=True)
    bodies = [(k, {**b, "noise": "simulated"} if k is Kind.INTENT else b) for k, b in bodies]
    for value in (False, "true", 1, 0, "", None, []):
        bundle = WORLD.bundle([bodies, WORLD.history(1)], claim=put(simulated=value))
        with pytest.raises(TrustError, match="does not say"):
            check(bundle, trust, signatures=2)


def test_a_headline_just_below_the_truth_is_caught_by_the_second_accountant(path, trust) -> None:
    # Within what the standard library can tell, but not what PLD gives.
    bundle = WORLD.bundle(claim=put(epsilon=number(TRUE * 1.01)))
    with pytest.raises(TrustError, match="which PLD gives"):
        recompute(check(bundle, trust, signatures=2))


def test_a_plan_with_less_noise_than_stated_is_another_plan(trust: Trust) -> None:
    weaker = replace(PLAN, privacy=replace(PLAN.privacy, noise_multiplier=1.0))
    bundle = WORLD.bundle()
    swapped_plan = Envelope.sign(PLAN_TYPE, weaker.encode(), [WORLD.coordinator]).encode()
    with pytest.raises(TrustError, match="statement's plan is not"):
        check(replace(bundle, plan=swapped_plan), trust, signatures=2)


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", encode({**PLAN.json(), "rounds": 0}), encode({**PLAN.json(), "x": 1})]
    + [encode({**PLAN.json(), "privacy": {**PLAN.json()["privacy"], "noise_multiplier": "1e-155"}})]
    + [encode({**PLAN.json(), "privacy": {**PLAN.json()["privacy"], "epsilon": "1.0"}})],
)
def test_a_signed_plan_that_is_none_does_not_crash_the_audit(trust, payload: bytes) -> None:
    envelope = Envelope.sign(PLAN_TYPE, payload, [WORLD.coordinator]).encode()
    with pytest.raises(TrustError):
        check(replace(WORLD.bundle(), plan=envelope), trust, signatures=2)


# -- who signed ------------------------------------------------------------------------------------


def test_a_bundle_that_others_signed_is_consistent_but_not_vouched_for(tmp_path, trust) -> None:
    forged = World(SigningKey.from_seed(b"1" * 32), SigningKey.from_seed(b"2" * 32))
    forged.bundle().write(tmp_path / "b")
    assert not verify(tmp_path / "b").authenticated
    with pytest.raises(TrustError, match="does not vouch for") as caught:
        verify(tmp_path / "b", trust)
    assert caught.value.code == "untrusted-key"


def test_a_statement_needs_two_different_signers(trust: Trust) -> None:
    bundle = WORLD.bundle()
    payload = Envelope.decode(bundle.statement).payload
    for keys in ([WORLD.coordinator], [WORLD.approver], [WORLD.coordinator, WORLD.coordinator]):
        lonely = replace(bundle, statement=Envelope.sign(INTOTO_TYPE, payload, keys).encode())
        with pytest.raises(TrustError, match="1 of 2"):
            check(lonely, trust, signatures=2)
    both_roles = replace(
        bundle, signers={"coordinator": WORLD.coordinator.public,
                         "approver": WORLD.coordinator.public},
    )  # fmt: skip
    with pytest.raises(TrustError, match="1 of 2"):
        check(both_roles, trust_in(both_roles), signatures=2)


def test_a_plan_that_only_the_approver_signed_is_refused(trust: Trust) -> None:
    plan = Envelope.sign(PLAN_TYPE, PLAN.encode(), [WORLD.approver]).encode()
    with pytest.raises(TrustError, match="0 of 1"):
        check(replace(WORLD.bundle(), plan=plan), trust, signatures=2)


def test_a_foreign_client_key_is_refused(trust: Trust) -> None:
    bundle = WORLD.bundle()
    foreign = {**bundle.clients, FIRST: SigningKey.from_seed(b"f" * 32).public}
    with pytest.raises(TrustError, match=f"client {FIRST[:16]} has key"):
        check(replace(bundle, clients=foreign), trust, signatures=2)
    with pytest.raises(TrustError, match="signature is not by key"):
        check(replace(bundle, clients=foreign), None, signatures=2)


def test_a_client_that_the_trust_file_names_cannot_be_left_out(trust: Trust) -> None:
    alone = WORLD.bundle([WORLD.history()])
    with pytest.raises(TrustError, match="leaves out client") as caught:
        check(alone, trust, signatures=2)
    assert caught.value.code == "incomplete-bundle"
    with pytest.raises(TrustError, match="does not vouch for"):
        check(WORLD.bundle(), trust_in(alone), signatures=2)


def test_a_bundle_without_clients_or_with_one_without_a_ledger_is_refused() -> None:
    bundle = WORLD.bundle()
    empty = WORLD.bundle(claim=put(ledgers={}, clients=0))
    with pytest.raises(TrustError, match="other ledgers"):
        check(replace(empty, clients={}, ledgers={}), None, signatures=2)
    extra: dict[str, PublicKey] = {**bundle.clients, "0" * 32: WORLD.approver.public}
    with pytest.raises(TrustError, match="other ledgers"):
        check(replace(bundle, clients=extra), None, signatures=2)


# -- the command -----------------------------------------------------------------------------------


def command(*arguments: object, program: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", program] if program else ["-m", "audit"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_commands_exit_codes_tell_what_happened(path: Path, trust: Trust) -> None:
    fingerprints = path.parent / "trust.json"
    trust.write(fingerprints)
    done = command("verify", path, "--trust", fingerprints)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verified\n")
    assert (
        f"epsilon_filter {up(filter_epsilon(4), 4)} of policy.budget 8 at delta 1e-05 "
        "(cryptographic noise)" in done.stdout
    )

    done = command("verify", path)
    assert done.returncode == 12
    assert done.stdout.startswith("self-consistent, unauthenticated\n")

    for absent in (path.parent / "nothing", path.parent):
        done = command("verify", absent)
        assert (done.returncode, done.stdout) == (4, "")
        assert "is not a bundle" in done.stderr
    for bad in (path.parent / "absent.json", path / "plan.dsse.json", path):
        done = command("verify", path, "--trust", bad)
        assert done.returncode == 4
        assert "cannot use the trust file" in done.stderr

    name = f"ledgers/{FIRST}.jsonl"
    rewrite(path, name, (path / name).read_bytes().replace(b'"round":2', b'"round":1'))
    for arguments in ([path, "--trust", fingerprints], [path]):
        done = command("verify", *arguments)
        assert (done.returncode, done.stdout) == (11, "")
        assert done.stderr.startswith("WRONG: ")
        assert "entry 3: signature" in done.stderr


def test_the_command_speaks_json(path: Path) -> None:
    done = command("verify", path, "--json")
    assert done.returncode == 12
    document = json.loads(done.stdout)
    assert document["verdict"] == "self-consistent, unauthenticated"
    assert document["clients"][0].keys() >= {"epsilon_filter", "budget", "noise"}


def test_the_verifying_half_needs_only_cryptography_and_the_standard_library(path: Path) -> None:
    program = """
import sys
class Forbidden:
    def find_spec(self, name, *rest):
        allowed = {"audit", "common", "cryptography", "_cffi_backend", "cffi"}
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Forbidden())
from audit.__main__ import main
code = main(["verify", sys.argv[1]])
heavy = {"torch", "numpy", "flwr", "dp_accounting", "scipy", "typer", "rich"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""
    done = command(path, program=program)
    assert (done.returncode, done.stderr) == (12, "")


def test_a_bundle_may_be_moved(path: Path, trust: Trust, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere", trust).authenticated
