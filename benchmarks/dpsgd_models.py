"""The networks that DP-SGD is measured on, each with records that have its shape.

The rule: they are written as people write them: NCHW, max-pooling after tanh, no thought of us.
Records are random, since how long a step takes does not depend on what is in a picture.

A and B are those of our notes: A is the network of Opacus' MNIST example with the tanh of Papernot
et al. 2021 (arXiv 2007.14191), B has more features at full resolution, and group normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from opacus.layers import DPLSTM, DPMultiheadAttention
from torch import Tensor, nn

PIXELS = (1, 28, 28)
SENSORS = (9, 128)  # channels, samples: two and a half seconds of a phone's movement
ROWS = (28, 28)  # a picture as a sequence of its rows
WORDS = 2000
TOKENS = (64,)


@dataclass(frozen=True)
class Subject:
    """A network to be timed.

    Args:
        name: as the rows call it.
        make: the network, with fresh parameters.
        shape: of one record.
        words: records are word numbers below this, as float32; 0: they are normal values.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: int = 0

    def network(self) -> nn.Module:
        """A new network, always with the same parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.make()

    def records(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` records, always the same: (count, *shape) float32 and (count,) int64."""
        generator = torch.Generator().manual_seed(2)
        features = torch.randn(count, *self.shape, generator=generator)
        if self.words:
            drawn = torch.randint(self.words, (count, *self.shape), generator=generator)
            features = drawn.float()
        return features, torch.randint(10, (count,), generator=generator)


def model_a() -> nn.Module:
    """26,010 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),  # (B, 16, 14, 14)
        nn.Tanh(),
        nn.MaxPool2d(2, 1),  # (B, 16, 13, 13)
        nn.Conv2d(16, 32, 4, stride=2),  # (B, 32, 5, 5)
        nn.Tanh(),
        nn.MaxPool2d(2, 1),  # (B, 32, 4, 4)
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def model_b() -> nn.Module:
    """119,722 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),  # (B, 32, 28, 28)
        nn.GroupNorm(8, 32),
        nn.Tanh(),
        nn.MaxPool2d(2),  # (B, 32, 14, 14)
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.Tanh(),
        nn.MaxPool2d(2),  # (B, 64, 7, 7)
        nn.Flatten(),
        nn.Linear(3136, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def perceptron() -> nn.Module:
    """203,530 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def sensor_cnn() -> nn.Module:
    """32,458 parameters."""
    return nn.Sequential(
        nn.Conv1d(9, 32, 5, padding=2),  # (B, 32, 128)
        nn.GroupNorm(4, 32),
        nn.Tanh(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2),  # (B, 64, 64)
        nn.GroupNorm(4, 64),
        nn.Tanh(),
        nn.MaxPool1d(2),  # (B, 64, 32)
        nn.Flatten(),
        nn.Linear(2048, 10),
    )


def instance_cnn() -> nn.Module:
    """20,586 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),  # (B, 16, 28, 28)
        nn.InstanceNorm2d(16, affine=True),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),  # (B, 32, 14, 14)
        nn.InstanceNorm2d(32, affine=True),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (B, 32, 7, 7)
        nn.Flatten(),
        nn.Linear(1568, 10),
    )


class Residual(nn.Module):
    """Two residual blocks and a forward pass of its own: 17,418 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.first, self.second = _Block(16), _Block(16)
        self.output = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.stem(images))  # (B, 16, 14, 14)
        hidden = self.second(self.first(hidden))
        pooled = nn.functional.avg_pool2d(hidden, 2)  # (B, 16, 7, 7)
        return self.output(pooled.flatten(1))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, width)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(images)))
        return torch.relu(images + self.norm2(self.conv2(hidden)))


class Text(nn.Module):
    """The mean of word vectors, normalised, and a linear layer: 132,938 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 64)
        self.hidden = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.output = nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        mean = self.words(tokens.long()).mean(1)  # (B, 64)
        return self.output(torch.tanh(self.norm(self.hidden(mean))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Opacus' own LSTM over the rows of a picture: 24,714 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = DPLSTM(28, 64, batch_first=True)
        self.output = nn.Linear(64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.lstm(rows)  # (B, 28, 64)
        return self.output(states[:, -1])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """One block of Opacus' own attention over the rows of a picture: 19,274 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        self.attention = DPMultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.output = nn.Linear(64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.embed(rows)  # (B, 28, 64)
        answer, _ = self.attention(hidden, hidden, hidden, need_weights=False)
        return self.output(self.norm(hidden + answer).mean(1))  # type: ignore[no-any-return]


A = Subject("A", model_a, PIXELS)
B = Subject("B", model_b, PIXELS)
NATIVE = (
    Subject("mlp 784-256-10", perceptron, PIXELS),
    Subject("1-d cnn on sensors", sensor_cnn, SENSORS),
    Subject("residual cnn", Residual, PIXELS),
    Subject("text: mean of words", Text, TOKENS, WORDS),
    Subject("cnn with InstanceNorm", instance_cnn, PIXELS),
)
FALLBACK = (
    Subject("Opacus' LSTM", Recurrent, ROWS),
    Subject("Opacus' attention", Attention, ROWS),
)
