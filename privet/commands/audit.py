"""``privet audit``: check, offline, what privacy was spent.

The rule: every command verifies the whole bundle first, and ends the same way: exit code 11 if
anything in it is wrong, 12 if everything agrees but nobody vouched for the keys. What was found is
printed in that case too, for a person; a script gets the error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet import output
from privet.commands.audit_test import examine
from privet.commands.options import FormatOption, QuietOption, TrustOption
from privet.output import Format

if TYPE_CHECKING:
    from audit.checklist import Item
    from audit.recompute import Recomputation
    from audit.verify import Verdict
    from common.bundle import Bundle, Trust
    from common.keys import SigningKey

app = typer.Typer(help="Check, offline, what privacy was spent.", no_args_is_help=True)
app.command("test")(examine)

BundleArgument = Annotated[
    Path, typer.Argument(help="A published bundle directory.", metavar="BUNDLE")
]
AUDITOR = "auditor"  # the name of the key in its directory
MOST_CLIENTS = 20  # that a terminal shows


def _opened(path: Path, trust_file: Path | None) -> tuple[Bundle, Trust | None, Verdict]:
    """Read a bundle once, and verify what was read."""
    from audit.verify import check
    from common.bundle import SIGNERS, Bundle, Trust

    trust = Trust.read(trust_file) if trust_file else None
    bundle = Bundle.read(path)
    return bundle, trust, check(bundle, trust, signatures=len(SIGNERS))


def _finish(
    authenticated: bool, format_: Format, data: dict[str, Any], text: Callable[[], None]
) -> None:
    """Print the result; then fail, with exit code 12, if nobody vouched for the bundle."""
    from common.errors import UnauthenticatedError

    if authenticated or format_ is Format.text:
        output.show(format_, data, text)
    if not authenticated:
        raise UnauthenticatedError(
            "self-consistent, unauthenticated: everything agrees, but by keys that came with it",
            hint="get the signers' fingerprints by another way and pass them with --trust FILE",
        )


@app.command("verify")
def verify_bundle(
    bundle: BundleArgument,
    trust: TrustOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Check every signature, chain and number of a bundle. Exit code 12 without --trust."""
    _, _, verdict = _opened(bundle, trust)
    recomputed = _headline(verdict)
    data = {**verdict.json(), "recomputed": recomputed.json() if recomputed else None}
    _finish(verdict.authenticated, format_, data, lambda: _print_verdict(data))


def _headline(verdict: Verdict) -> Any:
    """The second opinion, where dp-accounting is installed."""
    from importlib.util import find_spec

    if find_spec("dp_accounting") is None:
        return None
    from audit.recompute import recompute

    return recompute(verdict)


def _print_verdict(data: dict[str, Any]) -> None:
    from audit.wording import up

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
        f"{data['spender']} {worst['pseudonym'][:12]}…: {worst['rounds']} rounds, epsilon_filter "
        f"{up(worst['epsilon_filter'], 4)} of policy.budget {worst['budget']:g}"
    )


@app.command("receipt")
def write_receipt(
    bundle: BundleArgument,
    client: Annotated[str, typer.Option(help="A client's pseudonym, whole.", metavar="NAME")],
    trust: TrustOption = None,
    out: Annotated[Path, typer.Option(help="Where to write it.", metavar="FILE")] = Path(
        "spend.receipt"
    ),
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Write what one data owner needs to check their own spend: a kilobyte, two signatures."""
    from audit.receipt import Receipt
    from common import durable

    opened, trusted, verdict = _opened(bundle, trust)
    receipt = Receipt.of(opened, client)
    data = receipt.encode()
    durable.replace(out, data)
    delta = verdict.plan.privacy.delta
    found = {**receipt.json(delta), "receipt": str(out), "bytes": len(data)}

    def text() -> None:
        print(f"{receipt.words(delta, trusted)}\nreceipt  {out}, {len(data)} bytes")

    _finish(verdict.authenticated, format_, found, text)


@app.command("check-receipt")
def check_receipt(
    receipt: Annotated[Path, typer.Argument(help="A receipt file.", metavar="FILE")],
    trust: TrustOption = None,
    delta: Annotated[float, typer.Option(help="Of the owner's budget.", min=0, max=1)] = 1e-5,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Check one client's receipt, offline. Exit code 12 without --trust."""
    from audit.receipt import read
    from audit.wording import called
    from common.bundle import Trust
    from common.errors import InputError

    if not 0 < delta < 1:
        raise InputError("--delta is a probability between 0 and 1")
    trusted = Trust.read(trust) if trust else None
    found = read(receipt)
    found.check(trusted)
    data = {"verdict": called(trusted is not None), **found.json(delta)}
    _finish(trusted is not None, format_, data, lambda: print(found.words(delta, trusted)))


@app.command("recompute")
def recompute_bundle(
    bundle: BundleArgument,
    trust: TrustOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Compute every epsilon again by two codes that share nothing, and show that they agree."""
    from audit.recompute import recompute_all

    _, _, verdict = _opened(bundle, trust)
    again = recompute_all(verdict)
    _finish(verdict.authenticated, format_, again.json(), lambda: _print_recomputation(again))


def _print_recomputation(again: Recomputation) -> None:
    print(f"the declared plan, at delta {again.delta:g}, add-or-remove-one")
    print(f"  {'epsilon, as stated':<34}{again.stated:.12f}")
    for name, value in again.summary.declared.items():
        print(f"  {name:<34}{value:.12f}")
    print(f"  {'replace-one, by PLD: to compare':<34}{again.replace_one:.12f}")
    print(f"  {'epsilon_spent, the most, PLD':<34}{again.summary.spent:.12f}")
    print(f"each ledger, by {'privet':>22} {'dp-accounting':>18}  difference")
    for client in again.clients[:MOST_CLIENTS]:
        for name, pair in (
            ("epsilon_filter", client.epsilon_filter),
            ("epsilon_rdp", client.epsilon_rdp),
        ):
            print(
                f"  {client.pseudonym[:8]}… {name:<14} {pair.own:>12.9f} {pair.library:>18.9f}  "
                f"{pair.difference:.1e}"
            )
    if len(again.clients) > MOST_CLIENTS:
        print(f"  and {len(again.clients) - MOST_CLIENTS} more, all of them in --format json")
    print(
        f"agree: {2 * len(again.clients) + 1} pairs of Rényi numbers, to {again.worst:.1e}; the "
        "headline is what PLD gives"
    )


@app.command("explain")
def explain_bundle(
    bundle: BundleArgument,
    trust: TrustOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Say in one page of plain language what an attacker could and could not learn."""
    from audit.explain import explain

    _, _, verdict = _opened(bundle, trust)
    _headline(verdict)  # refuses a headline that PLD does not give
    explained = explain(verdict)
    _finish(verdict.authenticated, format_, explained.json(), lambda: print(explained.text()))


@app.command("report")
def write_report(
    bundle: BundleArgument,
    trust: TrustOption = None,
    out: Annotated[Path, typer.Option(help="Where to write the page.", metavar="FILE")] = Path(
        "audit-report.html"
    ),
    statement: Annotated[
        Path | None,
        typer.Option(
            help="Write the result as a statement about the model, signed by you.", metavar="FILE"
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="Your key directory; a key is made on first use.", metavar="DIR"),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML page about a bundle, and sign what was found if asked to."""
    from audit.checklist import approved_codes, checklist
    from audit.findings import bundle_json
    from audit.recompute import recompute_all
    from audit.report import render_bundle
    from common import durable
    from common.errors import InputError

    if (statement is None) != (keys is None):
        raise InputError(
            "--statement and --keys go together",
            hint="--statement FILE says where to write, --keys DIR where your signing key is",
        )
    opened, trusted, verdict = _opened(bundle, trust)
    again = recompute_all(verdict)
    items = checklist(
        verdict, again, codes=approved_codes(opened, verdict.plan), software=_software()
    )
    page = render_bundle(verdict, again, items).encode()
    # Nothing is signed, and no key made, for a bundle that nobody vouched for.
    signer = _auditor(keys) if keys is not None and trusted is not None else None
    durable.replace(out, page)
    data = {
        **bundle_json(verdict, again),
        "checklist": [item.json() for item in items],
        "report": str(out),
    }
    lines = [f"report     {out}"]
    if statement is not None and signer is not None and trusted is not None:
        key, new = signer
        _sign(statement, opened, verdict, again, items, trusted, key)
        data |= {"statement": str(statement), "auditor": key.public.fingerprint}
        lines += [
            f"statement  {statement}",
            f"auditor    {key.public.fingerprint}{'  (a new key)' if new else ''}",
        ]
    _finish(
        verdict.authenticated, format_, data, lambda: print("\n".join([data["verdict"], *lines]))
    )


def _software() -> dict[str, str]:
    from importlib.metadata import version

    return {"dp-accounting": version("dp-accounting")}


def _auditor(directory: Path) -> tuple[SigningKey, bool]:
    """The auditor's key, and whether it was made just now."""
    from common.keys import KeyDirectory

    new = not (directory / AUDITOR).exists()
    keys = KeyDirectory(directory)
    return (keys.create(AUDITOR) if new else keys.load(AUDITOR)), new


def _sign(
    out: Path,
    bundle: Bundle,
    verdict: Verdict,
    again: Recomputation,
    items: tuple[Item, ...],
    trust: Trust,
    key: SigningKey,
) -> None:
    from audit.attest import attest
    from common import durable
    from common.canonical import digest

    envelope = attest(
        verdict, again, items, bundle_statement=digest(bundle.statement), trust=trust, key=key
    )
    durable.replace(out, envelope)
