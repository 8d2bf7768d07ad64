"""A client's records, ready to train on, and the engine that trains on them.

The rule: what training reads is the plan's schema and the plan's model applied to this client's
rows, and nothing is learned from the rows on the way: bounds are the schema's, features are fixed.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.home import Home, version_of
from client.training import Engine
from client.training.trainable import check_trainable
from common.data.binding import Binding, load_training
from common.data.schema import Schema
from common.data.source import Records
from common.errors import DataError
from common.models.model import Model
from common.models.preprocess import fixed_features
from common.models.registry import build
from common.plan import Plan

log = logging.getLogger("privet.client")


@dataclass(frozen=True)
class TrainingSet:
    """Features (N, …) float32 and labels (N,) int64; N >= 0."""

    features: Tensor
    labels: Tensor


def check_records(home: Home, plan: Plan) -> None:
    """Judge, before approval, that a client's records and a plan's model fit each other.

    Raises:
        DataError: unreadable, or outside of the schema.
        PlanError: the model is unknown, or cannot be trained record by record.
    """
    source = _source(home, plan)
    _rows(home, len(source.labels))
    _check_model(plan, tuple(sorted(home.binding.models.items())))


def records_digest(home: Home, plan: Plan) -> bytes:
    """SHA-256 of what this client would train on: 32 bytes, for a salted commitment alone."""
    source = _source(home, plan)
    rows = _rows(home, len(source.labels))
    hasher = hashlib.sha256()
    for array in (source.features[rows], source.labels[rows]):
        hasher.update(f"{array.dtype.str} {array.shape}\n".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.digest()


def records_for_round(home: Home, plan: Plan) -> TrainingSet:
    """A client's records in a round, when nothing that the server sees may depend on them.

    Data that no longer fits (it did at approval) counts as no records: the round is answered, and
    charged, like any other, and the reason stays in this machine's log.
    """
    model = _model(home, plan)
    try:
        source = _source(home, plan)
        rows = _rows(home, len(source.labels))
        features = fixed_features(model, plan.schema, source.features[rows])
        labels = source.labels[rows]
    except Exception:
        # Whatever it is: a record may have caused it, so it must look like any other round.
        log.exception("training on no records")
        nothing = np.zeros((0, *plan.schema.shape), np.float32)
        features, labels = fixed_features(model, plan.schema, nothing), np.zeros(0, np.int64)
    return TrainingSet(torch.from_numpy(features), torch.from_numpy(labels))


def network_of(home: Home, plan: Plan) -> nn.Module:
    """The network that a plan's model means on this machine; shared, never to be changed."""
    return _model(home, plan).network


def engine_of(home: Home, plan: Plan) -> Engine:
    """The engine that trains it: one a process, whichever of its clients is asked."""
    return _engine(plan, tuple(sorted(home.binding.models.items())))


def _model(home: Home, plan: Plan) -> Model:
    return _build(plan, tuple(sorted(home.binding.models.items())))


@lru_cache(maxsize=2)
def _build(plan: Plan, models: tuple[tuple[str, str], ...]) -> Model:
    return build(plan.model, plan.schema, seed=0, bindings=dict(models))


@lru_cache(maxsize=2)
def _check_model(plan: Plan, models: tuple[tuple[str, str], ...]) -> None:
    """Whether a plan's model can be trained record by record; no client's records are asked."""
    model = _build(plan, models)
    blank = fixed_features(model, plan.schema, np.zeros((1, *plan.schema.shape), np.float32))
    check_trainable(model.network, torch.from_numpy(np.array(blank)))


@lru_cache(maxsize=2)
def _engine(plan: Plan, models: tuple[tuple[str, str], ...]) -> Engine:
    return Engine(_build(plan, models).network, plan.privacy, plan.optimizer, plan.rounds)


def _rows(home: Home, available: int) -> NDArray[np.int64]:
    dealt_out = home.binding.clients is not None or home.binding.partition_by is not None
    if not dealt_out and not home.rows.exists():
        return np.arange(available)  # all of it is this client's
    try:
        with open(home.rows, "rb") as file:
            rows: NDArray[np.int64] = np.lib.format.read_array(file, allow_pickle=False)
        good = rows.ndim == 1 and rows.dtype == np.int64
        good = good and not ((rows < 0) | (rows >= available)).any()
    except (OSError, ValueError, EOFError):
        good = False
    if not good:
        raise DataError(f"{home.rows} does not name rows of the data", hint="prepare the run again")
    return rows


def _source(home: Home, plan: Plan) -> Records:
    return _load(home.binding.encode(), plan.schema, version_of(home.binding.path))


@lru_cache(maxsize=1)
def _load(
    binding: bytes,
    schema: Schema,
    version: tuple[int, ...] | None,  # noqa: ARG001  (a file that changed is read again)
) -> Records:
    # In a simulation one process plays many clients that share a source: read it once.
    return load_training(Binding.decode(binding), schema)
