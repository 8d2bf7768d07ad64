"""``privet release rotate|revoke|sign|commit``: how one party's key takes another's place.

The rule: every party signs where its key is, and files travel: ``rotate`` and ``revoke`` draw a
change up, ``sign`` adds a party's signatures to a copy, ``commit`` puts it in force.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common import durable
from common.errors import InputError, TrustError
from privet import output
from privet.commands.options import FormatOption, OutOption, QuietOption
from privet.commands.release import PlaceArgument, app, is_federation, repository_at
from privet.output import Format

if TYPE_CHECKING:
    from server.federation.directory import Federation
    from server.release.succession import Change

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


def _drafting(*, revoked: bool) -> Callable[..., None]:
    """The command that draws up either kind of change."""

    def draft(
        party: PartyArgument,
        place: PlaceArgument,
        out: OutOption,
        key: KeyOption = None,
        format_: FormatOption = Format.text,
        quiet: QuietOption = False,
    ) -> None:
        _draft(party, place, out, key, format_, revoked=revoked)

    return draft


app.command(
    "rotate",
    help="Draw up a new key for one party, whose holder still has the old one; others sign it.",
)(_drafting(revoked=False))
app.command(
    "revoke",
    help="Draw up a root without a lost or stolen key, and with a new one; the two others sign it.",
)(_drafting(revoked=True))


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
    instead: Annotated[
        list[str] | None,
        typer.Option(
            help="SHA-256 of what this key signed under the same version, which you know was never "
            "put in force.",
            metavar="HEX",
        ),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Read a change of keys, and add one party's signatures to a copy of it."""
    from datetime import UTC, datetime

    from server.federation.directory import approver_key
    from server.release.history import History, contents_signed
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
    now = datetime.now(UTC)
    signed = found.signed_by(key, now)
    History(keys, key).change(
        found.before.speaker.fingerprint,
        contents_signed(key.public, signed.root, signed.targets),
        now,
        instead=[text.lower() for text in instead or ()],
        heir=found.after.speaker.fingerprint if found.speaks else None,
    )  # before a signature leaves
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
    repository = Published(repository_at(place))
    here = Federation.read(place) if is_federation(place) else None
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
