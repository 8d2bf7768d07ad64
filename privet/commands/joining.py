"""``privet client``: become a client, with one token or by two files.

The rule: what the data owner allows comes from a file on this device, or is signed already; nothing
of it comes with the token. Directories that are not named lie beside the home.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet import output
from privet.commands.client import app
from privet.commands.options import ChangesOption, FormatOption, QuietOption
from privet.output import Format

if TYPE_CHECKING:
    from client.home import Home
    from client.site import Site

HomeOption = Annotated[Path, typer.Option(help="The client's directory, to be made.")]
DataOption = Annotated[
    Path, typer.Option(help="TOML with [data], and [policy] if none is signed.", metavar="FILE")
]
CustodyOption = Annotated[
    Path | None,
    typer.Option(help="Where the data set's policy and ledger are; HOME.custody if omitted."),
]
KeysOption = Annotated[
    Path | None, typer.Option(help="The key directory; HOME.keys if omitted.", metavar="DIR")
]
OwnerKeysOption = Annotated[
    Path | None,
    typer.Option(help="The data owner's key directory; HOME.owner if omitted.", metavar="DIR"),
]
OwnerOption = Annotated[
    str | None,
    typer.Option(
        help="The public key of an owner elsewhere, who signed the policy.", metavar="KEY"
    ),
]


@app.command("join")
def join(
    token: Annotated[str, typer.Argument(help="As the operator gave it; - reads it.")],
    home: HomeOption,
    data: DataOption,
    custody: CustodyOption = None,
    keys: KeysOption = None,
    owner_keys: OwnerKeysOption = None,
    owner: OwnerOption = None,
    changes: ChangesOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Join a federation: makes this device's keys, proves them, and writes its home."""
    from client.joining import join as work
    from common.invitation import Invitation

    invitation = Invitation.read(sys.stdin.readline() if token == "-" else token)  # noqa: S105
    site = _site(home, data, custody, keys, owner_keys, owner, changes or [])
    _show(work(invitation, site), format_)


@app.command("request")
def request(
    name: Annotated[str, typer.Argument(help="What the client shall be called.", metavar="NAME")],
    about: Annotated[Path, typer.Option(help="As privet server about --out wrote it.")],
    federation: Annotated[
        str, typer.Option(help="The federation's fingerprint, got by another way.")
    ],
    out: Annotated[Path, typer.Option(help="The request, to carry to the server.")],
    home: HomeOption,
    data: DataOption,
    custody: CustodyOption = None,
    keys: KeysOption = None,
    owner_keys: OwnerKeysOption = None,
    owner: OwnerOption = None,
    changes: ChangesOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Ask to join without a network: makes this device's keys and a file to carry."""
    from client.requesting import request as work
    from common import durable
    from privet.commands.federation import read_small, request_json

    site = _site(home, data, custody, keys, owner_keys, owner, changes or [])
    asked, signed = work(site, name, read_small(about), federation.lower())
    durable.replace(out, signed)
    result = {**request_json(asked), "file": str(out)}
    output.show(format_, result, lambda: output.fields(result))


@app.command("accept")
def accept(
    file: Annotated[Path, typer.Argument(help="As privet server approve-request wrote it.")],
    home: HomeOption,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Take the answer to this device's request, and write its home."""
    from client.requesting import accept as work
    from privet.commands.federation import read_small

    _show(work(home, read_small(file)), format_)


def _site(
    home: Path,
    data: Path,
    custody: Path | None,
    keys: Path | None,
    owner_keys: Path | None,
    owner: str | None,
    changes: list[str],
) -> Site:
    from client.custody import Custody
    from client.site import Site
    from common.config import read_toml
    from common.data.binding import Binding
    from common.errors import InputError
    from common.keys import PublicKey
    from common.policy import Policy

    if owner is not None and owner_keys is not None:
        raise InputError("the owner is named twice", hint="--owner-keys or --owner, not both")
    root = read_toml(data, changes)
    for other in ("plan", "simulation"):
        root.table(other, required=False)
    binding = Binding.read(root.table("data"), data.absolute().parent)
    terms = Policy.read(root.table("policy")) if root.has("policy") else None
    root.done()

    def beside(ending: str) -> Path:
        return home.absolute().with_name(f"{home.name}.{ending}")

    return Site(
        home=home,
        keys=keys or beside("keys"),
        custody=Custody(custody or beside("custody")),
        binding=binding,
        owner_keys=None if owner is not None else owner_keys or beside("owner"),
        owner=None if owner is None else PublicKey.from_text(owner),
        terms=terms,
    )


def _show(home: Home, format_: Format) -> None:
    from client.site import read_enrolment

    enrolment = read_enrolment(home)
    result: dict[str, Any] = {
        "client": home.client,
        "home": str(home.path),
        "federation": home.federation,
        "address": enrolment.address,
        "approver": enrolment.approver or None,
        "pseudonym": enrolment.pseudonym,
        "dataset": home.policy.dataset,
        "owner": home.owner.fingerprint,
        "enrolled": enrolment.enrolled,
    }
    output.show(format_, result, lambda: output.fields(result))
