"""What is examined, how it is made to show its sums, and what is said of it.

The rule: an engine is a grey box. It is given a model, records and a random stream, and gives an
update; nothing inside it is looked at. Two things are asked of it: all its randomness comes from
the stream that it is given, and it samples with :meth:`Stream.poisson_sample`, once a step. Plain
SGD at a known rate turns an update back into the sum of the steps' noised sums.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.engine import Engine
from common.canonical import Json, number
from common.plan import Optimizer, Privacy
from common.privacy.noise import SIMULATED, Stream
from common.wire import Arrays

Vector = NDArray[np.float64]
Records = tuple[Tensor, Tensor]
Train = Callable[[Privacy, Optimizer, Arrays, Tensor, Tensor, Stream], Arrays]


@dataclass(frozen=True)
class Subject:
    """What is examined: one client's training, and where clients get their streams.

    Args:
        train: one round: (mechanism, optimizer, start, features (N, …) float32, labels (N,) int64,
            stream) -> update, by the names of ``start``; N >= 0. The loss is cross-entropy.
        shapes: of the parameters, by name, in the order in which an engine lays them out.
        feature_shape: of one record's features, without a batch axis.
        classes: K >= 2; labels are 0 to K - 1.
        stream: the stream that a client uses in a round.
    """

    train: Train
    shapes: dict[str, tuple[int, ...]]
    feature_shape: tuple[int, ...]
    classes: int
    stream: Callable[[str, int], Stream]


def engine_subject(
    network: Callable[[], nn.Module],
    feature_shape: tuple[int, ...],
    classes: int,
    stream: Callable[[str, int], Stream] | None = None,
) -> Subject:
    """This project's :class:`~client.training.Engine`, training what ``network()`` makes."""
    model = network()

    @lru_cache(maxsize=4)  # engines may be used again, so that what one keeps would show
    def engine(privacy: Privacy, optimizer: Optimizer) -> Engine:
        return Engine(model, privacy, optimizer)

    def train(
        privacy: Privacy,
        optimizer: Optimizer,
        start: Arrays,
        features: Tensor,
        labels: Tensor,
        given: Stream,
    ) -> Arrays:
        return engine(privacy, optimizer).round(start, features, labels, given)

    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return Subject(
        train, shapes, feature_shape, classes, stream or (lambda *_: Stream.cryptographic())
    )


@dataclass(frozen=True)
class Finding:
    """One clause of the mechanism, held against what an engine did.

    Args:
        check: the clause's name, a key of :data:`CHECKS` or one that such a check adds.
        ok: whether the engine did as the clause says.
        statistic: the figure that was looked at; the message says what it is.
        p_value: the chance that a correct engine shows a figure as odd as this one, corrected for
            the number of places that were looked at; None where chance plays no part.
        message: the same in words, for a person.
        where: the tensor, where the clause is about one; else empty.
    """

    check: str
    ok: bool
    statistic: float
    p_value: float | None
    message: str
    where: str = ""

    def json(self) -> Json:
        """Plain JSON; a figure that is no finite number is null."""

        def finite(value: float | None) -> str | None:
            return None if value is None or not math.isfinite(value) else number(float(value))

        return {
            "check": self.check,
            "where": self.where,
            "ok": bool(self.ok),  # comparing numpy's figures gives numpy's bool
            "statistic": finite(self.statistic),
            "p_value": finite(self.p_value),
            "message": self.message,
        }


class Replay(Stream):
    """A stream that can be had again, also for the same records with one more or one fewer.

    Each step's sampling has a stream of its own, and noise has another, so neither moves when a
    record comes or goes; and every other record keeps the draw that it had.

    Args:
        seed: of the sampling.
        noise: of the noise.
        present: the position of the record in question, which every step takes.
        absent: the position that it would have; the records given are the others.
    """

    def __init__(
        self, seed: int, noise: int = 0, *, present: int | None = None, absent: int | None = None
    ) -> None:
        key = hashlib.sha256(f"privet/conformance/{seed}/{noise}".encode()).digest()
        super().__init__(key, SIMULATED)
        self._seed, self._present, self._absent = seed, present, absent
        self._steps = 0

    def poisson_sample(self, records: int, rate: float) -> NDArray[np.intp]:
        self._steps += 1
        sampling = Stream.simulated(self._seed, "conformance", "sampling", self._steps)
        taken = sampling.uniform(records + (self._absent is not None)) <= rate
        if self._absent is not None:
            taken = np.delete(taken, self._absent)
        if self._present is not None:
            taken[self._present] = True
        return np.flatnonzero(taken)


@dataclass(frozen=True)
class Probe:
    """A subject under one mechanism, and everything that the checks share."""

    subject: Subject
    privacy: Privacy
    seed: int
    alpha: float

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.subject.shapes.values())

    def stream(self, *labels: str | int) -> Stream:
        return Stream.simulated(self.seed, "conformance", *labels)

    def generator(self, *labels: str | int) -> np.random.Generator:
        return np.random.default_rng(self.stream(*labels).integers(2))

    def sums(
        self,
        privacy: Privacy,
        stream: Stream,
        records: Records | None = None,
        *,
        rate: float = 1.0,
        weights: float = 1.0,
    ) -> Vector:
        """The sum over a round's steps of the noised sums of clipped gradients: (P,).

        Args:
            privacy: the mechanism.
            stream: sampling and noise.
            records: none of them if left out.
            rate: learning rate; one step does not depend on it.
            weights: how large the starting weights are, as a factor.
        """
        features, labels = self.nobody() if records is None else records
        start = self.start(weights)
        update = self.subject.train(privacy, Optimizer(rate), start, features, labels, stream)
        flat = np.concatenate([update[name].ravel() for name in self.subject.shapes])
        return flat.astype(np.float64) * (-privacy.divisor / rate)

    def start(self, weights: float = 1.0) -> Arrays:
        """Normal weights with variance 1 / fan-in, so that every layer has a gradient."""
        generator = self.generator("start")
        return {
            name: (
                weights * generator.normal(size=shape) / math.sqrt(math.prod(shape[1:]) or 1)
            ).astype(np.float32)
            for name, shape in self.subject.shapes.items()
        }

    def records(self, count: int, *labels: str | int) -> Records:
        generator = self.generator("records", *labels)
        features = generator.normal(size=(count, *self.subject.feature_shape)).astype(np.float32)
        classes = generator.integers(self.subject.classes, size=count)
        return torch.from_numpy(features), torch.from_numpy(classes)

    def nobody(self) -> Records:
        return torch.zeros((0, *self.subject.feature_shape)), torch.zeros(0, dtype=torch.long)

    def tensors(self, flat: Vector) -> Iterator[tuple[str, Vector]]:
        """A vector of length P, taken apart: a name and a part for each tensor."""
        position = 0
        for name, shape in self.subject.shapes.items():
            size = math.prod(shape)
            yield name, flat[position : position + size]
            position += size
