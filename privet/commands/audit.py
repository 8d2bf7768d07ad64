"""``privet audit``: check, offline, what privacy was spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from privet import output
from privet.commands.audit_test import examine
from privet.commands.options import FormatOption, QuietOption, TrustOption
from privet.output import Format

app = typer.Typer(help="Check, offline, what privacy was spent.", no_args_is_help=True)
app.command("test")(examine)


@app.command("verify")
def verify_bundle(
    bundle: Annotated[Path, typer.Argument(help="A published bundle directory.", metavar="BUNDLE")],
    trust: TrustOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Check every signature, chain and number of a bundle. Exit code 12 without --trust."""
    from audit.verify import verify
    from common.bundle import Trust
    from common.errors import UnauthenticatedError

    verdict = verify(bundle, Trust.read(trust) if trust else None)
    recomputed = _recomputed(verdict)
    if not verdict.authenticated:
        raise UnauthenticatedError(
            "self-consistent, unauthenticated: everything agrees, but by keys that came with it",
            hint="get the signers' fingerprints by another way and pass them with --trust FILE",
        )
    data = {**verdict.json(), "recomputed": recomputed.json() if recomputed else None}
    output.show(format_, data, lambda: _print_verdict(data))


def _recomputed(verdict: Any) -> Any:
    """The second opinion, where dp-accounting is installed."""
    from importlib.util import find_spec

    if find_spec("dp_accounting") is None:
        return None
    from audit.recompute import recompute

    return recompute(verdict)


def _print_verdict(data: dict[str, Any]) -> None:
    print(f"{data['verdict']}: {data['name']}, epsilon {data['epsilon']} at delta {data['delta']}")
    if data["simulated"]:
        print("simulated: made with repeatable noise or nobody's data; it protects nobody")
    for check in data["checks"]:
        print(f"  - {check}")
    if data["recomputed"] is None:
        print("  - the headline's PLD value was not computed again: that needs the audit extra")
    else:
        names = ", ".join(data["recomputed"]["declared"])
        print(f"  - the headline recomputed, and the accountants agree: {names}")
    worst = max(data["clients"], key=lambda client: client["epsilon_filter"])
    print(
        f"most exposed client {worst['pseudonym'][:12]}…: {worst['rounds']} rounds, epsilon "
        f"{worst['epsilon_filter']:.4f} of a budget of {worst['budget']:g}"
    )


@app.command("report")
def write_report(
    bundle: Annotated[Path, typer.Argument(help="A published bundle directory.", metavar="BUNDLE")],
    trust: TrustOption = None,
    out: Annotated[Path, typer.Option(help="Where to write the page.", metavar="FILE")] = Path(
        "audit-report.html"
    ),
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML page about a bundle that verifies."""
    from audit.recompute import recompute
    from audit.report import bundle_json, render_bundle
    from audit.verify import verify
    from common import durable
    from common.bundle import Trust

    verdict = verify(bundle, Trust.read(trust) if trust else None)
    recomputed = recompute(verdict)
    durable.replace(out, render_bundle(verdict, recomputed).encode())
    data = {**bundle_json(verdict, recomputed), "report": str(out)}
    output.show(format_, data, lambda: print(f"{data['verdict']}\nreport  {out}"))
