"""Does a round with the plan's own optimizer use the noised sums that the suite tests?

The rule: the suite reads sums from updates, which only plain SGD shows; what other optimizers make
of a sum cannot be turned back. So this goes forwards: plain rounds of one step, with the same
stream, give the sums, and the optimizer's own steps on them must give the update of a whole round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from client.training.conformance.subject import Finding, Probe, Replay
from client.training.optimizer import LocalSteps
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream
from common.wire import Arrays

OPTIMIZER_STEPS = 4
OPTIMIZER_RECORDS = 40
MOVES = 1e-2  # how far a local step moves a weight, about: far enough for float32, and not far
DIFFERENCE = 1e-3  # of an update's length; float32 and the grid make less than 1e-5


def optimizer_check(optimizer: Optimizer) -> Callable[[Probe], Iterator[Finding]]:
    """The clause that holds a round with this optimizer to the steps of plain SGD.

    Noise, clipping, sampling, divisor and empty batches then are those of the suite's clauses.

    What scales whole sums, noise and all, is not seen through Adam, which divides by their scale;
    it costs no privacy either.

    The learning rate is scaled to what float32 can hold, and Adam remembers something: else a
    difference in the last bit could grow to one that can be seen, in an engine that is right.
    """

    def check(probe: Probe) -> Iterator[Finding]:
        declared = replace(probe.privacy, steps=OPTIMIZER_STEPS)
        # With little noise and every gradient clipped, what records add shows; and without any.
        quiet = replace(
            declared,
            noise_multiplier=min(0.1, declared.noise_multiplier),
            clipping_norm=declared.clipping_norm / 64,
        )
        records, nobody = probe.records(OPTIMIZER_RECORDS, "optimizer"), probe.nobody()
        worst, where = -1.0, ""
        for number, (privacy, (features, labels)) in enumerate(
            ((declared, records), (quiet, records), (declared, nobody))
        ):
            scaled = _scaled(optimizer, privacy)
            start = probe.start()
            found = probe.subject.train(
                privacy, scaled, start, features, labels, Replay(probe.seed, number)
            )
            expected = _step_by_step(
                probe, privacy, scaled, start, (features, labels), Replay(probe.seed, number)
            )
            least = 1e-14 * math.sqrt(probe.size)  # what float64 loses next to a weight
            for name, wanted in expected.items():
                length = float(np.linalg.norm(wanted)) + least
                off = float(np.linalg.norm(found[name] - wanted)) / length
                off = math.inf if math.isnan(off) else off
                worst, where = max((worst, where), (off, name))
        yield Finding(
            "optimizer",
            worst <= DIFFERENCE,
            worst,
            None,
            f"{where}: {OPTIMIZER_STEPS} steps by {_described(optimizer)} are those steps on the "
            f"noised sums of plain rounds, but for {worst:.2g} of an update's length",
            where=where,
        )

    return check


def _step_by_step(
    probe: Probe,
    privacy: Privacy,
    optimizer: Optimizer,
    start: Arrays,
    records: tuple[Tensor, Tensor],
    stream: Stream,
) -> Arrays:
    """A round's update by plain rounds of one step, each from where the optimizer is."""
    one_step = replace(privacy, steps=1)
    rate = privacy.divisor / privacy.clipping_norm  # then an update is as long as noise is in C
    begin = np.concatenate([start[name].ravel() for name in probe.subject.shapes])
    steps = LocalSteps(optimizer, probe.size, steps=privacy.steps, rounds=1)
    steps.begin(begin.astype(np.float64), 1)
    for _ in range(privacy.steps):
        weights = dict(probe.tensors(steps.weights))
        now = {
            name: weights[name].reshape(shape).astype(np.float32)
            for name, shape in probe.subject.shapes.items()
        }
        update = probe.subject.train(one_step, Optimizer(rate), now, *records, stream)
        flat = np.concatenate([update[name].ravel() for name in probe.subject.shapes])
        steps.step(flat.astype(np.float64) / -rate)
    parts = probe.tensors(steps.result() - begin)
    return {
        name: part.reshape(probe.subject.shapes[name]).astype(np.float32) for name, part in parts
    }


def _scaled(optimizer: Optimizer, privacy: Privacy) -> Optimizer:
    """The same optimizer at a learning rate at which a step moves a weight by about a hundredth."""
    gradient = privacy.clipping_norm * (privacy.noise_multiplier + 1) / privacy.divisor
    rate = MOVES if optimizer.method == "adam" else MOVES / gradient
    rate = min(rate, 1 / optimizer.proximal) if optimizer.proximal else rate
    return replace(
        optimizer,
        learning_rate=rate,
        final_learning_rate=optimizer.final_learning_rate * (rate / optimizer.learning_rate),
        beta2=max(optimizer.beta2, 0.5),
    )


def _described(optimizer: Optimizer) -> str:
    parts = [optimizer.method, f"schedule {optimizer.schedule}"]
    for name in ("momentum", "averaging", "proximal", "warmup"):
        value = getattr(optimizer, name)
        parts += [f"{name} {value:g}"] * bool(value)
    return ", ".join(parts)
