"""``privet server collect|propose`` and ``privet approver approve``: what two parties release.

The rule: two parties, two key directories, and files between them; see :mod:`privet.publishing`.
``privet release publish`` comes last.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common import durable
from common.errors import NetworkError
from privet import output
from privet.commands.federation import approver_app
from privet.commands.options import (
    AgreementOption,
    FormatOption,
    LossOption,
    OutOption,
    QuietOption,
)
from privet.commands.server import RunArgument
from privet.commands.server import app as server_app
from privet.output import Format

if TYPE_CHECKING:
    from audit.verify import Verdict

ProposalArgument = Annotated[
    Path, typer.Argument(help="As privet server propose wrote it.", metavar="PROPOSAL")
]
MOST_VERSION = 2**31


@server_app.command("collect")
def collect(
    run: RunArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Ask a finished run's clients for what a release publishes of their ledgers."""
    from server.link.runs import collect as work

    failed = work(run)
    if failed:
        why = ", ".join(f"{name} ({code})" for name, code in sorted(failed.items()))
        raise NetworkError(
            f"these ledgers are still missing: {why}",
            hint="start those clients, and try again: what has come is kept",
            code="ledgers-missing",
        )
    output.show(format_, {"missing": []}, lambda: print("every ledger that is needed is here"))


@server_app.command("propose")
def propose(
    run: RunArgument,
    out: OutOption,
    approver: Annotated[
        str, typer.Option(help="The approver's public key, as privet approver init printed it.")
    ],
    recovery: Annotated[
        str | None,
        typer.Option(help="A third party's public key; needed once, for the first release."),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            help="A later version than the next, where the approver signed that and it is lost.",
            min=1,
            max=MOST_VERSION,
            metavar="N",
        ),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Propose a finished run's model for release: what the approver is given."""
    from common.keys import PublicKey
    from privet.publishing import make_proposal

    durable.check_free(out)
    third = PublicKey.from_text(recovery) if recovery else None
    proposal = make_proposal(run, PublicKey.from_text(approver), third, version)
    proposal.write(out)
    data = {
        "proposal": str(out),
        "version": proposal.version,
        "simulated": proposal.simulated,
        "clients": len(proposal.bundle.clients),
    }
    output.show(format_, data, lambda: print(f"carry {out} to the approver"))


@approver_app.command("approve")
def approve(
    proposal: ProposalArgument,
    keys: Annotated[Path, typer.Option(help="The approver's key directory.", metavar="DIR")],
    coordinator: Annotated[
        str, typer.Option(help="Fingerprint of the coordinator's key, got by another way.")
    ],
    out: OutOption,
    recovery: Annotated[
        str | None,
        typer.Option(
            help="Fingerprint of the recovery key, got from its holder; needed once, for the "
            "first release.",
            metavar="HEX",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="The public records that a smaller model was made with, got by another way: "
            "fashion-mnist, or a CSV file.",
            metavar="DATA",
        ),
    ] = "",
    version: Annotated[
        int | None,
        typer.Option(
            help="The release's version, where it does not follow the last one that this key "
            "signed: as you know it from elsewhere.",
            min=1,
            max=MOST_VERSION,
            metavar="N",
        ),
    ] = None,
    most_loss: LossOption = 0.01,
    least_agreement: AgreementOption = 0.985,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Check a proposal from end to end, compute every epsilon anew, and sign it."""
    from privet.proposal import Proposal
    from privet.publishing import approve as work
    from server.federation.directory import approver_key
    from server.release.history import History
    from server.release.roots import roles_in
    from server.release.smaller.compare import Rule
    from server.release.smaller.data import public

    durable.check_free(out)
    key = approver_key(keys)
    read = Proposal.read(proposal)
    approval, verdict = work(
        read,
        coordinator.lower(),
        key,
        History(keys, key),
        lambda schema: public(data, "got by the approver", schema) if data else None,
        Rule(most_loss=most_loss, least_agreement=least_agreement),
        recovery.lower() if recovery else None,
        version,
    )
    approval.write(out)
    result = {
        "approval": str(out),
        "version": read.version,
        "simulated": read.simulated,
        "recovery": roles_in(approval.root).recovery.fingerprint if approval.root else None,
        **_checked(verdict),
    }
    output.show(format_, result, lambda: _print_approved(result))


def _checked(verdict: Verdict) -> dict[str, Any]:
    return {
        "model": verdict.plan.release.name,
        "epsilon": float(verdict.claims["epsilon"]),
        "delta": verdict.plan.privacy.delta,
        "clients": len(verdict.clients),
        "checks": list(verdict.checks),
    }


def _print_approved(data: dict[str, Any]) -> None:
    for check in data["checks"]:
        print(f"  {check}")
    if data["recovery"]:
        print(f"  the repository's recovery key is {data['recovery']}")
    if data["simulated"]:
        print("  SIMULATED: the noise can be repeated, so nobody's privacy is promised")
    print(
        f"signed: {data['model']}, version {data['version']}, epsilon {data['epsilon']:.3f} at "
        f"delta {data['delta']:g}, {data['clients']} ledgers; carry {data['approval']} back"
    )
