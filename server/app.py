"""The Flower ServerApp: read the run's directory, run its rounds, leave the last checkpoint.

The rule: this app takes one setting, ``server-home``, from its operator's run configuration. What
is trained is in that directory. Signing and publishing the result needs a second party and is not
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
from server.evaluation import Evaluator
from server.home import ServerHome
from server.metrics import Metrics
from server.rounds import RoundLoop, RoundReport
from server.stopping import StopRequest, on_sigterm

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of the directory that ``server-home`` names."""
    home = context.run_config.get("server-home")
    if not home:
        raise InputError(
            "server-home is not set, so there is no plan to run",
            hint="`privet simulate FILE` prepares and runs one; with `flwr run`, "
            "pass --run-config 'server-home=\"DIR\"'",
            code="no-run",
        )
    coordinate(grid, Path(str(home)))


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
    evaluator = Evaluator(plan, binding) if binding.test else None
    metrics = Metrics(home.run, plan.rounds, len(home.members))
    stop = StopRequest(home.stop)
    loop = RoundLoop(
        home,
        grid,
        parameters_of(model.network),
        score=evaluator.accuracy if evaluator else None,
        progress=progress,
        on_round=on_round,
        stop=stop,
        metrics=metrics,
    )
    with on_sigterm(stop), serving(metrics.text, home.settings().metrics_port):
        loop.run()
