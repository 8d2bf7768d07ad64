"""The same apps under ``flwr run`` with Ray end in the same bits, and leave no process behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.canonical import digest
from common.errors import OperationError
from common.wire import pack_arrays
from server.app import coordinate
from server.checkpoint import CheckpointStore
from server.home import ServerHome
from simulations import flower
from simulations.experiment import Experiment
from simulations.flower import run_with_flower
from simulations.grid import InProcessGrid
from simulations.population import Run, prepare
from tests.world import EXPERIMENT, write_experiment

ROOT = Path(__file__).resolve().parent.parent.parent


def prepared(path: Path, more: str = "") -> Run:
    text = EXPERIMENT.replace("[plan.release]", f"{more}\n[plan.release]")
    experiment = Experiment.read(write_experiment(path, text))
    return prepare(experiment, path / "run")


def model_of(run: Run) -> str:
    home = ServerHome.read(run.path)
    latest = CheckpointStore(home.checkpoints, home.run, home.plan.digest).latest()
    assert latest is not None
    assert latest.round == 2
    return digest(pack_arrays(latest.model))


def in_process(run: Run, patch: pytest.MonkeyPatch, workers: int = 1) -> str:
    patch.setenv("PRIVET_CLIENT_HOME", str(run.clients))
    environment = {"PRIVET_CLIENT_HOME": str(run.clients)}
    with InProcessGrid("client.app:app", 3, workers=workers, environment=environment) as grid:
        coordinate(grid, run.path)
    patch.delenv("PRIVET_CLIENT_HOME")
    return model_of(run)


def processes_in(home: Path) -> list[str]:
    """Processes that live in a Flower home, by their command."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_one_worker_or_two_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = in_process(prepared(tmp_path / "one"), monkeypatch)
    assert in_process(prepared(tmp_path / "two"), monkeypatch, workers=2) == one


@pytest.mark.slow
@pytest.mark.parametrize(
    "app",
    [
        pytest.param(None, id="thin-app"),
        pytest.param(ROOT, id="repository-as-app", marks=pytest.mark.figures),
    ],
)
def test_flower_with_ray_ends_in_the_same_bits_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: Path | None
) -> None:
    pytest.importorskip("ray")
    expected = in_process(prepared(tmp_path / "here"), monkeypatch)
    run, home, seen = prepared(tmp_path / "there"), tmp_path / "flower", set[str]()
    home.mkdir()
    monkeypatch.setattr(flower.tempfile, "mkdtemp", lambda **_: str(home))
    run_with_flower(run, 3, 2, app=app, progress=lambda *_: seen.update(processes_in(home)))
    assert model_of(run) == expected
    assert len(seen) > 2  # while it ran there were several
    assert not processes_in(home)
    assert not home.exists()
    assert not (run.path / "flower.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param('"int8"', id="int8", marks=pytest.mark.figures),
        pytest.param('"top-k"\nfraction = 0.1', id="top-k"),
    ],
)
def test_coded_updates_cross_flower_and_ray_and_end_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pytest.importorskip("ray")
    table = f"[plan.compression]\nmethod = {method}\n"
    expected = in_process(prepared(tmp_path / "here", table), monkeypatch)
    assert expected != in_process(prepared(tmp_path / "plain"), monkeypatch)
    run = prepared(tmp_path / "there", table)
    run_with_flower(run, 3, 2)
    assert model_of(run) == expected
    kept = [len(list(home.glob("kept/*.kept"))) for home in sorted(run.clients.iterdir())]
    assert kept == [1 if "top-k" in method else 0] * 3


def test_without_ray_there_is_a_hint_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(flower.subprocess, "Popen", None)
    with pytest.raises(OperationError) as caught:
        run_with_flower(Run(tmp_path, tmp_path), 3, 2)
    assert caught.value.code == "not-installed"
    assert "pip install" in caught.value.hint
    assert not list(tmp_path.iterdir())
