"""What does a client train from, what of it leaves, and where is its own model afterwards?

The rules: a round starts from the shared layers that the server sent and from the personal ones
that this client kept, or from the model's initial ones at first, and trains both as one model under
one clip and one noise; see :mod:`common.personal` for what that costs. Personal layers change with
a disclosure and with nothing else (:mod:`client.kept`), and leave this machine by nobody's hand but
the owner's. Values that could not be trained from are not kept: the layer stays as it was.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from client.guard import is_reasonable
from client.home import Home
from client.kept import Kept
from client.records import network_of, records_for_round
from common import durable
from common.errors import InputError
from common.ledger import Kind
from common.models.networks import load_parameters, parameters_of
from common.personal import whole
from common.plan import Plan
from common.wire import Arrays, pack_arrays, unpack_arrays

_PERSONAL, _SHARED = "personal/", "shared/"


def begin(home: Home, plan: Plan, together: Arrays, kept: Arrays) -> Arrays:
    """The whole model that a round starts from.

    Args:
        together: the shared layers, as the server sent them.
        kept: what was kept of the run so far; empty at first.
    """
    if plan.personal is None:
        return together
    result = whole(plan.personal, parameters_of(network_of(home, plan)), together)
    for name, value in _under(_PERSONAL, kept).items():
        if name in result and plan.personal.keeps(name) and value.shape == result[name].shape:
            result[name] = value
    return result


def part(plan: Plan, start: Arrays, update: Arrays) -> tuple[Arrays, Arrays]:
    """A trained update in two: what leaves, and what is kept for the next round."""
    if plan.personal is None:
        return update, {}
    leaves, kept = Arrays(), Arrays()
    for name, change in update.items():
        if plan.personal.keeps(name):
            after = start[name] + change
            kept[_PERSONAL + name] = after if is_reasonable(after) else start[name]
        else:
            leaves[name] = change
            kept[_SHARED + name] = start[name]
    return leaves, kept


@dataclass(frozen=True)
class PersonalModel:
    """A client's own model after the last round that it answered in a run.

    Args:
        run: the run's id.
        rounds: of it that this client answered.
        arrays: all parameters by name, float32: the shared ones as the last request brought them.
        layers: the parameters that are this client's own.
    """

    run: str
    rounds: int
    arrays: Arrays
    layers: tuple[str, ...]


def personal_model(home: Home, plan: Plan, run: str | None = None) -> PersonalModel:
    """A client's own model in a run, or in the plan's run that it answered last.

    Raises:
        InputError: ``not-personal``: the plan has no personal layers; ``no-personal-model``: no
            round was answered, or what was kept is gone.
    """
    if plan.personal is None:
        raise InputError(
            f"plan {plan.name!r} has no personal layers: its model is the same for everybody",
            hint="fetch the released model, with privet device",
            code="not-personal",
        )
    ledger = home.read_ledger()
    chain = ledger.chain(home.federation)
    intents = {entry.seq: entry.body for entry in chain if entry.kind is Kind.INTENT}
    runs = [
        body["run"]
        for entry in chain
        if entry.kind is Kind.DISCLOSURE
        and (body := intents[entry.body["intent"]])["plan"] == plan.digest
        and run in (None, body["run"])
    ]
    kept = Kept(home.kept).read(chain, plan.digest, runs[-1]) if runs else {}
    own = _under(_PERSONAL, kept)
    if not own:
        raise InputError(
            f"there is no personal model of plan {plan.name!r} here"
            + (f" from run {run}" if run else ""),
            hint="a client has one once it answered a round" if not runs else "it is gone",
            code="no-personal-model",
        )
    arrays = begin(home, plan, _under(_SHARED, kept), kept)
    return PersonalModel(runs[-1], runs.count(runs[-1]), arrays, tuple(sorted(own)))


def with_released(home: Home, plan: Plan, model: PersonalModel, file: Path) -> PersonalModel:
    """The same with the shared layers of a released ``model.safetensors``.

    Raises:
        InputError: unreadable, larger than the model, or not this plan's.
    """
    limit = sum(value.nbytes + 1024 for value in model.arrays.values()) + 4096
    try:
        with open(file, "rb") as opened:
            data = opened.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", code="no-such-file") from error
    foreign = InputError(
        f"{file} is not a model of plan {plan.name!r}", hint="name its model.safetensors"
    )
    if len(data) > limit:
        raise foreign
    try:
        released = unpack_arrays(data)
    except Exception as error:  # safetensors has no error of its own for each way to be malformed
        raise foreign from error
    if not all(is_reasonable(value) for value in released.values()):
        raise foreign
    load_parameters(copy.deepcopy(network_of(home, plan)), released)
    own = {name: model.arrays[name] for name in model.layers}
    return replace(model, arrays={**released, **own})


def accuracy(home: Home, plan: Plan, arrays: Arrays) -> tuple[float, int]:
    """The share of this client's own records that a model gets right, and how many there are.

    It is for the owner alone: it depends on the records, and nothing accounts for telling it. The
    model was trained on them, too.
    """
    network = copy.deepcopy(network_of(home, plan))
    load_parameters(network, arrays)
    records = records_for_round(home, plan)
    if not len(records.labels):
        return 0.0, 0
    with torch.inference_mode():
        right = network(records.features).argmax(1) == records.labels
    return float(right.float().mean()), len(records.labels)


def export(model: PersonalModel, file: Path) -> None:
    """Write a whole model as safetensors, readable by the owner alone; OperationError if not."""
    durable.replace(file, pack_arrays(model.arrays), mode=0o600)


def _under(prefix: str, kept: Arrays) -> Arrays:
    return {n.removeprefix(prefix): v for n, v in kept.items() if n.startswith(prefix)}
