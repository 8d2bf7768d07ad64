"""Which smaller model is released, if any? Each is tried beside its parent, and kept if it wins.

The rule: the order is fixed (another network, then fewer channels, then eight bits), each step
starts from what the one before it left, and one that does not win is dropped with its reason. What
was tried is told; what is kept is a lineage, whose every file is kept too, so that whoever is to
sign it can measure again.

    RUN/shrunk/  model.onnx, known-answers.json; parents/SHA256.onnx; lineage.json, written last
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, decode, digest, encode
from common.data.schema import Schema
from common.errors import InputError, OperationError, TrustError
from common.inference import KnownAnswers, Session
from common.lineage import SYNTHETIC, Comparison, Lineage, Step, read, write
from common.models.model import Model
from common.models.preprocess import ServingModel
from common.release import ANSWERS, MODEL
from server.release.export import to_onnx
from server.release.smaller.compare import Rule, compare
from server.release.smaller.data import Tuning
from server.release.smaller.fit import Effort
from server.release.smaller.quantize import quantize, scopes
from server.release.smaller.students import distill, prune

SHRUNK = "shrunk"
SCHEMA_VERSION = 1
_NEARLY = 0.005  # shares, measured on two processors
EIGHT_BITS = 0.01  # tolerance of known answers: processors round what lies between two steps
_LINEAGE, _PARENTS = "lineage.json", "parents"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wish:
    """What to try.

    Args:
        student: a model to distill into, and what it is called; None: the trained network stays.
        fraction: of each hidden layer's channels to take out, in (0, 1); 0: none.
        eight_bits: quantize.
        effort: of training, where a step trains.
        rule: when a step wins.
    """

    student: tuple[str, Model] | None = None
    fraction: float = 0.0
    eight_bits: bool = False
    effort: Effort = field(default_factory=Effort)
    rule: Rule = field(default_factory=Rule)


@dataclass(frozen=True)
class Attempt:
    """One step that was tried; ``why`` it was dropped, empty if it was kept."""

    step: Step
    why: str


@dataclass(frozen=True)
class Shrunk:
    """What is to be released instead of the exported model.

    Args:
        model: the last ONNX file; the exported one's bytes where nothing won.
        answers: known answers of it.
        lineage: from the exported one to it.
        parents: the files in between, the exported one first, by SHA-256.
    """

    model: bytes
    answers: KnownAnswers
    lineage: Lineage
    parents: Mapping[str, bytes]

    def write(self, path: Path) -> None:
        """Put it into a directory that is made anew."""
        draft = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        files = {
            MODEL: self.model,
            ANSWERS: self.answers.encode(),
            **{f"{_PARENTS}/{name}.onnx": data for name, data in self.parents.items()},
            _LINEAGE: encode({"schema_version": SCHEMA_VERSION, "steps": write(self.lineage)}),
        }
        with durable.disk_errors(path):
            (draft / _PARENTS).mkdir(parents=True)
            for name, data in files.items():
                durable.replace(draft / name, data)
            shutil.rmtree(path, ignore_errors=True)
            draft.replace(path)
            durable.sync_directory(path.parent)

    @classmethod
    def read(cls, path: Path, schema: Schema) -> Shrunk:
        """Read what :meth:`write` wrote.

        Raises:
            TrustError: something of it is missing, or was changed.
        """
        try:
            document = decode((path / _LINEAGE).read_bytes())
            model = (path / MODEL).read_bytes()
            lineage = read(document["steps"], digest(model))
            answers = KnownAnswers.decode((path / ANSWERS).read_bytes(), schema)
            parents = {
                step.parent: (path / _PARENTS / f"{step.parent}.onnx").read_bytes()
                for step in lineage
            }
        except (OSError, KeyError, CanonicalError) as error:
            raise TrustError(
                f"{path} is not whole: {error}",
                hint="make it anew with privet release shrink, or remove it",
                code="bad-lineage",
            ) from error
        for name, data in parents.items():
            if digest(data) != name:
                raise TrustError(f"{name}.onnx in {path} was changed", code="bad-lineage")
        return cls(model, answers, lineage, parents)


def shrink(
    model: Model,
    schema: Schema,
    answers: KnownAnswers,
    tuning: Tuning,
    wish: Wish,
    progress: Progress = lambda *_: None,
) -> tuple[Shrunk, list[Attempt]]:
    """Try what is wished for, one step after the other.

    Args:
        model: the trained one; its export is what everything is compared with.
        answers: known answers of the export, which stay where nothing wins.
        tuning: see :mod:`server.release.smaller.data`.
        progress: called as (what, done, of).

    Raises:
        InputError: ``nothing-to-try``; ``not-on-synthetic``: a step that learns needs real records.
        OperationError: a step cannot be done on this model, and why.
    """
    if not (wish.student or wish.fraction or wish.eight_bits):
        raise InputError(
            "there is nothing to try",
            hint="--quantize, --prune FRACTION, --distill MODEL, or several of them",
            code="nothing-to-try",
        )
    if tuning.kind == SYNTHETIC and (wish.student or wish.fraction):
        raise InputError(
            "a network learns nothing of use from synthetic records",
            hint="name public records with --data and --public; --synthetic is for --quantize",
            code="not-on-synthetic",
        )
    chain = _Chain(schema, tuning, wish.rule, to_onnx(ServingModel(model, schema), schema))
    effort = {"epochs": str(wish.effort.epochs), "seed": str(wish.effort.seed)}
    if wish.student:
        name, student = wish.student
        smaller = distill(
            student, model, schema, tuning.part, wish.effort, _named(progress, "distilling: epochs")
        )
        if chain.offer("distill", smaller, {"student": name, **effort}):
            model = smaller
    if wish.fraction:
        smaller = prune(
            model,
            schema,
            tuning.part,
            wish.fraction,
            wish.effort,
            _named(progress, "pruning: epochs"),
        )
        chain.offer("prune", smaller, {"fraction": f"{wish.fraction:g}", **effort})
    if wish.eight_bits:
        chain.offer_eight_bits(_named(progress, "quantizing: variants"))
    return chain.shrunk(answers), chain.attempts


class _Chain:
    """From the exported model on: what was kept, and what was tried."""

    def __init__(self, schema: Schema, tuning: Tuning, rule: Rule, exported: bytes) -> None:
        self._schema, self._tuning, self._rule = schema, tuning, rule
        self._files = [exported]
        self._kept: list[Step] = []
        self.attempts: list[Attempt] = []

    def offer(self, method: str, model: Model, settings: Mapping[str, str]) -> bool:
        """Try a network; whether it was kept."""
        child = to_onnx(ServingModel(model, self._schema), self._schema)
        return self._decide([self._step(method, child, settings)])

    def offer_eight_bits(self, progress: Callable[[int, int], None]) -> None:
        """Try each scope that differs; the fastest of those that win is kept."""
        found, tried = [], scopes(self._files[-1])
        if not tried:
            raise OperationError(
                "the model has no layer to quantize", hint="release it as it is", code="no-layer"
            )
        for number, scope in enumerate(tried, 1):
            child = quantize(self._files[-1], self._tuning.part, scope)
            settings = {"bits": "8", "weights": "7 bits used", "scope": scope}
            found.append(self._step("quantize", child, settings))
            progress(number, len(tried))
        self._decide(found)

    def _step(self, method: str, child: bytes, settings: Mapping[str, str]) -> tuple[Step, bytes]:
        parent, tuning = self._files[-1], self._tuning
        compared = compare(parent, child, self._schema, tuning)
        step = Step(method, digest(parent), digest(child), tuning.used(), compared, settings)
        return step, child

    def _decide(self, found: list[tuple[Step, bytes]]) -> bool:
        """Keep the fastest that wins; note all of them."""
        reasons = {step.child: self._rule.against(step.compared) for step, _ in found}
        winners = [pair for pair in found if not reasons[pair[0].child]]
        best = min(winners, key=lambda pair: pair[0].compared.microseconds[1], default=None)
        for step, _ in found:
            slower = "" if best is None or step is best[0] else "another one is faster"
            self.attempts.append(Attempt(step, reasons[step.child] or slower))
        if best is None:
            return False
        self._kept.append(best[0])
        self._files.append(best[1])
        return True

    def shrunk(self, exported: KnownAnswers) -> Shrunk:
        last, answers = self._files[-1], exported
        if self._kept:
            eight_bits = any(step.method == "quantize" for step in self._kept)
            predict = Session(last, self._schema).predict
            tolerance = EIGHT_BITS if eight_bits else exported.tolerance
            answers = KnownAnswers.make(self._schema, predict, tolerance=tolerance)
        parents = {digest(data): data for data in self._files[:-1]}
        return Shrunk(last, answers, tuple(self._kept), parents)


def measured_again(shrunk: Shrunk, schema: Schema, tuning: Tuning, rule: Rule) -> None:
    """Measure once more what somebody else says of each step, number by number.

    Time is another machine's affair, and so are settings: nothing follows from either.

    Args:
        tuning: the same records, got by another way.

    Raises:
        TrustError: ``other-records``: a step names others; ``bad-lineage``: what it says does not
            hold here, or its files lose more than ``rule`` allows.
    """
    used = tuning.used()
    children = [*(step.parent for step in shrunk.lineage[1:]), ""]
    for step, after in zip(shrunk.lineage, children, strict=True):
        if replace(step.used, name=used.name) != used:
            raise TrustError(
                f"the step {step.method!r} was done with other records than these",
                hint=f"get those that the lineage names: {step.used.name}",
                code="other-records",
            )
        if used.kind == SYNTHETIC and step.method != "quantize":
            raise TrustError(f"the step {step.method!r} learnt from noise", code="bad-lineage")
        child = shrunk.parents[after] if after else shrunk.model
        found = compare(shrunk.parents[step.parent], child, schema, tuning, calls=1)
        if wrong := _untrue(step.compared, found):
            raise TrustError(
                f"the step {step.method!r} says of its {wrong} what is not so here",
                hint="have the model made smaller again, and proposed",
                code="bad-lineage",
            )
        if found.agreement < rule.least_agreement or found.lost > rule.most_loss:
            raise TrustError(
                f"the step {step.method!r} agrees on {100 * found.agreement:.2f} % of records and "
                f"loses {100 * found.lost:.2f} points here",
                hint="a looser rule is yours to allow: --least-agreement, --most-loss",
                code="bad-lineage",
            )


def _untrue(said: Comparison, found: Comparison) -> str:
    """Which of the numbers is not what was measured here; processors round, and agree nearly."""
    if said.sizes != found.sizes:
        return "size"
    if abs(said.agreement - found.agreement) > _NEARLY:
        return "agreement"
    if abs(said.drift - found.drift) > 0.1 + 0.25 * found.drift:
        return "drift"
    if (said.accuracy is None) != (found.accuracy is None):
        return "accuracy"
    pairs = zip(said.accuracy or (), found.accuracy or (), strict=True)
    return "accuracy" if any(abs(one - other) > _NEARLY for one, other in pairs) else ""


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, of: progress(what, done, of)
