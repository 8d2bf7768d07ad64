"""``privet audit test``: does the engine on this machine do what a plan says?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet import output
from privet.commands.options import FormatOption, QuietOption
from privet.output import Format

# Of conformance and accounting, which cannot be computed again from a record.
RECORDED = "as recorded by whoever signed it, and not computed again"

if TYPE_CHECKING:
    from audit.canaries.record import Checked
    from audit.testing import Result
    from privet.auditing import Tested


def examine(
    target: Annotated[
        Path | None,
        typer.Argument(
            help="A run's directory, or an experiment in TOML; a built-in mechanism if left out.",
            metavar="[RUN|PLAN]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the record goes; by default runs/audit-test-N.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Test nothing: repeat the scoring of a record that somebody else made.",
            metavar="RECORD",
            show_default=False,
        ),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Test the engine here: conformance, then canaries. Exit code 11 if it violates the plan."""
    if check is not None:
        _check(check, target, out, format_)
        return
    from privet.auditing import examine_target

    silent = quiet or format_ is Format.json
    with output.progress(silent) as progress:
        tested, result = examine_target(
            target,
            out,
            announce=lambda digest: _announce(silent, digest),
            progress=progress,
        )
    data = {"tested": tested.name, **result.json()}
    if result.wrong:
        _fail(tested, result, format_)  # raises
    output.show(format_, data, lambda: _print(tested, result))


def _announce(silent: bool, digest: str) -> None:
    """To standard error, before training: only what was known then binds later."""
    if not silent:
        print(f"fixed before training: {digest}", file=sys.stderr, flush=True)


def _fail(tested: Tested, result: Result, format_: Format) -> None:
    from common.errors import TrustError

    if format_ is Format.text:
        _print(tested, result)
    raise TrustError(
        f"{tested.name}: the engine violates what is declared. " + "; ".join(result.wrong),
        hint=f"do not train with this installation; the record is {result.record}",
        code="engine-violates",
    )


def _print(tested: Tested, result: Result) -> None:
    from audit.canaries import wording

    judgement, claim, interval = result.judgement, result.claim, result.epsilon
    failed = sum(not finding.ok for finding in result.findings)
    event = claim.event
    print(f"{result.verdict}: {tested.name}")
    print(
        f"mechanism      {event.steps} of {result.planned.steps} steps tested, sampling rate "
        f"{event.sampling_rate:g}, noise multiplier {event.noise_multiplier:g}: epsilon "
        f"{claim.epsilon:.4f} at delta {claim.delta:g}"
    )
    print(f"conformance    {len(result.findings)} findings, {failed} against the engine")
    for clause in result.accounting:
        print(f"accounting     {'' if clause.ok else 'WRONG: '}{clause.message}")
    print(
        f"own noise      multiplier {judgement.sigma.low:.4f} to {judgement.sigma.high:.4f}, so "
        f"epsilon of all {result.planned.steps} steps {interval.low:.3f} to {interval.high:.3f} "
        f"at {100 * interval.confidence:g} % (± {100 * interval.relative_half_width:.2f} %)"
    )
    for method in wording.NAMES:
        bound = judgement.best(method)
        print(
            f"{method:<14} epsilon >= {bound.epsilon:.2f} at "
            f"{100 * result.design.confidence:g} %, by {bound.score}; ceiling {bound.ceiling:.1f}"
        )
        print(f"{'':<14} {wording.means(result.design, bound)}")
    for line in result.wrong:
        print(f"WRONG          {line}")
    print("\nWhat these numbers are not:")
    for line in wording.is_not(result.design, claim, judgement, result.planned):
        print(f"  - {line}")
    print(f"\nrecord  {result.record}, {result.seconds['total']:.0f} s")
    print(f"next    privet audit test --check {result.record}")


def _check(record: Path, target: Path | None, out: Path | None, format_: Format) -> None:
    from audit.canaries.record import check_record
    from common.errors import InputError, TrustError

    if target is not None or out is not None:
        raise InputError(
            "--check tests nothing, so it takes neither RUN, PLAN nor --out",
            hint="privet audit test --check RECORD",
        )
    checked = check_record(record / "record.jsonl" if record.is_dir() else record)
    data = _checked_json(checked)
    if checked.wrong:
        if format_ is Format.text:
            _print_checked(checked)
        recorded = f" (conformance and accounting {RECORDED})" if checked.recorded_wrong else ""
        raise TrustError(
            f"the record holds together, and says that the engine violates what is declared"
            f"{recorded}: {'; '.join(checked.wrong)}",
            hint="do not use what that engine trained",
            code="engine-violates",
        )
    output.show(format_, data, lambda: _print_checked(checked))


def _checked_json(checked: Checked) -> dict[str, Any]:
    from audit.canaries import wording

    return {
        "verdict": "violates" if checked.wrong else "consistent",
        "wrong": checked.wrong,
        "key": checked.key,
        "declared": checked.declared,
        "plan": checked.plan,
        "usual_design": checked.usual,
        "claim": checked.claim.json(),
        "claim_recomputed": checked.claim_recomputed,
        "recorded": {
            "note": f"conformance and accounting are {RECORDED}",
            "conformance": list(checked.conformance),
            "accounting": list(checked.accounting),
        },
        "means": {
            method: wording.means(checked.design, checked.judgement.best(method))
            for method in wording.NAMES
        },
        "canaries": {"design": checked.design.json(), **checked.judgement.json()},
    }


def _print_checked(checked: Checked) -> None:
    from audit.canaries import wording

    print("the record holds together: what it says of canaries follows from its scores and coins")
    print(f"  - fixed before training: {checked.declared}")
    print(f"  - signed by a key that only outside knowledge can vouch for: {checked.key[:16]}…")
    print(
        f"  - the claim, epsilon {checked.claim.epsilon:.4f} at delta {checked.claim.delta:g}, was "
        + ("computed again" if checked.claim_recomputed else "not computed again: no dp-accounting")
    )
    if not checked.usual:
        print("  - NOT THE USUAL DESIGN: somebody chose its levels, guesses or thresholds")
    for method, name in wording.NAMES.items():
        bound = checked.judgement.best(method)
        print(f"  - {name}, by {bound.score}: {wording.means(checked.design, bound)}")
    for what, found in (
        ("conformance", checked.conformance),
        ("accounting", checked.accounting),
    ):
        against = sum(not one["ok"] for one in found)
        print(f"  - {what}: {len(found)} findings, {against} against the engine; {RECORDED}")
    for line in checked.wrong:
        print(f"  - WRONG: {line}")
