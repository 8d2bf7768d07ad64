"""``python -m audit verify BUNDLE [--trust FILE]``: the verifying half, with the standard library.

The rule: an auditor may run this on a machine with nothing but Python and ``cryptography``. It
prints a verdict and ends with the documented exit code: 0 verified, 4 not a bundle, 11 wrong, 12
self-consistent but unauthenticated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from audit.verify import verify
from common.bundle import Trust
from common.errors import EXIT_OK, EXIT_UNAUTHENTICATED, PrivetError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="check a bundle, offline")
    command.add_argument("bundle", type=Path)
    command.add_argument("--trust", type=Path, help="fingerprints that came from elsewhere")
    command.add_argument("--json", action="store_true", help="print the verdict as JSON")
    options = parser.parse_args(arguments)
    try:
        trust = Trust.read(options.trust) if options.trust else None
        verdict = verify(options.bundle, trust)
    except PrivetError as error:
        print(f"WRONG: {error}" if error.exit_code == 11 else f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(verdict.json(), indent=2))
    else:
        worst = verdict.most_exposed
        print(verdict.json()["verdict"])
        for check in verdict.checks:
            print(f"  - {check}")
        print(
            f"most exposed client {worst.pseudonym[:12]}…: epsilon {worst.epsilon_filter:.4f} of "
            f"{worst.budget:g} at delta {worst.delta:g} ({', '.join(worst.noise)} noise)"
        )
    return EXIT_OK if verdict.authenticated else EXIT_UNAUTHENTICATED


if __name__ == "__main__":
    sys.exit(main())
