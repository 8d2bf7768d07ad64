"""Ordinary training of a small network to a larger one's answers, on records that are nobody's.

The rule: what it learns from is the teacher's probabilities, not labels, so the records need none;
and the same records, teacher and seed give the same network. Nothing here is private: see
:mod:`server.release.smaller.data` for what may come in.

Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2: soft targets at a temperature,
with gradients scaled by its square. Adam (Kingma and Ba 2015, arXiv 1412.6980) with a cosine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE = 2.0
BATCH = 64
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Effort:
    """How long a network is trained.

    Args:
        epochs: passes over the records, >= 1.
        seed: of their order.
    """

    epochs: int = 20
    seed: int = 1


def fit(
    network: nn.Module,
    features: Tensor,
    teacher: Tensor,
    effort: Effort,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> nn.Module:
    """A trained copy of ``network``, in evaluation mode.

    Args:
        network: features to logits (B, K); left as it is.
        features: (N, F...) float32.
        teacher: (N, K) float32, the teacher's logits for the same records.
        progress: called as (epochs done, epochs).
    """
    student = copy.deepcopy(network).train()
    targets = torch.softmax(teacher / TEMPERATURE, dim=1)
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(effort.seed)
    steps = effort.epochs * math.ceil(len(features) / BATCH)
    done = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(effort.seed)  # of dropout
        for epoch in range(effort.epochs):
            order = torch.randperm(len(features), generator=generator)
            for part in torch.split(order, BATCH):
                _set_rate(optimizer, 0.5 * LEARNING_RATE * (1 + math.cos(math.pi * done / steps)))
                loss = functional.kl_div(
                    torch.log_softmax(student(features[part]) / TEMPERATURE, dim=1),
                    targets[part],
                    reduction="batchmean",
                )
                optimizer.zero_grad()
                (loss * TEMPERATURE**2).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1
            progress(epoch + 1, effort.epochs)
    return student.eval()


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
