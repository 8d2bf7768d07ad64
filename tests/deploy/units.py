"""Unit files as values, the commands that they start, and the system calls that they allow."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
from pathlib import Path

import click
import typer

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def read(unit: Path) -> dict[str, list[str]]:
    """Every ``key=value`` of a unit, as ``Section.key``; a key may be there many times."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            section = line.strip("[]")
            continue
        key, equals, value = line.partition("=")
        assert equals, f"{unit.name}: {line}"
        assert not line.endswith("\\"), "one line, one directive: this reader knows no more"
        found.setdefault(f"{section}.{key}", []).append(value)
    return found


def commands(line: str) -> list[list[str]]:
    """The ``privet`` command lines in an ExecStart, without the program."""
    words = shlex.split(line)
    if words[:2] == ["/bin/sh", "-c"]:
        words = shlex.split(words[2].removeprefix("exec ").partition(" < ")[0])
    assert words[0].rpartition("/")[2] == "privet", line
    return [words[1:]]


def parse(words: list[str]) -> click.Context:
    """What the command line makes of these words, without doing it; ``UsageError`` if nothing."""
    from privet.cli import app

    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="privet")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, parent=context, info_name=name)
    return command.make_context(context.info_name, list(words), parent=context.parent)


def system_calls(unit: Path) -> set[str]:
    """What a unit's filter lets through, by name, from systemd's own tables."""
    allowed: set[str] = _members("@default")
    for value in read(unit)["Service.SystemCallFilter"]:
        names = {name for word in value.lstrip("~").split() for name in _members(word)}
        allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


@functools.cache
def _tables() -> dict[str, list[str]]:
    out = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tables: dict[str, list[str]] = {}
    name = ""
    for line in re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines():
        if line.startswith("@"):
            name = line.strip()
            tables[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            tables[name].append(line.strip())
        elif line.startswith("#"):
            name = "unlisted"  # what systemd's tables do not know
            tables.setdefault(name, [])
    return tables


def _members(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    return {name for one in _tables()[word] for name in _members(one)}
