"""``privet release shrink``: smaller models for devices, tried beside the trained one.

The rule: see :mod:`privet.shrinking`. Every variant that was tried is shown with what it lost and
won; what did not win is not released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet import output
from privet.commands.options import AgreementOption, FormatOption, LossOption, QuietOption
from privet.commands.release import app
from privet.commands.server import RunArgument
from privet.output import Format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privet.releasing import Published
    from server.release.smaller.shrink import Attempt


@app.command("shrink")
def shrink(
    run: RunArgument,
    quantize: Annotated[
        bool, typer.Option("--quantize", help="To eight bits, calibrated beforehand.")
    ] = False,
    prune: Annotated[
        float,
        typer.Option(help="Share of each layer's channels to take out.", min=0, max=0.95),
    ] = 0.0,
    distill: Annotated[
        str, typer.Option(help="Teach this model the trained one's answers.", metavar="MODEL")
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            help="Public records: fashion-mnist, or a CSV file with the plan's columns; the run's "
            "own public test set if omitted.",
            metavar="DATA",
        ),
    ] = "",
    declared: Annotated[
        str, typer.Option("--public", help="Who published them, in words that are signed.")
    ] = "",
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Calibrate on values made up within the bounds.")
    ] = False,
    epochs: Annotated[
        int, typer.Option(help="Of training, to prune or to distill.", min=1, max=1000)
    ] = 20,
    most_loss: LossOption = 0.01,
    least_agreement: AgreementOption = 0.985,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Try smaller models of a finished run, and keep those that win; a simulated run is released
    again at once, any other when it is proposed."""
    from privet.shrinking import Asked, shrink_run
    from server.release.smaller.compare import Rule
    from server.release.smaller.fit import Effort

    asked = Asked(
        distill=distill,
        prune=prune,
        quantize=quantize,
        data=data,
        declared=declared,
        synthetic=synthetic,
        effort=Effort(epochs),
        rule=Rule(most_loss=most_loss, least_agreement=least_agreement),
    )
    with output.progress(quiet or format_ is Format.json) as progress:
        attempts, published = shrink_run(run, asked, progress)
    result = {
        "tried": [{**one.step.json(), "kept": not one.why, "why": one.why} for one in attempts],
        "kept": [one.step.method for one in attempts if not one.why],
        "version": published.version if published else None,
    }
    output.show(format_, result, lambda: _print(attempts, published, result))


def _print(
    attempts: Sequence[Attempt], published: Published | None, result: dict[str, Any]
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "accuracy", "agreement", "drift", "size", "time", "")
    for attempt in attempts:
        found, settings = attempt.step.compared, attempt.step.settings
        detail = settings.get("scope") or settings.get("fraction") or settings.get("student") or ""
        table.add_row(
            f"{attempt.step.method} {detail}",
            "" if found.accuracy is None else f"{-100 * found.lost:+.2f}",
            f"{100 * found.agreement:.2f} %",
            f"{found.drift:.3g}",
            f"x {found.sizes[1] / found.sizes[0]:.3f}",
            f"x {found.microseconds[1] / found.microseconds[0]:.2f}",
            "dropped" if attempt.why else "kept",
        )
    Console().print(table)
    for attempt in attempts:
        if attempt.why:
            print(f"{attempt.step.method}: dropped, because {attempt.why}")
    if published is not None:
        print(f"released as version {published.version}; privet device update fetches it")
    elif result["kept"]:
        print("privet server propose proposes it")
    else:
        print("nothing won, so nothing changes")
