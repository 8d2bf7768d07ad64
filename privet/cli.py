"""The ``privet`` command: what people type and what scripts call.

The rule: this file says what the words are and what a result looks like on a terminal. Everything
it calls is imported when a command runs, so that asking for help imports neither torch nor Flower.
"""

from __future__ import annotations

import logging
import sys
from itertools import pairwise

import typer

from privet import __version__, output
from privet.commands import (
    audit,
    client,
    device,
    doctor,
    federation,
    flower,
    inference,
    joining,
    link,
    plan,
    publishing,
    release,
    server,
    shrinking,
    succession,
)
from privet.commands.options import FormatOption, QuietOption
from privet.commands.simulate import simulate
from privet.output import Format

app = typer.Typer(
    name="privet",
    help="Train one model over many holders of data, under a privacy budget that anyone can check.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("simulate")(simulate)
app.add_typer(plan.app, name="plan")
app.add_typer(audit.app, name="audit")
app.add_typer(client.app, name="client")
app.add_typer(device.app, name="device")
app.add_typer(server.app, name="server")
app.add_typer(federation.approver_app, name="approver")
app.add_typer(release.app, name="release")
# These add their commands to others' groups.
_ = joining, doctor, flower, inference, link, publishing, shrinking, succession


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    json_wanted = "--format=json" in arguments or any(
        pair == ("--format", "json") for pair in pairwise(arguments)
    )
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr)

    def work() -> None:
        code = app(arguments, standalone_mode=False)
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    return output.guarded(work, json_wanted)


@app.command()
def version(format_: FormatOption = Format.text, quiet: QuietOption = False) -> None:
    """Print the version."""
    output.show(format_, {"version": __version__}, lambda: print(__version__))
