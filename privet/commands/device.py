"""``privet device``: receive signed models, or refuse them, and run them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.output import Format

app = typer.Typer(help="Receive signed models, or refuse them, and run them.", no_args_is_help=True)

DeviceArgument = Annotated[Path, typer.Argument(help="The device's directory.", metavar="DIR")]


@app.command("init")
def init_device(
    directory: DeviceArgument,
    root: Annotated[Path, typer.Option(help="TUF root metadata, got by a way you trust.")],
    trust: Annotated[Path, typer.Option(help="Whose statements count: a trust file.")],
    repository: Annotated[
        str, typer.Option(help="Where models come from: https://… or a directory.")
    ],
    greatest_epsilon: Annotated[float, typer.Option(help="Refuse models that claim more.")],
    greatest_delta: Annotated[float, typer.Option(help="Refuse models that claim more.")] = 1e-5,
    accept_simulated: Annotated[
        bool, typer.Option("--accept-simulated", help="Also run models made in simulations.")
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Enrol a device: what it trusts and what it accepts."""
    from client.device.home import DeviceHome, DevicePolicy
    from common.bundle import Trust
    from common.errors import InputError

    if not root.is_file():
        raise InputError(f"there is no file {root}", hint="1.root.json of the repository")
    policy = DevicePolicy(
        greatest_epsilon=greatest_epsilon,
        greatest_delta=greatest_delta,
        signers=tuple(Trust.read(trust).signers.values()),
        repository=repository if "://" in repository else str(Path(repository).absolute()),
        accept_simulated=accept_simulated,
    )
    DeviceHome.init(directory, root.read_bytes(), policy)
    data = {"device": str(directory), "policy": policy.json()}
    output.show(format_, data, lambda: print(f"enrolled {directory}"))


@app.command("update")
def update_device(
    directory: DeviceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Fetch the newest release and install it, if everything about it verifies."""
    from datetime import UTC, datetime

    from client.device.home import DeviceHome
    from client.device.updater import update

    outcome = update(DeviceHome(directory), datetime.now(UTC))
    data = {"installed": outcome.installed, "name": outcome.name, "version": outcome.version}
    what = "installed" if outcome.installed else "already current"
    output.show(format_, data, lambda: print(f"{what}: {outcome.name} version {outcome.version}"))


@app.command("status")
def status_device(
    directory: DeviceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """What the device runs, what it accepts, and what it decided lately."""
    from client.device import log, slots
    from client.device.home import DeviceHome

    home = DeviceHome(directory)
    current, policy = slots.current(home), home.policy
    decisions = log.read(home.decisions)
    data = {
        "device": str(directory),
        "model": {"name": current.name, "version": current.version} if current else None,
        "policy": policy.json(),
        "decisions": decisions[-20:],
    }

    def text() -> None:
        runs = f"{current.name} version {current.version}" if current else "no model yet"
        print(f"runs      {runs}")
        simulated = "simulated models too" if policy.accept_simulated else "no simulated models"
        print(f"accepts   epsilon up to {policy.greatest_epsilon:g}, {simulated}")
        for decision in decisions[-5:]:
            print(f"{decision['at']}  {decision['decision']}  {decision['reason']}")

    output.show(format_, data, text)
