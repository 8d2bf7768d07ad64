"""Engines with canaries in them: this project's, one written from the paper, and planted bugs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.canaries.bounds import gaussian_mu
from audit.canaries.design import Claim, Design
from audit.canaries.interval import PLD
from audit.canaries.judgement import Judgement, judge
from audit.canaries.trial import FEATURES, TABLE, canary_subject, run_trial
from client.training.conformance import Subject
from common.plan import Optimizer, Privacy
from common.privacy.events import Event
from common.privacy.noise import Stream
from common.wire import Arrays

# The note's mechanism: PLD gives 3.98752 at delta 1e-5 (dp-accounting, and PRV 3.9885).
STEPS, EPSILON = 200, 3.98752
PRIVACY = Privacy(
    trust="local",
    sampling_rate=0.05,
    noise_multiplier=1.0962,
    clipping_norm=2.0,
    steps=1,
    divisor=25.0,
    delta=1e-5,
)
EVENT = Event(0.05, 1.0962, STEPS)
CLAIM = Claim(EVENT, 1e-5, EPSILON, PLD, gaussian_mu(EPSILON, 1e-5))

Train = Callable[..., Arrays]
Bug = Callable[[Train], Train]


def coins(seed: int, canaries: int = 1000) -> tuple[bool, ...]:
    return tuple(bool(coin) for coin in np.random.default_rng(seed).random(canaries) < 0.5)


def tried(
    seed: int, bug: Bug | None = None, subject: Subject | None = None, design: Design | None = None
) -> Judgement:
    """What follows from one seeded run of this project's engine, or of a broken one."""
    design, found = design or Design(), coins(seed)
    subject = subject or canary_subject(PRIVACY, design.canaries, STEPS)
    if bug:
        subject = replace(subject, train=bug(subject.train))
    observed = run_trial(subject, PRIVACY, found, STEPS, Stream.simulated(seed, "trial"))
    return judge(design, CLAIM, observed, found)


def from_the_paper(privacy: Privacy, canaries: int, steps: int) -> Subject:
    """Abadi et al. 2016, algorithm 1, on canaries alone, in a few lines of numpy."""
    shapes = canary_subject(privacy, canaries, steps).shapes

    def train(
        privacy: Privacy,
        optimizer: Optimizer,
        start: Arrays,
        features: Tensor,
        labels: Tensor,
        stream: Stream,
    ) -> Arrays:
        records = features.numpy()
        chosen = records[stream.poisson_sample(len(records), privacy.sampling_rate)]
        clip = privacy.clipping_norm
        total = np.zeros(shapes[TABLE][0])
        np.add.at(total, chosen[chosen[:, 1] == 1, 0].astype(int), -clip)
        total += privacy.noise_multiplier * clip * stream.gaussian(total.size)
        change = -optimizer.learning_rate * total / privacy.divisor
        return {
            TABLE: change.astype(np.float32)[:, None],
            "linear.weight": np.zeros((2, FEATURES), np.float32),
        }

    return Subject(train, shapes, (2 + FEATURES,), 2, lambda *_: Stream.cryptographic())


# -- planted bugs --------------------------------------------------------------------------------


def other_figures(**changes: Callable[[float], float]) -> Bug:
    """The engine trains by other figures than it was given."""

    def bug(train: Train) -> Train:
        def broken(privacy: Privacy, *rest: Any) -> Arrays:
            wrong: dict[str, Any] = {
                name: change(getattr(privacy, name)) for name, change in changes.items()
            }
            return train(replace(privacy, **wrong), *rest)

        return broken

    return bug


def same_noise_each_step(train: Train) -> Train:
    def broken(*arguments: Any) -> Arrays:
        *rest, stream = arguments
        return train(*rest, _SameNoise(stream))

    return broken


def each_record_thrice(train: Train) -> Train:
    def broken(
        privacy: Privacy,
        optimizer: Optimizer,
        start: Arrays,
        features: Tensor,
        labels: Tensor,
        stream: Stream,
    ) -> Arrays:
        return train(
            privacy,
            optimizer,
            start,
            torch.cat([features] * 3),
            torch.cat([labels] * 3),
            stream,
        )

    return broken


def everybody_each_step(train: Train) -> Train:
    return other_figures(sampling_rate=lambda _: 1.0)(train)


class _SameNoise(Stream):
    def __init__(self, given: Stream) -> None:
        super().__init__(bytes(32), "simulated")
        self._given = given

    def poisson_sample(self, records: int, rate: float) -> NDArray[np.intp]:
        return self._given.poisson_sample(records, rate)


BUGS: dict[str, tuple[Bug, Sequence[str]]] = {
    # name: the bug, and clauses of which one must be named
    "no noise": (other_figures(noise_multiplier=lambda _: 0.0), ["noise"]),
    "noise x 0.9": (other_figures(noise_multiplier=lambda s: 0.9 * s), ["noise"]),
    "noise not scaled by C": (other_figures(noise_multiplier=lambda s: s / 2), ["noise"]),
    "noise / batch": (other_figures(noise_multiplier=lambda s: s / 25), ["noise"]),
    "no clipping": (
        other_figures(clipping_norm=lambda c: 1000 * c, noise_multiplier=lambda s: s / 1000),
        ["influence"],
    ),
    "clipped at 2 C": (
        other_figures(clipping_norm=lambda c: 2 * c, noise_multiplier=lambda s: s / 2),
        ["influence"],
    ),
    "same noise each step": (same_noise_each_step, ["f-dp by difference", "cp-gdp by difference"]),
    "each record thrice": (each_record_thrice, ["influence"]),
    "rate x 1.5": (other_figures(sampling_rate=lambda q: 1.5 * q), ["influence"]),
    "everybody each step": (everybody_each_step, ["influence"]),
}
