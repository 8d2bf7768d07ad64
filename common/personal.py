"""Which layers stay with each client? The plan's table for it, and the two parts of a model.

The rule: what a plan names as personal is no part of what the federation trains together. It is in
no request, no reply and no checkpoint, and the server has no use for it; each client trains and
keeps its own (FedPer, Arivazhagan et al. 2019, arXiv 1912.00818: personal last layers).

Privacy is that of one mechanism over *all* parameters. The gradient of the shared layers depends on
the personal ones, so what leaves depends on what stays. A record's gradient is therefore clipped
over shared and personal layers together, to one norm C, and every coordinate of the sum gets the
noise, also those that stay. The pair (shared update, next personal layers) is then the output of
the very mechanism that the plan declares, over a model that both start from; the next round starts
from functions of such outputs, and by adaptive composition all rounds together cost what the plan
says: no more for having personal layers, and no less. The personal layers are as private as what
leaves, so an owner who hands them on spends nothing further.

A release has the shared layers as they were trained and the personal ones as they began: the model
that a new client starts from. Its accuracy says nothing, and is not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from common.canonical import Json
from common.config import Table
from common.errors import PlanError

MOST_LAYERS = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Personal:
    """The layers that stay.

    Args:
        layers: names of layers or parameters, at least one, sorted: ``head`` stands for ``head``
            and for all that begins with ``head.``.
    """

    layers: tuple[str, ...]

    def keeps(self, name: str) -> bool:
        """Whether the parameter of this name stays with the client."""
        return any(name == layer or name.startswith(f"{layer}.") for layer in self.layers)

    def json(self) -> Json:
        return {"layers": list(self.layers)}

    @classmethod
    def read(cls, table: Table) -> Personal:
        """Read ``[plan.personal]``."""
        layers = table.texts("layers", least=1, most=MOST_LAYERS)
        if list(layers) != sorted(set(layers)) or not all(layers):
            raise table.error(
                "layers",
                "layers are not sorted, or one is empty or there twice",
                hint="name each once, in the order of the alphabet: one meaning, one digest",
            )
        table.done()
        return cls(layers)


def shared(personal: Personal | None, parameters: Mapping[str, T]) -> dict[str, T]:
    """Of a model's parameters, by name: those that are trained together."""
    return {n: v for n, v in parameters.items() if not (personal and personal.keeps(n))}


def check_layers(personal: Personal | None, parameters: Mapping[str, Any]) -> None:
    """Judge whether a plan's personal layers and its model fit each other.

    Raises:
        PlanError: a layer that the model does not have, or nothing is left to train together.
    """
    if personal is None:
        return
    for layer in personal.layers:
        if not any(Personal((layer,)).keeps(name) for name in parameters):
            raise PlanError(
                f"the model has no layer {layer!r} that could be personal",
                hint=f"it has {_first(parameters)}",
                code="no-such-layer",
            )
    if not shared(personal, parameters):
        raise PlanError(
            "every layer is personal, so there is nothing to train together",
            hint="leave some out of [plan.personal] layers",
            code="nothing-shared",
        )


def whole(
    personal: Personal | None, initial: Mapping[str, T], together: Mapping[str, T]
) -> dict[str, T]:
    """A whole model: what was trained together, and personal layers as they began."""
    if personal is None:
        return dict(together)
    return {n: v if personal.keeps(n) else together[n] for n, v in initial.items()}


def _first(names: Iterable[str], most: int = 8) -> str:
    found = list(names)
    return ", ".join(found[:most]) + (" …" if len(found) > most else "")
