"""A record can be scored again by whoever holds it, and says where it was changed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit.canaries.claims import Clause, claim_of
from audit.canaries.design import SCORES, Claim, Design, Observed, spare_rows
from audit.canaries.interval import PLD, RDP
from audit.canaries.judgement import Judgement
from audit.canaries.record import (
    MOST_CANARIES,
    MOST_RANKS,
    MOST_STEPS,
    UNFAIR,
    Recorder,
    check_record,
    commit,
)
from audit.canaries.special import fair_coins
from audit.canaries.trial import run_trial
from client.training.conformance import Finding
from common.canonical import digest, encode, number
from common.errors import InputError, OperationError, TrustError
from common.keys import SigningKey
from common.privacy.events import Event
from common.privacy.noise import Stream
from tests.audit.canary_fixtures import PRIVACY, coins, from_the_paper

KEY = SigningKey.from_seed(b"\x07" * 32)
DESIGN = Design(canaries=200, guesses=40, calibration=20)
EVENT = Event(0.05, 1.0962, 20)
CLAIM = claim_of(EVENT, 1e-5, RDP)
COINS = coins(3, 200)
SEEN = run_trial(
    from_the_paper(PRIVACY, 200, 20), PRIVACY, COINS, 20, Stream.simulated(3, "record")
)


FOUND = [Finding("replay", True, 0.0, None, "the same").json()]
CLAUSES = [Clause("rdp-twice", True, "both give 1")]


def write(path: Path, claim: Claim = CLAIM) -> tuple[list[str], Judgement]:
    recorder = Recorder(path, KEY)
    heads = [
        recorder.declare(DESIGN, claim, COINS, privacy=PRIVACY.json(), planned_steps=60),
        recorder.observe(SEEN),
    ]
    return heads, recorder.reveal(FOUND, CLAUSES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    write(path)
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path))


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def signed(path: Path, changed: list[dict[str, Any]]) -> None:
    """What the record's own key can do: every line linked and signed anew."""
    prev, lines = "0" * 64, []
    for entry in changed:
        fields = {name: value for name, value in entry.items() if name != "signature"}
        fields["prev"] = prev
        signature = KEY.sign(b"privet/audit-record/v1\n" + encode(fields))
        line = encode({**fields, "signature": base64.b64encode(signature).decode()})
        prev = digest(line)
        lines.append(line + b"\n")
    path.write_bytes(b"".join(lines))


# -- what holds ----------------------------------------------------------------------------------


def test_an_outsider_gets_the_same_numbers_from_the_record_alone(tmp_path: Path) -> None:
    heads, judgement = write(tmp_path / "record.jsonl")
    checked = check_record(tmp_path / "record.jsonl")
    assert checked.judgement == judgement
    assert (checked.design, checked.claim, checked.plan) == (DESIGN, CLAIM, None)
    assert (checked.key, checked.declared) == (KEY.public.fingerprint, heads[0])
    assert checked.claim_recomputed
    assert not checked.usual  # 200 canaries are fewer than usual


def test_everything_is_fixed_on_disk_before_it_could_be_tuned(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    recorder = Recorder(path, KEY)
    recorder.declare(DESIGN, CLAIM, COINS, privacy=PRIVACY.json(), planned_steps=60)
    first = path.read_bytes()
    assert "".join("01"[coin] for coin in COINS).encode() not in first
    assert [entry["kind"] for entry in entries(path)] == ["declared"]
    recorder.observe(SEEN)
    assert path.read_bytes().startswith(first)
    assert [entry["kind"] for entry in entries(path)] == ["declared", "observed"]
    with pytest.raises(TrustError, match="entry 2: missing"):
        check_record(path)


def test_a_record_is_written_in_its_order_only(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record.jsonl", KEY)
    with pytest.raises(RuntimeError, match="next is declared"):
        recorder.observe(SEEN)
    assert not (tmp_path / "record.jsonl").exists()


def test_a_record_is_never_written_over(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="there already"):
        Recorder(path, KEY)
    assert path.read_bytes() == before


def test_a_commitment_hides_coins_behind_its_salt() -> None:
    assert commit(bytes(32), COINS) != commit(b"\x01" * 32, COINS)
    assert commit(bytes(32), COINS) == commit(bytes(32), list(COINS))


def test_a_directory_that_cannot_be_written_is_no_crash(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "none" / "record.jsonl", KEY)
    with pytest.raises(OperationError):
        recorder.declare(DESIGN, CLAIM, COINS, privacy=PRIVACY.json(), planned_steps=60)


def test_checking_imports_neither_torch_nor_numpy(path: Path) -> None:
    program = """
import sys
from pathlib import Path
from audit.canaries.record import check_record
check_record(Path(sys.argv[1]))
heavy = {"torch", "numpy", "scipy", "dp_accounting", "client", "typer", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- what does not -------------------------------------------------------------------------------


def test_a_changed_byte_is_found_in_the_entry_that_it_is_in(path: Path) -> None:
    data = path.read_bytes()
    starts = [0, data.index(b"\n") + 1]
    starts.append(data.index(b"\n", starts[1]) + 1)
    spread = range(0, len(data), len(data) // 150)
    for position in [*spread, *starts, len(data) - 1]:
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(TrustError) as found:
            check_record(path)
        if b"\n" not in (data[position : position + 1], bytes(changed[position : position + 1])):
            entry = sum(position >= start for start in starts) - 1
            assert str(found.value).startswith(f"entry {entry}: ")


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def attack(path: Path) -> None:
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return attack


FORMS = {
    "cut off": (lines(lambda found: found[:2]), "entry 2: missing"),
    "torn": (lines(lambda found: [*found[:2], found[2][:-5]]), "entry 2: "),
    "empty": (lines(lambda found: []), "entry 0: missing"),
    "swapped": (lines(lambda found: [found[0], found[2], found[1]]), "entry 1: "),
    "middle dropped": (lines(lambda found: [found[0], found[2]]), "entry 1: "),
    "first dropped": (lines(lambda found: found[1:]), "entry 0: "),
    "doubled": (lines(lambda found: [*found, found[2]]), "entry 3: "),
    "garbage": (lambda path: path.write_bytes(b"\xff\x00\n"), "entry 0: "),
    "deep": (lambda path: path.write_bytes(b"[" * 9999 + b"\n"), "entry 0: "),
    "enormous": (lambda path: path.write_bytes(b"1" * (2**23 + 2)), "longer than any"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_record_of_another_form_is_refused_and_the_entry_named(path: Path, name: str) -> None:
    attack, message = FORMS[name]
    attack(path)
    before = path.read_bytes()
    with pytest.raises(TrustError) as found:
        check_record(path)
    assert message in str(found.value)
    assert path.read_bytes() == before


def edit(number_: int, *keys: str | int, to: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(found: list[dict[str, Any]]) -> None:
        value: Any = found[number_]["body"]
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to(value[keys[-1]]) if callable(to) else to

    return change


def flipped(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


# The key's owner signs everything anew: what was fixed must still agree with what follows.
LIES = {
    "other coins": (edit(2, "coins", to=flipped), 2, "committed to"),
    "another salt": (edit(2, "salt", to="00" * 32), 2, "committed to"),
    "fewer coins": (edit(2, "coins", to=lambda text: text[1:]), 2, "each canary"),
    "a better result": (edit(2, "judgement", "wrong", to=["noise"]), 2, "follows"),
    "other right guesses": (
        edit(2, "judgement", "right", to={"likelihood-ratio": 40, "difference": 20}),
        2,
        "follows",
    ),
    "a laxer level": (edit(0, "design", "confidence", to="0.5"), 2, "follows"),
    "more guesses": (edit(0, "design", "guesses", to=100), 2, "follows"),
    "odd guesses": (edit(0, "design", "guesses", to=41), 0, "even"),
    "another method": (edit(0, "design", "methods", to=["luck"]), 0, "this version"),
    "a smaller claim": (edit(0, "claim", "epsilon", to="0.5"), 0, "claimed epsilon"),
    "a larger curve": (edit(0, "claim", "mu", to="9.0"), 0, "curve's mu"),
    "an unknown accountant": (edit(0, "claim", "method", to="mine"), 0, "no accountant"),
    "another mechanism": (edit(0, "privacy", "sampling_rate", to="0.5"), 0, "mechanism"),
    "fewer planned steps": (edit(0, "planned_steps", to=19), 0, "mechanism"),
    "no noise declared": (edit(0, "claim", "event", "noise_multiplier", to="0.0"), 0, ""),
    "a million million steps": (edit(0, "claim", "event", "steps", to=10**12), 0, "steps: 1000"),
    "too many canaries": (edit(0, "design", "canaries", to=10**9), 0, "canaries: 1000000000"),
    "too many thresholds": (edit(0, "design", "ranks", to=["0.5"] * 99), 0, "ranks: 99"),
    "more steps than any test": (edit(0, "claim", "event", "steps", to=1001), 0, "steps: 1001"),
    "planned steps without end": (edit(0, "planned_steps", to=2**53 - 1), 0, "planned_steps: 9"),
    "planned steps that are no count": (edit(0, "planned_steps", to=True), 0, "planned_steps: T"),
    "noise that takes minutes": (
        edit(0, "claim", "event", "noise_multiplier", to="0.1"),
        0,
        "mechanism",
    ),
    "spare values without end": (
        edit(1, "observed", "spare_values", to=2**53 - 1),
        1,
        "spare_values: 9007199254740991, and a test has 128400",
    ),
    "a finding in another shape": (edit(2, "conformance", 0, "ok", to=1), 2, "conformance: ok"),
    "a finding of no number": (edit(2, "conformance", 0, "p_value", to="x"), 2, "number"),
    "a finding too few": (edit(2, "accounting", 0, to={}), 2, "accounting: "),
    "findings that are no list": (edit(2, "accounting", to={}), 2, "accounting: "),
    "scores that were left out": (edit(1, "observed", "sums", to=[]), 1, "0 figures"),
    "scores that are not numbers": (edit(1, "observed", "spare_squares", to="nan"), 1, "number"),
    "negative squares": (edit(1, "observed", "squares", to=["-1.0"] * 200), 1, "negative"),
    "scores in another shape": (edit(1, "observed", to=7), 1, ""),
    "a claim in another shape": (edit(0, "claim", to="small"), 0, ""),
    "a plan without a digest": (edit(0, "plan", to="mine"), 0, "digest"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_record_that_its_owner_signed_anew_must_still_agree(path: Path, name: str) -> None:
    change, entry, message = LIES[name]
    found = entries(path)
    change(found)
    signed(path, found)
    with pytest.raises(TrustError) as error:
        check_record(path)
    assert str(error.value).startswith(f"entry {entry}: ")
    assert message in str(error.value)


def test_lines_of_two_keys_are_no_record(path: Path) -> None:
    found = entries(path)
    found[1]["key"] = SigningKey.from_seed(b"\x08" * 32).public.text()
    signed(path, found)
    with pytest.raises(TrustError, match="entry 1: "):
        check_record(path)


def test_no_record_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        check_record(tmp_path / "record.jsonl")


def test_a_claim_by_pld_is_taken_as_it_is_where_dp_accounting_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "record.jsonl", Claim(EVENT, 1e-5, 1.25, PLD, 1.0))
    with pytest.raises(TrustError, match="entry 0: the claimed epsilon"):
        check_record(tmp_path / "record.jsonl")
    monkeypatch.setattr("audit.canaries.record.find_spec", lambda _: None)
    assert not check_record(tmp_path / "record.jsonl").claim_recomputed


def test_what_conformance_and_accounting_found_is_in_the_record_and_counts(path: Path) -> None:
    assert check_record(path).wrong == []
    for line, field in (("conformance", "check"), ("accounting", "name")):
        found = entries(path)
        found[2]["body"][line][0] |= {"ok": False, "message": "odd"}
        signed(path, found)
        checked = check_record(path)
        assert f"{line}, {found[2]['body'][line][0][field]}: odd" in checked.wrong
        assert checked.wrong == checked.recorded_wrong
        assert checked.judgement.wrong == ()


def test_coins_that_nobody_can_have_tossed_are_refused(tmp_path: Path) -> None:
    for included, refused in ((1, True), (199, True), (56, True), (58, False), (140, False)):
        unfair = tuple(i < included for i in range(200))
        assert (fair_coins(included, 200) < UNFAIR) == refused
        path = tmp_path / f"{included}.jsonl"
        recorder = Recorder(path, KEY)
        recorder.declare(DESIGN, CLAIM, unfair, privacy=PRIVACY.json(), planned_steps=60)
        recorder.observe(SEEN)
        recorder.reveal(FOUND, CLAUSES)
        if refused:
            with pytest.raises(TrustError, match=f"entry 2: coins: {included} of 200"):
                check_record(path)
        else:
            check_record(path)


def test_a_claim_that_would_take_long_to_compute_again_is_no_claim_of_ours(
    tmp_path: Path,
) -> None:
    event = Event(1e-9, 0.09, 1)  # twelve seconds of PLD
    privacy = replace(PRIVACY, sampling_rate=1e-9, noise_multiplier=0.09)
    for claim, refused in (
        (claim_of(event, 1e-5), False),
        (Claim(event, 1e-5, 1.0, PLD, 1.0), True),
    ):
        path = tmp_path / f"{refused}.jsonl"
        recorder = Recorder(path, KEY)
        recorder.declare(DESIGN, claim, COINS, privacy=privacy.json(), planned_steps=60)
        recorder.observe(SEEN)
        recorder.reveal(FOUND, CLAUSES)
        if refused:
            with pytest.raises(TrustError, match=r"entry 0: noise_multiplier: 0\.09"):
                check_record(path)
        else:
            assert (check_record(path).claim.method, claim.method) == (RDP, RDP)


def test_the_largest_record_that_there_can_be_is_checked(tmp_path: Path) -> None:
    most = Design(MOST_CANARIES, MOST_CANARIES, 1, ranks=(0.5,) * MOST_RANKS)
    event = Event(0.05, 1.0962, MOST_STEPS)
    figures = tuple(float(i % 7) for i in range(MOST_CANARIES))
    seen = Observed(
        dict.fromkeys(SCORES, figures),
        figures,
        figures,
        spare_rows(MOST_CANARIES, MOST_STEPS) * MOST_STEPS,
        1.0,
    )
    recorder = Recorder(tmp_path / "record.jsonl", KEY)
    found = coins(1, MOST_CANARIES)
    privacy = PRIVACY.json()
    recorder.declare(most, claim_of(event, 1e-5), found, privacy=privacy, planned_steps=10**12)
    recorder.observe(seen)
    recorder.reveal(FOUND * 20_000, CLAUSES)
    assert check_record(tmp_path / "record.jsonl").conformance


def test_scores_are_short_texts_that_come_back_to_the_bit() -> None:
    assert Observed.from_json(SEEN.json(), 200, 20) == SEEN
    assert max(len(number(value)) for value in SEEN.sums) <= 16
