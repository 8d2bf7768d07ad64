"""How does a whole network give each record's gradient?

The rule: the network runs as its author wrote it; only the layers that hold parameters are watched.
Where all of them are native layers, our own rules do their forward and backward passes
(:mod:`client.training.layers`) and autograd the rest. Any other network goes through Opacus'
hooks. Both work on a copy, whose parameters are slices of one flat vector, ``weights``.

Source of the second: Yousefpour et al. 2021, Opacus (arXiv 2109.12298).
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from client.training.layers import Layer, Parts, is_native, native
from client.training.parts import Part, Rows, dense
from common.errors import PlanError


class PerRecord:
    """A copy of a network, in one precision, that gives gradients record by record.

    Args:
        network: maps features to logits (B, K).
        dtype: float32 or float64.

    Raises:
        PlanError: a layer that no rule and no hook covers.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._network = copy.deepcopy(network).to(dtype).train()
        self._parameters = list(self._network.parameters())
        self.weights = torch.cat([p.detach().flatten() for p in self._parameters])  # (P,)
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, values in zip(
            self._parameters, torch.split(self.weights, sizes), strict=True
        ):
            parameter.data = values.view_as(parameter)
        self._watch()

    def parameters(self) -> list[Tensor]:
        """Views of ``weights``, one a parameter, in the network's order."""
        return [parameter.detach() for parameter in self._parameters]

    def parts(self, features: Tensor, labels: Tensor) -> list[Part]:
        """Each parameter's part of the gradient of cross-entropy, in the network's order.

        Args:
            features: (B, …) floating; B >= 1.
            labels: (B,) int64.
        """
        self._forget()  # what a pass that failed may have left
        with torch.enable_grad():
            logits: Tensor = self._network(features.to(self.weights.dtype))  # (B, K)
            errors = torch.softmax(logits.detach(), dim=1)  # (B, K)
            # In whole rows, since every tensor here counts (client/training/loops.py).
            errors -= nn.functional.one_hot(labels, errors.shape[1])
            torch.autograd.backward(logits, errors)
        found = self._collect(len(labels))
        if any(len(part.pieces()[0]) != len(labels) for part in found):
            raise PlanError(
                "a layer with parameters is given something whose first axis is not the batch",
                hint="keep the batch as the first axis of what each layer is given",
                code="untrainable-model",
            )
        return found

    def floats(self, record: Tensor) -> int:
        """How many values one record's passes hold at once, roughly.

        Args:
            record: features with a batch axis of one.
        """
        held = 0

        def count(module: nn.Module, _: Any, output: Any) -> None:
            nonlocal held
            held += output.numel() if isinstance(output, Tensor) else 0
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                places = output.numel() // module.out_channels
                held += places * module.weight[0].numel() * module.groups
            if isinstance(module, nn.Embedding):
                held += (output.numel() // module.embedding_dim) ** 2

        leaves = [module for module in self._network.modules() if not list(module.children())]
        hooks = [leaf.register_forward_hook(count) for leaf in leaves]
        try:
            parts = self.parts(record, torch.zeros(1, dtype=torch.long))
        finally:
            for hook in hooks:
                hook.remove()
        return held + sum(part.floats for part in parts)

    def _unused(self, parameter: nn.Parameter, records: int) -> Part:
        return Rows(self.weights.new_zeros(records, parameter.numel()))

    def _watch(self) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        raise NotImplementedError

    def _collect(self, records: int) -> list[Part]:
        raise NotImplementedError


class Native(PerRecord):
    """All parameters are in native layers."""

    def _watch(self) -> None:
        self._seen: Parts = []
        anchor = torch.zeros((), requires_grad=True)  # so that a first layer is in the graph
        for module in self._network.modules():
            layer = native(module)
            if layer is not None:
                module.forward = _watched(anchor, layer, self._seen)
            elif type(module) is nn.Sequential:
                module.forward = _pool_before_squashing(module)  # type: ignore[method-assign]

    def _forget(self) -> None:
        self._seen.clear()

    def _collect(self, records: int) -> list[Part]:
        found: dict[int, Part] = {}
        for parameter, part in self._seen:
            used = found.get(id(parameter))  # a layer or parameter may be used more than once
            found[id(parameter)] = part if used is None else Rows(dense(used) + dense(part))
        self._seen.clear()
        return [found.get(id(p)) or self._unused(p, records) for p in self._parameters]


def _watched(anchor: Tensor, layer: Layer, seen: Parts) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
        output: Tensor = _Watched.apply(anchor, layer, seen, input)  # type: ignore[no-untyped-call]
        return output

    return forward


class _Watched(torch.autograd.Function):
    """A native layer's place in autograd's graph."""

    @staticmethod
    def forward(context: Any, _: Tensor, layer: Layer, seen: Parts, inputs: Tensor) -> Tensor:
        output, context.saved = layer.forward(inputs.detach())
        context.layer, context.seen = layer, seen
        return output.data  # no view of anything, so that what comes next may work in place

    @staticmethod
    @once_differentiable
    def backward(context: Any, errors: Tensor) -> tuple[Tensor | None, ...]:
        wanted = context.needs_input_grad[3]
        result, parts = context.layer.backward(errors, context.saved, wanted)
        context.seen.extend(parts)
        return None, None, None, result


class Hooked(PerRecord):
    """Anything else that Opacus knows, through its hooks."""

    def _watch(self) -> None:
        from opacus.grad_sample import GradSampleModule

        try:
            self._network = GradSampleModule(
                self._network, batch_first=True, loss_reduction="sum", strict=True
            )
        except (NotImplementedError, ValueError, TypeError) as error:
            raise PlanError(
                f"the network cannot be trained record by record: {error!s:.300}",
                hint="build it of layers that torch.nn and opacus.layers have (DPLSTM for LSTM)",
                code="untrainable-model",
            ) from error

    def parts(self, features: Tensor, labels: Tensor) -> list[Part]:
        with warnings.catch_warnings():
            # Features need no gradient, of which torch's hooks warn; Opacus' do not need one.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            return super().parts(features, labels)

    def _forget(self) -> None:
        for module in self._network.modules():
            getattr(module, "activations", []).clear()
        for parameter in self._parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]

    def _collect(self, records: int) -> list[Part]:
        found: list[Part] = []
        for parameter in self._parameters:
            values = getattr(parameter, "grad_sample", None)
            used = Rows(values.reshape(len(values), -1)) if isinstance(values, Tensor) else None
            found.append(used or self._unused(parameter, records))
        return found


def per_record(network: nn.Module, dtype: torch.dtype) -> PerRecord:
    """The fastest way that covers every parameter of a network."""
    for module in network.modules():
        owns = any(True for _ in module.parameters(recurse=False))
        if owns and not is_native(module):
            return Hooked(network, dtype)
    return Native(network, dtype)


def _pool_before_squashing(network: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """Max-pool, then squash: the same values, since both keep order, at a quarter of the work."""
    order = list(network)
    for place, (first, then) in enumerate(itertools.pairwise(network)):
        pools = type(then) in (nn.MaxPool1d, nn.MaxPool2d) and not then.return_indices
        if pools and type(first) in (nn.Tanh, nn.ReLU, nn.Sigmoid):
            order[place], order[place + 1] = then, first

    def forward(input: Tensor) -> Tensor:  # noqa: A002
        for module in order:
            input = module(input)  # noqa: A001
        return input

    return forward
