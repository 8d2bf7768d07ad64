"""What every benchmark has in common: the machine, the rows, and how they are printed.

The rule: a row is a figure, what was measured, and the goal it is held against; a goal that is
missed is printed as missed. Pairs are measured in turn, so that a machine whose speed drifts slows
both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure. ``met`` is None where there is no goal."""

    figure: str
    measured: float
    unit: str
    goal: str = ""
    met: bool | None = None


def at_most(figure: str, measured: float, unit: str, goal: float) -> Row:
    """A figure whose goal is an upper bound."""
    return Row(figure, measured, unit, f"<= {goal:g}", measured <= goal)


def at_least(figure: str, measured: float, unit: str, goal: float) -> Row:
    """A figure whose goal is a lower bound."""
    return Row(figure, measured, unit, f">= {goal:g}", measured >= goal)


def plain(figure: str, measured: float, unit: str) -> Row:
    """A figure without a goal, there to be seen."""
    return Row(figure, measured, unit)


@dataclass(frozen=True)
class Turns:
    """What each variant took, milliseconds, turn by turn."""

    taken: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Of one variant, in milliseconds."""
        return statistics.median(self.taken[name])

    def ratio(self, one: str, other: str) -> float:
        """The median of the turns' own ratios, which a slower spell of the machine leaves alone.

        >>> Turns({"ours": [1, 20, 3], "theirs": [2, 40, 2]}).ratio("ours", "theirs")
        0.5
        """
        pairs = zip(self.taken[one], self.taken[other], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def in_turn(works: Mapping[str, Callable[[], None]], seconds: float, least: int = 1) -> Turns:
    """Time every variant once a turn, for so many seconds and at least ``least`` turns.

    The first turn warms up and does not count. A turn's order is shuffled, the same way in every
    run, so that what one variant leaves behind (garbage, a cold cache) does not always meet the
    same other one.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    shuffle = random.Random(1)
    ends = time.perf_counter() + seconds
    turns = 0
    while turns < least or time.perf_counter() < ends:
        for name in shuffle.sample(sorted(works), len(works)):
            began = time.perf_counter()
            works[name]()
            taken[name].append(1000 * (time.perf_counter() - began))
        turns += 1
    return Turns(taken)


def in_blocks(
    works: Mapping[str, Callable[[], object]], seconds: float, least: int = 1, calls: int = 20
) -> Turns:
    """:func:`in_turn` for short calls: so many of a variant one after the other, and their median.

    In use nothing else comes between two calls and empties the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}

    def block(name: str) -> None:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            works[name]()
            times.append(1000 * (time.perf_counter() - began))
        taken[name].append(statistics.median(times))

    in_turn({name: partial(block, name) for name in works}, seconds, least)
    return Turns({name: times[1:] for name, times in taken.items()})


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    model = ""
    with Path("/proc/cpuinfo").open() as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "cores": os.cpu_count() or 0,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "flwr", "onnxruntime", "opacus")},
    }


def main(name: str, measure: Callable[[bool], Sequence[Row]]) -> None:
    """Run a benchmark's command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    rows = measure(options.quick)
    if options.format == "json":
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        print(f"{row.figure:<58}{row.measured:>12.4g} {row.unit:<8}{row.goal:<10}{verdict}")
