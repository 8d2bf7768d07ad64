"""Networks that are smaller than the trained one, and learn its answers: thinned, or another kind.

The rule: a student is made of the teacher's answers on records that are nobody's, so it costs no
privacy beyond the teacher's. Whole channels and units go, those with the least weights, so that
what is left is a smaller dense network, which every runtime runs faster; single weights set to zero
would save nothing on a device.

Source: magnitude pruning of structures: Li et al. 2017 (arXiv 1608.08710); which of them hang
together is found by Torch-Pruning (Fang et al. 2023, arXiv 2301.12900).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.data.schema import Schema
from common.errors import OperationError
from common.models.model import Model
from common.models.preprocess import fixed_features
from server.release.smaller.fit import Effort, fit

_BATCH = 500
_PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def answers_of(model: Model, schema: Schema, records: NDArray[np.float32]) -> Tensor:
    """A model's logits for raw records: (N, *schema.shape) -> (N, classes)."""
    network = model.network.eval()
    features = torch.from_numpy(fixed_features(model, schema, records))
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(features, _BATCH)])


def distill(
    student: Model,
    teacher: Model,
    schema: Schema,
    records: NDArray[np.float32],
    effort: Effort,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Model:
    """The student, trained to the teacher's answers on ``records``, (N, *schema.shape) raw."""
    features = torch.from_numpy(fixed_features(student, schema, records))
    targets = answers_of(teacher, schema, records)
    return Model(student.features, fit(student.network, features, targets, effort, progress))


def prune(
    teacher: Model,
    schema: Schema,
    records: NDArray[np.float32],
    fraction: float,
    effort: Effort,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Model:
    """The same kind of network without a fraction of each layer's channels, and fine-tuned.

    Args:
        records: (N, *schema.shape) raw values to fine-tune on, with the teacher's own answers.
        fraction: of each hidden layer's channels or units, in (0, 1).

    Raises:
        OperationError: ``nothing-to-prune``: no layer but the last has weights;
            ``cannot-prune``: how the layers hang together cannot be found.
    """
    import torch_pruning

    features = torch.from_numpy(fixed_features(teacher, schema, records))
    network = copy.deepcopy(teacher.network).eval()
    layers = _in_order(network, features[:2])
    if len(layers) < 2:
        raise OperationError(
            "the network has one layer, whose outputs are the classes: there is nothing to prune",
            hint="distill it into another network, or quantize it",
            code="nothing-to-prune",
        )
    try:
        with torch.enable_grad():
            torch_pruning.pruner.MagnitudePruner(
                network,
                features[:2],
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=fraction,
                ignored_layers=[layers[-1]],
            ).step()
        with torch.no_grad():
            network(features[:2])
    except Exception as error:  # whatever a user's own layers provoke in code that is not ours
        raise OperationError(
            f"the network cannot be pruned: {type(error).__name__}: {error!s:.300}",
            hint="distill it into a smaller one, or quantize it",
            code="cannot-prune",
        ) from error
    targets = answers_of(teacher, schema, records)
    return Model(teacher.features, fit(network, features, targets, effort, progress))


def _in_order(network: nn.Module, features: Tensor) -> list[nn.Module]:
    """Layers with weights that can be thinned, in the order in which they are used."""
    used: list[nn.Module] = []

    def note(layer: nn.Module, *_: object) -> None:
        if layer not in used:
            used.append(layer)

    hooks = [
        layer.register_forward_hook(note)
        for layer in network.modules()
        if isinstance(layer, _PRUNED)
    ]
    try:
        with torch.no_grad():
            network(features)
    finally:
        for hook in hooks:
            hook.remove()
    return used
