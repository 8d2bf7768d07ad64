"""``privet device``: receive signed models, or refuse them, and run them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.commands.trusting import authority_at, trust_device
from privet.output import Format

app = typer.Typer(help="Receive signed models, or refuse them, and run them.", no_args_is_help=True)
app.command("trust")(trust_device)

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
    follow_root: Annotated[
        bool,
        typer.Option("--follow-root", help="Let two of the repository's parties replace a signer."),
    ] = False,
    authority: Annotated[
        str | None,
        typer.Option(
            help="The only authority for https: its fingerprint, as privet server about prints "
            "it, or its certificate's file.",
            metavar="HEX|FILE",
        ),
    ] = None,
    least_version: Annotated[
        int, typer.Option(help="Refuse older models, even as a first one.", min=1)
    ] = 1,
    keys: Annotated[
        Path | None,
        typer.Option(help="The device's key directory; DIR.keys if omitted.", metavar="DIR"),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Enrol a device: its keys, what it trusts and what it accepts."""
    from client.device.home import DeviceHome
    from client.device.policy import DevicePolicy
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
        follow_root=follow_root,
        least_version=least_version,
    )
    pinned = authority_at(repository, authority) if authority else None
    home = DeviceHome.init(directory, root.read_bytes(), policy, keys, pinned)
    floor = home.floor
    data = {
        "device": home.identity.fingerprint,
        "keys": str(home.identity.path),
        "floor": floor.version or None,
        "policy": policy.json(),
    }

    def text() -> None:
        print(f"enrolled  {directory} as device {home.identity.fingerprint[:16]}…")
        print(f"keys      in {home.identity.path}: not to be copied, and not to be wiped with it")
        if floor.version:
            print(f"floor     it had {floor.name} version {floor.version}: nothing older comes in")

    output.show(format_, data, text)


@app.command("update")
def update_device(
    directory: DeviceArgument,
    again: Annotated[
        bool, typer.Option("--again", help="Also install what was rolled back from.")
    ] = False,
    deadline: Annotated[
        float, typer.Option(help="Seconds for everything that is fetched.", min=1)
    ] = 600.0,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Fetch the newest release and install it, if everything about it verifies."""
    from datetime import UTC, datetime

    from client.device.home import DeviceHome
    from client.device.updater import update

    outcome = update(DeviceHome(directory), datetime.now(UTC), deadline=deadline, again=again)
    data = {
        "installed": outcome.installed,
        "name": outcome.name,
        "version": outcome.version,
        "notice": outcome.notice or None,
    }

    def text() -> None:
        what = "installed" if outcome.installed else "already current"
        print(f"{what}: {outcome.name} version {outcome.version}")
        if outcome.notice:
            print(f"note: {outcome.notice}")

    output.show(format_, data, text)


@app.command("status")
def status_device(
    directory: DeviceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """What the device runs, since when, what that claims, what was refused; checks all of it."""
    from client.device.home import DeviceHome
    from client.device.status import Status
    from common.errors import EXIT_TRUST

    status = Status.of(DeviceHome(directory))
    if not status.wrong:
        output.show(format_, status.json(), lambda: print("\n".join(status.lines())))
        return
    error = {
        "code": "damaged",
        "message": "; ".join(status.wrong),
        "hint": "update the device to mend a model; find out who changed a log or a policy; if it "
        "was its owner who changed the policy, privet device trust --confirm notes it",
    }
    output.show_wrong(format_, status.json(), lambda: print("\n".join(status.lines())), error)
    raise typer.Exit(EXIT_TRUST)


@app.command("rollback")
def rollback_device(
    directory: DeviceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Go back to the release before, if the owner's policy allows it; the floor stays."""
    from datetime import UTC, datetime

    from client.device.home import DeviceHome
    from client.device.rollback import roll_back

    outcome = roll_back(DeviceHome(directory), datetime.now(UTC))
    data = {"name": outcome.name, "version": outcome.version}
    output.show(
        format_, data, lambda: print(f"went back to {outcome.name} version {outcome.version}")
    )
