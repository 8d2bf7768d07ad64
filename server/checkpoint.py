"""What survives a crash? After every round, the model and what the next round starts from.

The rules: a checkpoint is two files, and the small one is written last: a manifest whose digest of
the model matches is a whole checkpoint, anything else is not one. The incarnation and the nonces of
a round are on disk before its requests are sent, so a restored server never passes an old request
off as new. Of old checkpoints the newest few are kept, and every N-th where an operator asks for
that; deleting one begins with its manifest, so what is left is whole or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode, number, parse_number
from common.errors import TrustError
from common.wire import Arrays, pack_arrays, unpack_arrays
from server.suspension import Standing

SCHEMA_VERSION = 3  # 3: how clients stand, early stopping, why the run ended
KEEP = 3  # checkpoints; older ones are deleted

ALL_ROUNDS, NO_IMPROVEMENT, BUDGET_USED = "all-rounds", "no-improvement", "budget-used"
ENDINGS = ("", ALL_ROUNDS, NO_IMPROVEMENT, BUDGET_USED)


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``round`` rounds.

    Args:
        run, plan: what it belongs to.
        round: 0 before the first.
        model: float32 arrays by name.
        changed: how many rounds changed the model.
        heads: each client's ledger as it was last seen, by name: entries, root, and the client's
            signature of that :class:`~common.ledger.head.Head`.
        rule: what the aggregation remembers between rounds, float32 arrays by name; mostly nothing.
        closed: whether the clients were told what was seen last: the run is over, or stopped.
        standing: what clients' replies were dropped for, and who is suspended.
        spent: clients whose last answer was that their budget is used up.
        best, waited: of early stopping: the best score so far, in [0, 1], and the rounds since.
        ended: why there are no more rounds; empty while there are.
        norm: the next round's clipping norm; None but with central trust.
    """

    run: str
    plan: str
    round: int
    model: Arrays
    changed: int = 0
    heads: Mapping[str, Json] = field(default_factory=dict)
    closed: bool = False
    rule: Arrays = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)
    spent: frozenset[str] = frozenset()
    best: float | None = None
    waited: int = 0
    ended: str = ""
    norm: float | None = None


class CheckpointStore:
    """The ``checkpoints/`` directory of one run.

    Args:
        path: the directory.
        run, plan: what its checkpoints must belong to.
        keep: how many of the newest are kept, >= 2: one to fall back on.
        every: older ones are kept too if their round is a multiple of this; 0: none.
    """

    def __init__(
        self, path: Path, run: str, plan: str, *, keep: int = KEEP, every: int = 0
    ) -> None:
        self.path = path
        self._run, self._plan = run, plan
        self._keep, self._every = keep, every

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint durably, then forget those that need not be kept."""
        data = pack_arrays(checkpoint.model)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "run": checkpoint.run,
            "plan": checkpoint.plan,
            "round": checkpoint.round,
            "changed": checkpoint.changed,
            "model": digest(data),
            "heads": dict(checkpoint.heads),
            "closed": checkpoint.closed,
            "standing": checkpoint.standing.json(),
            "spent": sorted(checkpoint.spent),
            "best": None if checkpoint.best is None else number(checkpoint.best),
            "waited": checkpoint.waited,
            "ended": checkpoint.ended,
        }
        if checkpoint.norm is not None:
            manifest["norm"] = number(checkpoint.norm)
        name = f"round-{checkpoint.round:06d}"
        if checkpoint.rule:
            rule = pack_arrays(checkpoint.rule)
            manifest["rule"] = digest(rule)
            durable.replace(self.path / f"rule-{name}.safetensors", rule)
        durable.replace(self.path / f"{name}.safetensors", data)
        durable.replace(self.path / f"{name}.json", encode(manifest))
        self._forget()

    def _forget(self) -> None:
        rounds = {_round_of(file): file for file in self._manifests()}
        newest = sorted(rounds)[-self._keep :]
        for round_, manifest in rounds.items():
            if round_ in newest or (self._every and round_ % self._every == 0):
                continue
            manifest.unlink()
            manifest.with_suffix(".safetensors").unlink(missing_ok=True)
            _rule_file(manifest).unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; a torn one is passed over, a foreign one is an error.

        Only for the one that writes here: what a killed write left behind is swept away.

        Raises:
            TrustError: the newest manifest belongs to another run or plan.
        """
        durable.sweep(self.path)
        return self.peek()

    def peek(self) -> Checkpoint | None:
        """As :meth:`latest`, for everybody else: nothing is changed, and a server may be at work.

        Raises:
            TrustError: the newest manifest belongs to another run or plan.
        """
        for manifest in sorted(self._manifests(), key=_round_of, reverse=True):
            checkpoint = self._load(manifest)
            if checkpoint is not None:
                return checkpoint
        return None

    def under_way(self) -> tuple[int, tuple[str, ...]] | None:
        """The round that was last begun, and who was asked in it; None before the first."""
        state = self._read_state()
        return None if state is None else (state["round"], tuple(sorted(state["nonces"])))

    def _manifests(self) -> list[Path]:
        found = self.path.glob("round-*.json")
        return [file for file in found if file.stem.removeprefix("round-").isdecimal()]

    def start(self, completed: int) -> tuple[int, dict[str, str]]:
        """This start's incarnation, and the nonces of the round that was under way, if any.

        A server that was killed goes on where it was: its requests of the round under way are sent
        again as they were, and whoever answered them gives the same bytes at no cost. A server
        that was restored from an older checkpoint is a new incarnation, whose requests are new.

        Args:
            completed: rounds of the checkpoint that it starts from.
        """
        state = self._read_state()
        nonces: dict[str, str] = {}
        if state is None:
            incarnation = 0 if completed == 0 else 1
        elif state["round"] in (completed, completed + 1):
            under_way = state["round"] == completed + 1
            incarnation, nonces = state["incarnation"], state["nonces"] if under_way else {}
        else:
            incarnation = state["incarnation"] + 1
        if not nonces:
            self._write_state(incarnation, completed, {})
        return incarnation, dict(nonces)

    def begin_round(self, incarnation: int, round_: int, nonces: Mapping[str, str]) -> None:
        """Record what is about to be asked, before it is sent."""
        self._write_state(incarnation, round_, nonces)

    def _write_state(self, incarnation: int, round_: int, nonces: Mapping[str, str]) -> None:
        state = {"incarnation": incarnation, "round": round_, "nonces": dict(nonces)}
        durable.replace(self.path / "pending.json", encode(state))

    def _read_state(self) -> Json | None:
        file = self.path / "pending.json"
        if not file.exists():
            return None
        try:
            state = decode(file.read_bytes())
            for name in ("incarnation", "round"):
                if type(state[name]) is not int:
                    raise CanonicalError(f"{name} is not a count")
            if not isinstance(state["nonces"], dict):
                raise CanonicalError("nonces is not an object")
        except (CanonicalError, KeyError) as error:
            raise TrustError(f"{file} is damaged: {error}", code="bad-checkpoint") from error
        return state

    def _load(self, manifest: Path) -> Checkpoint | None:
        try:
            document = decode(manifest.read_bytes())
            data = manifest.with_suffix(".safetensors").read_bytes()
            wanted = document.get("rule", "")
            rule_file = _rule_file(manifest)
            rule = rule_file.read_bytes() if wanted else b""
        except (CanonicalError, OSError):
            return None
        if digest(data) != document.get("model") or (wanted and digest(rule) != wanted):
            return None
        if document["schema_version"] not in (2, SCHEMA_VERSION):
            raise TrustError(
                f"{manifest} is of schema version {document['schema_version']}",
                hint="continue the run with the Privet that wrote it",
                code="bad-checkpoint",
            )
        if (document["run"], document["plan"]) != (self._run, self._plan):
            raise TrustError(
                f"{manifest} belongs to another run or plan",
                hint="resume the directory that it came from",
                code="bad-checkpoint",
            )
        return _checkpoint(document, unpack_arrays(data), unpack_arrays(rule) if rule else {})


def _round_of(manifest: Path) -> int:
    return int(manifest.stem.removeprefix("round-"))


def _rule_file(manifest: Path) -> Path:
    return manifest.with_name(f"rule-{manifest.stem}.safetensors")


def _checkpoint(document: Json, model: Arrays, rule: Arrays) -> Checkpoint:
    """What :meth:`CheckpointStore.save` wrote; of version 2, what that one knew."""
    best = document.get("best")
    standing, norm = document.get("standing"), document.get("norm")
    return Checkpoint(
        run=document["run"],
        plan=document["plan"],
        round=document["round"],
        model=model,
        changed=document["changed"],
        heads=document["heads"],
        closed=document["closed"],
        rule=rule,
        standing=Standing() if standing is None else Standing.of(standing),
        spent=frozenset(document.get("spent", ())),
        best=None if best is None else parse_number(best),
        waited=document.get("waited", 0),
        ended=document.get("ended", ""),
        norm=None if norm is None else parse_number(norm),
    )
