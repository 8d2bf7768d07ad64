"""``privet audit test``: how long it takes, how narrow its interval is, what its bounds say.

Each figure is the worst or the median of a few whole tests, of the built-in mechanism and of the
digits example's plan. A bound's goal is never a value: it may be low for a good reason. What it
may not be is above the epsilon that the mechanism costs.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from audit.canaries.wording import NAMES
from audit.testing import Result
from benchmarks.harness import Row, at_most, main, plain
from privet.auditing import examine_target

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits.toml"


def measure(quick: bool) -> list[Row]:
    """Seconds, half-widths and bounds of several tests each."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, target in (("built-in", None), ("digits plan", DIGITS)):
        with tempfile.TemporaryDirectory() as folder:
            results = [
                examine_target(target, Path(folder) / str(turn))[1]
                for turn in range(1 if quick else 5)
            ]
        rows += _rows(name, results)
    return rows


def _rows(name: str, results: list[Result]) -> list[Row]:
    claim = results[0].claim.epsilon
    rows = [
        at_most(f"{name}: seconds, slowest", max(r.seconds["total"] for r in results), "s", 60),
        *(
            plain(f"{name}: of them {part}", max(r.seconds[part] for r in results), "s")
            for part in ("conformance", "canaries", "accounting")
        ),
        at_most(
            f"{name}: half-width of the epsilon interval, widest",
            100 * max(r.epsilon.relative_half_width for r in results),
            "%",
            1.5,
        ),
        at_most(f"{name}: verdicts against the engine", sum(bool(r.wrong) for r in results), "", 0),
        plain(f"{name}: epsilon of the steps that canaries saw", claim, ""),
    ]
    for method in NAMES:
        bounds = [r.judgement.best(method) for r in results]
        rows += [
            plain(
                f"{name}: {method}, median bound at 95 %",
                statistics.median(bound.epsilon for bound in bounds),
                "",
            ),
            plain(f"{name}: {method}, ceiling", bounds[0].ceiling, ""),
        ]
    return rows


if __name__ == "__main__":
    main("audit_test", measure)
