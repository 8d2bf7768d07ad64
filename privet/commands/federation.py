"""``privet server``: found a federation, invite clients, see and revoke them, begin a run.

The rule: these commands change files alone, and whatever they change counts from then on; a server
that is running need not be told. A token is printed once and kept nowhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import InputError
from privet import output
from privet.commands.options import ChangesOption, FormatOption, QuietOption
from privet.commands.server import app
from privet.output import Format

if TYPE_CHECKING:
    from common.enrolment import Join
    from server.federation.directory import Federation

approver_app = typer.Typer(help="The second party, who approves releases.", no_args_is_help=True)

FederationOption = Annotated[
    Path,
    typer.Option(help="The federation's directory.", metavar="DIR", envvar="PRIVET_FEDERATION"),
]
NamesOption = Annotated[
    list[str] | None,
    typer.Option("--name", help="One more host name or address for the certificate."),
]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(help="Where the federation is kept.", metavar="DIR")],
    address: Annotated[str, typer.Option(help="What clients connect to.", metavar="HOST:PORT")],
    name: NamesOption = None,
    keys: Annotated[
        Path | None, typer.Option(help="The key directory; DIR.keys if omitted.", metavar="DIR")
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Found a federation: the coordinator's key, an authority of its own, a certificate."""
    from common.invitation import Address
    from server.federation.directory import Federation

    place = keys or directory.with_name(f"{directory.name}.keys")
    federation = Federation.create(directory, place, Address.parse(address), name or ())
    data = _identity(federation)
    output.show(format_, data, lambda: output.fields(data))


@app.command("about")
def about(
    federation: FederationOption,
    out: Annotated[
        Path | None, typer.Option(help="Write what a client without a way in needs.")
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Who this federation is: fingerprints to compare, and a file to hand out."""
    from common import durable
    from server.federation.directory import Federation

    here = Federation.read(federation)
    data = _identity(here)
    if out is not None:
        durable.replace(out, here.about().sign(here.signing_key()))
        data["file"] = str(out)
    output.show(format_, data, lambda: output.fields(data))


@app.command("approver")
def set_approver(
    fingerprint: Annotated[str, typer.Argument(help="As privet approver init printed it.")],
    federation: FederationOption,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Say who approves releases; clients that enrol from now on hear it."""
    from server.federation.directory import Federation

    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise InputError("a fingerprint has 64 hexadecimal digits", code="bad-fingerprint")
    here = Federation.read(federation).with_approver(fingerprint)
    output.show(format_, _identity(here), lambda: print(f"approver   {fingerprint}"))


@app.command("invite")
def invite(
    name: Annotated[str, typer.Argument(help="What the client will be called.", metavar="NAME")],
    federation: FederationOption,
    expires: Annotated[str, typer.Option(help="Until when it can be used: 1m to 30d.")] = "24h",
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Print one token: hand it to the client by a way that you trust."""
    from server.federation.directory import Federation
    from server.federation.invitations import Invitations

    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", expires)
    if not found:
        raise InputError(f"{expires!r} is no duration", hint="such as 24h", code="bad-duration")
    seconds = int(found[1]) * _UNITS[found[2]]
    invitation = Invitations(Federation.read(federation)).invite(name, seconds)
    data = {
        "token": invitation.token(),
        "name": name,
        "address": str(invitation.address),
        "authority": invitation.authority,
        "federation": invitation.federation,
        "expires": _time(invitation.expires),
    }

    def text() -> None:
        print(data["token"])
        if not quiet:
            print(f"for {name}, once, until {data['expires']}:", file=sys.stderr)
            print("  privet client join TOKEN --home DIR --data FILE", file=sys.stderr)

    output.show(format_, data, text)


@app.command("approve-request")
def approve_request(
    file: Annotated[Path, typer.Argument(help="As privet client request wrote it.")],
    federation: FederationOption,
    out: Annotated[Path, typer.Option(help="The answer, to carry back.", metavar="FILE")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Enrol without being asked.")] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Enrol a client that has no way in, after its fingerprints were compared."""
    from common import durable
    from common.enrolment import SignedJoin
    from server.federation.directory import Federation
    from server.federation.doorkeeper import admit_request, approve_request

    here = Federation.read(federation)
    join = admit_request(here, SignedJoin.decode(read_small(file)))
    data = request_json(join)
    if format_ is Format.text:
        output.fields(data)
    if not yes and not (
        format_ is Format.text
        and sys.stdin.isatty()
        and typer.confirm(f"Does the site say the same, and shall it be {join.name}?")
    ):
        raise InputError(
            "not enrolled, and nothing was changed",
            hint="compare the fingerprints with the site, then answer yes or pass --yes",
            code="not-confirmed",
        )
    durable.replace(out, approve_request(here, join))
    data["file"] = str(out)
    output.show(format_, data, lambda: print(f"enrolled: carry {out} back to {join.name}"))


@app.command("nodes")
def nodes(
    federation: FederationOption,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Who is enrolled, who was revoked, and who is invited."""
    from server.federation.directory import Federation
    from server.federation.invitations import Invitations

    here = Federation.read(federation)
    rows = [
        {
            "name": entry.name,
            "status": "active" if entry.active else "revoked",
            "pseudonym": entry.pseudonym,
            "ledger_key": entry.member().key.fingerprint,
            "node_key": entry.node_fingerprint,
            "enrolled": entry.enrolled,
            "revoked": entry.revoked or None,
        }
        for entry in here.registry.entries()
    ]
    invited = [
        {"name": one.name, "expires": _time(one.expires)}
        for one in Invitations(here).open().values()
    ]
    data = {"nodes": rows, "invited": invited}
    output.show(format_, data, lambda: _print_nodes(data))


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The client's name.", metavar="NAME")],
    federation: FederationOption,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """End a client's part at once and for good, and its open invitations; no other is touched."""
    from server.federation.directory import Federation
    from server.federation.invitations import Invitations

    here = Federation.read(federation)
    withdrawn = Invitations(here).withdraw(name)
    if name in here.registry.active() or not withdrawn:
        here.registry.revoke(name)
    data = {"name": name, "withdrawn_invitations": withdrawn}
    output.show(format_, data, lambda: print(f"revoked: {name}"))


@app.command("rotate")
def rotate(
    federation: FederationOption,
    name: NamesOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Make a new certificate with a new key for the server; clients notice nothing."""
    from common import durable
    from server.federation.directory import Federation

    with durable.in_turn(federation):  # a link at work may be renewing it
        here = Federation.read(federation).with_names(name or ())
        made = here.authority().issue(here.names)
    data = {"names": list(made.names), "ends": made.ends.isoformat(), "serial": f"{made.serial:x}"}
    output.show(format_, data, lambda: output.fields(data))


@app.command("create")
def create(
    directory: Annotated[Path, typer.Argument(help="The run's directory.", metavar="RUN")],
    plan: Annotated[Path, typer.Argument(help="TOML with a [plan] table.", metavar="PLAN")],
    federation: FederationOption,
    changes: ChangesOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Make a run of a plan with everybody who is enrolled; its owners approve the signed plan."""
    from server.federation.directory import Federation
    from server.federation.founding import PLAN_ENVELOPE, create_run

    home = create_run(Federation.read(federation), directory, plan, changes or ())
    data = {
        "run": home.run,
        "plan": home.plan.digest,
        "clients": sorted(home.members),
        "signed_plan": str(directory / PLAN_ENVELOPE),
    }
    output.show(format_, data, lambda: output.fields(data))


@approver_app.command("init")
def init_approver(
    directory: Annotated[Path, typer.Argument(help="A key directory.", metavar="DIR")],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Make the approver's key, if there is none; never beside the coordinator's."""
    from server.federation.directory import approver_key

    key = approver_key(directory, make=True).public
    data = {"approver": key.fingerprint, "public_key": key.text()}
    output.show(format_, data, lambda: print(key.fingerprint))


def read_small(file: Path) -> bytes:
    """A document that a person carried here; :class:`InputError` if there is none to read."""
    from common.enrolment import MAX_BYTES

    try:
        with open(file, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {file}: {error.strerror}", hint="name the file", code="no-such-file"
        ) from error


def request_json(join: Join) -> dict[str, Any]:
    """What two people compare of a request."""
    return {
        "name": join.name,
        "ledger_key": join.ledger.fingerprint,
        "node_key": join.node.fingerprint,
        "pseudonym": join.pseudonym,
        "federation": join.federation,
    }


def _identity(federation: Federation) -> dict[str, Any]:
    authority = federation.authority()
    certificate = authority.server_certificate()
    return {
        "federation": federation.signing_key().public.fingerprint,
        "authority": authority.fingerprint,
        "approver": federation.approver or None,
        "address": str(federation.address),
        "names": list(certificate.names),
        "certificate_ends": certificate.ends.isoformat(),
        "keys": str(federation.keys),
    }


def _time(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_nodes(data: dict[str, Any]) -> None:
    for row in data["nodes"]:
        since = row["revoked"] or row["enrolled"]
        print(f"{row['name']:<20} {row['status']:<8} {since}  node {row['node_key'][:16]}…")
    for row in data["invited"]:
        print(f"{row['name']:<20} invited  until {row['expires']}")
    if not data["nodes"] and not data["invited"]:
        print("nobody is enrolled or invited")
