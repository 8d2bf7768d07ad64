"""``privet audit test``: of the built-in mechanism, of a plan, of a run; and of a broken engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from audit.canaries.wording import ASSUMES
from client.training.conformance import Probe, Subject, engine_subject, optimizer_check
from client.training.engine import Engine
from common import errors
from common.plan import Optimizer, Privacy
from common.privacy import reference
from common.privacy.events import Event
from common.privacy.noise import add_gaussian
from privet import running
from privet.cli import run
from tests.world import EXPERIMENT, write_experiment

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIVET_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole suite has tests of its own."""
    monkeypatch.setattr("audit.testing.CHECKS", ["replay", "noise-variance", "batches"])


def call(capsys: Capture, *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(["audit", "test", *map(str, arguments), "--format", "json"])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    return code, document["data" if code == 0 else "error"]


def test_the_built_in_mechanism_is_consistent_and_its_record_can_be_checked(
    capsys: Capture, elsewhere: Path
) -> None:
    code, data = call(capsys)
    assert (code, data["verdict"], data["wrong"]) == (0, "consistent", [])
    assert data["tested"] == "the built-in mechanism"
    assert data["conformance"]["checks"] == 14
    assert data["interval"]["relative_half_width"] <= 0.015
    assert data["seconds"]["total"] < 60
    assert data["record"] == "runs/audit-test-1/record.jsonl"
    for record in (data["record"], Path(data["record"]).parent):
        code, checked = call(capsys, "--check", record)
        assert (code, checked["declared"]) == (0, data["declared"])
        assert checked["canaries"] == data["canaries"]
    assert run(["audit", "test", "--check", data["record"]]) == 0
    text = capsys.readouterr().out
    assert "the record holds together" in text
    assert data["declared"] in text
    assert "0 against the engine; as recorded by whoever signed it" in text
    for assumed in ASSUMES.values():
        assert assumed in text


@pytest.mark.usefixtures("few_checks")
def test_a_plan_is_tested_by_its_own_figures_and_network(capsys: Capture, elsewhere: Path) -> None:
    file = write_experiment(elsewhere)
    assert run(["audit", "test", str(file), "--out", "here"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("consistent: plan small\n")
    epsilon = reference.pld_epsilon([Event(0.5, 4.0, 4)], 1e-5)
    assert f"4 of 4 steps tested, sampling rate 0.5, noise multiplier 4: epsilon {epsilon:.4f}" in (
        captured.out
    )
    assert "What these numbers are not:" in captured.out
    assert "before the optimizer: that is post-processing" in captured.out
    for assumed in ASSUMES.values():
        assert assumed in captured.out
    assert captured.err.startswith("fixed before training: ")
    assert (elsewhere / "here" / "record.jsonl").exists()
    code, error = call(capsys, file, "--out", "here")
    assert (code, error["code"]) == (errors.EXIT_INPUT, "directory-in-use")


@pytest.mark.slow
@pytest.mark.usefixtures("few_checks")
def test_a_run_is_tested_with_what_its_bundle_claims(
    capsys: Capture, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LATENCY_SAMPLES", 1)
    file = write_experiment(elsewhere)
    assert run(["simulate", str(file), "--out", "run", "--quiet"]) == 0
    code, data = call(capsys, "run")
    assert (code, data["verdict"]) == (0, "consistent")
    assert "claimed-epsilon" in [clause["clause"] for clause in data["accounting"]]

    statement = elsewhere / "run" / "bundle" / "statement.dsse.json"
    statement.write_bytes(statement.read_bytes().replace(b"A", b"B", 1))
    code, error = call(capsys, "run", "--out", "again")
    assert code == errors.EXIT_TRUST
    assert error["code"] != "engine-violates"
    assert not (elsewhere / "again").exists()


@pytest.mark.usefixtures("few_checks")
@pytest.mark.parametrize("format_", ["json", pytest.param("text", marks=pytest.mark.slow)])
def test_an_engine_with_too_little_noise_is_exit_code_eleven_and_the_tensor_is_named(
    capsys: Capture, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    def broken(total: Any, *, noise_multiplier: float, **rest: Any) -> Any:
        return add_gaussian(total, noise_multiplier=0.9 * noise_multiplier, **rest)

    monkeypatch.setattr("client.training.engine.add_gaussian", broken)
    if format_ == "json":
        code, error = call(capsys)
        message = error["message"]
        assert error["code"] == "engine-violates"
    else:
        code = run(["audit", "test"])
        captured = capsys.readouterr()
        assert captured.out.startswith("violates: the built-in mechanism\n")
        message = captured.err
    assert code == errors.EXIT_TRUST
    assert "noise-variance: 0.weight: noise has 0.9" in message
    assert "canaries, noise: the run's own noise has a multiplier of 0.9" in message
    code, error = call(capsys, "--check", "runs/audit-test-1")
    assert (code, error["code"]) == (errors.EXIT_TRUST, "engine-violates")


def test_check_reports_what_conformance_found_where_canaries_found_nothing(
    capsys: Capture, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.testing.CHECKS", ["noise-variance"])
    train = Engine.round

    def broken(self: Engine, *arguments: Any, **rest: Any) -> Any:
        update = train(self, *arguments, **rest)
        return {name: value * (not name.endswith("bias")) for name, value in update.items()}

    monkeypatch.setattr(Engine, "round", broken)
    assert call(capsys, "--out", "here")[0] == errors.EXIT_TRUST
    code, error = call(capsys, "--check", "here")
    assert (code, error["code"]) == (errors.EXIT_TRUST, "engine-violates")
    assert "noise-variance: 0.bias: noise has 0.000" in error["message"]
    assert "as recorded by whoever signed it" in error["message"]
    assert "canaries, " not in error["message"]
    assert run(["audit", "test", "--check", "here"]) == errors.EXIT_TRUST
    assert "WRONG: conformance, noise-variance: 0.bias" in capsys.readouterr().out


# -- the plan's optimizer ------------------------------------------------------------------------

OPTIMIZERS = {
    "plain": Optimizer(0.1),
    "momentum": Optimizer(1e6, momentum=0.9, averaging=0.5),
    "adam": Optimizer(1e-3, method="adam", schedule="cosine", warmup=0.3),
    "adam that forgets": Optimizer(1.0, method="adam", beta1=0.0, beta2=0.0, epsilon=1.0),
    "proximal": Optimizer(0.5, proximal=1e6, schedule="step", final_learning_rate=0.1),
}


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def judged(subject: Subject, optimizer: Optimizer, privacy: Privacy) -> Any:
    (found,) = optimizer_check(optimizer)(Probe(subject, privacy, 0, 1e-6))
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_a_correct_engine_works_on_the_sums_that_were_tested(name: str) -> None:
    for privacy in (
        Privacy("local", 0.4, 1.5, 0.7, 3, 20.0, 1e-5),
        Privacy("local", 1.0, 100.0, 1e-3, 1, 1e6, 1e-5),
        Privacy("local", 0.01, 0.6, 100.0, 3, 1e-3, 1e-5, noise_draws=4),
    ):
        found = judged(engine_subject(small, (6,), 3), OPTIMIZERS[name], privacy)
        assert found.ok, found.message
        assert found.statistic < 1e-4


@pytest.mark.parametrize("name", ["momentum", "adam", "proximal"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.9},
        {"clipping_norm": 1.1, "noise_multiplier": 1 / 1.1},  # the same noise
        {"sampling_rate": 0.9},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_engine_that_is_right_for_plain_sgd_alone_is_found_out(
    name: str, wrong: dict[str, float]
) -> None:
    subject, wanted = engine_subject(small, (6,), 3), OPTIMIZERS[name]

    def train(privacy: Privacy, optimizer: Optimizer, *rest: Any) -> Any:
        if optimizer != Optimizer(optimizer.learning_rate):
            changes: dict[str, Any] = {
                figure: factor * getattr(privacy, figure) for figure, factor in wrong.items()
            }
            privacy = replace(privacy, **changes)
        return subject.train(privacy, optimizer, *rest)

    privacy = Privacy("local", 0.4, 1.5, 0.7, 3, 20.0, 1e-5)
    found = judged(replace(subject, train=train), wanted, privacy)
    assert not found.ok, found.message


def test_a_plans_optimizer_is_driven_and_its_finding_is_in_the_record(
    capsys: Capture, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.testing.CHECKS", ["replay"])
    text = EXPERIMENT.replace("[plan.optimizer]\n", '[plan.optimizer]\nmethod = "adam"\n')
    assert text != EXPERIMENT
    file = write_experiment(elsewhere, text)
    code, data = call(capsys, file, "--out", "here")
    assert code == 0, data
    found = {finding["check"]: finding for finding in data["conformance"]["findings"]}
    assert data["conformance"]["checks"] == 2
    assert "4 steps by adam" in found["optimizer"]["message"]
    code, checked = call(capsys, "--check", "here")
    assert checked["recorded"]["conformance"] == data["conformance"]["findings"]

    def quiet(total: Any, *, noise_multiplier: float, **rest: Any) -> Any:
        return add_gaussian(total, noise_multiplier=0.0, **rest)

    train = Engine.round

    def broken(self: Engine, *arguments: Any, **rest: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if self._steps._optimizer.method == "adam":
                patch.setattr("client.training.engine.add_gaussian", quiet)
            return train(self, *arguments, **rest)

    monkeypatch.setattr(Engine, "round", broken)
    code, error = call(capsys, file, "--out", "broken")
    assert (code, error["code"]) == (errors.EXIT_TRUST, "engine-violates")
    assert "conformance, optimizer: " in error["message"]


def test_bad_input_is_exit_code_four_and_makes_nothing(capsys: Capture, elsewhere: Path) -> None:
    silent = EXPERIMENT.replace("noise_multiplier = 4.0", "noise_multiplier = 1e-5")
    file = write_experiment(elsewhere, silent)
    (elsewhere / "empty").mkdir()
    for arguments in (
        ["none.toml"],
        ["empty"],
        [file],
        ["--check", "none"],
        ["--check", "none", "--out", "x"],
        [file, "--check", "none"],
    ):
        code, error = call(capsys, *arguments)
        assert (code, bool(error["message"])) == (errors.EXIT_INPUT, True), arguments
    assert not list(elsewhere.rglob("record.jsonl"))


def test_a_record_that_was_changed_is_exit_code_eleven(capsys: Capture, elsewhere: Path) -> None:
    (elsewhere / "record.jsonl").write_bytes(b"{}\n")
    code, error = call(capsys, "--check", "record.jsonl")
    assert code == errors.EXIT_TRUST
    assert error["message"].startswith("entry 0: ")
