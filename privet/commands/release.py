"""``privet release``: publish what two parties signed, and see, renew and replace who may sign.

The rule: every party signs where its key is, and files travel: ``rotate`` and ``revoke`` draw a
change up, ``sign`` adds a party's signatures to a copy, ``commit`` puts it in force. ``status`` and
``keys`` need no key, and work on any copy of a repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common import durable
from common.errors import EXIT_TRUST, InputError, TrustError
from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.commands.publishing import ProposalArgument
from privet.commands.server import RunArgument
from privet.output import Format

if TYPE_CHECKING:
    from server.federation.directory import Federation
    from server.release.succession import Change

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
PartyArgument = Annotated[
    str, typer.Argument(help="coordinator, approver or recovery.", metavar="PARTY")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help="The new public key, as privet approver init prints it. A coordinator's is made here "
        "if omitted, and is another federation's if given (revoke alone)."
    ),
]
OutOption = Annotated[Path, typer.Option(help="Where to write it; must not exist.", metavar="DIR")]


@app.command("status")
def status(
    place: PlaceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Who may sign what, until when devices believe it, and whether every file verifies."""
    from datetime import UTC, datetime

    from server.release.published import Published
    from server.release.standing import standing

    path = _repository(place)
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

    data = {"keys": keys_of(Published(_repository(place)))}
    output.show(format_, data, lambda: _print_keys(data["keys"]))


@app.command("rotate")
def rotate(
    party: PartyArgument,
    place: PlaceArgument,
    out: OutOption,
    key: KeyOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Draw up a new key for one party, whose holder still has the old one; others sign it."""
    _draft(party, place, out, key, format_, revoked=False)


@app.command("revoke")
def revoke(
    party: PartyArgument,
    place: PlaceArgument,
    out: OutOption,
    key: KeyOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Draw up a root without a lost or stolen key, and with a new one; the two others sign it."""
    _draft(party, place, out, key, format_, revoked=True)


@app.command("sign")
def sign(
    change: Annotated[Path, typer.Argument(help="As rotate, revoke or sign wrote it.")],
    keys: Annotated[Path, typer.Option(help="The signing party's key directory.", metavar="DIR")],
    new: Annotated[
        str, typer.Option(help="Fingerprint of the new key, got from its holder.", metavar="HEX")
    ],
    root: Annotated[
        Path,
        typer.Option(help="A root of the repository, got by a way you trust.", metavar="FILE"),
    ],
    out: OutOption,
    hands_over: Annotated[
        bool,
        typer.Option(
            "--hands-over", help="Agree that another federation signs privacy statements from now."
        ),
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Read a change of keys, and add one party's signatures to a copy of it."""
    from datetime import UTC, datetime

    from server.federation.directory import approver_key
    from server.release.succession import Change

    durable.check_free(out)
    key, found = approver_key(keys), Change.read(change)
    try:
        trusted = root.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {root}: {error.strerror}",
            hint="1.root.json, as you were given it when the repository was made",
            code="no-such-file",
        ) from error
    found.check_began(trusted)
    if found.new.fingerprint != new.lower():
        raise TrustError(
            f"this change brings the key {found.new.fingerprint}, not {new}",
            hint="sign nothing, and ask whoever drafted it",
            code="wrong-key",
        )
    if found.speaks and not hands_over:
        raise TrustError(
            "this change hands the federation's statements over: "
            f"{found.after.speaker.fingerprint} would sign them, and "
            f"{found.before.speaker.fingerprint} no more",
            hint="sign with --hands-over if that federation's own key was stolen; else nothing",
            code="hands-over",
        )
    signed = found.signed_by(key, datetime.now(UTC))
    signed.write(out)
    data = _changed(signed, out)
    output.show(format_, data, lambda: _print_change(data))


@app.command("commit")
def commit(
    federation: Annotated[Path, typer.Argument(help="The federation's directory.", metavar="DIR")],
    changes: Annotated[
        list[Path], typer.Argument(help="Signed copies of one change.", metavar="CHANGE...")
    ],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Put a change of keys in force once all have signed; after an interruption, do it again."""
    from datetime import UTC, datetime
    from functools import reduce

    from server.federation.directory import Federation
    from server.release.repository import Repository
    from server.release.roots import APPROVER
    from server.release.succession import Change

    here = Federation.read(federation)
    change = reduce(Change.joined, map(Change.read, changes))
    if change.after.speaker != here.signing_key().public:
        raise TrustError(
            f"this change has {change.after.speaker.fingerprint} sign privacy statements, which is "
            "not this federation's key",
            hint="draft the change again; privet release revoke coordinator --key is committed by "
            "the federation that takes the repository over",
            code="other-federation",
        )
    change = _signed_here(change, here)
    repository = Repository(here.repository)
    change.commit(repository, here.release_keys(), datetime.now(UTC))
    if change.party == APPROVER:
        here.with_approver(change.new.fingerprint)
    data = {
        "party": change.party,
        "old": change.old.fingerprint,
        "new": change.new.fingerprint,
        "root": change.version,
        "repository": str(repository.path),
    }
    output.show(
        format_, data, lambda: print(f"root {data['root']} is in force: {data['party']} changed")
    )


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


def _draft(
    party: str, place: Path, out: Path, text: str | None, format_: Format, *, revoked: bool
) -> None:
    from datetime import UTC, datetime

    from common.keys import PublicKey
    from server.federation.directory import Federation
    from server.release.published import Published
    from server.release.roots import COORDINATOR, PARTIES
    from server.release.succession import draft

    durable.check_free(out)
    if party not in PARTIES:
        raise InputError(
            f"{party!r} is no party of a repository",
            hint=f"name one of {', '.join(PARTIES)}",
            code="no-such-party",
        )
    speaks = party == COORDINATOR and text is not None
    if speaks and not revoked:
        raise InputError(
            "a coordinator's next key is made here, so that both are at hand",
            hint="leave --key out; privet release revoke coordinator --key hands a repository "
            "over to another federation",
            code="another-federation",
        )
    repository = Published(_repository(place))
    here = Federation.read(place) if _is_federation(place) else None
    if text is not None:
        new = PublicKey.from_text(text)
    elif party == COORDINATOR and here is not None:
        new = here.make_release_key().public
    else:
        raise InputError(
            f"a new key of the {party} is made by whoever will hold it",
            hint="--key KEY: made with privet approver init, in a new key directory",
            code="no-new-key",
        )
    change = draft(repository, party, new, datetime.now(UTC), revoked=revoked, speaks=speaks)
    if here is not None:
        change = _signed_here(change, here)
    change.write(out)
    data = _changed(change, out)
    output.show(format_, data, lambda: _print_change(data))


def _signed_here(change: Change, federation: Federation) -> Change:
    """The same, with the signatures of whichever of the coordinator's keys are asked for."""
    from datetime import UTC, datetime

    for key in federation.release_keys():
        try:
            change = change.signed_by(key, datetime.now(UTC))
        except TrustError as error:
            if error.code != "not-asked":
                raise
    return change


def _is_federation(place: Path) -> bool:
    return (place / "federation.json").exists()


def _repository(place: Path) -> Path:
    return place / "repository" if _is_federation(place) else place


def _changed(change: Change, out: Path) -> dict[str, Any]:
    return {
        "change": str(out),
        "party": change.party,
        "revoked": change.revoked,
        "old": change.old.fingerprint,
        "new": change.new.fingerprint,
        "root": change.version,
        "hands_over": change.speaks,
        "speaker": change.after.speaker.fingerprint,
        "files": change.files(),
        "missing": change.missing(),
    }


def _print_change(data: dict[str, Any]) -> None:
    word = "revokes" if data["revoked"] else "replaces"
    print(f"root {data['root']} {word} the key of the {data['party']}")
    print(f"  old  {data['old']}")
    print(f"  new  {data['new']}")
    if data["hands_over"]:
        print(f"  HANDS OVER: privacy statements are signed by {data['speaker']} from now on")
    for name, digest in data["files"].items():
        print(f"  goes on publishing {name}, SHA-256 {digest}")
    for who in data["missing"]:
        print(f"  still to sign: {who}")
    print(
        f"carry {data['change']} to each of them: privet release sign"
        if data["missing"]
        else f"all have signed {data['change']}: privet release commit"
    )


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
