"""A real training run with canaries in it: what the engine under test did to each.

The rule: a canary is an ordinary record. Its features name a row of its own in a table, its loss
depends on that row alone, and its gradient has ten times the norm that clipping leaves; so once
clipped it is one coordinate's unit vector, and what the run adds to that coordinate besides is
noise. Nothing hooks into the engine: it gets a network, records and a stream, and gives updates.
Each step is a round of its own, so that every noised sum is seen, as the accounting assumes. The
learning rate is too small to move a canary's gradient.

Scores are functions of what was seen and of the declared mechanism, never of the coins.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audit.canaries.design import SCORES, Observed, spare_rows
from client.training.conformance import Subject, engine_subject
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream
from common.wire import Arrays

FEATURES = 8
ORDINARY = 256  # records that are there as well
STRENGTH = 10.0  # a canary's gradient norm, in units of C
FIGURES = 9  # significant digits that a record keeps
TABLE = "canaries.weight"
_FARTHEST = 1e100  # in units of C

Progress = Callable[[int, int], None]


class CanaryNetwork(nn.Module):
    """Two classes; a record is (row, is a canary, eight features).

    Args:
        rows: of the canaries' table.
        strength: norm of a canary's gradient.
    """

    def __init__(self, rows: int, strength: float) -> None:
        super().__init__()
        self.canaries = nn.Embedding(rows, 1)
        nn.init.zeros_(self.canaries.weight)
        self.linear = nn.Linear(FEATURES, 2, bias=False)  # no bias: canaries' features are 0
        self.register_buffer("push", torch.tensor([[-strength, strength]]))

    def forward(self, records: Tensor) -> Tensor:
        """(B, 2 + F) float32 to logits (B, 2)."""
        rows = records[:, 0].nan_to_num().long().clamp(0, self.canaries.num_embeddings - 1)
        pushed = self.canaries(rows) * records[:, 1:2] * self.get_buffer("push")  # (B, 2)
        logits: Tensor = self.linear(records[:, 2:]) + pushed
        return logits


def canary_subject(privacy: Privacy, canaries: int, steps: int) -> Subject:
    """This project's engine, training a network that has a row for each canary and spare ones."""
    rows = canaries + spare_rows(canaries, steps)
    strength = STRENGTH * privacy.clipping_norm

    def network() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return CanaryNetwork(rows, strength)

    return engine_subject(network, (2 + FEATURES,), 2)


def flip_coins(canaries: int) -> tuple[bool, ...]:
    """A fair coin for each canary, from the operating system."""
    return tuple(bool(secrets.randbits(1)) for _ in range(canaries))


def run_trial(
    subject: Subject,
    privacy: Privacy,
    coins: Sequence[bool],
    steps: int,
    stream: Stream | None = None,
    progress: Progress = lambda *_: None,
) -> Observed:
    """Train for ``steps`` steps on the included canaries and some ordinary records.

    Args:
        subject: what is examined: the engine, with :func:`canary_subject`'s network.
        privacy: the declared mechanism.
        coins: which canaries are among the records.
        stream: sampling and noise; by default one that nobody can repeat.
        progress: called as (done, of).
    """
    stream = stream or Stream.cryptographic()
    features, labels = _records(coins)
    one_step = replace(privacy, steps=1)
    per_unit = 1e-3 / (STRENGTH * privacy.clipping_norm**2 * (1 + privacy.noise_multiplier) * steps)
    optimizer = Optimizer(per_unit * privacy.divisor)
    weights: Arrays = {name: np.zeros(shape, np.float32) for name, shape in subject.shapes.items()}
    scale = 1 / (per_unit * privacy.clipping_norm)
    seen = _Seen(len(coins), subject.shapes[TABLE][0] - len(coins), privacy)
    for step in range(steps):
        update = subject.train(one_step, optimizer, weights, features, labels, stream)
        weights = {name: weights[name] + update[name] for name in weights}
        seen.add(update[TABLE].ravel().astype(np.float64) * scale)
        progress(step + 1, steps)
    return seen.observed(steps)


class _Seen:
    """What the steps so far have shown, in units of C."""

    def __init__(self, canaries: int, spare: int, privacy: Privacy) -> None:
        self._canaries, self._spare = canaries, spare
        self._privacy = privacy
        self._ratio, self._difference = np.zeros(canaries), np.zeros(canaries)
        self._sums, self._squares = np.zeros(canaries), np.zeros(canaries)
        self._spare_squares = 0.0
        self._last: NDArray[np.float64] | None = None

    def add(self, values: NDArray[np.float64]) -> None:
        """One step's noised sums of the table's rows: (rows,)."""
        # What is not a number counts as silence: a broken engine must still get its verdict.
        values = np.nan_to_num(values, nan=0.0, posinf=_FARTHEST, neginf=-_FARTHEST)
        np.clip(values, -_FARTHEST, _FARTHEST, out=values)
        own, spare = values[: self._canaries], values[self._canaries :]
        q, sigma = self._privacy.sampling_rate, self._privacy.noise_multiplier
        exponent = (2 * own - 1) / (2 * sigma * sigma)
        out = math.log1p(-q) if q < 1 else -math.inf
        self._ratio += np.logaddexp(out, math.log(q) + exponent)
        if self._last is not None:
            self._difference += np.abs(own - self._last)
        self._last = own
        self._sums += own
        self._squares += own * own
        self._spare_squares += float(spare @ spare)

    def observed(self, steps: int) -> Observed:
        ratio, difference = (_kept(x) for x in (self._ratio, self._difference))
        return Observed(
            scores=dict(zip(SCORES, (ratio, difference), strict=True)),
            sums=_kept(self._sums),
            squares=_kept(self._squares),
            spare_values=self._spare * steps,
            spare_squares=float(f"{self._spare_squares:.{FIGURES}g}"),
        )


def _kept(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{FIGURES}g}") for value in values)


def _records(coins: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """The included canaries, then ordinary records of two classes: (N, 2 + F) and (N,)."""
    rows = np.flatnonzero(coins)
    generator = np.random.default_rng(0)
    ordinary = generator.normal(size=(ORDINARY, FEATURES))
    features = np.zeros((len(rows) + ORDINARY, 2 + FEATURES), np.float32)
    features[: len(rows), 0] = rows
    features[: len(rows), 1] = 1
    features[len(rows) :, 2:] = ordinary
    labels = np.concatenate([np.ones(len(rows)), ordinary[:, 0] > 0]).astype(np.int64)
    return torch.from_numpy(features), torch.from_numpy(labels)
