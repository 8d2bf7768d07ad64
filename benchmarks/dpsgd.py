"""DP-SGD on one thread: our engine beside plain SGD, Opacus, and Opacus as Flower uses it.

All variants of a figure take turns within one process, and every ratio is the median of the turns'
own ratios. A step is a tenth of a round of ten steps on the same 64 records; an epoch is what a
client does with 600 records in a round: ten steps at a rate of 0.1. Plain SGD is timed in torch's
usual layout, which is how people write it, and in channels-last, which is the faster one here.
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch
from rich.console import Console

from benchmarks import dpsgd_fashion
from benchmarks.dpsgd_models import FALLBACK, NATIVE, A, B, Subject
from benchmarks.dpsgd_peers import (
    CHANNELS_LAST,
    STEPS,
    Work,
    opacus_epoch,
    opacus_steps,
    our_epoch,
    our_steps,
    plain_epoch,
    plain_steps,
)
from benchmarks.harness import Row, Turns, at_most, in_turn, main, plain
from client.training.memory import keep_freed_memory
from common.privacy.noise import Stream, add_gaussian

MODES = ("hooks", "ew", "ghost")  # of Opacus
# Greatest ratios: a step to plain SGD, a step to plain SGD in channels-last, an epoch to Flower's.
GOALS = {"A": (0.9, 1.75, 0.25), "B": (1.2, 1.6, 0.45)}


def measure(quick: bool) -> list[Row]:
    """Every figure of the module docstring; a minute if quick, else under ten."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a client's process does; plain SGD and Opacus gain from it too
    logging.getLogger("opacus").setLevel(logging.ERROR)
    console = Console(stderr=True, style="dim")
    share = 0.02 if quick else 1.0  # of the seconds; a turn is always timed
    rows: list[Row] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Opacus: of hooks, and of its noise
        for subject, seconds in ((A, 15.0), (B, 40.0)):
            console.print(f"{subject.name}: steps, epochs, noise")
            rows += steps(subject, share * seconds)
            rows += epochs(subject, share * seconds)
            rows += noise(subject, share * 6)
        for subject in NATIVE:
            console.print(subject.name)
            rows += native(subject, share * 6)
        for subject in FALLBACK:
            console.print(subject.name)
            rows += fallback(subject, share * 12)
    console.print("Fashion-MNIST")
    return rows + dpsgd_fashion.measure(quick)


def steps(subject: Subject, seconds: float) -> list[Row]:
    """One step of each."""
    works = {
        "engine": our_steps(subject),
        "plain SGD": plain_steps(subject),
        "plain SGD, channels-last": plain_steps(subject, CHANNELS_LAST),
        **{f"Opacus {mode}": opacus_steps(subject, mode) for mode in MODES},
    }
    turns = in_turn(works, seconds)
    to_plain, to_channels_last, _ = GOALS[subject.name]
    figure = f"{subject.name}, step"
    return [
        at_most(f"{figure}: engine / plain SGD", turns.ratio("engine", "plain SGD"), "x", to_plain),
        at_most(
            f"{figure}: engine / plain SGD, channels-last",
            turns.ratio("engine", "plain SGD, channels-last"),
            "x",
            to_channels_last,
        ),
        *_peers(figure, turns, "plain SGD"),
        *(plain(f"{figure}: {name}", turns.median(name) / STEPS, "ms") for name in works),
    ]


def epochs(subject: Subject, seconds: float) -> list[Row]:
    """A client's whole epoch of each."""
    flower = "Opacus, Flower's example"
    works = {
        "engine": our_epoch(subject),
        flower: opacus_epoch(subject, epsilon=True),
        **{f"Opacus {mode}, no epsilon": opacus_epoch(subject, mode) for mode in MODES},
        "plain SGD": plain_epoch(subject),
        "plain SGD, channels-last": plain_epoch(subject, CHANNELS_LAST),
    }
    turns = in_turn(works, seconds)
    figure = f"{subject.name}, epoch"
    ratio = turns.ratio("engine", flower)
    return [
        at_most(f"{figure}: engine / {flower}", ratio, "x", GOALS[subject.name][2]),
        plain(f"{figure}: engine / plain SGD", turns.ratio("engine", "plain SGD"), "x"),
        *_peers(figure, turns, "plain SGD"),
        *(plain(f"{figure}: {name}", turns.median(name), "ms") for name in works),
    ]


def noise(subject: Subject, seconds: float) -> list[Row]:
    """The noise alone, as a share of steps that have it: one normal each, and the sum of four."""
    rows = []
    for draws, name, goal in ((1, "secure noise", 10.0), (4, "secure noise, sum of four", 25.0)):
        works = {"noise": _noise(subject, draws), "steps": our_steps(subject, draws=draws)}
        percent = 100 * in_turn(works, seconds / 2).ratio("noise", "steps")
        rows.append(at_most(f"{subject.name}, step: {name}, share", percent, "%", goal))
    return rows


def native(subject: Subject, seconds: float) -> list[Row]:
    """A network of torch's own layers: at most half as much again as without privacy."""
    works = {
        "engine": our_steps(subject),
        "plain SGD": plain_steps(subject),
        "noise": _noise(subject),
    }
    turns = in_turn(works, seconds)
    figure = f"{subject.name}, step"
    return [
        at_most(f"{figure}: engine / plain SGD", turns.ratio("engine", "plain SGD"), "x", 1.5),
        plain(f"{figure}: secure noise / plain SGD", turns.ratio("noise", "plain SGD"), "x"),
        plain(f"{figure}: plain SGD", turns.median("plain SGD") / STEPS, "ms"),
    ]


def fallback(subject: Subject, seconds: float) -> list[Row]:
    """A network that only Opacus can take apart: no more than Opacus alone."""
    works = {
        "engine": our_steps(subject),
        "Opacus": opacus_steps(subject),
        "plain SGD": plain_steps(subject),
    }
    turns = in_turn(works, seconds)
    figure = f"{subject.name}, step"
    return [
        at_most(f"{figure}: engine / Opacus", turns.ratio("engine", "Opacus"), "x", 1.05),
        *_peers(figure, turns, "plain SGD"),
        plain(f"{figure}: plain SGD", turns.median("plain SGD") / STEPS, "ms"),
    ]


def _peers(figure: str, turns: Turns, floor: str) -> list[Row]:
    """What everybody else takes, as ratios to ``floor``."""
    others = [name for name in turns.taken if name not in ("engine", floor)]
    return [plain(f"{figure}: {name} / {floor}", turns.ratio(name, floor), "x") for name in others]


def _noise(subject: Subject, draws: int = 1) -> Work:
    """The noise of ten steps."""
    total = np.zeros(sum(value.numel() for value in subject.network().parameters()))
    noised = np.empty_like(total)
    stream = Stream.cryptographic()

    def work() -> None:
        for _ in range(STEPS):
            add_gaussian(
                total, clip=1.0, noise_multiplier=1.0, stream=stream, draws=draws, out=noised
            )

    return work


if __name__ == "__main__":
    main("dpsgd", measure)
