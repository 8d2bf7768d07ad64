"""What does each aggregation rule cost, in time beside numpy's mean and in memory?

The floor is numpy's float32 mean of updates that lie in one array already: it does not round, does
not care about order, and does not count how they got there. A server that used numpy would have to
put them there first, which is the second peer. Memory is what the rule allocates beside the updates
themselves, at its peak, as tracemalloc counts it; updates that a rule holds are not copies.
"""

from __future__ import annotations

import logging
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from benchmarks.harness import Row, at_most, in_turn, main, plain
from common.aggregation import Aggregation
from common.wire import Arrays
from server.aggregation.rules import Rule, rule_for

ONE_BY_ONE = [
    Aggregation("fedavg"),
    Aggregation("norm-bounded", norm_bound=10.0),
    Aggregation("fedavgm"),
    Aggregation("fedadam"),
    Aggregation("fedyogi"),
]
ALL_AT_ONCE = [
    Aggregation("fedmedian"),
    Aggregation("trimmed-mean", trim=0.2),
    Aggregation("krum", malicious=2),
    Aggregation("multi-krum", malicious=2, selected=5),
    Aggregation("geometric-median", iterations=20),
]
FLOOR, WIDE = "numpy's mean", "numpy's mean in float64"
STACKING = "numpy stacks, then mean"
PEERS = (FLOOR, WIDE, STACKING)


def measure(quick: bool) -> list[Row]:
    """1,000 updates of 100,000 parameters; quickly, a hundredth of that."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # what Flower's app sets
    logging.getLogger("flwr").setLevel(logging.WARNING)
    clients, parameters = (100, 10_000) if quick else (1000, 100_000)
    generator = np.random.default_rng(1)
    stacked = generator.standard_normal((clients, parameters), np.float32)
    size = f"{clients:,} x {parameters:,}"

    works: dict[str, Callable[[], None]] = {
        FLOOR: lambda: _keep(stacked.mean(axis=0)),
        WIDE: lambda: _keep(stacked.mean(axis=0, dtype=np.float64)),
        STACKING: lambda: _keep(np.mean(np.stack(list(stacked)), axis=0)),
    }
    works |= {rule.name: partial(_discard, rule, stacked) for rule in ONE_BY_ONE}
    turns = in_turn(works, seconds=1.0 if quick else 20.0, least=3)
    rows = [plain(f"{name}, {size}", turns.median(name), "ms") for name in PEERS]
    rows.append(plain(f"{WIDE} / {FLOOR}", turns.ratio(WIDE, FLOOR), "x"))
    for rule in ONE_BY_ONE:
        rows.append(plain(f"{rule.name}, {size}", turns.median(rule.name), "ms"))
        ratio = turns.ratio(rule.name, FLOOR)
        figure = f"{rule.name} / {FLOOR}"
        rows.append(
            at_most(figure, ratio, "x", 1.5) if rule.name == "fedavg" else plain(figure, ratio, "x")
        )
        figure = f"{rule.name} / {STACKING}"
        rows.append(plain(figure, turns.ratio(rule.name, STACKING), "x"))
    for rule in ALL_AT_ONCE:
        began = time.perf_counter()
        _round(rule, stacked)
        rows.append(plain(f"{rule.name}, {size}", 1000 * (time.perf_counter() - began), "ms"))
    return rows + _memory(stacked)


def _memory(stacked: NDArray[np.float32]) -> list[Row]:
    """Peak allocations, and how they grow from a tenth of the clients to all of them."""
    rows = []
    few = len(stacked) // 10
    for rule in (*ONE_BY_ONE, *ALL_AT_ONCE):
        all_of_them, tenth = _peak(rule, stacked), _peak(rule, stacked[:few])
        rows.append(plain(f"{rule.name}: peak memory", all_of_them / 2**20, "MiB"))
        figure = f"{rule.name}: memory of ten times the clients"
        growth = all_of_them / tenth
        rows.append(
            at_most(figure, growth, "x", 1.05) if rule in ONE_BY_ONE else plain(figure, growth, "x")
        )
    return rows


def _peak(rule: Aggregation, stacked: NDArray[np.float32]) -> int:
    tracemalloc.start()
    try:
        _round(rule, stacked)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _round(aggregation: Aggregation, stacked: NDArray[np.float32]) -> Arrays:
    rule: Rule = rule_for(aggregation, {"w": stacked.shape[1:]})
    for index, update in enumerate(stacked):
        rule.add(f"{index:06d}", {"w": update})
    return rule.next_model(1, {"w": np.zeros(stacked.shape[1:], np.float32)})


def _discard(aggregation: Aggregation, stacked: NDArray[np.float32]) -> None:
    _round(aggregation, stacked)


def _keep(_: object) -> None:
    """A work returns nothing."""


if __name__ == "__main__":
    main("aggregation", measure)
