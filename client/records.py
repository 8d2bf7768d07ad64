"""A client's records, ready to train on, and the engine that trains on them.

The rule: what training reads is the plan's schema and the plan's model applied to this client's
rows, and nothing is learned from the rows on the way: bounds are the schema's, features are fixed.
What a record is, depends on that record alone. In a round, one that does not fit is left out and
moves no other: the guarantee compares data sets that differ in any record, a bad one too. Left out
or in, it shifts the positions of those behind it, and that changes nothing: each is sampled by an
independent coin of its own, so a batch's distribution does not know of positions.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.home import Home, version_of
from client.training import Engine
from client.training.plain import PlainEngine
from client.training.trainable import check_trainable
from common.data.binding import Binding, load_training
from common.data.records import Records
from common.data.schema import Schema
from common.errors import DataError
from common.models.model import Model
from common.models.preprocess import BLOCK, fixed_features
from common.models.registry import build
from common.personal import check_layers
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
    _records(home, plan, strict=True)
    _check_model(plan, tuple(sorted(home.binding.models.items())))


def records_digest(home: Home, plan: Plan) -> bytes:
    """SHA-256 of what this client would train on: 32 bytes, for a salted commitment alone."""
    hasher = hashlib.sha256()
    for array in _records(home, plan, strict=True):
        hasher.update(f"{array.dtype.str} {array.shape}\n".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.digest()


def records_for_round(home: Home, plan: Plan) -> TrainingSet:
    """A client's records in a round, when nothing that the server sees may depend on them.

    A row that no longer fits (it did at approval) is no record, and the others stay. What no row
    can cause (a file that is gone, another header, damaged ``rows.npy``) leaves no records at all.
    Either way the round is answered, and charged, like any other; the reason stays in this
    machine's log.
    """
    model = _model(home, plan)
    try:
        raw, labels = _records(home, plan, strict=False)
    except Exception:
        # No record causes it; but the data did, so it must look like any other round.
        log.exception("training on no records")
        raw, labels = np.zeros((0, *plan.schema.shape), np.float32), np.zeros(0, np.int64)
    features, kept = _features(model, plan.schema, raw)
    return TrainingSet(torch.from_numpy(features), torch.from_numpy(labels[kept]))


def network_of(home: Home, plan: Plan) -> nn.Module:
    """The network that a plan's model means on this machine; shared, never to be changed."""
    return _model(home, plan).network


def engine_of(home: Home, plan: Plan) -> Engine | PlainEngine:
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
    check_layers(plan.personal, dict(model.network.named_parameters()))
    blank = fixed_features(model, plan.schema, np.zeros((1, *plan.schema.shape), np.float32))
    check_trainable(model.network, torch.from_numpy(np.array(blank)))


@lru_cache(maxsize=2)
def _engine(plan: Plan, models: tuple[tuple[str, str], ...]) -> Engine | PlainEngine:
    if plan.central:
        return PlainEngine(_build(plan, models).network, plan)
    return Engine(_build(plan, models).network, plan.privacy, plan.optimizer, plan.rounds)


def _records(
    home: Home, plan: Plan, *, strict: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """This client's own records: raw features (N, *schema.shape) and labels (N,).

    If strict, whatever does not fit is an error; otherwise a record that does not is left out.
    """
    version = version_of(home.binding.path)
    source = _load(home.binding.encode(), plan.schema, version, strict)
    dealt_out = home.binding.clients is not None or home.binding.partition_by is not None
    if not dealt_out and not home.rows.exists():
        return source.features, source.labels  # all of it is this client's
    own = _places(home)
    if strict and not np.isin(own, source.places).all():
        raise _damaged(home)
    mine = np.isin(source.places, own)
    return source.features[mine], source.labels[mine]


def _places(home: Home) -> NDArray[np.int64]:
    """The places of the source that ``rows.npy`` names; no record has a say in whether it can."""
    try:
        with open(home.rows, "rb") as file:
            places: NDArray[np.int64] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(home) from error
    if places.ndim != 1 or places.dtype != np.int64:
        raise _damaged(home)
    return places


def _damaged(home: Home) -> DataError:
    return DataError(f"{home.rows} does not name rows of the data", hint="prepare the run again")


@lru_cache(maxsize=1)
def _load(
    binding: bytes,
    schema: Schema,
    version: tuple[int, ...] | None,  # noqa: ARG001  (a file that changed is read again)
    strict: bool,
) -> Records:
    # In a simulation one process plays many clients that share a source: read it once.
    return load_training(Binding.decode(binding), schema, strict=strict)


def _features(
    model: Model, schema: Schema, raw: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the network sees, and of which records: one that the features fail on is left out."""
    try:
        return fixed_features(model, schema, raw), np.arange(len(raw))
    except Exception:
        log.exception("not all records have features; those that have none are left out")
    model = replace(model, cache="")  # pieces are not worth keeping
    blocks = np.split(np.arange(len(raw)), range(BLOCK, len(raw), BLOCK))
    pieces = [piece for block in blocks for piece in _each(model, schema, raw, block)]
    features = [fixed_features(model, schema, raw[:0]), *(values for values, _ in pieces)]
    kept = [np.zeros(0, np.int64), *(records for _, records in pieces)]
    return np.concatenate(features), np.concatenate(kept)


def _each(
    model: Model, schema: Schema, raw: NDArray[np.float32], records: NDArray[np.int64]
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """The features of a block; where it fails, those of each of its records alone."""
    try:
        return [(fixed_features(model, schema, raw[records]), records)]
    except Exception:
        if len(records) <= 1:
            log.debug("a record is left out", exc_info=True)
            return []
        pieces = (_each(model, schema, raw, record) for record in records[:, None])
        return [piece for of_one in pieces for piece in of_one]
