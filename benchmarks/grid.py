"""A whole simulated run: our Grid beside Flower's own engine with Ray, same apps, same model.

Both run the digits example's plan with its guards, ledgers and receipts; what differs is only who
carries the messages. The two models must be the same bytes, or the comparison is void.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Row, at_least, at_most, main, plain
from client.home import HOME_VARIABLE
from common.canonical import digest
from server.app import coordinate
from simulations.experiment import Experiment
from simulations.flower import run_with_flower
from simulations.grid import InProcessGrid
from simulations.population import Run, prepare

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits.toml"


def measure(quick: bool) -> list[Row]:
    """Seconds of the rounds alone: preparation, release and report are the same for both."""
    rounds = 3 if quick else 10
    experiment = Experiment.read(EXAMPLE, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRIVET_STATE_HOME"] = str(Path(folder) / "state")
        ours_run = prepare(experiment, Path(folder) / "ours")
        flower_run = prepare(experiment, Path(folder) / "flower")
        clients = len(list(ours_run.clients.iterdir()))
        ours = _timed(lambda: _in_process(ours_run, clients))
        flower = _timed(lambda: run_with_flower(flower_run, clients, rounds))
        if _model(ours_run) != _model(flower_run):
            raise SystemExit("the two engines gave different models: nothing to compare")
    messages = clients * rounds
    return [
        plain("in-process: rounds of the digits example", ours, "s"),
        plain("Flower with Ray: the same rounds, start included", flower, "s"),
        at_least("Flower with Ray / in-process", flower / ours, "x", 10.0),
        at_most("in-process: a client's round, all included", 1000 * ours / messages, "ms", 20.0),
    ]


def _in_process(run: Run, clients: int) -> None:
    os.environ[HOME_VARIABLE] = str(run.clients)
    with InProcessGrid("client.app:app", clients) as grid:
        coordinate(grid, run.path)


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _model(run: Run) -> str:
    return digest(sorted((run.path / "checkpoints").glob("round-*.safetensors"))[-1].read_bytes())


if __name__ == "__main__":
    main("grid", measure)
