"""``privet simulate``: the whole path on this machine, and the short table at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import InputError
from privet import output
from privet.commands.options import ChangesOption, FormatOption, QuietOption
from privet.output import Format


def simulate(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="An experiment in TOML; the digits example if omitted.", metavar="FILE"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/NAME-N if omitted.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat a run, bit for bit.", min=0)] = None,
    rounds: Annotated[int | None, typer.Option(help="Instead of plan.rounds.", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that play clients.", min=1)] = None,
    changes: ChangesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Run a whole federation here: train, sign, publish, verify on a device, predict, report."""
    from privet.running import simulate as work

    with output.progress(quiet or format_ is Format.json) as progress:
        summary = work(
            file or _default_experiment(),
            out=out,
            seed=seed,
            rounds=rounds,
            workers=workers,
            overrides=changes or (),
            resume=resume,
            progress=progress,
        )
    output.show(format_, summary, lambda: _print_summary(summary))


def _default_experiment() -> Path:
    """The digits example: beside the packages in a checkout, inside the package in a wheel."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here.parent / "examples", here / "examples"):
        if (folder / "digits.toml").is_file():
            return folder / "digits.toml"
    raise InputError("the digits example is not installed", hint="name an experiment file")


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from audit.wording import up

    privacy, device, model = summary["privacy"], summary["device"], summary["model"]
    held_out = ", held-out: simulation only" if summary["metrics"]["test"] == "held-out" else ""
    table = Table(show_header=False, box=None, pad_edge=False)
    of_all = (
        ("accuracy, global model", _percent(summary["metrics"]["accuracy"]) + held_out),
        ("accuracy, as the device runs it", _percent(device["accuracy"])),
    )
    own = ("personal", f"{', '.join(summary['personal'])}: each client's; privet client personal")
    for name, value in (
        *((own,) if summary["personal"] else of_all),
        (
            "epsilon_spent, each client"
            if privacy["trust"] == "central"
            else "epsilon_spent, most exposed client",
            f"{up(privacy['epsilon_spent'], 3)} at delta {privacy['delta']:g} (epsilon_filter "
            f"{up(privacy['epsilon_filter'], 3)} of policy.budget {privacy['budget']:g})",
        ),
        ("noise", ", ".join(privacy["noise"]) + _protects_nobody(summary)),
        ("signatures", f"verified by the device: {model['name']} version {device['version']}"),
        ("size", f"{model['onnx_bytes'] / 1024:.1f} KiB (ONNX)"),
        ("update, each reply", _traffic(summary["traffic"])),
        ("latency, p50", f"{device['latency_p50_us']:.0f} µs a prediction"),
        ("time", f"{summary['timing']['total_s']:.1f} s for {summary['rounds']} rounds"),
    ):
        table.add_row(name, value)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    directory = summary["run_dir"]
    console.print(f"\nreport  {directory}/report.html", markup=False)
    console.print(
        f"next    privet audit verify {directory}/bundle --trust {directory}/trust.json",
        markup=False,
    )


def _percent(share: float | None) -> str:
    return "no test set" if share is None else f"{100 * share:.2f} %"


def _traffic(traffic: dict[str, Any]) -> str:
    size = f"{traffic['bytes_per_reply'] / 1024:,.1f} KiB"
    if traffic["compression"] == "none":
        return size
    return f"{size} ({traffic['compression']}: {traffic['ratio']:.3g} times less than uncompressed)"


def _protects_nobody(summary: dict[str, Any]) -> str:
    return " (repeatable: protects nobody)" if "simulated" in summary["privacy"]["noise"] else ""
