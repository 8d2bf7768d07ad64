"""What was fixed first, what was seen then, and what was revealed last: three signed lines.

The rules: ``declared`` (the design, the claim, a commitment to the coins) is on disk before
anything is trained; ``observed`` (every canary's scores, from which the guesses follow) is on disk
before a coin is looked at to score them; ``revealed`` has the coins, the salt, what follows, and
what conformance and accounting found. Each line is canonical JSON, names the SHA-256 of the one
before it, and is signed. So an outsider repeats the scoring from the file alone, and a changed byte
is found at a line that can be named.

What conformance and accounting found cannot be repeated from the file: it is as recorded by whoever
signed it, and whoever made up a record can make it up too.

What a record cannot show by itself: that it is the only one that was made (whoever tests until a
result pleases can keep the last), and when it was made. For that, give ``declared``'s digest to
somebody before the run; it is printed then. Nor that scores came from training: whoever makes a
record can make them up, but not choose them after a coin toss that others watched.

Needs ``cryptography`` and the standard library; where dp-accounting is there, the claim's epsilon
is computed again too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from audit.canaries import wording
from audit.canaries.claims import Clause, claim_of
from audit.canaries.design import Claim, Design, Observed
from audit.canaries.interval import PLD
from audit.canaries.judgement import Judgement, judge
from audit.canaries.special import fair_coins
from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode, number, parse_number
from common.errors import InputError, PrivetError, TrustError
from common.keys import PublicKey, SigningKey, b64

SCHEMA_VERSION = 1
GENESIS = "0" * 64
KINDS = ("declared", "observed", "revealed")
MOST_BYTES = 8 * 2**20
# No test has more of any of them. Within them, repeating a record's scoring takes seconds.
MOST_CANARIES, MOST_STEPS, MOST_RANKS = 2000, 1000, 5
MOST_PLANNED = 10**12  # a plan has at most a million rounds of a million steps
UNFAIR = 1e-9  # coins that are less likely than this, if they are fair, were not tossed
TOLERANCE = 1e-6  # relative: another machine's libm, or a search that stops elsewhere
_CONTEXT = b"privet/audit-record/v1\n"
_COINS = b"privet/audit-coins/v1\n"
_FIELDS = {"schema_version", "key", "seq", "prev", "time", "kind", "body", "signature"}
_BODIES = {
    "declared": {"plan", "privacy", "planned_steps", "design", "claim", "coins"},
    "observed": {"observed"},
    "revealed": {"salt", "coins", "judgement", "conformance", "accounting"},
}
_FINDING = {"check": str, "where": str, "ok": bool, "message": str}
_CLAUSE = {"name": str, "ok": bool, "message": str}


def commit(salt: bytes, coins: Sequence[bool]) -> str:
    """A commitment to coins: SHA-256 over 32 random bytes and a character for each coin."""
    return hashlib.sha256(_COINS + salt + _text(coins).encode()).hexdigest()


class Recorder:
    """Writes a record, in the only order that it can be written in.

    Args:
        path: must not be there yet.
        key: signs the lines; made for this record alone if left out, and then it vouches for
            nobody.

    Raises:
        InputError: there is a record already.
        OperationError: it cannot be written.
    """

    def __init__(self, path: Path, key: SigningKey | None = None) -> None:
        if path.exists():
            raise InputError(
                f"{path} is there already",
                hint="name another directory with --out; a record is never written over",
                code="directory-in-use",
            )
        self._path, self._key = path, key or SigningKey.generate()
        self._salt = secrets.token_bytes(32)
        self._prev, self._written = GENESIS, 0
        self._design: Design
        self._claim: Claim
        self._coins: tuple[bool, ...] = ()
        self._observed: Observed

    def declare(
        self,
        design: Design,
        claim: Claim,
        coins: Sequence[bool],
        *,
        privacy: Json,
        planned_steps: int,
        plan: str | None = None,
    ) -> str:
        """Fix everything that could be tuned later; the line's digest, to be given to somebody."""
        self._design, self._claim, self._coins = design, claim, tuple(coins)
        return self._append(
            {
                "plan": plan,
                "privacy": privacy,
                "planned_steps": planned_steps,
                "design": design.json(),
                "claim": claim.json(),
                "coins": commit(self._salt, coins),
            }
        )

    def observe(self, observed: Observed) -> str:
        """Fix every score, and so every guess."""
        self._observed = observed
        return self._append({"observed": observed.json()})

    def reveal(self, conformance: Sequence[Json], accounting: Sequence[Clause]) -> Judgement:
        """Look at the coins, score the guesses, and write both down, with all else that was found.

        Args:
            conformance: its findings, as :meth:`client.training.conformance.Finding.json` has them.
            accounting: its clauses.
        """
        judgement = judge(self._design, self._claim, self._observed, self._coins)
        self._append(
            {
                "salt": self._salt.hex(),
                "coins": _text(self._coins),
                "judgement": judgement.json(),
                "conformance": list(conformance),
                "accounting": [asdict(clause) for clause in accounting],
            }
        )
        return judgement

    def _append(self, body: Json) -> str:
        kind = KINDS[self._written]
        if set(body) != _BODIES[kind]:
            raise RuntimeError(f"a record is declared, observed, revealed: next is {kind}")
        fields: Json = {
            "schema_version": SCHEMA_VERSION,
            "key": self._key.public.text(),
            "seq": self._written,
            "prev": self._prev,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "kind": kind,
            "body": body,
        }
        signature = self._key.sign(_CONTEXT + encode(fields))
        line = encode({**fields, "signature": base64.b64encode(signature).decode()})
        durable.append(self._path, line + b"\n")
        self._prev, self._written = digest(line), self._written + 1
        return self._prev


@dataclass(frozen=True)
class Checked:
    """A record that holds together.

    Args:
        key: fingerprint of the key that signed it; it means nothing until somebody vouches for it.
        declared: digest of the first line.
        plan: digest of the plan that was tested, or None for the built-in mechanism.
        design, claim, judgement: recomputed, and equal to what the record says.
        conformance, accounting: what else was found, as recorded by whoever signed it.
        claim_recomputed: whether the claim's epsilon and curve were computed again too.
    """

    key: str
    declared: str
    plan: str | None
    design: Design
    claim: Claim
    judgement: Judgement
    conformance: tuple[Json, ...]
    accounting: tuple[Json, ...]
    claim_recomputed: bool

    @property
    def usual(self) -> bool:
        """Whether the design is this version's own, and not one that somebody chose."""
        return self.design == Design()

    @property
    def recorded_wrong(self) -> list[str]:
        """What conformance and accounting are recorded to have found against the engine."""
        return [
            f"conformance, {found['check']}: {found['message']}"
            for found in self.conformance
            if not found["ok"]
        ] + [
            f"accounting, {clause['name']}: {clause['message']}"
            for clause in self.accounting
            if not clause["ok"]
        ]

    @property
    def wrong(self) -> list[str]:
        """Everything against the engine, recomputed or recorded."""
        return self.recorded_wrong + wording.refuted(self.design, self.claim, self.judgement)


def check_record(path: Path) -> Checked:
    """Repeat a record's scoring from the record alone.

    Raises:
        InputError: there is no record.
        TrustError: names the first entry that is wrong, missing or out of order.
    """
    entries, lines = _read(path)
    declared, observed, revealed = (entry["body"] for entry in entries)
    where = 0
    try:
        design, claim = Design.from_json(declared["design"]), Claim.from_json(declared["claim"])
        _check_counts(declared, design, claim)
        _check_mechanism(declared, claim)
        recomputed = _check_claim(claim)
        plan = declared["plan"]
        if plan is not None and (type(plan) is not str or len(plan) != 64):
            raise ValueError("the plan is not named by its digest")
        where = 1
        seen = Observed.from_json(observed["observed"], design.canaries, claim.event.steps)
        where = 2
        coins = _coins(revealed, declared["coins"], design.canaries)
        judgement = judge(design, claim, seen, coins)
        if not _alike(judgement.json(), revealed["judgement"]):
            raise ValueError("what it says follows is not what follows from scores and coins")
        conformance = _found(revealed["conformance"], "conformance", _FINDING)
        accounting = _found(revealed["accounting"], "accounting", _CLAUSE)
    except (ArithmeticError, AttributeError, KeyError, PrivetError, TypeError, ValueError) as error:
        raise TrustError(f"entry {where}: {error}") from error
    return Checked(
        key=PublicKey.from_text(entries[0]["key"]).fingerprint,
        declared=digest(lines[0]),
        plan=plan,
        design=design,
        claim=claim,
        judgement=judgement,
        conformance=conformance,
        accounting=accounting,
        claim_recomputed=recomputed,
    )


def _read(path: Path) -> tuple[list[Json], list[bytes]]:
    """Three lines whose form, order, links and signatures are right."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the record {path}: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise TrustError(f"{path}: longer than any record")
    *lines, rest = data.split(b"\n")
    if rest or len(lines) > len(KINDS):
        raise TrustError(f"entry {min(len(lines), len(KINDS))}: cut off, or more than there can be")
    entries: list[Json] = []
    prev = GENESIS
    for where, line in enumerate(lines):
        try:
            entry = _entry(line, where, prev)
            if entries and entry["key"] != entries[0]["key"]:
                raise TrustError("signed with another key than entry 0")
        except (CanonicalError, TrustError) as error:
            raise TrustError(f"entry {where}: {error}") from error
        entries.append(entry)
        prev = digest(line)
    if len(entries) < len(KINDS):
        missing = KINDS[len(entries)]
        raise TrustError(f"entry {len(entries)}: missing; the test ended before it was {missing}")
    return entries, lines


def _entry(line: bytes, where: int, prev: str) -> Json:
    entry = decode(line)
    version, seq = entry.get("schema_version"), entry.get("seq")
    if set(entry) != _FIELDS or type(version) is not int or version != SCHEMA_VERSION:
        raise TrustError("has other fields, or another version, than it should")
    kind = KINDS[where]
    if type(seq) is not int or (seq, entry["kind"], entry["prev"]) != (where, kind, prev):
        raise TrustError(f"is not the {kind} that follows the entry before it")
    if not isinstance(entry["body"], dict) or set(entry["body"]) != _BODIES[kind]:
        raise TrustError("its body has other fields than it should")
    signed = {name: entry[name] for name in _FIELDS - {"signature"}}
    key = PublicKey.from_text(entry["key"])
    if not key.verify(b64(entry["signature"]), _CONTEXT + encode(signed)):
        raise TrustError("its signature is not that of its key")
    return entry


def _coins(revealed: Json, commitment: object, canaries: int) -> tuple[bool, ...]:
    text, salt = revealed["coins"], bytes.fromhex(revealed["salt"])
    if len(text) != canaries or set(text) - set("01") or len(salt) != 32:
        raise ValueError("the coins are not a 0 or 1 for each canary, or the salt is not 32 bytes")
    coins = tuple(letter == "1" for letter in text)
    if not hmac.compare_digest(commit(salt, coins), str(commitment)):
        raise ValueError("the coins are not those that entry 0 committed to")
    chance = fair_coins(sum(coins), canaries)
    if chance < UNFAIR:
        raise ValueError(
            f"coins: {sum(coins)} of {canaries} canaries are included, and fair coins show that, "
            f"or more, with a chance of {chance:.1g}"
        )
    return coins


def _found(value: object, field: str, form: dict[str, type]) -> tuple[Json, ...]:
    """What was recorded: of a right form, and nothing that is recomputed."""
    if not isinstance(value, list):
        raise ValueError(f"{field}: not a list of what was found")
    numbers = {"statistic", "p_value"} if form is _FINDING else set()
    for found in value:
        if not isinstance(found, dict) or set(found) != {*form, *numbers}:
            raise ValueError(f"{field}: a finding has other fields than it should")
        for name, kind in form.items():
            if type(found[name]) is not kind:
                raise ValueError(f"{field}: {name} is not a {kind.__name__}")
        for name in numbers:
            if found[name] is not None:
                parse_number(found[name])
    return tuple(value)


def _check_counts(declared: Json, design: Design, claim: Claim) -> None:
    planned = declared["planned_steps"]
    for field, count, most in (
        ("canaries", design.canaries, MOST_CANARIES),
        ("ranks", len(design.ranks), MOST_RANKS),
        ("steps", claim.event.steps, MOST_STEPS),
        ("planned_steps", planned, MOST_PLANNED),
    ):
        if type(count) is not int or not 1 <= count <= most:
            raise ValueError(f"{field}: {count!r:.40}, and a test has from 1 to {most}")


def _check_claim(claim: Claim) -> bool:
    if claim.method == PLD and find_spec("dp_accounting") is None:
        return False
    found = claim_of(claim.event, claim.delta, claim.method)
    if not _close(found.epsilon, claim.epsilon):
        raise ValueError(f"the claimed epsilon {claim.epsilon!r} is not {found.epsilon!r}")
    if not _close(found.mu, claim.mu):
        raise ValueError(f"the claimed curve's mu {claim.mu!r} is not {found.mu!r}")
    return True


def _check_mechanism(declared: Json, claim: Claim) -> None:
    """The steps that were run are steps of the declared mechanism."""
    event, privacy = claim.event, declared["privacy"]
    same = {name: privacy[name] for name in ("sampling_rate", "noise_multiplier", "delta")} == {
        "sampling_rate": number(event.sampling_rate),
        "noise_multiplier": number(event.noise_multiplier),
        "delta": number(claim.delta),
    }
    if not same or not event.steps <= declared["planned_steps"]:
        raise ValueError("the claim is not about steps of the declared mechanism")


def _alike(one: object, other: object) -> bool:
    """Equal, but for the last digits of numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if type(one) is not type(other):
        return False
    if one == other:
        return True
    try:
        return isinstance(one, str) and _close(float(one), float(str(other)))
    except ValueError:
        return False


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(1e-3, abs(one), abs(other))


def _text(coins: Sequence[bool]) -> str:
    return "".join("01"[coin] for coin in coins)
