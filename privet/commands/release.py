"""``privet release``: publish what two parties signed, and look after what is published.

The rule: ``status`` and ``keys`` need no key, and work on any copy of a repository. How a key is
replaced is in :mod:`privet.commands.succession`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import EXIT_TRUST
from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.commands.publishing import ProposalArgument
from privet.commands.server import RunArgument
from privet.output import Format

app = typer.Typer(help="Publish releases, and look after whose keys count.", no_args_is_help=True)

PlaceArgument = Annotated[
    Path,
    typer.Argument(
        help="A federation's directory, or a repository.",
        metavar="DIR",
        envvar="PRIVET_FEDERATION",
    ),
]
FederationArgument = Annotated[
    Path,
    typer.Argument(help="The federation's directory.", metavar="DIR", envvar="PRIVET_FEDERATION"),
]


@app.command("status")
def status(
    place: PlaceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Who may sign what, until when devices believe it, and whether every file verifies."""
    from datetime import UTC, datetime

    from server.release.published import Published
    from server.release.standing import standing

    path = repository_at(place)
    found = standing(Published(path), datetime.now(UTC))
    data = {"repository": str(path), **found.json()}
    if not found.exit_code:
        output.show(format_, data, lambda: _print_status(data))
        return
    first = found.problems[0]
    error = {"code": first["code"], "message": first["what"], "hint": first["mend"]}
    if found.exit_code == EXIT_TRUST:
        error["code"] = "devices-refuse"
    output.show_wrong(format_, data, lambda: _print_status(data), error)
    raise typer.Exit(found.exit_code)


@app.command("keys")
def keys(
    place: PlaceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """The parties' fingerprints, what each may sign, and since which root; former ones too."""
    from server.release.published import Published
    from server.release.standing import keys_of

    data = {"keys": keys_of(Published(repository_at(place)))}
    output.show(format_, data, lambda: _print_keys(data["keys"]))


@app.command("publish")
def publish(
    run: RunArgument,
    proposal: ProposalArgument,
    approval: Annotated[
        Path, typer.Argument(help="As privet approver approve wrote it.", metavar="APPROVAL")
    ],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Publish what both have signed, in the federation's repository; bundle and trust in RUN."""
    from privet.proposal import BUNDLE, Approval, Proposal
    from privet.publishing import TRUST
    from privet.publishing import publish as work
    from server.federation.directory import federation_of
    from server.home import ServerHome

    here = federation_of(ServerHome.read(run))
    files = work(run, Proposal.read(proposal), Approval.read(approval))
    data = {
        "repository": str(here.repository),
        "bundle": str(run / BUNDLE),
        "trust": str(run / TRUST),
        "files": sorted(files),
    }
    output.show(format_, data, lambda: print(f"published in {data['repository']}"))


@app.command("prune")
def prune(
    place: PlaceArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Remove what no device needs any more; never a root, nor the last two releases."""
    from datetime import UTC, datetime

    from server.release.pruning import prune as work
    from server.release.published import Published

    path = repository_at(place)
    pruned = work(Published(path), datetime.now(UTC), dry_run=dry_run)
    data = {
        "repository": str(path),
        "dry_run": dry_run,
        "removed": pruned.removed,
        "bytes": sum(pruned.removed.values()),
        "kept": pruned.kept,
    }
    output.show(format_, data, lambda: _print_pruned(data))


@app.command("renew")
def renew(
    federation: FederationArgument,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Sign the repository's timestamp anew; a link at work does so by itself."""
    from datetime import UTC, datetime

    from server.federation.directory import Federation
    from server.federation.publication import renew as work

    here = Federation.read(federation)
    version = work(here, datetime.now(UTC))
    data = {"repository": str(here.repository), "version": version}
    output.show(format_, data, lambda: print(f"renewed: version {data['version']}"))


def is_federation(place: Path) -> bool:
    return (place / "federation.json").exists()


def repository_at(place: Path) -> Path:
    return place / "repository" if is_federation(place) else place


def _print_pruned(data: dict[str, Any]) -> None:
    for name, length in data["removed"].items():
        print(f"  {name}, {length:,} bytes")
    word, gone = "would remove" if data["dry_run"] else "removed", len(data["removed"])
    print(f"{word} {gone} of {gone + data['kept']} files, {data['bytes']:,} bytes")


def _print_keys(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        until = "" if row["until"] is None else f" to {row['until']}"
        print(f"{row['party']:<12} {row['fingerprint']}  root {row['since']}{until}")
        print(f"{'':<12} signs {row['may']}")


def _print_status(data: dict[str, Any]) -> None:
    _print_keys([row for row in data["keys"] if row["until"] is None])
    for row in data["metadata"]:
        print(f"{row['role']:<12} version {row['version']}, until {row['expires']}  {row['state']}")
    for name, length in data["files"].items():
        print(f"{'published':<12} {name}, {length:,} bytes, verified")
    if not data["files"]:
        print(f"{'published':<12} nothing that verifies")
    for problem in data["problems"]:
        print(f"{'LOOK':<12} {problem['what']}")
        print(f"{'':<12} mend: {problem['mend']}")
