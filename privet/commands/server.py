"""``privet server``: see how a run stands, stop it after its round, lift a suspension.

The rule: these commands talk to a run through its directory alone, so they work whether a server
is at work there or not, and nothing that they do needs it to be restarted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import InputError
from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.output import Format

app = typer.Typer(help="Look after a run: its state, its clients, its end.", no_args_is_help=True)

RunArgument = Annotated[Path, typer.Argument(help="The run's directory.", metavar="RUN")]


@app.command("status")
def status_server(
    run: RunArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """How a run stands: rounds, who takes part, who was dropped and why, who is suspended."""
    from server.home import ServerHome
    from server.status import status

    data = status(ServerHome.read(run))
    output.show(format_, data, lambda: print_status(data))


@app.command("suspended")
def suspended_server(
    run: RunArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Who is not asked any more, since which round, and why."""
    from server.home import ServerHome
    from server.status import suspended

    rows = suspended(ServerHome.read(run))
    output.show(format_, {"suspended": rows}, lambda: _print_suspended(rows))


@app.command("lift")
def lift_server(
    run: RunArgument,
    client: Annotated[str, typer.Argument(help="The client's name.", metavar="CLIENT")],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Lift a client's suspension: it is asked again from the next round on, with a clean record."""
    from server.home import ServerHome
    from server.status import suspended

    home = ServerHome.read(run)
    found = [row for row in suspended(home) if row["client"] == client]
    if not found:
        raise InputError(
            f"{client} is not suspended in {run}",
            hint=f"`privet server suspended {run}` lists who is",
            code="not-suspended",
        )
    home.lift(client, found[0]["round"])
    data = {"client": client, "round": found[0]["round"]}
    output.show(
        format_, data, lambda: print(f"lifted: {client} is asked again from the next round")
    )


@app.command("stop")
def stop_server(
    run: RunArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Ask a server to stop after the round under way; the run can be resumed."""
    from server.home import ServerHome
    from server.stopping import ask

    ask(ServerHome.read(run).stop)
    output.show(format_, {"stop_requested": True}, lambda: print(f"{run} stops after its round"))


def print_status(data: dict[str, Any]) -> None:
    rounds, replies, rates = data["rounds"], data["replies"], data["rates"]
    state = f"{data['state']}: {data['ended']}" if data["ended"] else data["state"]
    print(f"run        {data['run']}, plan {data['plan']['name']}")
    print(f"state      {state}" + (", asked to stop" if data["stop_requested"] else ""))
    print(
        f"rounds     {rounds['done']} of {rounds['planned']}, {rounds['changed']} changed the model"
    )
    if rounds["asked_now"]:
        print(f"asked now  {', '.join(rounds['asked_now'])}")
    print(f"replies    {replies['valid']} valid of {replies['asked']} asked; {_codes(replies)}")
    if rates["rounds_per_hour"] is not None:
        print(
            f"rates      {rates['rounds_per_hour']:g} rounds an hour, "
            f"{rates['seconds_per_round']:g} s a round"
        )
    if (weight := data["traffic"])["bytes_per_reply"] is not None:
        print(
            f"traffic    {weight['bytes_per_reply']:,.0f} bytes an update, "
            f"{weight['uncompressed_per_reply']:,.0f} uncompressed ({weight['ratio']:.3g} x)"
        )
    if data["accuracy"] is not None:
        print(f"accuracy   {100 * data['accuracy']:.2f} %")
    if data["spent"]:
        print(f"spent      {', '.join(data['spent'])}: said that their budgets are used up")
    print("clients")
    for name, client in data["clients"].items():
        print(
            f"  {name:<20} {client['valid']} valid of {client['asked']}, ledger of "
            f"{client['ledger_entries']} entries; {_codes(client)}"
        )
    if data["suspended"]:
        print("suspended")
        _print_suspended(data["suspended"])


def _codes(counted: dict[str, Any]) -> str:
    codes = ", ".join(f"{code} x {count}" for code, count in counted["dropped"].items())
    return f"dropped: {codes}" if codes else "none dropped"


def _print_suspended(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("nobody is suspended")
    for row in rows:
        lifted = " (lifted: asked again from the next round)" if row["lifted"] else ""
        print(
            f"  {row['client']:<20} since round {row['round']}: {', '.join(row['codes'])}{lifted}"
        )
