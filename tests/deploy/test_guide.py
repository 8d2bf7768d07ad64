"""The deployment guide's commands are ones that the command line knows, and its logs are kept."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from tests.deploy.units import ROOT, UNITS, parse

GUIDE = (ROOT / "docs" / "deployment.md").read_text()
OURS = re.compile(
    r"(?:# (?:\w+=\S+ )?privet-as|\bexec (?:-T )?link privet|\brun --rm -T client|# privet) (.+)",
    re.MULTILINE,
)


def typed() -> list[list[str]]:
    """Every command line of ours in the guide's blocks, without redirections and remarks."""
    lines = [line for block in re.findall(r"```\n(.*?)```", GUIDE, re.DOTALL) for line in
             block.splitlines()]  # fmt: skip
    found = [match[1] for line in lines if (match := OURS.search(line))]
    return [shlex.split(re.split(r" [<>] ", one)[0], comments=True) for one in found]


def test_the_guide_has_the_way_from_a_bare_machine_to_a_run() -> None:
    said = [" ".join(words[:2]) for words in typed()]
    for step in ("init", "doctor", "invite", "create", "watch"):
        assert f"server {step}" in said
    for step in ("join", "approve", "doctor"):
        assert f"client {step}" in said


@pytest.mark.parametrize("words", typed(), ids=" ".join)
def test_a_command_of_the_guide_is_known(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVET_FEDERATION", "/var/lib/privet-server/federation")  # as privet-as
    parse(words)
    with pytest.raises(click.UsageError):
        parse([*words, "--no-such-option"])


def test_the_guide_starts_units_that_there_are() -> None:
    named = re.findall(r"systemctl (?:\w+|enable --now) (privet-\w+@?(?:\.timer)?)", GUIDE)
    started = {name.replace(".timer", "") + ".service" for name in named}
    assert started == {unit.name for unit in UNITS}


def test_nothing_that_is_read_whole_is_ever_rotated() -> None:
    text = (ROOT / "deploy" / "logrotate" / "privet").read_text()
    rules = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in rules if "{" in line] == ["/var/lib/privet/runs/*/server.log {"]
    assert "    copytruncate" in rules  # the process keeps it open, to append
