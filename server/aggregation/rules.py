"""The next model, from valid updates: the rule that the plan names.

The rules: the result is finite float32 and depends on which clients' updates were added, not on
when they came. A rule that cannot be applied to a round's replies says so and changes nothing,
neither the model nor what the rule itself remembers. What a rule remembers between rounds is plain
arrays, which a checkpoint holds. See :mod:`common.aggregation` for each rule's source, breakdown
point and memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    Strategy,
)
from numpy.typing import NDArray

from common.aggregation import Aggregation
from common.wire import Arrays
from server.aggregation.geometric import geometric_median
from server.aggregation.mean import ExactMean
from server.aggregation.strategy import CannotCombine, aggregate

Shapes = Mapping[str, tuple[int, ...]]


class Rule(ABC):
    """Combines each round's updates; one object for a whole run.

    Args:
        aggregation: the plan's.
        shapes: the model's parameter shapes by name.

    ``count`` is how many updates this round has.
    """

    def __init__(self, aggregation: Aggregation, shapes: Shapes) -> None:
        self._settings = aggregation
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.count = 0
        self.begin()

    def begin(self) -> None:
        """Start a round: forget the updates of the one before."""
        self.count = 0
        self._clear()

    def add(self, client: str, update: Arrays) -> None:
        """Add the validated update of a client that has none in this round yet."""
        self._add(client, update)
        self.count += 1

    def next_model(self, round_: int, model: Arrays) -> Arrays:
        """The model after this round, float32; ``model`` stays as it is. Once a round.

        Raises:
            CannotCombine: code ``too-few-replies``, ``not-finite`` or ``no-model``; the rule
                remembers what it did before.
        """
        if self.count < self._settings.least:
            raise CannotCombine(
                f"{self._settings.name} needs {self._settings.least} valid replies, not "
                f"{self.count}",
                code="too-few-replies",
            )
        before = self.state()
        try:
            update = self._combine(round_)
            with np.errstate(over="ignore", invalid="ignore"):  # checked below
                result = {
                    name: np.asarray(value.astype(np.float64) + update[name], np.float32)
                    for name, value in model.items()
                }
            if not all(np.isfinite(value).all() for value in result.values()):
                raise CannotCombine("the next model would not be finite", code="not-finite")
        except CannotCombine:
            self.restore(before)
            raise
        return result

    def state(self) -> Arrays:
        """What the rule remembers between rounds; empty for most."""
        return {}

    def restore(self, state: Arrays) -> None:
        """Go on from an earlier :meth:`state`; ValueError if it is another rule's."""
        if state:
            raise ValueError(f"{self._settings.name} remembers nothing, and was given something")

    @abstractmethod
    def _clear(self) -> None: ...

    @abstractmethod
    def _add(self, client: str, update: Arrays) -> None: ...

    @abstractmethod
    def _combine(self, round_: int) -> Mapping[str, NDArray[Any]]: ...


class Mean(Rule):
    """The exact mean: FedAvg with equal weights, and the server's part of FedProx."""

    def _clear(self) -> None:
        self._mean = ExactMean(self._shapes)

    def _add(self, _client: str, update: Arrays) -> None:
        self._mean.add(update)

    def _combine(self, _round: int) -> Mapping[str, NDArray[Any]]:
        return self._mean.mean()


class NormBounded(Mean):
    """The exact mean of updates that are scaled down to an L2 norm of at most ``norm_bound``."""

    def _add(self, client: str, update: Arrays) -> None:
        wide = {name: update[name].astype(np.float64) for name in self._shapes}
        norm = math.sqrt(sum(float(np.square(value).sum()) for value in wide.values()))
        if norm > self._settings.norm_bound:
            factor = self._settings.norm_bound / norm
            update = {name: (value * factor).astype(np.float32) for name, value in wide.items()}
        super()._add(client, update)


class ServerOptimizer(Mean):
    """A Flower strategy that takes the exact mean for a gradient, and remembers earlier ones.

    It sees a model of zeros and one reply, the mean update, and what it returns is the step.
    """

    def __init__(self, aggregation: Aggregation, shapes: Shapes) -> None:
        super().__init__(aggregation, shapes)
        self._strategy = _strategy(aggregation)

    def _combine(self, round_: int) -> Mapping[str, NDArray[Any]]:
        mean = {name: np.asarray(value, np.float32) for name, value in self._mean.mean().items()}
        zeros = {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}
        if isinstance(self._strategy, FedAvgM):
            record = ArrayRecord({name: Array(value) for name, value in zeros.items()})
            self._strategy.current_arrays = record
        else:
            self._strategy.current_arrays = zeros
        return aggregate(self._strategy, round_, [mean], tuple(self._shapes))

    def state(self) -> Arrays:
        kept: dict[str, Mapping[str, Any]] = {}
        if isinstance(self._strategy, FedAvgM):
            if self._strategy.momentum_vector is not None:
                kept["m"] = dict(zip(self._shapes, self._strategy.momentum_vector, strict=True))
        elif self._strategy.m_t:
            kept = {"m": self._strategy.m_t, "v": self._strategy.v_t or {}}
        return {
            f"{moment}/{name}": np.asarray(value, np.float32)
            for moment, values in kept.items()
            for name, value in values.items()
        }

    def restore(self, state: Arrays) -> None:
        def moment(which: str) -> dict[str, NDArray[Any]] | None:
            return {name: state[f"{which}/{name}"] for name in self._shapes} if state else None

        if isinstance(self._strategy, FedAvgM):
            first = moment("m")
            self._strategy.momentum_vector = None if first is None else list(first.values())
        else:
            self._strategy.m_t, self._strategy.v_t = moment("m"), moment("v")


class _Holding(Rule):
    """A rule that needs all replies at once: it keeps them, and takes them in order of the ids."""

    def _clear(self) -> None:
        self._held: dict[str, Arrays] = {}

    def _add(self, client: str, update: Arrays) -> None:
        self._held[client] = update

    def _in_order(self) -> Iterator[Arrays]:
        """The updates, each let go as it is taken."""
        for client in sorted(self._held):
            yield self._held.pop(client)


class FlowerRule(_Holding):
    """Flower's own median, trimmed mean, Krum or Multi-Krum."""

    def _combine(self, round_: int) -> Mapping[str, NDArray[Any]]:
        strategy = _strategy(self._settings)
        return aggregate(strategy, round_, self._in_order(), tuple(self._shapes))


class GeometricMedian(_Holding):
    """The geometric median of whole updates, all parameters of a client being one point."""

    def _combine(self, _round: int) -> Mapping[str, NDArray[Any]]:
        points = [
            np.concatenate([update[name].reshape(-1) for name in self._shapes])
            for update in self._in_order()
        ]
        flat = geometric_median(points, self._settings.smoothing, self._settings.iterations)
        result, start = {}, 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            result[name] = flat[start : start + size].reshape(shape)
            start += size
        return result


_RULES: dict[str, type[Rule]] = {
    "fedavg": Mean,
    "fedprox": Mean,
    "norm-bounded": NormBounded,
    "fedavgm": ServerOptimizer,
    "fedadam": ServerOptimizer,
    "fedyogi": ServerOptimizer,
    "fedmedian": FlowerRule,
    "trimmed-mean": FlowerRule,
    "krum": FlowerRule,
    "multi-krum": FlowerRule,
    "geometric-median": GeometricMedian,
}


def rule_for(aggregation: Aggregation, shapes: Shapes, state: Arrays | None = None) -> Rule:
    """The rule that a plan names, as it was when it said ``state``."""
    rule = _RULES[aggregation.name](aggregation, shapes)
    rule.restore(state or {})
    return rule


def advance(rule: Rule, round_: int, model: Arrays, quorum: int) -> tuple[Arrays, str]:
    """The model after a round, and why it did not change: a code, or nothing if it did."""
    if rule.count < quorum:
        return model, "no-quorum"
    try:
        return rule.next_model(round_, model), ""
    except CannotCombine as error:
        return model, error.code


def _strategy(settings: Aggregation) -> Any:
    """The Flower strategy behind a rule, with the plan's settings and none of Flower's defaults."""
    adaptive: dict[str, Any] = {
        "eta": settings.server_learning_rate,
        "beta_1": settings.server_beta1,
        "beta_2": settings.server_beta2,
        "tau": settings.server_tau,
    }
    made: dict[str, Any] = {
        "fedavgm": lambda: FedAvgM(
            server_learning_rate=settings.server_learning_rate,
            server_momentum=settings.server_momentum,
        ),
        "fedadam": lambda: FedAdam(**adaptive),
        "fedyogi": lambda: FedYogi(**adaptive),
        "fedmedian": FedMedian,
        "trimmed-mean": lambda: FedTrimmedAvg(beta=settings.trim),
        "krum": lambda: Krum(num_malicious_nodes=settings.malicious),
        "multi-krum": lambda: MultiKrum(
            num_malicious_nodes=settings.malicious, num_nodes_to_select=settings.selected
        ),
    }
    strategy: Strategy = made[settings.name]()
    return strategy
