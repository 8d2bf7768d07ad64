"""One round of plain local training, clipped as a whole: what a client sends with central trust.

The rules: no noise is drawn here, so nothing here protects a record from the server; what does is
the server's clip and noise, for the whole client. The client clips its own update all the same, so
that an honest one never sends more than was agreed. A client without usable records, or with
weights that ran away, sends zeros like one that learnt nothing.

The update is clipped to the plan's greatest norm: where the server's norm adapts, it counts whose
update is within that one, which it could not see of updates that were clipped to it before.

Source: McMahan et al. 2017 (arXiv 1602.05629), FedAvg's local steps; McMahan et al. 2018 (arXiv
1710.06963), section 2.2, flat clipping.
"""

from __future__ import annotations

import copy
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.clipping import HEADROOM, one_thread
from client.training.optimizer import LocalSteps
from common.plan import Plan
from common.privacy.noise import Stream
from common.wire import Arrays


class PlainEngine:
    """Trains one network for any number of clients and rounds; keeps only buffers in between.

    Args:
        network: maps features to logits (B, K); copied, and never changed.
        plan: with central trust.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        if plan.central is None:
            raise ValueError("plain training is for central trust alone")
        self._network = copy.deepcopy(network).train()
        self._parameters = list(self._network.parameters())
        self._shapes = {name: tuple(p.shape) for name, p in self._network.named_parameters()}
        self._central = plan.central
        self._norm = plan.central.greatest_norm(plan.privacy.clipping_norm)
        size = sum(parameter.numel() for parameter in self._parameters)
        self._begin = np.empty(size)
        self._steps = LocalSteps(
            plan.optimizer, size, steps=plan.central.local_steps, rounds=plan.rounds
        )
        self._busy = threading.Lock()

    def round(
        self, start: Arrays, features: Tensor, labels: Tensor, stream: Stream, number: int = 1
    ) -> Arrays:
        """Train for the plan's local steps; the clipped difference to ``start``, float32.

        Args:
            start: the global model, float32.
            features: (N, …) float32; N >= 0.
            labels: (N,) int64.
            stream: which records each step uses.
            number: the round's, from 1.
        """
        with self._busy, one_thread():
            np.concatenate([start[name].ravel() for name in self._shapes], out=self._begin)
            steps = self._steps
            steps.begin(self._begin, number)
            for _ in range(self._central.local_steps):
                rate = self._central.local_sampling_rate
                chosen = torch.from_numpy(stream.poisson_sample(len(labels), rate))
                steps.step(self._gradient(steps.weights, features, labels, chosen))
            return self._named(clipped(steps.result() - self._begin, self._norm))

    def _gradient(
        self, weights: NDArray[np.float64], features: Tensor, labels: Tensor, chosen: Tensor
    ) -> NDArray[np.float64]:
        """The mean gradient of a batch, zeros of an empty one: (P,)."""
        if not len(chosen):
            return np.zeros(len(weights))
        flat = torch.from_numpy(weights).float()
        torch.nn.utils.vector_to_parameters(flat, self._parameters)
        with torch.enable_grad():
            logits = self._network(features[chosen])
            loss = nn.functional.cross_entropy(logits, labels[chosen])
            found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        parts = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self._parameters, found, strict=True)
        ]
        return torch.cat([part.reshape(-1) for part in parts]).double().numpy()

    def _named(self, flat: NDArray[np.float64]) -> Arrays:
        sizes = [int(np.prod(shape)) for shape in self._shapes.values()]
        parts = np.split(flat.astype(np.float32), np.cumsum(sizes)[:-1])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.reshape(shape).copy() for (name, shape), part in named}


def clipped(update: NDArray[np.float64], norm: float) -> NDArray[np.float64]:
    """``update`` (P,), scaled down to an L2 norm of at most ``norm``; zeros if it is not finite.

    It aims a millionth below, for the rounding of float32.
    """
    length = float(np.linalg.norm(update))
    if not np.isfinite(length):
        return np.zeros_like(update)
    return update * min(1.0, norm * (1 - HEADROOM) / length) if length else update
