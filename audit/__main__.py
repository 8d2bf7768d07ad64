"""``python -m audit``: the verifying half, with ``cryptography`` and the standard library alone.

    python -m audit verify BUNDLE [--trust FILE]
    python -m audit check-receipt FILE [--trust FILE]

The rule: an auditor or a data owner may run this on a machine with nothing but Python and
``cryptography``. It prints a verdict and ends with the documented exit code: 0 verified, 4 not a
bundle or a receipt, 11 wrong, 12 self-consistent but unauthenticated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from audit import receipt
from audit.verify import verify
from audit.wording import called, shown, up
from common.bundle import Trust
from common.errors import EXIT_OK, EXIT_UNAUTHENTICATED, InputError, PrivetError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        trust = Trust.read(options.trust) if options.trust else None
        if options.command == "verify":
            _verify(options, trust)
        else:
            _check_receipt(options, trust)
    except PrivetError as error:
        # What is named may come from a file's own name: it is text, and no terminal's command.
        kind = "WRONG" if error.exit_code == 11 else "error"
        print(f"{kind}: {shown(str(error))}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK if trust is not None else EXIT_UNAUTHENTICATED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bundle = commands.add_parser("verify", help="check a bundle, offline")
    bundle.add_argument("bundle", type=Path)
    one = commands.add_parser("check-receipt", help="check one client's receipt, offline")
    one.add_argument("receipt", type=Path)
    one.add_argument("--delta", type=float, default=1e-5, help="of the budget (default 1e-5)")
    for command in (bundle, one):
        command.add_argument("--trust", type=Path, help="fingerprints that came from elsewhere")
        command.add_argument("--json", action="store_true", help="print the verdict as JSON")
    return parser


def _verify(options: argparse.Namespace, trust: Trust | None) -> None:
    verdict = verify(options.bundle, trust)
    if options.json:
        print(json.dumps(verdict.json(), indent=2))
        return
    worst = verdict.most_exposed
    print(verdict.json()["verdict"])
    for check in verdict.checks:
        print(f"  - {check}")
    print(
        f"{verdict.spender} {worst.pseudonym[:12]}…: epsilon_filter "
        f"{up(worst.epsilon_filter, 4)} of policy.budget {worst.budget:g} at delta "
        f"{worst.delta:g} ({', '.join(worst.noise)} noise)"
    )


def _check_receipt(options: argparse.Namespace, trust: Trust | None) -> None:
    if not 0 < options.delta < 1:
        raise InputError("--delta is a probability between 0 and 1")
    found = receipt.read(options.receipt)
    found.check(trust)
    data = {"verdict": called(trust is not None), **found.json(options.delta)}
    print(json.dumps(data, indent=2) if options.json else found.words(options.delta, trust))


if __name__ == "__main__":
    sys.exit(main())
