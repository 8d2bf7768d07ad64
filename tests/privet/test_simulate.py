"""The whole path on one machine: what is promised is there, it verifies, and it survives a kill."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common import durable
from common.canonical import digest
from common.errors import OperationError
from privet import running
from privet.cli import run
from privet.running import simulate
from simulations.experiment import Experiment
from simulations.population import prepare
from tests.world import EXPERIMENT, Snapshot, killed_at, write_experiment

ROOT = Path(__file__).resolve().parent.parent.parent
EXPECTED = (
    "summary.json",
    "report.html",
    "metrics.jsonl",
    "plan.json",
    "plan.dsse.json",
    "server.json",
    "trust.json",
    "bundle/bundle.json",
    "bundle/plan.dsse.json",
    "bundle/statement.dsse.json",
    "repository/metadata/1.root.json",
    "repository/metadata/timestamp.json",
    "checkpoints/round-000002.json",
    "checkpoints/round-000002.safetensors",
    "custody/client-0/ledger.jsonl",
    "custody/client-2/policy.dsse.json",
)


def command(*arguments: object) -> tuple[int, dict[str, Any]]:
    """A command's exit code and JSON object."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run([*map(str, arguments), "--format", "json"])
    return code, json.loads(out.getvalue())


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its summary, where its keys are, and its experiment."""

    path: Path
    summary: dict[str, Any]
    state: Path
    file: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """One small simulation, from the command line to the report."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_experiment(folder)
    patch = pytest.MonkeyPatch()
    patch.setenv("PRIVET_STATE_HOME", str(folder / "state"))
    patch.setattr(running, "LATENCY_SAMPLES", 20)
    code, document = command("simulate", file, "--out", folder / "run")
    assert code == 0, document
    yield Finished(folder / "run", document["data"], folder / "state", file)
    patch.undo()


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for further runs, whose last part takes as little as it can."""
    monkeypatch.setenv("PRIVET_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(running, "LATENCY_SAMPLES", 1)
    return tmp_path


# -- what is there -------------------------------------------------------------------------------


def test_every_promised_file_is_there(finished: Finished) -> None:
    for name in EXPECTED:
        assert (finished.path / name).is_file(), name
    assert not list(finished.path.parent.rglob("*.tmp"))
    assert json.loads((finished.path / "summary.json").read_bytes()) == finished.summary


def test_the_summary_is_about_this_run(finished: Finished) -> None:
    summary = finished.summary
    assert (summary["rounds"], summary["clients"], summary["seed"]) == (2, 3, 1)
    assert summary["simulated"] is True
    assert summary["privacy"]["noise"] == ["simulated"]
    assert summary["metrics"]["rounds_changed"] == 2
    assert summary["metrics"]["replies_dropped"] == 0
    assert summary["audit"] == "verified"
    assert summary["device"]["verified"] is True
    assert 0.1 < summary["metrics"]["accuracy"] <= 1
    assert summary["device"]["accuracy"] == pytest.approx(summary["metrics"]["accuracy"], abs=0.01)


def test_the_models_digest_is_of_its_safetensors_bytes(finished: Finished) -> None:
    name = finished.summary["model"]["sha256"]
    (weights,) = (finished.path / "repository").rglob("*.model.safetensors")
    assert weights.name.startswith(name)
    assert digest(weights.read_bytes()) == name
    stored = finished.path / "checkpoints" / "round-000002.safetensors"
    assert digest(stored.read_bytes()) == name


def test_no_private_key_is_anywhere_in_a_run(finished: Finished) -> None:
    secrets = [file.read_bytes() for file in finished.state.rglob("*") if file.is_file()]
    assert len(secrets) >= 6
    forms = [form for s in secrets for form in (s, s.hex().encode())]
    for file in finished.path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(form in data for form in forms), file


def test_the_ledgers_say_simulated_and_name_nobody(finished: Finished) -> None:
    for client in range(3):
        text = (finished.path / "custody" / f"client-{client}" / "ledger.jsonl").read_text()
        entries = [json.loads(line)["entry"] for line in text.splitlines()]
        kinds = [entry["kind"] for entry in entries]
        rounds = 2 * ["intent", "disclosure"]
        assert kinds == ["policy", "policy", "approval", *rounds, "countersignature"]
        assert {e["body"]["noise"] for e in entries if e["kind"] == "intent"} == {"simulated"}
        assert f"client-{client}" not in text
    for file in (finished.path / "bundle").rglob("*"):
        if file.is_file():
            assert b"client-0" not in file.read_bytes()
            assert b"accuracy" not in file.read_bytes()


def test_epsilon_is_what_dp_accounting_gives_for_the_ledgers_events(finished: Finished) -> None:
    """Read from the files by hand; the accountant is Google's, on a finer grid than ours."""
    import dp_accounting
    from dp_accounting import pld

    spent = []
    for ledger in (finished.path / "custody").glob("*/ledger.jsonl"):
        accountant = pld.PLDAccountant(value_discretization_interval=5e-5)
        for line in ledger.read_text().splitlines():
            entry = json.loads(line)["entry"]
            if entry["kind"] == "intent":
                event = entry["body"]["event"]
                gaussian = dp_accounting.GaussianDpEvent(float(event["noise_multiplier"]))
                step = dp_accounting.PoissonSampledDpEvent(float(event["sampling_rate"]), gaussian)
                accountant.compose(step, int(event["steps"]))
        spent.append(accountant.get_epsilon(1e-5))
    privacy = finished.summary["privacy"]
    assert len(spent) == 3
    assert max(spent) <= privacy["epsilon_spent"] < max(spent) + 1e-3
    assert privacy["epsilon_spent"] <= privacy["epsilon_filter"] <= privacy["budget"]


# -- audit ---------------------------------------------------------------------------------------


def test_a_bundle_verifies_with_trust_and_is_unauthenticated_without(finished: Finished) -> None:
    bundle, trust = finished.path / "bundle", finished.path / "trust.json"
    code, document = command("audit", "verify", bundle, "--trust", trust)
    assert code == 0
    assert document["data"]["verdict"] == "verified"
    assert document["data"]["simulated"] is True
    code, document = command("audit", "verify", bundle)
    assert (code, document["error"]["code"]) == (12, "unauthenticated")


def test_a_flipped_byte_anywhere_in_a_bundle_is_exit_code_eleven(
    finished: Finished, tmp_path: Path
) -> None:
    names = [f.relative_to(finished.path / "bundle") for f in (finished.path / "bundle").rglob("*")]
    files = sorted(name for name in names if (finished.path / "bundle" / name).is_file())
    assert len(files) == 3 + 3 + 3  # manifest, plan, statement; a ledger and a head for each
    for number, name in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(finished.path / "bundle", copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        code, document = command("audit", "verify", copy, "--trust", finished.path / "trust.json")
        assert code == 11, (name, document)


def test_somebody_elses_trust_file_does_not_vouch_for_a_bundle(
    finished: Finished, tmp_path: Path
) -> None:
    text = (finished.path / "trust.json").read_text()
    key = json.loads(text)["signers"]["coordinator"]
    (tmp_path / "trust.json").write_text(text.replace(key, "0" * 64))
    bundle = finished.path / "bundle"
    assert command("audit", "verify", bundle, "--trust", tmp_path / "trust.json")[0] == 11
    (tmp_path / "trust.json").write_text("{}")
    assert command("audit", "verify", bundle, "--trust", tmp_path / "trust.json")[0] == 4


# -- seeds ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_seed_repeats_a_run_and_another_seed_does_not(finished: Finished, quick: Path) -> None:
    first = finished.summary["model"]["sha256"]
    again = simulate(finished.file, out=quick / "again")
    other = simulate(finished.file, out=quick / "other", seed=2)
    assert again["model"]["sha256"] == first
    assert again["metrics"] == finished.summary["metrics"]
    assert other["model"]["sha256"] != first


@pytest.mark.slow
def test_without_a_seed_noise_is_cryptographic_and_a_simulation_still_says_what_it_is(
    finished: Finished, quick: Path
) -> None:
    text = EXPERIMENT.replace("simulated = true", "simulated = false").replace("seed = 1", "")
    file = write_experiment(quick, text)
    summary = simulate(file, out=quick / "run")
    assert summary["privacy"]["noise"] == ["cryptographic"]
    assert summary["simulated"] is True  # both signers lived in one process
    assert summary["model"]["sha256"] != finished.summary["model"]["sha256"]


# -- again, and again ----------------------------------------------------------------------------


def test_resuming_a_finished_run_changes_nothing(finished: Finished) -> None:
    before = Snapshot.of(finished.path)
    code, document = command("simulate", finished.file, "--out", finished.path, "--resume")
    assert (code, document["data"]) == (0, finished.summary)
    assert Snapshot.of(finished.path) == before


def test_a_finished_run_is_not_overwritten_or_continued_as_another(finished: Finished) -> None:
    before = Snapshot.of(finished.path)
    arguments = ("simulate", finished.file, "--out", finished.path)
    assert command(*arguments)[1]["error"]["code"] == "directory-in-use"
    assert command(*arguments, "--resume", "--seed", 2)[1]["error"]["code"] == "another-plan"
    assert command(*arguments, "--resume", "--rounds", 1)[1]["error"]["code"] == "another-plan"
    assert Snapshot.of(finished.path) == before


@pytest.mark.slow
def test_the_same_directory_can_be_used_again_in_one_process(
    finished: Finished, quick: Path
) -> None:
    """As in a notebook: what is cached of the first run must not be met by the second."""
    first = simulate(finished.file, out=quick / "run")
    shutil.rmtree(quick / "run")
    second = simulate(finished.file, out=quick / "run", overrides=["data.clients=2"])
    assert (first["clients"], second["clients"]) == (3, 2)
    assert second["metrics"]["replies_dropped"] == 0


# -- killed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_at_a_write_resumes_and_ends_in_the_same_bits(
    finished: Finished, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, expected = finished.file, finished.summary["model"]["sha256"]
    # One long life takes this many steps: preparation, two rounds of three clients, release.
    monkeypatch.setattr(running, "publish_run", _stop)
    durable._steps = 0
    with pytest.raises(_Stopped):
        simulate(file, out=quick / "counted")
    trained = durable._steps
    monkeypatch.undo()
    monkeypatch.setenv("PRIVET_STATE_HOME", str(quick / "state"))
    monkeypatch.setattr(running, "LATENCY_SAMPLES", 1)
    prepared = trained - (3 + 2 * (3 * 9 + 12))  # … as the tests of each part count them
    assert 0 < prepared < trained
    for step in (prepared + 5, prepared + 20, trained - 14, trained - 3, trained + 9):
        out = quick / str(step)
        assert killed_at(step, lambda out=out: simulate(file, out=out))  # type: ignore[misc]
        assert not (out / "summary.json").exists()
        summary = simulate(file, out=out, resume=True)
        assert summary["model"]["sha256"] == expected, step
        assert summary["audit"] == "verified"
        code, _ = command("audit", "verify", out / "bundle", "--trust", out / "trust.json")
        assert code == 0
        lines = (out / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == [1, 2]
    for early in (1, prepared // 2):
        out = quick / f"early-{early}"
        assert killed_at(early, lambda out=out: simulate(file, out=out))  # type: ignore[misc]
        assert not out.exists()  # whole, or not there


class _Stopped(Exception):
    pass


def _stop(*_: object, **__: object) -> None:
    raise _Stopped


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_by_the_command_line(
    finished: Finished, quick: Path
) -> None:
    arguments = [sys.executable, "-m", "privet", "simulate", str(finished.file)]
    arguments += ["--out", str(quick / "run"), "--format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    durable._steps = 0
    prepare(Experiment.read(finished.file), quick / "counted-alone")
    prepared = durable._steps
    killed = subprocess.run(
        arguments,
        env={**environment, durable.FAULT_VARIABLE: str(prepared + 11)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert killed.stdout == ""
    assert (quick / "run" / "server.json").exists()
    resumed = subprocess.run(
        [*arguments, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)["data"]
    assert summary["model"]["sha256"] == finished.summary["model"]["sha256"]


# -- a machine that does not do what it is asked -------------------------------------------------


@pytest.mark.parametrize("after", [0, 30])
def test_a_full_disk_is_exit_code_one_and_leaves_no_half_run(
    finished: Finished, quick: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    right, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        right(handle)

    monkeypatch.setattr(os, "fsync", full)
    code, document = command("simulate", finished.file, "--out", quick / "run")
    monkeypatch.undo()
    assert (code, document["error"]["code"]) == (1, "disk-full")
    assert "free some space" in document["error"]["hint"]
    assert not (quick / "run").exists()
    assert not [path for path in quick.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_disk_that_fills_up_during_the_rounds_is_survived_by_resuming(
    finished: Finished, quick: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")

    right = durable.append

    def full(path: Path, data: bytes) -> None:
        if path.name == "metrics.jsonl":
            raise OperationError("no space", code="disk-full")
        right(path, data)

    monkeypatch.setattr(durable, "append", full)
    code, document = command("simulate", finished.file, "--out", quick / "run")
    assert (code, document["error"]["code"]) == (1, "disk-full")
    monkeypatch.undo()
    monkeypatch.setenv("PRIVET_STATE_HOME", str(quick / "state"))
    summary = simulate(finished.file, out=quick / "run", resume=True)
    assert summary["model"]["sha256"] == finished.summary["model"]["sha256"]


def test_runs_get_names_of_their_own(
    finished: Finished, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(quick)
    monkeypatch.setattr(running, "_train", _stop)
    found = []
    for _ in range(2):
        with pytest.raises(_Stopped):
            simulate(finished.file)
        found = sorted(path.name for path in (quick / "runs").iterdir())
    assert found == ["small-1", "small-2"]


def test_progress_goes_from_the_first_client_to_the_last_step(
    finished: Finished, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr(running, "publish_run", _stop)
    with pytest.raises(_Stopped):
        simulate(finished.file, out=quick / "run", progress=lambda *step: seen.append(step))
    assert ("clients: keys, data, approval", 3, 3) in seen
    assert ("training: rounds", 2, 2) in seen
    assert all(0 <= done <= of for _, done, of in seen)
    assert "PRIVET_CLIENT_HOME" not in os.environ


def test_a_run_that_another_process_works_on_is_not_touched(finished: Finished) -> None:
    before = Snapshot.of(finished.path)
    busy = OperationError("held by the test")
    resume = ("simulate", finished.file, "--out", finished.path, "--resume")
    with durable.exclusively(finished.path, busy):
        code, document = command(*resume)
    assert (code, document["error"]["code"]) == (4, "directory-in-use")
    assert command(*resume)[0] == 0
    assert Snapshot.of(finished.path) == before


@pytest.mark.parametrize(
    "change", ["policy.budget=999.0", "data.held_out=0.3", "simulation.seed=9"]
)
def test_a_run_is_resumed_with_the_experiment_that_it_was_started_with_alone(
    finished: Finished, change: str
) -> None:
    before = Snapshot.of(finished.path)
    resume = ("simulate", finished.file, "--out", finished.path, "--resume", "--set", change)
    code, document = command(*resume)
    assert (code, document["error"]["code"]) == (4, "another-plan")
    assert Snapshot.of(finished.path) == before
