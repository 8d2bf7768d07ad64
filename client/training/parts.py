"""In what form is each record's gradient of one parameter held?

The rule: the norm that the clip uses is the norm of what is added. So each form gives its squared
norm in float64, without cancellation: the gradient itself, an outer product (whose norm is the
product of two norms), or a few rows of a table. Gram matrices ("ghost norms" of layers used at many
positions of a record) would save memory, but their terms cancel, and what cancels in floating point
lets a record carry a large gradient past the clip. Sums over records are float64: in float32, one
record more or less shifts the rounding of all the others, which at 4,096 records adds up to
1.0001 C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Part(Protocol):
    """The gradients of B records for one parameter of p values."""

    size: int  # p
    floats: int  # held for one record

    def squares(self) -> Tensor:
        """Squared L2 norms, float64: (B,). Comes first, and once."""
        ...

    def drop(self, records: Tensor) -> None:
        """Put zeros for the records that are True in ``records`` (B,): 0 x inf would be nan."""
        ...

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        """Add all gradients, each times its ``scale`` (B,) float64, to ``total`` (p,) float64.

        Comes last, and once.
        """
        ...

    def rows(self) -> Tensor:
        """The gradients themselves, (B, p), in an order that :meth:`ordered` puts right."""
        ...

    def ordered(self, rows: Tensor) -> Tensor:
        """Any (B, p) in the order of :meth:`rows`, put into the parameter's own."""
        ...

    def pieces(self) -> tuple[Tensor, ...]:
        """All that is held, each (B, …)."""
        ...


class _Held:
    """Gradients whose norm is that of the values held: (B, …)."""

    _values: Tensor

    def squares(self) -> Tensor:
        self._values = self._values.double()
        return _squares(self._values)

    def drop(self, records: Tensor) -> None:
        self._values = _without(self._values, records)


class Rows(_Held):
    """Gradients held as they are.

    Args:
        values: (B, …), p values a record.
        order: puts any (B, p) into the parameter's own order, where it differs.
    """

    def __init__(self, values: Tensor, order: Callable[[Tensor], Tensor] | None = None) -> None:
        self.size = self.floats = values[0].numel()
        self._values, self._order = values, order

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        if self._order is None:
            total.addmv_(self.rows().T, scale)
        else:
            total += self.ordered((scale @ self.rows())[None])[0]

    def rows(self) -> Tensor:
        return self._values.flatten(1)

    def ordered(self, rows: Tensor) -> Tensor:
        return self._order(rows) if self._order else rows

    def pieces(self) -> tuple[Tensor, ...]:
        return (self._values,)


class Outer:
    """Gradients that are outer products of ``left`` (B, M) and ``right`` (B, N): p = M N."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.size = left.shape[1] * right.shape[1]
        self.floats = left.shape[1] + right.shape[1]
        self._left, self._right = left, right

    def squares(self) -> Tensor:
        self._left, self._right = self._left.double(), self._right.double()
        return _squares(self._left) * _squares(self._right)

    def drop(self, records: Tensor) -> None:
        self._left, self._right = _without(self._left, records), _without(self._right, records)

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        left = self._left * scale[:, None]
        total.view(left.shape[1], -1).addmm_(left.T, self._right)

    def rows(self) -> Tensor:
        return (self._left[:, :, None] * self._right[:, None, :]).flatten(1)

    def ordered(self, rows: Tensor) -> Tensor:
        return rows

    def pieces(self) -> tuple[Tensor, ...]:
        return self._left, self._right


class Picked(_Held):
    """Gradients of a table (V, D) of which a record uses few rows: p = V D.

    Args:
        rows: (B, T) int64, each row number at most once where ``values`` is not zero.
        values: (B, T, D).
        height: V.
    """

    def __init__(self, rows: Tensor, values: Tensor, height: int) -> None:
        self.size, self.floats = height * values.shape[2], values[0].numel()
        self._rows, self._values, self._height = rows, values, height

    def add_to(self, total: Tensor, scale: Tensor) -> None:
        values = self._values.mul_(scale[:, None, None]).flatten(0, 1)
        total.view(self._height, -1).index_add_(0, self._rows.flatten(), values)

    def rows(self) -> Tensor:
        batch, _, width = self._values.shape
        result = self._values.new_zeros(batch, self._height, width)
        index = self._rows[:, :, None].expand_as(self._values)
        return result.scatter_add_(1, index, self._values).flatten(1)

    def ordered(self, rows: Tensor) -> Tensor:
        return rows

    def pieces(self) -> tuple[Tensor, ...]:
        return self._rows, self._values


def dense(part: Part) -> Tensor:
    """Each record's gradient in the parameter's own order: (B, p)."""
    return part.ordered(part.rows())


def _squares(values: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)  # (B,)
    return norms.square_()


def _without(values: Tensor, records: Tensor) -> Tensor:
    return values.masked_fill(records.view(-1, *[1] * (values.dim() - 1)), 0.0)
