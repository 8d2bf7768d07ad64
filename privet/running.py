"""The whole path on one machine: records, rounds, release, verified device, report.

The rule: every step is the one that a deployment takes, run by the parts that a deployment runs;
only the parties live next door to each other. A run that was killed continues where it was and ends
in the same bits; nothing of a finished run is overwritten.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from audit.report import render_run
from audit.wording import called
from client.device.home import DeviceHome
from client.device.policy import DevicePolicy
from client.device.runtime import Predictor
from client.device.updater import update
from client.home import HOME_VARIABLE
from common import durable
from common.bundle import Trust
from common.canonical import digest
from common.data.binding import load_test
from common.errors import InputError
from common.plan import Plan
from common.release import MODEL, WEIGHTS
from privet.releasing import Published, publish_run
from server.app import coordinate
from server.home import ServerHome
from server.rounds import RoundReport
from server.status import traffic
from simulations.experiment import Experiment
from simulations.flower import run_with_flower
from simulations.grid import InProcessGrid
from simulations.population import Run, prepare, reopen

SUMMARY = "summary.json"
LATENCY_SAMPLES = 500
_BATCH = 1000
DEVICE = "device"  # its directory in a run, and its keys elsewhere
_DERIVED = ("bundle", "trust.json", "repository", DEVICE, "report.html")

Progress = Callable[[str, int, int], None]


def simulate(
    file: Path,
    *,
    out: Path | None = None,
    seed: int | None = None,
    rounds: int | None = None,
    workers: int | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run an experiment file from end to end; the contents of ``summary.json``.

    Args:
        file: an experiment in TOML.
        out: the run directory; by default the first free ``runs/NAME-N``.
        seed, rounds, workers: replace the file's values.
        overrides: ``KEY=VALUE`` with dotted keys of the file.
        resume: continue the run that is in ``out``.
        progress: called as (what, done, of).

    Raises:
        PrivetError: see ``common.errors``; nothing was spent on a refused plan.
    """
    began = time.monotonic()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    experiment = Experiment.read(
        file, overrides=overrides, seed=seed, rounds=rounds, workers=workers
    )
    if resume:
        if out is None:
            raise InputError("--resume needs --out DIR", hint="name the run to continue")
        run = reopen(out, experiment)
    else:
        run = prepare(
            experiment,
            out or _free_directory(experiment.plan),
            progress=lambda done, of: progress("clients: keys, data, approval", done, of),
        )
    busy = InputError(
        f"{run.path} is being run by another process",
        hint="wait until it is done",
        code="directory-in-use",
    )
    with durable.exclusively(run.path, busy):
        return _finish(run, experiment, began, progress)


def _finish(run: Run, experiment: Experiment, began: float, progress: Progress) -> dict[str, Any]:
    """All of a prepared run that is not done yet."""
    if (run.path / SUMMARY).exists():
        finished: dict[str, Any] = json.loads((run.path / SUMMARY).read_bytes())
        return finished
    prepared = time.monotonic()
    _train(run, experiment, progress)
    trained = time.monotonic()
    progress("release: sign and publish", 0, 2)
    _forget_derived(run)
    published = publish_run(run)
    progress("release: sign and publish", 1, 2)
    predictor = _enrol_device(run, experiment, published)
    device = _measure(predictor, experiment)
    progress("release: sign and publish", 2, 2)
    ended = time.monotonic()
    summary = _summary(
        run,
        experiment,
        published,
        device,
        {
            "prepare_s": round(prepared - began, 3),
            "rounds_s": round(trained - prepared, 3),
            "release_s": round(ended - trained, 3),
            "total_s": round(ended - began, 3),
        },
    )
    page = render_run(published.verdict, summary, _metrics(run))
    durable.replace(run.path / "report.html", page.encode())
    durable.replace(run.path / SUMMARY, json.dumps(summary, indent=2).encode() + b"\n")
    return summary


def _free_directory(plan: Plan) -> Path:
    for number in range(1, 100_000):
        path = Path("runs") / f"{plan.name}-{number}"
        if not path.exists():
            return path
    raise InputError("there is no free name left under runs/", hint="use --out DIR")


def _train(run: Run, experiment: Experiment, progress: Progress) -> None:
    home = ServerHome.read(run.path)
    settings = experiment.settings
    if settings.backend == "flower":
        run_with_flower(run, len(home.members), home.plan.rounds, progress=progress)
        return

    def waiting(round_: int, done: int, of: int) -> None:
        if round_:
            progress("a round: clients", done, of)

    def ended(report: RoundReport) -> None:
        progress("training: rounds", report.round, home.plan.rounds)

    environment = {HOME_VARIABLE: str(run.clients.absolute())}
    before = os.environ.get(HOME_VARIABLE)
    os.environ.update(environment)
    try:
        with InProcessGrid(
            "client.app:app",
            len(home.members),
            workers=settings.workers,
            environment=environment,
        ) as grid:
            coordinate(grid, run.path, progress=waiting, on_round=ended)
    finally:
        if before is None:
            del os.environ[HOME_VARIABLE]
        else:
            os.environ[HOME_VARIABLE] = before


def _forget_derived(run: Run) -> None:
    """What a killed run left of its release: derived from the checkpoint, and made again."""
    for name in _DERIVED:
        path = run.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(run.keys / DEVICE, ignore_errors=True)  # a new device for a new repository


def _enrol_device(run: Run, experiment: Experiment, published: Published) -> Predictor:
    """A device that trusts this run's signers, and what it then fetches and verifies."""
    claims = published.verdict.claims
    policy = DevicePolicy(
        greatest_epsilon=experiment.policy.budget.epsilon,
        greatest_delta=float(claims["delta"]),
        signers=tuple(Trust.read(run.path / "trust.json").signers.values()),
        repository="../repository",
        accept_simulated=bool(claims["simulated"]),
    )
    root = (run.path / "repository" / "metadata" / "1.root.json").read_bytes()
    home = DeviceHome.init(run.path / DEVICE, root, policy, run.keys / DEVICE)
    update(home, datetime.now(UTC))
    return Predictor.load(home)


def _measure(predictor: Predictor, experiment: Experiment) -> dict[str, Any]:
    """The model as the device runs it: accuracy on the test set, and latency of one record."""
    latency = predictor.latency(LATENCY_SAMPLES)
    result = {"latency_p50_us": latency.p50, "latency_p99_us": latency.p99, "accuracy": None}
    if experiment.binding.test and not experiment.plan.personal:
        records = load_test(experiment.binding, experiment.plan.schema)
        right = 0
        for start in range(0, len(records), _BATCH):
            part = slice(start, start + _BATCH)
            guess = predictor.probabilities(records.features[part]).argmax(1)
            right += int(np.sum(guess == records.labels[part]))
        result["accuracy"] = right / len(records)
    return result


def _metrics(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_bytes().splitlines()]


def _summary(
    run: Run,
    experiment: Experiment,
    published: Published,
    device: dict[str, Any],
    timing: dict[str, float],
) -> dict[str, Any]:
    plan, policy, verdict = experiment.plan, experiment.policy, published.verdict
    metrics, worst = _metrics(run), verdict.most_exposed
    accountants = {name: float(value) for name, value in verdict.claims["accountants"].items()}
    weights, model = published.files[WEIGHTS], published.files[MODEL]
    return {
        "run_dir": str(run.path),
        "name": plan.name,
        "plan": plan.digest,
        "rounds": plan.rounds,
        "clients": None if plan.central else len(verdict.clients),
        "simulated": True,
        "seed": experiment.settings.seed,
        "metrics": {
            "accuracy": metrics[-1]["accuracy"],
            "test": experiment.binding.test,
            # With central trust nothing that may be shown around says who or how many answered.
            "rounds_changed": None
            if plan.central
            else sum(bool(line["changed"]) for line in metrics),
            "replies_dropped": None
            if plan.central
            else sum(len(line["dropped"]) for line in metrics),
        },
        "personal": list(plan.personal.layers) if plan.personal else [],
        "traffic": {
            "compression": plan.compression.method if plan.compression else "none",
            **traffic(metrics),
        },
        "device": {**device, "verified": True, "version": published.version},
        "privacy": {
            "epsilon": float(verdict.claims["epsilon"]),
            "epsilon_spent": published.spent,
            "epsilon_filter": worst.epsilon_filter,
            "delta": plan.privacy.delta,
            "budget": policy.budget.epsilon,
            "order": policy.budget.order,
            "unit": plan.privacy.unit,
            "adjacency": plan.privacy.json()["adjacency"],
            "trust": plan.privacy.trust,
            "noise": list(worst.noise),
            "noise_multiplier": plan.privacy.noise_multiplier,
            "sampling_rate": plan.privacy.sampling_rate,
            "steps": plan.event().steps,
            "accountants": accountants,
        },
        "model": {
            "name": plan.release.name,
            "architecture": plan.model,
            "sha256": digest(weights),
            "version": published.version,
            "safetensors_bytes": len(weights),
            "onnx_bytes": len(model),
        },
        "audit": called(verdict.authenticated),
        "timing": timing,
    }
