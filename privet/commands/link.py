"""``privet server start|run|resume|watch`` and ``privet client start``: what runs for months.

The rules: each is one process that SIGTERM ends in order, and that may be killed at any time. What
people look at goes to standard output, what happened to standard error; neither holds a record, a
key or an answer. A run is looked at through its directory, so whoever watches may come and go.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import InputError, OperationError
from privet import output
from privet.commands.client import HomeOption
from privet.commands.client import app as client_app
from privet.commands.options import FormatOption, QuietOption
from privet.commands.server import RunArgument, print_status
from privet.commands.server import app as server_app
from privet.detached import leave
from privet.output import Format

if TYPE_CHECKING:
    from server.federation.directory import Federation
    from server.home import ServerHome
    from server.link.runs import Watcher

WATCH_SECONDS = 0.5
BEGIN_OR_GO_ON = ("run", "--resume")
DetachOption = Annotated[
    bool, typer.Option("--detach", help="Leave it running; `privet server watch` comes back.")
]


@server_app.command("start")
def start_server(
    directory: Annotated[Path, typer.Argument(help="The federation's directory.", metavar="DIR")],
    address: Annotated[
        str | None,
        typer.Option(help="Found it, if it is not there: what clients reach.", metavar="HOST:PORT"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to bind; the loopback, or all, if omitted.")
    ] = "",
    port: Annotated[
        int, typer.Option(help="The port to bind, if not the address's.", min=0, max=65535)
    ] = 0,
    no_begin: Annotated[
        bool,
        typer.Option("--no-begin", help="flwr may list, follow and stop runs, and begin none."),
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Keep a federation's link, which clients connect to, until SIGTERM."""
    from server.link.service import Link, LinkSettings

    _say(quiet)
    federation = _federation(directory, address)

    def ready(bound: str, public: int, inside: int) -> None:
        data = {
            "address": str(federation.address),
            "listens": f"[{bound}]:{public}" if ":" in bound else f"{bound}:{public}",
            "inside": f"127.0.0.1:{inside}",
            "authority": federation.authority().fingerprint,
        }
        output.show(format_, data, lambda: print(f"clients connect to {data['address']}"))
        sys.stdout.flush()

    begin = None if no_begin else functools.partial(leave, BEGIN_OR_GO_ON)
    Link(federation, LinkSettings(host, port), ready=ready, begin=begin).run()


def _federation(directory: Path, address: str | None) -> Federation:
    """The federation that is there, or a new one if an address was given."""
    from common.invitation import Address
    from server.federation.directory import Federation

    if address is None or (directory / "federation.json").exists():
        federation = Federation.read(directory)
        if address not in (None, str(federation.address)):
            raise InputError(
                f"{directory} is a federation at {federation.address}, not at {address}",
                hint="leave --address out; --host and --port say what to bind",
                code="another-address",
            )
        return federation
    keys = directory.with_name(f"{directory.name}.keys")
    return Federation.create(directory, keys, Address.parse(address))


@server_app.command("run")
def run_server(
    run: RunArgument,
    detach: DetachOption = False,
    go_on: Annotated[
        bool, typer.Option("--resume", help="Go on with it if it was begun: one word for services.")
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Run a run's rounds over its federation's link; Ctrl-C stops it after the round under way."""
    from server.link.readiness import may_begin
    from server.link.runs import begin

    if go_on:
        _work(_begin_or_go_on, _may_begin_or_go_on, BEGIN_OR_GO_ON, run, detach, format_, quiet)
    else:
        _work(begin, may_begin, ("run",), run, detach, format_, quiet)


def _begin_or_go_on(path: Path, watcher: Watcher) -> None:
    """Begin a run, or go on with it; a finished one stays as it is."""
    from server.link.runs import begin, resume

    try:
        begin(path, watcher)
    except InputError as error:
        if error.code != "begun-already":
            raise
        resume(path, watcher)


def _may_begin_or_go_on(home: ServerHome) -> None:
    from server.link.readiness import may_begin

    try:
        may_begin(home)
    except InputError as error:
        if error.code != "begun-already":
            raise


@server_app.command("resume")
def resume_server(
    run: RunArgument,
    detach: DetachOption = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Go on with a run that was stopped or killed; a seeded one ends in the same bits."""
    from server.link.readiness import may_go_on
    from server.link.runs import resume

    _work(resume, may_go_on, ("resume",), run, detach, format_, quiet)


@server_app.command("watch")
def watch_server(
    run: RunArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Look on while a run is run, from its first round to its end; Ctrl-C leaves it running."""
    from server.home import ServerHome
    from server.link.readiness import is_at_work
    from server.status import ENDED, round_line, rounds, status

    home, seen, told = ServerHome.read(run), 0, quiet or format_ is Format.json
    with output.progress(told) as progress:
        while True:
            at_work, data = is_at_work(home), status(home)
            for line in rounds(home)[seen:]:
                seen += 1
                if not told:
                    print(round_line(line, home.plan.rounds), flush=True)
            progress("rounds", data["rounds"]["done"], home.plan.rounds)
            if data["state"] == ENDED or not at_work:
                break
            time.sleep(WATCH_SECONDS)
    output.show(format_, data, lambda: print_status(data))
    if data["state"] != ENDED and not told:
        print(f"no server is at work on it: see `privet server resume {run}`", file=sys.stderr)


@client_app.command("start")
def start_client(
    home: HomeOption = None,
    server: Annotated[
        str | None,
        typer.Option(help="Where the server is now, if it has moved.", metavar="HOST:PORT"),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Take part in a federation until SIGTERM; comes back by itself whatever the network does."""
    from client.home import locate
    from client.link.start import serve
    from common.invitation import Address

    _say(quiet)
    address = Address.parse(server) if server else None

    def told(word: str) -> None:
        if not quiet:
            print(word, file=sys.stderr, flush=True)

    serve(home or locate(None), address, told=told)
    output.show(format_, {"ended": True}, lambda: print("ended, as asked"))


def _say(quiet: bool) -> None:
    """What Flower and its HTTP client say in the course of their work is no operator's business."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    ours = logging.getLogger("privet")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.ERROR if quiet else logging.INFO)
    for name in ("flwr", "httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _work(
    work: Any,
    may: Any,
    words: tuple[str, ...],
    run: Path,
    detach: bool,
    format_: Format,
    quiet: bool,
) -> None:
    from server.home import ServerHome
    from server.status import status

    home = ServerHome.read(run)
    if detach:
        may(home)
        _detach(words, home, format_)
        return
    _say(quiet)
    told = quiet or format_ is Format.json
    with output.progress(told) as progress:
        work(run, _watcher(home, progress, told))
    data = status(home)
    output.show(format_, data, lambda: print_status(data))


def _detach(words: tuple[str, ...], home: ServerHome, format_: Format) -> None:
    """Start the same command in a session of its own; what it says is in ``server.log``."""
    from server.link.readiness import is_at_work

    left = leave(words, home)
    while not left.ended() and not is_at_work(home):
        time.sleep(0.05)
    if why := left.why():
        raise OperationError(
            f"it did not begin: {why}",
            hint=f"{left.log} has all that it said",
            code="not-begun",
        )
    process, log = left.process, left.log
    process.returncode = 0  # nobody waits for it: it is left on purpose
    data = {"process": process.pid, "log": str(log)}
    output.show(format_, data, lambda: print(f"running as process {process.pid}; see {log}"))


def _watcher(home: ServerHome, progress: output.Update, quiet: bool) -> Watcher:
    from dataclasses import asdict

    from server.link.runs import Watcher
    from server.rounds import RoundReport
    from server.status import round_line

    planned = home.plan.rounds

    def on_round(report: RoundReport) -> None:
        if not quiet:
            print(round_line(asdict(report), planned), flush=True)

    def waiting(round_: int, answers: int, asked: int) -> None:
        progress(f"round {round_} of {planned}: answers", answers, asked)

    return Watcher(waiting, on_round)
