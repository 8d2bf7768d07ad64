"""``privet client doctor`` and ``privet server doctor``: what is wrong here, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privet import output
from privet.commands import client, server
from privet.commands.federation import FederationOption
from privet.commands.options import FormatOption, QuietOption
from privet.output import Format

if TYPE_CHECKING:
    from privet.doctoring.findings import Finding

_MARKS = {"ok": "ok  ", "warning": "look", "wrong": "BAD "}


@client.app.command("doctor")
def doctor_client(
    home: Annotated[
        Path,
        typer.Option(help="The client's directory.", metavar="DIR", envvar="PRIVET_CLIENT_HOME"),
    ],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Check keys, ledger, data, approvals, certificates, clock, disk and the way to the server."""
    from privet.doctoring.client import check as look

    _show(look(home), format_, quiet)


@server.app.command("doctor")
def doctor_server(
    federation: FederationOption,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Check keys, certificates, registry, repository, clock, disk and the port."""
    from privet.doctoring.server import check as look

    _show(look(federation), format_, quiet)


def _show(findings: list[Finding], format_: Format, quiet: bool) -> None:
    from privet.doctoring.findings import OK, exit_code, report

    def text() -> None:
        for finding in findings:
            if quiet and finding.state == OK:
                continue
            print(f"{_MARKS[finding.state]}  {finding.check:<18}{finding.what}")
            if finding.mend and finding.state != OK:
                print(f"      {'':<18}mend: {finding.mend}")

    code = exit_code(findings)
    if not code:
        output.show(format_, report(findings), text)
        return
    gravest = next(finding for finding in findings if finding.exit_code == code)
    error = {
        "code": "something-wrong",
        "message": f"{gravest.check}: {gravest.what}",
        "hint": gravest.mend,
    }
    output.show_wrong(format_, report(findings), text, error)
    raise typer.Exit(code)
