"""``privet device predict | serve | bench``: run the installed model, and what that costs.

The rule: rows go to standard output as they are computed, and a file is written whole or
not at all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from privet import output
from privet.commands.device import DeviceArgument, app
from privet.commands.options import FormatOption, QuietOption
from privet.output import Format

if TYPE_CHECKING:
    from client.device.answers import Answers
    from client.device.measure import Calls, Cost
    from client.device.reading.source import Batch, Source

LINES, TABLE = ".jsonl", ".csv"


@app.command("predict")
def predict_device(
    directory: DeviceArgument,
    records: Annotated[
        str,
        typer.Argument(
            help="A .csv, .npy or .parquet file, a folder of PNG or JPEG images, or - for CSV from "
            "standard input.",
            metavar="RECORDS",
        ),
    ],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Of every class, not of the answer alone.")
    ] = False,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="CLASS=0.8: answer CLASS from that probability on, and only then; 0.8 alone: "
            "every class. Where the likeliest does not reach its own: undecided.",
            metavar="[CLASS=]P",
        ),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="One JSON object a line, not CSV.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write .csv or .jsonl, all of it or nothing, not standard output.", metavar="FILE"
        ),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Predict with the verified model; prints CSV, JSON lines, or one object with --format json."""
    from client.device.answers import Thresholds
    from client.device.runtime import Predictor

    lines = _form(lines, out, format_)
    predictor = Predictor.load(directory)
    thresholds = Thresholds.read(threshold or [], predictor.schema.classes)
    source = predictor.open(sys.stdin.buffer if records == "-" else records)
    # A bar would be drawn into rows that go to the same terminal.
    rows_shown = out is None and format_ is Format.text and sys.stdout.isatty()
    with output.progress(quiet or rows_shown) as progress:
        answers = predictor.stream(_told(source, progress), thresholds)
        if out is not None:
            count = _write_file(out, answers, predictor.schema.classes, probabilities, lines)
        elif format_ is Format.json:
            rows = [row for part in answers for row in part.rows(every=probabilities)]
        elif lines:
            _write_lines(sys.stdout, answers, probabilities)
        else:
            _write_table(sys.stdout, answers, predictor.schema.classes, probabilities)
    if out is not None:
        data = {"out": str(out), "records": count}
        output.show(format_, data, lambda: print(f"{count} predictions in {out}"))
    elif format_ is Format.json:
        output.show(format_, {"predictions": rows}, lambda: None)


def _form(lines: bool, out: Path | None, format_: Format) -> bool:
    """Whether rows are JSON lines; refuses options that contradict each other."""
    from common.errors import InputError

    if out is None:
        if lines and format_ is Format.json:
            raise InputError(
                "--lines and --format json exclude each other",
                hint="json is one object with everything; leave one out",
            )
        return lines
    if out.suffix not in (LINES, TABLE) or (lines and out.suffix == TABLE):
        raise InputError(
            f"{out} says no form that rows can have{' with --lines' if lines else ''}",
            hint=f"name it {LINES}{'' if lines else f' or {TABLE}'}",
        )
    return out.suffix == LINES


def _told(source: Source, progress: output.Update) -> Iterator[Batch]:
    for batch in source:
        yield batch
        progress(f"predicting, {source.unit}", batch.done, source.size)


def _write_file(
    out: Path, answers: Iterable[Answers], classes: tuple[str, ...], every: bool, lines: bool
) -> int:
    """All of the answers to a file that only its owner can read; gives how many."""
    import io

    from common import durable

    count = 0

    def counted() -> Iterator[Answers]:
        nonlocal count
        for part in answers:
            count += len(part)
            yield part

    with durable.replacing(out, mode=0o600) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        if lines:
            _write_lines(text, counted(), every)
        else:
            _write_table(text, counted(), classes, every)
        text.detach()
    return count


def _write_lines(file: TextIO, answers: Iterable[Answers], every: bool) -> None:
    import json

    for part in answers:
        file.write("".join(f"{json.dumps(row)}\n" for row in part.rows(every=every)))
        file.flush()


def _write_table(
    file: TextIO, answers: Iterable[Answers], classes: tuple[str, ...], every: bool
) -> None:
    import csv

    from client.device.answers import UNDECIDED

    writer, began = csv.writer(file, lineterminator="\n"), False
    for part in answers:
        if not began:
            writer.writerow(_header(classes, every, bool(part.names)))
            began = True
        for row in part.rows(every=every):
            label = UNDECIDED if row["class"] is None else row["class"]
            values = [row["probability"], *row.get("probabilities", {}).values()]
            names = [row["file"]] if "file" in row else []
            writer.writerow([*names, label, *(f"{value:.6f}" for value in values)])
        file.flush()
    if not began:
        writer.writerow(_header(classes, every, named=False))


def _header(classes: tuple[str, ...], every: bool, named: bool) -> list[str]:
    more = [f"probability_{name}" for name in classes] if every else []
    return [*(["file"] if named else []), "class", "probability", *more]


@app.command("serve")
def serve_device(
    directory: DeviceArgument,
    socket: Annotated[
        Path | None, typer.Option(help="Unix socket; DIR/serving/socket if omitted.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="On 127.0.0.1 instead, with a token; 0: any.", min=0, max=65535),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Prometheus page on 127.0.0.1.", min=0, max=65535)
    ] = None,
    records: Annotated[
        int, typer.Option(help="Most records of one request.", min=1, max=65536)
    ] = 1024,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Answer in real time: gRPC, Open Inference Protocol (KServe v2), on this machine only."""
    from client.device.serving import EXPERIMENTS

    os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)  # before gRPC is imported
    from client.device.home import DeviceHome
    from client.device.serving.host import Address, Listen, serve
    from client.device.serving.service import Limits
    from common.errors import InputError
    from privet import __version__

    if socket is not None and port is not None:
        raise InputError("--socket and --port exclude each other", hint="leave one out")

    def ready(address: Address) -> None:
        data = {
            "target": address.target,
            "token": str(address.token) if address.token else None,
            "metrics": f"http://127.0.0.1:{address.metrics}/metrics" if address.metrics else None,
        }

        def text() -> None:
            print(f"serving  {address.target}")
            if address.token:
                print(f"token    in {address.token}: authorization: Bearer …")
            if data["metrics"]:
                print(f"metrics  {data['metrics']}")

        output.show(format_, data, text)
        sys.stdout.flush()

    serve(
        DeviceHome(directory),
        Listen(socket, port, metrics_port),
        version=__version__,
        limits=Limits(records=records),
        ready=ready,
    )


@app.command("bench")
def bench_device(
    directory: DeviceArgument,
    batch: Annotated[int, typer.Option(help="Records of a large call.", min=2, max=65536)] = 256,
    calls: Annotated[
        int, typer.Option(help="Calls of each kind, at most 10 seconds of each.", min=1)
    ] = 2000,
    starts: Annotated[int, typer.Option(help="Processes to start, cold.", min=1, max=100)] = 5,
    watts: Annotated[
        float,
        typer.Option(
            "--watts-per-core",
            help="Assumed of a busy core where the machine has no energy counter that can be read.",
            min=0.01,
            max=1000,
        ),
    ] = 5.0,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Measure what the model costs here: time, memory, disk, CPU time and energy."""
    from client.device.home import DeviceHome
    from client.device.measure import measure

    with output.progress(quiet) as progress:
        cost = measure(
            DeviceHome(directory),
            batch=batch,
            calls=calls,
            starts=starts,
            watts=watts,
            progress=progress,
        )
    output.show(format_, cost.json(), lambda: _print_cost(cost))


def _print_cost(cost: Cost) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{cost.model} version {cost.version}, through our API and without it\n")
    times = Table(box=None, pad_edge=False)
    times.add_column("calls")
    for name in ("p50, µs", "p99, µs", "records/s", "bare p50", "bare p99", "bare /s", "ours, µs"):
        times.add_column(name, justify="right")
    for calls in (cost.single, cost.batched):
        times.add_row(f"{calls.records} a call", *_times(calls))
    console.print(times)
    start, energy = cost.start, cost.energy_per_1000
    memory = "not counted here" if start.peak_bytes is None else _mib(start.peak_bytes)
    rows = [
        (
            "cold start",
            f"{start.seconds:.3f} s to the first answer: imports {start.imports_seconds:.3f}, "
            f"verifying and loading {start.load_seconds:.3f}; slowest of {start.starts}: "
            f"{start.slowest_seconds:.3f} s",
        ),
        ("peak memory", f"{memory}, of such a process, with a batch of {cost.batched.records}"),
        ("on disk", f"{_mib(cost.release_bytes)} the release, {_mib(cost.model_bytes)} the model"),
        (
            "CPU time",
            f"{cost.cpu_seconds_per_1000:.4f} s for 1,000 predictions, "
            f"{cost.batched_cpu_seconds_per_1000:.4f} s in batches",
        ),
    ]
    if energy.watts_per_core is None:
        rows.append(("energy", f"{energy.joules:.3f} J for 1,000 (RAPL, whole package)"))
    else:
        rows += [
            (
                "energy, an estimate",
                f"{energy.joules:.3f} J for 1,000, assuming {energy.watts_per_core:g} W for a busy "
                f"core; {energy.low:.3f} to {energy.high:.3f} J are as plausible",
            ),
            ("", f"not measured: {energy.why}"),
        ]
    console.print()
    for name, value in rows:
        console.print(f"{name:<21}{value}", markup=False)


def _times(calls: Calls) -> list[str]:
    ours = (calls.api_p50_us, calls.api_p99_us, calls.api_per_second)
    bare = (calls.bare_p50_us, calls.bare_p99_us, calls.bare_per_second)
    return [*(f"{one:,.0f}" for one in (*ours, *bare)), f"{calls.overhead_us:,.1f}"]


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
