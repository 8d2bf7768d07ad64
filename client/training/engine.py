"""One round of local DP-SGD, from the server's model to an update that may leave.

The rules: every step samples by the plan's public rate, adds noise scaled to the plan's clipping
norm, and divides by the plan's public divisor. None of them depends on how many records there are,
and an empty batch is noised, applied and counted like any other. Nothing but the noised sums
reaches the update; what comes after them (momentum, the learning rate) is post-processing.

Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1, with a public divisor.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.clipping import clipped_sum
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream, add_gaussian
from common.wire import Arrays


class Engine:
    """Trains one network, for any number of clients and rounds; keeps nothing in between.

    Args:
        network: maps features to logits (B, K); its parameters are overwritten by every round.
        privacy: the mechanism.
        optimizer: the local step.
    """

    def __init__(self, network: nn.Module, privacy: Privacy, optimizer: Optimizer) -> None:
        self._network = network
        self._privacy = privacy
        self._optimizer = optimizer
        self._clipped_sum = clipped_sum(network)

    def round(self, start: Arrays, features: Tensor, labels: Tensor, stream: Stream) -> Arrays:
        """Train for the plan's steps; the difference to ``start``, by parameter name.

        Args:
            start: the global model, float32.
            features: (N, …) float32; N >= 0.
            labels: (N,) int64.
            stream: sampling and noise, in this order in each step.
        """
        privacy, optimizer = self._privacy, self._optimizer
        begin = np.concatenate(
            [start[name].ravel() for name, _ in self._network.named_parameters()]
        ).astype(np.float64)  # (P,)
        weights, velocity = begin.copy(), np.zeros_like(begin)
        for _ in range(privacy.steps):
            self._load(weights)
            chosen = torch.from_numpy(stream.poisson_sample(len(labels), privacy.sampling_rate))
            total = self._clipped_sum(features[chosen], labels[chosen], privacy.clipping_norm)
            noised = add_gaussian(
                total.numpy(),
                clip=privacy.clipping_norm,
                noise_multiplier=privacy.noise_multiplier,
                stream=stream,
            )
            velocity = optimizer.momentum * velocity + noised / privacy.divisor
            weights -= optimizer.learning_rate * velocity
        return self._named((weights - begin).astype(np.float32))

    def _load(self, weights: NDArray[np.float64]) -> None:
        position = 0
        with torch.no_grad():
            for parameter in self._network.parameters():
                part = weights[position : position + parameter.numel()]
                parameter.copy_(torch.from_numpy(part).view_as(parameter))
                position += parameter.numel()

    def _named(self, flat: NDArray[np.float32]) -> Arrays:
        result: Arrays = {}
        position = 0
        for name, parameter in self._network.named_parameters():
            part = flat[position : position + parameter.numel()]
            result[name] = part.reshape(tuple(parameter.shape)).copy()
            position += parameter.numel()
        return result
