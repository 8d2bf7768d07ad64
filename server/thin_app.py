"""What does Flower run here? An app that holds no code: its two components are what is installed.

The rule: Flower wants a bundle for each run, so it gets this one. Its one setting is ``run``, the
run's directory: what is trained lies there.
"""

from __future__ import annotations

from pathlib import Path

from common import durable
from common.errors import InputError

RUN = "run"  # the setting
PROJECT = "pyproject.toml"
THIN_APP = f"""\
[project]
name = "privet-run"
version = "1.0.0"
description = "Names the code that is installed, and holds none."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "privet"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
{RUN} = ""
"""


def check(folder: Path) -> bool:
    """Whether the app is there already; it is to be the only thing in its directory.

    Raises:
        InputError: ``directory-in-use``.
    """
    with durable.disk_errors(folder):
        there = [path.name for path in folder.iterdir()] if folder.exists() else []
        if not there:
            return False
        if there == [PROJECT] and (folder / PROJECT).read_bytes() == THIN_APP.encode():
            return True
    raise InputError(
        f"{folder} holds something else than the app",
        hint="name a directory that is not there yet",
        code="directory-in-use",
    )


def write(folder: Path) -> None:
    """Write the app, if it is not there already.

    Raises:
        InputError: as :func:`check`; nothing was changed.
        OperationError: the disk refused.
    """
    if not check(folder):
        with durable.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        durable.replace(folder / PROJECT, THIN_APP.encode())
