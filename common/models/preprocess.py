"""From raw values to features to probabilities, the same in training, in release and on a device.

The rule: preprocessing is part of the model and made of the schema's public bounds alone. A value
outside its bounds is clamped, never learnt from. Fixed features are computed in blocks of one size,
so that a record's values never depend on which records were asked for together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.data.cache import feature_cache
from common.data.schema import Schema
from common.models.model import Model

BLOCK = 128  # records; fixed, because a kernel may round differently at another size


class Preprocess(nn.Module):
    """Clamp to public bounds and scale: images to [0, 1], columns of a table to [-1, 1].

    (B, *schema.shape) float32, raw units, in; the same shape out.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        lower, upper = schema.bounds()
        if schema.kind == "image":  # one pair of bounds for all pixels
            lower, upper = lower[:1], upper[:1]
        low = torch.tensor(lower, dtype=torch.float64)
        high = torch.tensor(upper, dtype=torch.float64)
        least = 0.0 if schema.kind == "image" else -1.0
        slope = (1.0 - least) / (high - low)
        self.least = least
        self.register_buffer("lower", low.float())
        self.register_buffer("upper", high.float())
        self.register_buffer("slope", slope.float())
        self.lower: Tensor
        self.upper: Tensor
        self.slope: Tensor

    def forward(self, raw: Tensor) -> Tensor:
        clamped = torch.minimum(torch.maximum(raw, self.lower), self.upper)
        return (clamped - self.lower) * self.slope + self.least


class ServingModel(nn.Module):
    """The whole model as a device runs it: raw values to probabilities.

    (B, *schema.shape) float32, raw units, in; (B, classes) float32, rows that sum to one, out.
    Refusing inputs that are not finite is the caller's part.
    """

    def __init__(self, model: Model, schema: Schema) -> None:
        super().__init__()
        self.preprocess = Preprocess(schema)
        self.features = model.features
        self.network = model.network

    def forward(self, raw: Tensor) -> Tensor:
        logits = self.network(self.features(self.preprocess(raw)))
        return torch.softmax(logits, dim=-1)


def fixed_features(model: Model, schema: Schema, raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network sees of each record: (N, *schema.shape) raw values -> (N, F...) features.

    Features that name their version in ``model.cache`` are kept on disk and come back mapped
    from the file; asking again for the same records costs milliseconds.
    """
    raw = np.ascontiguousarray(raw, dtype=np.float32)
    shape = (len(raw), *_output_shape(model, schema))
    if not model.cache or not len(raw):
        return np.concatenate([np.empty((0, *shape[1:]), np.float32), *_blocks(model, schema, raw)])
    key = _identity(model, schema) + hashlib.sha256(raw.data).digest()
    return feature_cache(model.cache, key, shape, lambda: _blocks(model, schema, raw))


def _identity(model: Model, schema: Schema) -> bytes:
    """All but the records that features depend on: code (as its name says), constants, torch."""
    text = f"{model.cache} {BLOCK} {torch.__version__} {schema.shape} {schema.bounds()}"
    constants = [buffer.numpy().tobytes() for buffer in model.features.buffers()]
    return hashlib.sha256(b"".join([text.encode(), *constants])).digest()


def _blocks(
    model: Model, schema: Schema, raw: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Features block by block; the last block is filled up with zeros and cut afterwards."""
    preprocess = Preprocess(schema)
    for start in range(0, len(raw), BLOCK):
        part = raw[start : start + BLOCK]
        block = np.zeros((BLOCK, *schema.shape), np.float32)
        block[: len(part)] = part
        with torch.inference_mode():
            features: Tensor = model.features(preprocess(torch.from_numpy(block)))
        # float32 whatever comes: one block's type would otherwise become every record's.
        yield features[: len(part)].float().numpy()


def _output_shape(model: Model, schema: Schema) -> tuple[int, ...]:
    with torch.inference_mode():
        return tuple(model.features(torch.zeros(1, *schema.shape)).shape[1:])
