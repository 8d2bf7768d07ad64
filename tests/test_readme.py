"""Every command block of the README runs, in its order, and does what the text around it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- slow -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = [
    (bool(slow), language, body)
    for slow, language, body in BLOCK.findall((ROOT / "README.md").read_text())
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a user has: examples beside the installed command."""
    path = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "examples", path / "examples")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, path)
    (path / ".venv" / "bin").mkdir(parents=True)
    (path / ".venv" / "bin" / "activate").write_text("")
    return path


def run(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PRIVET_STATE_HOME": str(checkout / "state"),
    }
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def commands(wanted_slow: bool) -> list[str]:
    return [
        line.removeprefix("$ ")
        for slow, language, body in BLOCKS
        if language == "console" and slow == wanted_slow
        for line in body.splitlines()
    ]


@pytest.mark.slow
def test_every_command_of_the_readme_succeeds_in_its_order(checkout: Path) -> None:
    for command in commands(wanted_slow=False):
        if command.startswith("make "):
            command = command.replace("make", "make -n", 1)  # what it runs is run below, as itself
        result = run(command, checkout)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    rows = run("privet device predict runs/clinics/device new-patients.csv", checkout).stdout
    assert rows.splitlines()[0] == "class,probability"
    assert len(rows.splitlines()) == 6


@pytest.mark.slow
def test_the_python_block_of_the_readme_runs(checkout: Path) -> None:
    (block,) = [body for _, language, body in BLOCKS if language == "python"]
    (checkout / "block.py").write_text(block)
    result = run("python block.py", checkout)
    assert result.returncode == 0, result.stderr
    first, *predictions = result.stdout.splitlines()
    accuracy, epsilon = map(float, first.split())
    assert len(predictions) == 1000
    assert 0 < accuracy < 1
    assert epsilon > 0


@pytest.mark.figures
def test_fashion_mnist_reaches_83_percent_at_epsilon_3(checkout: Path) -> None:
    (command,) = [c for c in commands(wanted_slow=True) if "fashion-mnist" in c]
    result = run(command, checkout)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    summary = json.loads((checkout / "runs" / "fashion" / "summary.json").read_bytes())
    print(summary["metrics"], summary["device"], summary["privacy"], summary["timing"])
    assert summary["metrics"]["test"] == "public"
    assert summary["metrics"]["accuracy"] >= 0.83
    assert summary["device"]["accuracy"] >= 0.83
    assert summary["privacy"]["epsilon"] <= 3


def test_the_exit_codes_of_the_readme_are_those_of_the_code() -> None:
    from common import errors

    table = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(code) for code in table} == known


def test_no_document_holds_a_path_of_somebodys_machine() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    files = [ROOT / name for name in tracked if name] or list(ROOT.glob("**/*.md"))
    homes = re.compile(r"/(?:home|root|Users)/\w")
    texts = {".py", ".md", ".toml", ".txt", ".j2", ""}
    for file in files:
        if file.suffix in texts and file.is_file() and file != Path(__file__).resolve():
            assert not homes.search(file.read_text("utf-8", "replace")), file
