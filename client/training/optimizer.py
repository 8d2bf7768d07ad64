"""How does a round's noised gradients become its result? Local steps on flat float64 vectors.

The rule: everything here is post-processing. It sees noised gradients, the model that the server
sent and the plan, and never a record, so it costs no privacy (Dwork and Roth 2014, proposition
2.1). Nothing outlives a round but the memory it used: a client keeps no state, so momentum, moments
and average start anew. What a round needs of the whole plan is its number: where it is in the
schedule.

Sources: Adam: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1. Average of iterates: De et al.
2022 (arXiv 2204.13650), here within a round and with Adam's correction of the bias. Proximal term:
Li et al. 2020 (arXiv 1812.06127), equation 2. Half a wave: Loshchilov and Hutter 2017 (arXiv
1608.03983), equation 5 without restarts. Warm-up: Goyal et al. 2017 (arXiv 1706.02677).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.plan import Optimizer

Vector = NDArray[np.float64]


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """The learning rate of one step of the plan.

    Of W = round(warmup x steps) steps, the k-th, counted from 0, has (k + 1) / (W + 1) of the
    greatest rate. The others go from x = 0 to just below 1; ``linear`` has a rate of
    final + (greatest - final) (1 - x), ``cosine`` has (1 + cos(pi x)) / 2 for 1 - x, and ``step``
    has greatest (final / greatest)^(s / (stages - 1)) in stage s = floor(x stages).

    Args:
        optimizer: the plan's.
        step: counted from 0 over all rounds; steps beyond the plan have the last one's rate.
        steps: of the whole plan, >= 1.

    >>> slowing = Optimizer(1.0, schedule="linear", final_learning_rate=0.2)
    >>> [round(learning_rate(slowing, step, 4), 3) for step in range(6)]
    [1.0, 0.8, 0.6, 0.4, 0.4, 0.4]
    """
    greatest, final = optimizer.learning_rate, optimizer.final_learning_rate
    step = min(step, steps - 1)
    warm = round(optimizer.warmup * steps)
    if step < warm:
        return greatest * (step + 1) / (warm + 1)
    done, whole = step - warm, steps - warm
    match optimizer.schedule:
        case "constant":
            return greatest
        case "linear":
            return final + (greatest - final) * (1 - done / whole)
        case "cosine":
            return final + (greatest - final) * (1 + math.cos(math.pi * done / whole)) / 2
        case "step":
            stage = done * optimizer.stages // whole
            return greatest * math.pow(final / greatest, stage / (optimizer.stages - 1))
        case unknown:
            raise ValueError(f"no schedule is called {unknown!r}")


class LocalSteps:
    """The local steps of one network's rounds; its memory is used again in every round.

    Args:
        optimizer: the plan's.
        parameters: P, how many numbers the network has.
        steps: of a round, >= 1.
        rounds: of the plan, >= 1.
    """

    def __init__(self, optimizer: Optimizer, parameters: int, *, steps: int, rounds: int) -> None:
        self._optimizer = optimizer
        self._steps, self._all_steps = steps, steps * rounds
        self._apply = {"sgd": self._sgd, "adam": self._adam}[optimizer.method]
        self._done = 0  # steps of this round
        self._earlier = 0  # the plan's steps before this round
        self._weights = np.zeros(parameters)  # (P,) like all that follow
        self._mean = np.zeros(parameters)  # velocity, or Adam's first moment
        self._scratch = np.zeros(parameters)
        if optimizer.method == "adam":
            self._square = np.zeros(parameters)  # second moment
        if optimizer.proximal:
            self._begin = np.zeros(parameters)
            self._pulled = np.zeros(parameters)  # gradient with the proximal term
        if optimizer.averaging:
            self._average = np.zeros(parameters)
            self._averaged = 0.0  # 1 + d + d^2 + …, a term for each iterate

    def begin(self, weights: Vector, round_: int) -> None:
        """Start a round at ``weights`` (P,), which are copied; forget all of the one before.

        Args:
            weights: the global model.
            round_: counted from 1. Beyond the plan's rounds the rate stays as it was at its end.
        """
        self._done, self._earlier = 0, (round_ - 1) * self._steps
        np.copyto(self._weights, weights)
        self._mean.fill(0)
        if self._optimizer.method == "adam":
            self._square.fill(0)
        if self._optimizer.proximal:
            np.copyto(self._begin, weights)
        if self._optimizer.averaging:
            self._average.fill(0)
            self._averaged = 0.0

    @property
    def weights(self) -> Vector:
        """The current iterate (P,), where the next gradient is taken. Every step changes it."""
        return self._weights

    def step(self, gradient: Vector) -> None:
        """One step along a noised gradient (P,): the noised sum over the divisor."""
        if self._optimizer.proximal:
            gradient = self._pull(gradient)
        rate = learning_rate(self._optimizer, self._earlier + self._done, self._all_steps)
        self._done += 1
        self._apply(gradient, rate)
        if self._optimizer.averaging:
            self._add_to_average()

    def result(self) -> Vector:
        """What the round gives (P,): the average where there is one, else the last iterate.

        It is this object's memory: take what you need before the next step or round.
        """
        return self._average if self._optimizer.averaging and self._done else self._weights

    # -- the parts of a step -------------------------------------------------------------------

    def _pull(self, gradient: Vector) -> Vector:
        pulled = np.subtract(self._weights, self._begin, out=self._pulled)
        pulled *= self._optimizer.proximal
        pulled += gradient
        return pulled

    def _sgd(self, gradient: Vector, rate: float) -> None:
        velocity = self._mean
        velocity *= self._optimizer.momentum
        velocity += gradient
        self._weights -= np.multiply(velocity, rate, out=self._scratch)

    def _adam(self, gradient: Vector, rate: float) -> None:
        beta1, beta2 = self._optimizer.beta1, self._optimizer.beta2
        mean, square, scratch = self._mean, self._square, self._scratch
        mean *= beta1
        mean += np.multiply(gradient, 1 - beta1, out=scratch)
        square *= beta2
        np.multiply(gradient, gradient, out=scratch)
        square += np.multiply(scratch, 1 - beta2, out=scratch)
        # Both began at zero: each is too small by a factor that is known.
        np.divide(square, 1 - beta2**self._done, out=scratch)
        np.sqrt(scratch, out=scratch)
        scratch += self._optimizer.epsilon
        np.divide(mean, scratch, out=scratch)
        scratch *= rate / (1 - beta1**self._done)
        self._weights -= scratch

    def _add_to_average(self) -> None:
        # The same as d a + (1 - d) w from zero, divided by 1 - d^k at the end; always in scale.
        self._averaged = self._optimizer.averaging * self._averaged + 1
        change = np.subtract(self._weights, self._average, out=self._scratch)
        change /= self._averaged
        self._average += change
