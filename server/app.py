"""The Flower ServerApp: read the run's directory, run its rounds, leave the last checkpoint.

The rule: this app takes one setting, ``run``, from its operator's run configuration: a directory,
and what is trained is in there. Signing and publishing the result needs a second party and is not
here.
"""

from __future__ import annotations

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import InputError
from common.exposition import serving
from common.models.networks import parameters_of
from common.models.registry import build
from common.personal import check_layers, shared
from server.evaluation import Evaluator
from server.home import ServerHome
from server.metrics import Metrics
from server.rounds import RoundLoop, RoundReport
from server.stopping import StopRequest, on_sigterm
from server.thin_app import RUN

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of the directory that ``run`` names."""
    run = context.run_config.get(RUN)
    if not run:
        raise InputError(
            "no run is named, so there is no plan to run",
            hint="`privet simulate FILE` prepares and runs one; with `flwr run`, "
            f"pass --run-config '{RUN}=\"DIR\"'",
            code="no-run",
        )
    coordinate(grid, Path(str(run)))


def coordinate(
    grid: Grid,
    path: Path,
    *,
    progress: Callable[[int, int, int], None] | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
) -> None:
    """Run a prepared run over ``grid``; see :class:`server.rounds.RoundLoop` for the callbacks.

    SIGTERM stops it after the round under way; :class:`server.stopping.Stopped` says so.
    """
    torch.set_num_threads(1)
    home = ServerHome.read(path)
    plan, binding = home.plan, home.binding
    model = build(plan.model, plan.schema, seed=home.seed or 0, bindings=binding.models)
    initial = parameters_of(model.network)
    check_layers(plan.personal, initial)
    # Without each client's own layers there is no model to score.
    evaluator = Evaluator(plan, binding) if binding.test and not plan.personal else None
    metrics = Metrics(home.run, plan.rounds, len(home.members))
    stop = StopRequest(home.stop)
    loop = RoundLoop(
        home,
        grid,
        shared(plan.personal, initial),
        score=evaluator.accuracy if evaluator else None,
        progress=progress,
        on_round=on_round,
        stop=stop,
        metrics=metrics,
    )
    with on_sigterm(stop), serving(metrics.text, home.settings().metrics_port):
        loop.run()
