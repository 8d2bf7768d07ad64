"""What is to be tested? A run, an experiment's plan, or the built-in mechanism.

The rule: what is tested is the plan's mechanism, with the plan's own optimizer, and the plan's own
network where this machine can build it; what a run's bundle claims is taken along, to be held
against what is computed here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from audit.testing import BUILT_IN, Check, Progress, Result, examine
from audit.verify import verify
from client.training.conformance import Finding, Probe, Replay, Subject, engine_subject
from client.training.optimizer import LocalSteps
from common import durable
from common.bundle import Trust
from common.canonical import parse_number
from common.errors import InputError
from common.models.preprocess import fixed_features
from common.models.registry import build
from common.plan import Optimizer, Plan, Privacy
from common.privacy.noise import Stream
from common.wire import Arrays
from server.home import ServerHome
from simulations.experiment import Experiment

RECORD = "record.jsonl"
OPTIMIZER_STEPS = 4
OPTIMIZER_RECORDS = 40
MOVES = 1e-2  # how far a local step moves a weight, about: far enough for float32, and not far
DIFFERENCE = 1e-3  # of an update's length; float32 and the grid make less than 1e-5


@dataclass(frozen=True)
class Tested:
    """What is tested.

    Args:
        name: in words.
        privacy: the mechanism of a round.
        rounds: of the plan.
        plan: None for the built-in mechanism.
        models: the user's own models, name to function.
        claimed: the epsilon that a run's bundle states.
    """

    name: str
    privacy: Privacy
    rounds: int
    plan: Plan | None
    models: Mapping[str, str]
    claimed: float | None

    def subject(self) -> Subject:
        """The engine, training the plan's network."""
        plan = self.plan
        if plan is None:
            return engine_subject(_perceptron, (64,), 10)
        model = build(plan.model, plan.schema, seed=0, bindings=dict(self.models))
        blank = fixed_features(model, plan.schema, np.zeros((1, *plan.schema.shape), np.float32))
        return engine_subject(lambda: model.network, blank.shape[1:], len(plan.schema.classes))


def what_to_test(target: Path | None) -> Tested:
    """Read a run directory or an experiment file.

    Raises:
        InputError: it is neither, or malformed.
        TrustError: the run's bundle is wrong.
    """
    if target is None:
        return Tested("the built-in mechanism", BUILT_IN, 1, None, {}, None)
    if not target.is_dir():
        experiment = Experiment.read(target)
        plan = experiment.plan
        models = experiment.binding.models
        return Tested(f"plan {plan.name}", plan.privacy, plan.rounds, plan, models, None)
    home = ServerHome.read(target)
    plan = home.plan
    return Tested(
        f"run {plan.name}", plan.privacy, plan.rounds, plan, home.binding.models, _claimed(target)
    )


def examine_target(
    target: Path | None,
    out: Path | None,
    *,
    announce: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> tuple[Tested, Result]:
    """Test this machine's engine, and leave a record under ``out``.

    Args:
        target: a run, an experiment, or None.
        out: a directory, made if need be; by default the first free ``runs/audit-test-N``.
        announce: called with the digest of what was fixed, before anything is trained.
        progress: called as (what, done, of).
    """
    tested = what_to_test(target)
    subject = tested.subject()
    out = out or _free_directory()
    if (out / RECORD).exists():
        raise InputError(
            f"{out} holds a record already",
            hint="name another directory with --out; a record is never written over",
            code="directory-in-use",
        )
    with durable.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    # A check that meets an engine's error reports it as a finding; the log would say it twice.
    logging.getLogger("privet.client").setLevel(logging.CRITICAL)
    return tested, examine(
        subject,
        tested.privacy,
        out / RECORD,
        rounds=tested.rounds,
        plan=tested.plan.digest if tested.plan else None,
        claimed=tested.claimed,
        more={"optimizer": optimizer_check(tested.plan.optimizer)} if tested.plan else None,
        announce=announce,
        progress=progress,
    )


# -- the plan's optimizer ------------------------------------------------------------------------


def optimizer_check(optimizer: Optimizer) -> Check:
    """Does a round with this optimizer use the noised sums that the suite tests under plain SGD?

    The suite reads sums from updates, which only plain SGD shows; what other optimizers make of a
    sum cannot be turned back. So it goes forwards: plain rounds of one step, with the same stream,
    give the sums, and the optimizer's own steps on them must give the update of a whole round.
    Noise, clipping, sampling, divisor and empty batches then are those of the suite's clauses.

    What scales whole sums, noise and all, is not seen through Adam, which divides by their scale;
    it costs no privacy either.

    The learning rate is scaled to what float32 can hold, and Adam remembers something: else a
    difference in the last bit could grow to one that can be seen, in an engine that is right.
    """

    def check(probe: Probe) -> Iterator[Finding]:
        declared = replace(probe.privacy, steps=OPTIMIZER_STEPS)
        # With little noise and every gradient clipped, what records add shows; and without any.
        quiet = replace(
            declared,
            noise_multiplier=min(0.1, declared.noise_multiplier),
            clipping_norm=declared.clipping_norm / 64,
        )
        records, nobody = probe.records(OPTIMIZER_RECORDS, "optimizer"), probe.nobody()
        worst, where = -1.0, ""
        for number, (privacy, (features, labels)) in enumerate(
            ((declared, records), (quiet, records), (declared, nobody))
        ):
            scaled = _scaled(optimizer, privacy)
            start = probe.start()
            found = probe.subject.train(
                privacy, scaled, start, features, labels, Replay(probe.seed, number)
            )
            expected = _step_by_step(
                probe, privacy, scaled, start, (features, labels), Replay(probe.seed, number)
            )
            least = 1e-14 * math.sqrt(probe.size)  # what float64 loses next to a weight
            for name, wanted in expected.items():
                length = float(np.linalg.norm(wanted)) + least
                off = float(np.linalg.norm(found[name] - wanted)) / length
                off = math.inf if math.isnan(off) else off
                worst, where = max((worst, where), (off, name))
        yield Finding(
            "optimizer",
            worst <= DIFFERENCE,
            worst,
            None,
            f"{where}: {OPTIMIZER_STEPS} steps by {_described(optimizer)} are those steps on the "
            f"noised sums of plain rounds, but for {worst:.2g} of an update's length",
            where=where,
        )

    return check


def _step_by_step(
    probe: Probe,
    privacy: Privacy,
    optimizer: Optimizer,
    start: Arrays,
    records: tuple[Tensor, Tensor],
    stream: Stream,
) -> Arrays:
    """A round's update by plain rounds of one step, each from where the optimizer is."""
    one_step = replace(privacy, steps=1)
    rate = privacy.divisor / privacy.clipping_norm  # then an update is as long as noise is in C
    begin = np.concatenate([start[name].ravel() for name in probe.subject.shapes])
    steps = LocalSteps(optimizer, probe.size, steps=privacy.steps, rounds=1)
    steps.begin(begin.astype(np.float64), 1)
    for _ in range(privacy.steps):
        weights = dict(probe.tensors(steps.weights))
        now = {
            name: weights[name].reshape(shape).astype(np.float32)
            for name, shape in probe.subject.shapes.items()
        }
        update = probe.subject.train(one_step, Optimizer(rate), now, *records, stream)
        flat = np.concatenate([update[name].ravel() for name in probe.subject.shapes])
        steps.step(flat.astype(np.float64) / -rate)
    parts = probe.tensors(steps.result() - begin)
    return {
        name: part.reshape(probe.subject.shapes[name]).astype(np.float32) for name, part in parts
    }


def _scaled(optimizer: Optimizer, privacy: Privacy) -> Optimizer:
    """The same optimizer at a learning rate at which a step moves a weight by about a hundredth."""
    gradient = privacy.clipping_norm * (privacy.noise_multiplier + 1) / privacy.divisor
    rate = MOVES if optimizer.method == "adam" else MOVES / gradient
    rate = min(rate, 1 / optimizer.proximal) if optimizer.proximal else rate
    return replace(
        optimizer,
        learning_rate=rate,
        final_learning_rate=optimizer.final_learning_rate * (rate / optimizer.learning_rate),
        beta2=max(optimizer.beta2, 0.5),
    )


def _described(optimizer: Optimizer) -> str:
    parts = [optimizer.method, f"schedule {optimizer.schedule}"]
    for name in ("momentum", "averaging", "proximal", "warmup"):
        value = getattr(optimizer, name)
        parts += [f"{name} {value:g}"] * bool(value)
    return ", ".join(parts)


def _claimed(run: Path) -> float | None:
    """The headline of a run's bundle, once the bundle holds together; None without a bundle."""
    bundle, trust = run / "bundle", run / "trust.json"
    if not bundle.is_dir():
        return None
    verdict = verify(bundle, Trust.read(trust) if trust.exists() else None)
    return parse_number(verdict.claims["epsilon"])


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def _free_directory() -> Path:
    for number in range(1, 100_000):
        path = Path("runs") / f"audit-test-{number}"
        if not path.exists():
            return path
    raise InputError("there is no free name left under runs/", hint="use --out DIR")
