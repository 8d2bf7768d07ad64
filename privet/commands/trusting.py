"""``privet device trust``, and whom ``privet device init`` believes about an address.

The rule: whose signatures count on a device is its owner's to say, and nothing that a repository
offers changes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from common.errors import InputError, TrustError
from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.output import Format


def trust_device(
    directory: Annotated[Path, typer.Argument(help="The device's directory.", metavar="DIR")],
    signers: Annotated[
        Path | None, typer.Option(help="From now on, whoever this trust file names.")
    ] = None,
    follow_root: Annotated[
        bool | None,
        typer.Option(
            "--follow-root/--no-follow-root",
            help="Let a root that two of three parties signed replace a signer.",
        ),
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="What was changed in policy.json is meant so.")
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Whose statements count here, and who took whose place; or say otherwise."""
    from dataclasses import replace

    from client.device.home import DeviceHome
    from common.bundle import Trust

    home = DeviceHome(directory)
    policy, edited = home.policy, home.policy_changes()
    if edited and not confirm and (signers is not None or follow_root is not None):
        raise TrustError(
            f"the policy was changed since it was set: {'; '.join(edited)}",
            hint="if its owner did that, add --confirm; else put right what it says first",
            code="policy-changed",
        )
    if signers is not None:
        policy = replace(policy, signers=tuple(Trust.read(signers).signers.values()))
    if follow_root is not None:
        policy = replace(policy, follow_root=follow_root)
    if policy != home.policy or confirm:
        home.set_policy(policy)
    found = home.successors()
    data = {
        "signers": list(policy.signers),
        "threshold": policy.threshold,
        "follow_root": policy.follow_root,
        "successors": found,
        "policy_changes": list(home.policy_changes()),
    }

    def text() -> None:
        for signer in policy.signers:
            print(f"signer     {signer}")
        for new, old in found.items():
            says = "counts in its place" if policy.follow_root else "does not count"
            print(f"successor  {new}  of {old[:16]}…, {says}")
        print(f"needed     {policy.threshold} of them")
        for what in home.policy_changes():
            print(f"CHANGED    since it was set: {what}")

    output.show(format_, data, text)


def authority_at(repository: str, given: str) -> bytes:
    """The certificate, PEM, of an authority that somebody named by fingerprint or by file.

    Raises:
        InputError: neither, or the repository is at no https address.
        TrustError: ``wrong-authority``: another one answers there, or the file is no certificate.
        NetworkError: nobody answers there.
    """
    from common.enrolment import MAX_BYTES, About, certificate_fingerprint
    from common.invitation import Address

    if not repository.startswith("https://"):
        raise InputError(
            f"an authority vouches for an https address, and {repository} is none",
            hint="leave --authority out, or name https://HOST:PORT/repository",
            code="no-address",
        )
    if not re.fullmatch(r"[0-9a-fA-F]{64}", given):
        try:
            data = Path(given).read_bytes()[:MAX_BYTES]
        except OSError as error:
            raise InputError(
                f"{given} is neither a fingerprint nor a file: {error.strerror}",
                hint="privet server about prints the authority's fingerprint",
                code="no-such-file",
            ) from error
        certificate_fingerprint(data.decode("ascii", "replace"))
        return data
    from client.joining import Clock, Line, check_authority

    host = repository.removeprefix("https://").partition("/")[0]
    line = Line(Address.parse(host if ":" in host else f"{host}:443"), Clock())
    # From whoever answers: the fingerprint says which certificate it has to be.
    about = About.unverified(line.introduce())
    check_authority(about.authority, given.lower())
    return about.authority.encode()
