"""``privet server``: keep a link, run rounds over it; see how a run stands, stop it, mend it.

The rule: the commands that look after a run talk to it through its directory alone, so they work
whether a server is at work there or not, and nothing that they do needs it to be restarted.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import InputError
from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.output import Format

if TYPE_CHECKING:
    from server.coordination import Watcher

app = typer.Typer(
    help="Keep a link, run rounds over it, and look after a run.", no_args_is_help=True
)

RunArgument = Annotated[Path, typer.Argument(help="The run's directory.", metavar="RUN")]


@app.command("start")
def start_server(
    directory: Annotated[Path, typer.Argument(help="The link's directory.", metavar="DIR")],
    host: Annotated[str, typer.Option(help="The address that clients reach.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Its port; that of the last start if omitted.", min=0, max=65535),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name or address for a first start's certificate.", metavar="HOST"
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS; on the loopback address only.")
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Keep a link that clients connect to, until SIGTERM; a first start makes its keys."""
    from server.link import Link, LinkHome, LinkSettings

    _quieten(quiet)
    home = LinkHome(directory)
    settings = LinkSettings(host, port, tuple(name or ()), insecure)

    def ready(public: int, inside: int) -> None:
        address = f"[{host}]:{public}" if ":" in host else f"{host}:{public}"
        data = {
            "address": address,
            "inside": f"127.0.0.1:{inside}",
            "authority": None if insecure else str(home.certificates.authority),
        }
        output.show(format_, data, lambda: _print_ready(data))
        sys.stdout.flush()

    Link(home, settings, ready=ready).run()


LinkOption = Annotated[Path | None, typer.Option(help="The link's directory.", metavar="DIR")]


@app.command("run")
def run_server(
    run: RunArgument,
    link: Annotated[Path, typer.Option(help="The link's directory.", metavar="DIR")],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Run a prepared run's rounds over a link; Ctrl-C or SIGTERM stops it after its round."""
    from server.coordination import begin

    _quieten(quiet)
    with output.progress(quiet or format_ is Format.json) as progress:
        begin(run, link, _watcher(run, progress, quiet or format_ is Format.json))
    _show_run(run, format_)


@app.command("resume")
def resume_server(
    run: RunArgument,
    link: LinkOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Go on with a run that was stopped or killed; a seeded one ends in the same bits."""
    from server.coordination import resume

    _quieten(quiet)
    with output.progress(quiet or format_ is Format.json) as progress:
        resume(run, link, _watcher(run, progress, quiet or format_ is Format.json))
    _show_run(run, format_)


def _quieten(quiet: bool) -> None:
    """What Flower and its HTTP client say in the course of their work is no operator's business."""
    logging.getLogger("privet").setLevel(logging.ERROR if quiet else logging.INFO)
    for name in ("flwr", "httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _watcher(run: Path, progress: output.Update, quiet: bool) -> Watcher:
    from server.coordination import Watcher
    from server.home import ServerHome
    from server.rounds import RoundReport

    rounds = ServerHome.read(run).plan.rounds

    def on_round(report: RoundReport) -> None:
        if not quiet:
            changed = "changed the model" if report.changed else f"no change: {report.unchanged}"
            accuracy = "" if report.accuracy is None else f", {100 * report.accuracy:.2f} % right"
            print(
                f"round {report.round} of {rounds}: {report.valid} of {report.asked} valid, "
                f"{changed}{accuracy}, {report.seconds:g} s",
                flush=True,
            )

    def waiting(round_: int, answers: int, asked: int) -> None:
        progress(f"round {round_} of {rounds}: answers", answers, asked)

    return Watcher(waiting, on_round)


def _show_run(run: Path, format_: Format) -> None:
    from server.home import ServerHome
    from server.status import status

    data = status(ServerHome.read(run))
    output.show(format_, data, lambda: _print_status(data))


def _print_ready(data: dict[str, Any]) -> None:
    print(f"clients connect to {data['address']}")
    if data["authority"]:
        print(f"and trust          {data['authority']}")


@app.command("status")
def status_server(
    run: RunArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """How a run stands: rounds, who takes part, who was dropped and why, who is suspended."""
    from server.home import ServerHome
    from server.status import status

    data = status(ServerHome.read(run))
    output.show(format_, data, lambda: _print_status(data))


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


def _print_status(data: dict[str, Any]) -> None:
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
