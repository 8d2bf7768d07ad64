"""The boards' wheels are asked of pip for what is pinned, and the guide says what was answered."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy import check_wheels
from deploy.check_wheels import NO_ANSWER, NO_WHEEL, main, needed, normal, pinned
from tests.deploy.units import ROOT

FILES = "https://files.example.org/packages/aa/bb/"


class Pip:
    """In pip's place: answers for every package but those of ``without``."""

    def __init__(self, without: tuple[str, ...] = (), said: str = "") -> None:
        self.asked: list[list[str]] = []
        self._without, self._said = without, said

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        name, _, version = command[-1].partition("==")
        if name in self._without:
            return subprocess.CompletedProcess(command, 1, "", self._said)
        url = f"{FILES}{name}-{version}-cp311-cp311-manylinux_2_28_aarch64.whl"
        report = {"install": [{"download_info": {"url": url}}]}
        return subprocess.CompletedProcess(command, 0, json.dumps(report), "")


def asking(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> Pip:
    monkeypatch.setattr(check_wheels.subprocess, "run", pip)
    return pip


def test_every_compiled_part_is_asked_for_at_its_pinned_version_and_as_a_wheel_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = asking(monkeypatch, Pip())
    assert main([]) == 0
    asked = {command[-1] for command in pip.asked}
    for name in ("torch", "numpy", "cryptography", "grpcio", "onnxruntime", "safetensors", "scipy"):
        assert f"{name}=={pinned()[name]}" in asked
    assert not any(one.startswith(("opacus==", "tuf==", "typer==", "privet==")) for one in asked)
    for command in pip.asked:
        assert {"--dry-run", "--only-binary=:all:", "--no-deps"} <= set(command)
        assert "manylinux_2_28_aarch64" in command
        assert "manylinux_2_29_aarch64" not in command
        assert not any("x86_64" in word for word in command)
    told = capsys.readouterr().out
    assert f"`torch-{pinned()['torch']}-cp311-cp311-manylinux_2_28_aarch64.whl`" in told


def test_a_package_without_a_wheel_is_named_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        "ERROR: Could not find a version that satisfies the requirement (from versions: 1.0, 2.0)\n"
        "ERROR: No matching distribution found for torch==2.13.0\n"
    )
    asking(monkeypatch, Pip(("torch",), said))
    assert main([]) == NO_WHEEL
    assert f"| torch {pinned()['torch']} | **none** |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "said",
    [
        "",
        "ERROR: Could not find a version that satisfies ... (from versions: none)\n"
        "ERROR: No matching distribution found for numpy",
        "WARNING: Retrying ... Connection refused",
    ],
)
def test_an_index_that_does_not_answer_is_not_taken_for_a_missing_wheel(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asking(monkeypatch, Pip(("numpy",), said))
    assert main(["device"]) == NO_ANSWER
    assert "numpy" in capsys.readouterr().err


def test_a_device_needs_neither_torch_nor_flower_there() -> None:
    assert not {"torch", "flwr", "opacus", "scipy"} & needed(["device"], "aarch64")
    assert {"torch", "flwr", "opacus"} <= needed(["client"], "aarch64")


def test_the_guide_names_a_wheel_for_every_compiled_part_at_the_version_that_is_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pip = asking(monkeypatch, Pip())
    main([])
    wanted = {tuple(command[-1].split("==")) for command in pip.asked}
    guide = (ROOT / "docs" / "deployment.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+) ([0-9.]+) \| `(\S+)` \|$", guide, re.MULTILINE)
    assert {(name, version) for name, version, _ in rows} == wanted
    for name, version, file in rows:
        found, there, *_ = Path(file).stem.split("-")
        assert (normal(found), there) == (name, version)
        assert re.search(r"-(cp311-cp311|cp3\d+-abi3|py3-none)-\S*aarch64\.whl$", file)
