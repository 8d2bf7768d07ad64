"""What survives a crash? After every round, the model and what the next round starts from.

The rules: a checkpoint is two files, and the small one is written last: a manifest whose digest of
the model matches is a whole checkpoint, anything else is not one. The incarnation and the nonces of
a round are on disk before its requests are sent, so a restored server never passes an old request
off as new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, digest, encode
from common.errors import TrustError
from common.wire import Arrays, pack_arrays, unpack_arrays

SCHEMA_VERSION = 2
KEEP = 3  # checkpoints; older ones are deleted


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
        closed: whether the clients were told that the run is over.
        rule: what the aggregation remembers between rounds, float32 arrays by name; mostly nothing.
    """

    run: str
    plan: str
    round: int
    model: Arrays
    changed: int = 0
    heads: Mapping[str, Json] = field(default_factory=dict)
    closed: bool = False
    rule: Arrays = field(default_factory=dict)


class CheckpointStore:
    """The ``checkpoints/`` directory of one run."""

    def __init__(self, path: Path, run: str, plan: str) -> None:
        self.path = path
        self._run, self._plan = run, plan

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint durably, then forget the oldest ones."""
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
        }
        name = f"round-{checkpoint.round:06d}"
        if checkpoint.rule:
            rule = pack_arrays(checkpoint.rule)
            manifest["rule"] = digest(rule)
            durable.replace(self.path / f"rule-{name}.safetensors", rule)
        durable.replace(self.path / f"{name}.safetensors", data)
        durable.replace(self.path / f"{name}.json", encode(manifest))
        for old in sorted(self.path.glob("round-*.json"))[:-KEEP]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)
            (self.path / f"rule-{old.stem}.safetensors").unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; a torn one is passed over, a foreign one is an error.

        Raises:
            TrustError: the newest manifest belongs to another run or plan.
        """
        durable.sweep(self.path)
        for manifest in sorted(self.path.glob("round-*.json"), reverse=True):
            checkpoint = self._load(manifest)
            if checkpoint is not None:
                return checkpoint
        return None

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
            rule_file = manifest.with_name(f"rule-{manifest.stem}.safetensors")
            rule = rule_file.read_bytes() if wanted else b""
        except (CanonicalError, OSError):
            return None
        if digest(data) != document.get("model") or (wanted and digest(rule) != wanted):
            return None
        if (document["run"], document["plan"]) != (self._run, self._plan):
            raise TrustError(
                f"{manifest} belongs to another run or plan",
                hint="resume the directory that it came from",
                code="bad-checkpoint",
            )
        return Checkpoint(
            run=document["run"],
            plan=document["plan"],
            round=document["round"],
            model=unpack_arrays(data),
            changed=document["changed"],
            heads=document["heads"],
            closed=document["closed"],
            rule=unpack_arrays(rule) if rule else {},
        )
