"""How good is the global model? Accuracy on a public test set, never on anybody's private records.

The rule: what is measured here is published, so it must not depend on protected records. The test
set is public, or, in a simulation, a held-out share that is marked as such and stays out of what is
signed.
"""

from __future__ import annotations

import torch

from common.data.binding import Binding, load_test
from common.models.networks import load_parameters
from common.models.preprocess import fixed_features
from common.models.registry import build
from common.plan import Plan
from common.wire import Arrays

_BATCH = 1000


class Evaluator:
    """Scores models of one plan on its public test set.

    Args:
        plan: names the model and the schema.
        binding: where the test set is, on this machine.
    """

    def __init__(self, plan: Plan, binding: Binding) -> None:
        records = load_test(binding, plan.schema)
        model = build(plan.model, plan.schema, seed=0, bindings=binding.models)
        self._network = model.network
        self._features = fixed_features(model, plan.schema, records.features)
        self._labels = records.labels

    def accuracy(self, arrays: Arrays) -> float:
        """The share of test records whose class is predicted, in [0, 1]."""
        load_parameters(self._network, arrays)
        right = 0
        with torch.no_grad():
            for start in range(0, len(self._labels), _BATCH):
                part = torch.from_numpy(self._features[start : start + _BATCH])
                guess = self._network(part).argmax(1).numpy()
                right += int((guess == self._labels[start : start + _BATCH]).sum())
        return right / len(self._labels)
