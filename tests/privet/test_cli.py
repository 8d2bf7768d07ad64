"""The command's contract: exit codes, one JSON object, hints; what is refused makes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import privet
from common import errors
from privet import output
from privet.cli import run
from tests.world import EXPERIMENT, write_experiment

Run = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in a folder of its own, where everything that it makes can be seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIVET_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_experiment(tmp_path)


def made(folder: Path) -> list[str]:
    """Files that are there, but for the experiment."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".toml"
    )


def call(capsys: Run, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the one JSON object of a command."""
    capsys.readouterr()
    code = run([*map(str, arguments), "--format", "json"])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert document["schema_version"] == 1
    assert document["status"] == ("ok" if code == 0 else "error")
    assert set(document) == {"schema_version", "status", "data" if code == 0 else "error"}
    assert "Traceback" not in captured.out + captured.err
    if code:
        assert set(document["error"]) == {"code", "message", "hint"}
        assert document["error"]["message"]
    return code, document["data" if code == 0 else "error"]


def shell(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, as people and scripts call it."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "privet"]), *arguments]
    root = Path(__file__).resolve().parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# -- the front door ------------------------------------------------------------------------------


def test_version_as_text_and_as_json(capsys: Run) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out == f"{privet.__version__}\n"
    assert call(capsys, "version") == (0, {"version": privet.__version__})


def test_as_a_process_the_envelope_and_the_exit_code_agree() -> None:
    good = shell("version", "--format", "json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["data"] == {"version": privet.__version__}
    bad = shell("plan", "check", "nothing.toml", "--format=json")
    assert (bad.returncode, bad.stderr) == (4, "")
    assert json.loads(bad.stdout)["error"]["code"] == "no-such-file"
    text = shell("plan", "check", "nothing.toml")
    assert text.stdout == ""
    assert text.stderr.startswith("error: there is no file nothing.toml\nhint: ")


def test_asking_for_help_imports_neither_torch_nor_flower_nor_a_web_client() -> None:
    code = """
import sys
from privet.cli import run
codes = [run(line.split()) for line in ("--help", "simulate --help", "plan check -h", "version")]
heavy = {"torch", "flwr", "ray", "numpy", "onnxruntime", "dp_accounting", "sklearn", "tuf",
         "urllib.request"}
print(codes, sorted(heavy & set(sys.modules)))
"""
    result = shell(code=code)
    assert result.stdout.splitlines()[-1] == "[0, 0, 0, 0] []", result.stderr


def test_every_command_is_listed_and_has_help(capsys: Run) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("simulate", "plan", "audit", "client", "device", "server", "version"):
        assert word in text
    commands = [f"audit {name}" for name in ("verify", "recompute", "explain", "report", "receipt")]
    commands += ["simulate", "plan check", "device init", "audit check-receipt"]
    commands += [f"server {name}" for name in ("status", "suspended", "lift", "stop")]
    commands += ["client approve", "client budget", "client policy sign", "client owner"]
    for command in commands:
        assert run([*command.split(), "--help"]) == 0
        assert "--format" in capsys.readouterr().out


def test_the_names_that_people_import_are_what_they_say() -> None:
    code = """
from privet import Experiment, Predictor, PrivetError, simulate
import privet.cli, privet.running
from privet import simulate as again
print(callable(simulate), again is simulate, isinstance(Experiment, type), Predictor.__name__)
"""
    assert shell(code=code).stdout == "True True True Predictor\n"


def test_a_name_that_privet_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="simulat_"):
        privet.simulat_  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--rounds", "many"],
        ["simulate", "--rounds", "0"],
        ["simulate", "--seed", "-1"],
        ["simulate", "--no-such-option"],
        ["simulate", "a.toml", "b.toml"],
        ["plan", "check"],
        ["plan", "chek", "x.toml"],
        ["audit", "verify"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_two_in_json_too(
    capsys: Run, arguments: list[str], tmp_path: Path
) -> None:
    code, error = call(capsys, *arguments)
    assert (code, error["code"]) == (errors.EXIT_USAGE, "usage")
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert made(tmp_path) == []


def test_a_format_that_is_none_is_a_usage_error(capsys: Run) -> None:
    assert run(["version", "--format", "yaml"]) == 2


# -- bad input -----------------------------------------------------------------------------------

MISTAKES = {
    "no-such-file": (None, "no-such-file", "nothing.toml"),
    "toml": (EXPERIMENT.replace("rounds = 2", "rounds = = 2"), "malformed-toml", "line 4"),
    "unknown-key": (
        EXPERIMENT.replace("learning_rate = 2.0", "learning_rate = 2.0\nmomentun = 0.9"),
        "bad-plan",
        "line 19",
    ),
    "unknown-table": (EXPERIMENT + "\n[extra]\n", "bad-plan", "extra"),
    "unknown-model": (EXPERIMENT.replace('"softmax"', '"softmx"'), "unknown-model", "softmx"),
    "wrong-type": (EXPERIMENT.replace("rounds = 2", 'rounds = "2"'), "bad-plan", "line 4"),
    "floor": (
        EXPERIMENT.replace("spare_rounds = 1", "least_noise_multiplier = 5.0"),
        "below-floor",
        "noise_multiplier",
    ),
    "schema": (EXPERIMENT.replace("[1, 8, 8]", "[1, 9, 9]"), "bad-data", "shape"),
    "too-many-clients": (
        EXPERIMENT.replace("clients = 3\npartition", "clients = 2000\npartition"),
        "bad-data",
        "2000 clients",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_exit_code_four_with_a_place_and_a_hint(
    capsys: Run, tmp_path: Path, name: str
) -> None:
    text, code_name, where = MISTAKES[name]
    path = tmp_path / "nothing.toml" if text is None else write_experiment(tmp_path, text)
    code, error = call(capsys, "simulate", path, "--out", tmp_path / "run")
    assert (code, error["code"]) == (errors.EXIT_INPUT, code_name)
    assert where in error["message"]
    assert made(tmp_path) == []


def test_a_misspelt_name_comes_with_a_guess(capsys: Run, tmp_path: Path) -> None:
    text = EXPERIMENT.replace('"softmax"', '"softmx"')
    _, error = call(capsys, "simulate", write_experiment(tmp_path, text))
    assert "did you mean 'softmax'?" in error["hint"]
    text = EXPERIMENT.replace("learning_rate = 2.0", "learning_rate = 2.0\nmomentun = 0.9")
    _, error = call(capsys, "simulate", write_experiment(tmp_path, text))
    assert "did you mean 'momentum'?" in error["hint"]


@pytest.mark.parametrize("change", ["nonsense", "=1", "plan.rounds.x=1", "plan.=3"])
def test_a_change_that_is_none_is_bad_input(capsys: Run, file: Path, change: str) -> None:
    assert call(capsys, "plan", "check", file, "--set", change)[0] == 4


def test_a_directory_in_use_is_left_alone(capsys: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    code, error = call(capsys, "simulate", file, "--out", tmp_path / "run")
    assert (code, error["code"]) == (4, "directory-in-use")
    assert made(tmp_path) == ["run/thesis.txt"]


def test_resuming_needs_a_run(capsys: Run, file: Path, tmp_path: Path) -> None:
    assert call(capsys, "simulate", file, "--resume")[0] == 4
    code, error = call(capsys, "simulate", file, "--resume", "--out", tmp_path / "run")
    assert (code, error["code"]) == (4, "no-run")
    assert made(tmp_path) == []


@pytest.mark.parametrize("change", ["policy.budget=0.5", "plan.rounds=500"])
def test_a_plan_over_the_budget_is_exit_code_ten_and_makes_nothing(
    capsys: Run, file: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "run"
    code, error = call(capsys, "simulate", file, "--out", out, "--set", change)
    assert (code, error["code"]) == (errors.EXIT_BUDGET, "budget-exhausted")
    assert "least budget that admits it" in error["hint"]
    assert not out.exists()
    assert made(tmp_path) == []  # no ledger, no key, no run


def test_a_bundle_or_device_that_is_not_there_is_bad_input(capsys: Run, tmp_path: Path) -> None:
    assert call(capsys, "audit", "verify", tmp_path)[0] == 4
    assert call(capsys, "device", "update", tmp_path / "none")[0] == 4
    assert call(capsys, "device", "status", tmp_path / "none")[0] == 4


# -- plan check ----------------------------------------------------------------------------------


def test_a_plan_check_gives_three_numbers_and_what_admits_the_plan(
    capsys: Run, file: Path, tmp_path: Path
) -> None:
    code, data = call(capsys, "plan", "check", file)
    assert code == 0
    privacy = data["privacy"]
    assert data["admitted"] is True
    assert 0 < privacy["epsilon"] < privacy["epsilon_filter"] < privacy["budget"] == 8.0
    assert privacy["epsilon_filter"] < privacy["epsilon_with_spare"]  # one spare round
    assert privacy["least_budget"] <= privacy["epsilon_with_spare"]
    assert set(privacy["accountants"]) == {
        "pld (dp-accounting)",
        "rdp (dp-accounting)",
        "rdp (privet)",
    }
    assert made(tmp_path) == []

    least = privacy["least_budget"]
    for factor, admitted in ((1.001, True), (0.999, False)):
        changes = [f"policy.budget={least * factor}"]
        changes.append(f"policy.order={privacy['least_budget_order']}")
        options = [word for change in changes for word in ("--set", change)]
        _, again = call(capsys, "plan", "check", file, *options)
        assert again["admitted"] is admitted


def test_a_plan_check_as_text_says_the_same(capsys: Run, file: Path) -> None:
    assert run(["plan", "check", str(file)]) == 0
    text = capsys.readouterr().out
    for word in ("epsilon", "epsilon_filter", "policy.budget", "least budget", "admitted"):
        assert word in text
    assert run(["plan", "check", str(file), "--set", "policy.budget=0.5"]) == 0
    assert "NOT ADMITTED" in capsys.readouterr().out


# -- every other way to end ----------------------------------------------------------------------


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def simulate(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("privet.running.simulate", simulate)


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (errors.OperationError("x"), 1, "operation-failed"),
        (errors.NetworkError("x"), 3, "network"),
        (errors.InputError("x"), 4, "bad-input"),
        (errors.DataError("x"), 4, "bad-data"),
        (errors.BudgetError("x"), 10, "budget-exhausted"),
        (errors.TrustError("x"), 11, "verification-failed"),
        (errors.Refusal("x", code="stale-round"), 11, "stale-round"),
        (errors.UnauthenticatedError("x"), 12, "unauthenticated"),
        (OSError(28, "No space left on device"), 1, "disk-full"),
        (OSError(122, "Disk quota exceeded"), 1, "disk-full"),
        (ModuleNotFoundError("no torch", name="torch"), 1, "not-installed"),
        (ModuleNotFoundError("no x", name="simulations.x"), 5, "bug"),
        (ModuleNotFoundError("no x", name="client.x"), 5, "bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("odd"), 5, "bug"),
        (OSError(5, "Input/output error"), 5, "bug"),
        (RecursionError("deep"), 5, "bug"),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_has_its_exit_code(
    capsys: Run,
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    error: BaseException,
    exit_code: int,
    code: str,
) -> None:
    ends_with(monkeypatch, error)
    found = call(capsys, "simulate", file)
    assert (found[0], found[1]["code"]) == (exit_code, code)
    assert run(["simulate", str(file)]) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


def test_a_bug_shows_its_traceback_only_to_who_asks(
    capsys: Run, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    ends_with(monkeypatch, ValueError("odd"))
    monkeypatch.setenv(output.DEBUG_VARIABLE, "1")
    assert run(["simulate", str(file)]) == 5
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_bug(file: Path) -> None:
    root = Path(__file__).resolve().parent.parent.parent
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m privet --help | true; echo ${{PIPESTATUS[0]}}"],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() in ("0", "1")
    assert "Traceback" not in result.stderr
