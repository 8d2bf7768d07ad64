"""What is to be tested? A run, an experiment's plan, or the built-in mechanism.

The rule: what is tested is the plan's mechanism, with the plan's own optimizer, and the plan's own
network where this machine can build it; what a run's bundle claims is taken along, to be held
against what is computed here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from audit.testing import BUILT_IN, Progress, Result, examine
from audit.verify import verify
from client.training.conformance import Subject, engine_subject, optimizer_check
from common import durable
from common.bundle import Trust
from common.canonical import parse_number
from common.errors import InputError
from common.models.preprocess import fixed_features
from common.models.registry import build
from common.plan import Plan, Privacy
from server.home import ServerHome
from simulations.experiment import Experiment

RECORD = "record.jsonl"


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
