"""One round of local DP-SGD, from the server's model to an update that may leave.

The rules: every step samples by the plan's public rate, adds noise scaled to the plan's clipping
norm, and divides by the plan's public divisor. None of them depends on how many records there are,
and an empty batch is noised, applied and counted like any other. Nothing but the noised sums
reaches the update; what comes after them (:mod:`client.training.optimizer`) is post-processing.
Epsilon is no business of training: the noise was calibrated once, for the plan.

Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1, with a public divisor.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.clipping import ClippedSum
from client.training.optimizer import LocalSteps
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream, add_gaussian
from common.wire import Arrays


class Engine:
    """Trains one network, for any number of clients and rounds; keeps only buffers in between.

    Args:
        network: maps features to logits (B, K); copied, and never changed.
        privacy: the mechanism.
        optimizer: the local steps.
        rounds: of the plan, >= 1, over which a schedule runs.
    """

    def __init__(
        self, network: nn.Module, privacy: Privacy, optimizer: Optimizer, rounds: int = 1
    ) -> None:
        self._shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        self._privacy = privacy
        self._clipped_sum = ClippedSum(network, batch=privacy.divisor)
        size = sum(parameter.numel() for parameter in network.parameters())
        self._begin, self._noised = np.empty(size), np.empty(size)  # (P,)
        self._steps = LocalSteps(optimizer, size, steps=privacy.steps, rounds=rounds)
        self._busy = threading.Lock()  # two rounds in the same buffers would spoil each other

    def round(
        self, start: Arrays, features: Tensor, labels: Tensor, stream: Stream, number: int = 1
    ) -> Arrays:
        """Train for the plan's steps; the difference to ``start``, by parameter name.

        Args:
            start: the global model, float32.
            features: (N, …) float32; N >= 0.
            labels: (N,) int64.
            stream: sampling and noise, in this order in each step.
            number: the round's, from 1.
        """
        with self._busy:
            return self._round(start, features, labels, stream, number)

    def _round(
        self, start: Arrays, features: Tensor, labels: Tensor, stream: Stream, number: int
    ) -> Arrays:
        privacy, steps, noised = self._privacy, self._steps, self._noised
        np.concatenate([start[name].ravel() for name in self._shapes], out=self._begin)
        steps.begin(self._begin, number)
        for _ in range(privacy.steps):
            self._clipped_sum.load(torch.from_numpy(steps.weights))
            chosen = torch.from_numpy(stream.poisson_sample(len(labels), privacy.sampling_rate))
            total = self._clipped_sum(features, labels, privacy.clipping_norm, chosen)
            add_gaussian(
                total.numpy(),
                clip=privacy.clipping_norm,
                noise_multiplier=privacy.noise_multiplier,
                stream=stream,
                draws=privacy.noise_draws,
                out=noised,
            )
            noised /= privacy.divisor
            steps.step(noised)
        return self._named((steps.result() - self._begin).astype(np.float32))

    def _named(self, flat: NDArray[np.float32]) -> Arrays:
        sizes = [int(np.prod(shape)) for shape in self._shapes.values()]
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.reshape(shape).copy() for (name, shape), part in named}
