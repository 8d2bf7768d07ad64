"""The ``privet`` command: what people type and what scripts call.

The rule: this file says what the words are and what a result looks like on a terminal. Everything
it calls is imported when a command runs, so that asking for help imports neither torch nor Flower.
"""

from __future__ import annotations

import logging
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from privet import __version__, output
from privet.output import Format

app = typer.Typer(
    name="privet",
    help="Train one model over many holders of data, under a privacy budget that anyone can check.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plan_app = typer.Typer(help="Look at plans before anything runs.", no_args_is_help=True)
audit_app = typer.Typer(help="Check, offline, what privacy was spent.", no_args_is_help=True)
device_app = typer.Typer(
    help="Receive signed models, or refuse them, and run them.", no_args_is_help=True
)
app.add_typer(plan_app, name="plan")
app.add_typer(audit_app, name="audit")
app.add_typer(device_app, name="device")

FormatOption = Annotated[
    Format, typer.Option("--format", help="text for people, json for scripts.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.")]
DeviceArgument = Annotated[Path, typer.Argument(help="The device's directory.", metavar="DIR")]


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    json_wanted = "--format=json" in arguments or any(
        pair == ("--format", "json") for pair in pairwise(arguments)
    )
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr)

    def work() -> None:
        code = app(arguments, standalone_mode=False)
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    return output.guarded(work, json_wanted)


# -- simulate ------------------------------------------------------------------------------------


@app.command()
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
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value of the file.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Run a whole federation here: train, sign, publish, verify on a device, predict, report."""
    from privet.simulate import simulate as work

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
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "examples", here / "examples"):
        if (folder / "digits.toml").is_file():
            return folder / "digits.toml"
    from common.errors import InputError

    raise InputError("the digits example is not installed", hint="name an experiment file")


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    privacy, device, model = summary["privacy"], summary["device"], summary["model"]
    held_out = ", held-out: simulation only" if summary["metrics"]["test"] == "held-out" else ""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("accuracy, global model", _percent(summary["metrics"]["accuracy"]) + held_out),
        ("accuracy, as the device runs it", _percent(device["accuracy"])),
        (
            "epsilon spent, most exposed client",
            f"{privacy['epsilon_spent']:.3f} at delta {privacy['delta']:g} "
            f"(filter: {privacy['epsilon_filter']:.3f} of a budget of {privacy['budget']:g})",
        ),
        ("noise", ", ".join(privacy["noise"]) + _protects_nobody(summary)),
        ("signatures", f"verified by the device: {model['name']} version {device['version']}"),
        ("size", f"{model['onnx_bytes'] / 1024:.1f} KiB (ONNX)"),
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


def _protects_nobody(summary: dict[str, Any]) -> str:
    return " (repeatable: protects nobody)" if "simulated" in summary["privacy"]["noise"] else ""


# -- plan ----------------------------------------------------------------------------------------


@plan_app.command("check")
def plan_check(
    file: Annotated[Path, typer.Argument(help="An experiment in TOML.", metavar="FILE")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value of the file.", metavar="KEY=VALUE"),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """What a plan will cost: three numbers called epsilon, and the least budget."""
    from privet.plancheck import check_plan
    from simulations.experiment import Experiment

    experiment = Experiment.read(file, overrides=changes or ())
    data = check_plan(experiment.plan, experiment.policy)
    output.show(format_, data, lambda: _print_plan(data))


def _print_plan(data: dict[str, Any]) -> None:
    privacy = data["privacy"]
    print(f"plan                {data['name']} ({data['plan'][:16]}…), model {data['model']}")
    print(
        f"mechanism           {privacy['steps']} steps in {data['rounds']} rounds, sampling rate "
        f"{privacy['sampling_rate']:g}, noise multiplier {privacy['noise_multiplier']:g}"
    )
    print(
        f"protects            each {privacy['unit']}, {privacy['adjacency']}, "
        f"trust {privacy['trust']}, delta {privacy['delta']:g}"
    )
    print(f"epsilon             {privacy['epsilon']:.4f}   the whole plan, by PLD: the headline")
    print(
        f"epsilon_filter      {privacy['epsilon_filter']:.4f}   what the filter will charge, "
        f"at order {privacy['order']}"
    )
    print(
        f"policy.budget       {privacy['budget']:.4f}   what the owner allows; with "
        f"{privacy['spare_rounds']} spare rounds {privacy['epsilon_with_spare']:.4f} is needed"
    )
    print(
        f"least budget        {privacy['least_budget']:.4f}   that admits it, spare rounds "
        f"included, at order {privacy['least_budget_order']}"
    )
    for name, value in privacy["accountants"].items():
        print(f"  {name:<20}{value:.6f}")
    print("admitted" if data["admitted"] else "NOT ADMITTED: the budget does not cover this plan")


# -- audit ---------------------------------------------------------------------------------------


@audit_app.command("verify")
def audit_verify(
    bundle: Annotated[Path, typer.Argument(help="A published bundle directory.", metavar="BUNDLE")],
    trust: Annotated[
        Path | None, typer.Option(help="Fingerprints that came by another way.", metavar="FILE")
    ] = None,
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
        print("  - the PLD headline was not recomputed here: pip install 'privet[audit]'")
    else:
        names = ", ".join(data["recomputed"]["declared"])
        print(f"  - the headline recomputed, and the accountants agree: {names}")
    worst = max(data["clients"], key=lambda client: client["epsilon_filter"])
    print(
        f"most exposed client {worst['pseudonym'][:12]}…: {worst['rounds']} rounds, epsilon "
        f"{worst['epsilon_filter']:.4f} of a budget of {worst['budget']:g}"
    )


@audit_app.command("report")
def audit_report(
    bundle: Annotated[Path, typer.Argument(help="A published bundle directory.", metavar="BUNDLE")],
    trust: Annotated[
        Path | None, typer.Option(help="Fingerprints that came by another way.", metavar="FILE")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the page.", metavar="FILE")] = Path(
        "audit-report.html"
    ),
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Write one self-contained HTML page about a bundle that verifies."""
    from audit.recompute import recompute
    from audit.report import render_bundle
    from audit.verify import verify
    from common import durable
    from common.bundle import Trust

    verdict = verify(bundle, Trust.read(trust) if trust else None)
    recomputed = recompute(verdict)
    durable.replace(out, render_bundle(verdict, recomputed).encode())
    data = {**verdict.json(), "recomputed": recomputed.json(), "report": str(out)}
    output.show(format_, data, lambda: print(f"{data['verdict']}\nreport  {out}"))


# -- device --------------------------------------------------------------------------------------


@device_app.command("init")
def device_init(
    directory: DeviceArgument,
    root: Annotated[Path, typer.Option(help="TUF root metadata, got by a way you trust.")],
    trust: Annotated[Path, typer.Option(help="Whose statements count: a trust file.")],
    repository: Annotated[
        str, typer.Option(help="Where models come from: https://… or a directory.")
    ],
    greatest_epsilon: Annotated[float, typer.Option(help="Refuse models that claim more.")],
    greatest_delta: Annotated[float, typer.Option(help="Refuse models that claim more.")] = 1e-5,
    accept_simulated: Annotated[
        bool, typer.Option("--accept-simulated", help="Also run models made in simulations.")
    ] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Enrol a device: what it trusts and what it accepts."""
    from client.device.home import DeviceHome, DevicePolicy
    from common.bundle import Trust
    from common.errors import InputError

    if not root.is_file():
        raise InputError(f"there is no file {root}", hint="1.root.json of the repository")
    policy = DevicePolicy(
        greatest_epsilon=greatest_epsilon,
        greatest_delta=greatest_delta,
        signers=tuple(Trust.read(trust).signers.values()),
        repository=repository if "://" in repository else str(Path(repository).absolute()),
        accept_simulated=accept_simulated,
    )
    DeviceHome.init(directory, root.read_bytes(), policy)
    data = {"device": str(directory), "policy": policy.json()}
    output.show(format_, data, lambda: print(f"enrolled {directory}"))


@device_app.command("update")
def device_update(
    directory: DeviceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """Fetch the newest release and install it, if everything about it verifies."""
    from datetime import UTC, datetime

    from client.device.home import DeviceHome
    from client.device.updater import update

    outcome = update(DeviceHome(directory), datetime.now(UTC))
    data = {"installed": outcome.installed, "name": outcome.name, "version": outcome.version}
    what = "installed" if outcome.installed else "already current"
    output.show(format_, data, lambda: print(f"{what}: {outcome.name} version {outcome.version}"))


@device_app.command("predict")
def device_predict(
    directory: DeviceArgument,
    records: Annotated[Path, typer.Argument(help="Records as .csv or .npy.", metavar="FILE")],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Predict with the verified model; prints CSV, or JSON with --format json."""
    import csv

    from client.device.home import DeviceHome
    from client.device.runtime import Predictor
    from common.errors import InputError

    predictor = Predictor.load(DeviceHome(directory))
    readers = {".csv": predictor.predict_csv, ".npy": predictor.predict_npy}
    if records.suffix not in readers:
        raise InputError(f"{records} is neither .csv nor .npy", hint="convert it to one of the two")
    predictions = readers[records.suffix](records)
    rows = [{"class": item.label, "probability": item.probability} for item in predictions]

    def text() -> None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["class", "probability"])
        writer.writerows([row["class"], f"{row['probability']:.6f}"] for row in rows)

    output.show(format_, {"predictions": rows}, text)


@device_app.command("status")
def device_status(
    directory: DeviceArgument, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """What the device runs, what it accepts, and what it decided lately."""
    from client.device import log, slots
    from client.device.home import DeviceHome

    home = DeviceHome(directory)
    current, policy = slots.current(home), home.policy
    decisions = log.read(home.decisions)
    data = {
        "device": str(directory),
        "model": {"name": current.name, "version": current.version} if current else None,
        "policy": policy.json(),
        "decisions": decisions[-20:],
    }

    def text() -> None:
        runs = f"{current.name} version {current.version}" if current else "no model yet"
        print(f"runs      {runs}")
        simulated = "simulated models too" if policy.accept_simulated else "no simulated models"
        print(f"accepts   epsilon up to {policy.greatest_epsilon:g}, {simulated}")
        for decision in decisions[-5:]:
            print(f"{decision['at']}  {decision['decision']}  {decision['reason']}")

    output.show(format_, data, text)


@app.command()
def version(format_: FormatOption = Format.text, quiet: QuietOption = False) -> None:
    """Print the version."""
    output.show(format_, {"version": __version__}, lambda: print(__version__))
