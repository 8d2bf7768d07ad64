"""What does one record contribute to a layer's gradient? One rule for each native layer.

The rule: a layer's passes are its own formulas, record by record. They give every record's own part
of each parameter's gradient; nothing is summed over records, and the ordinary weight gradient is
never computed.

Sources: outer products of linear layers: Goodfellow 2015 (arXiv 1510.01799); per-example gradients
of convolutions as products of patches: Rochette, Manoel and Tramel 2019 (arXiv 1912.06015).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from client.training.parts import Outer, Part, Picked, Rows

# Up to so many input channels, a convolution is a product of its patches, which its weight gradient
# needs anyway; above, the library's convolution is faster. Measured on 64 records of 3 x 3 kernels:
# 8.2 ms by the library and 0.6 by patches at 1 channel, 5.1 and 7.0 at 32.
MOST_PATCHED_CHANNELS = 4
ALIGNMENT = 16  # values, of 4 or 8 bytes


Parts = list[tuple[nn.Parameter, Part]]


class Layer:
    """One native layer of a network.

    ``forward`` gives the output and what ``backward`` wants back; ``backward`` gives the gradient
    of the input (None if not wanted) and a part for each of the layer's parameters.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def backward(self, errors: Tensor, saved: Any, wanted: bool) -> tuple[Tensor | None, Parts]:
        raise NotImplementedError


class Linear(Layer):
    """``nn.Linear``: one position a record is an outer product, more are summed by matmul."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
        weight = _aligned(self.module.weight)
        return F.linear(_aligned(inputs), weight, self.module.bias), inputs

    def backward(self, errors: Tensor, saved: Any, wanted: bool) -> tuple[Tensor | None, Parts]:
        weight, bias = self.module.weight, self.module.bias
        result = F.linear(_aligned(errors), _aligned(weight.T)) if wanted else None
        if errors.dim() == 2:
            parts: Parts = [(weight, Outer(errors, saved))]
        else:
            errors, inputs = errors.flatten(1, -2), saved.flatten(1, -2)  # (B, T, O), (B, T, I)
            parts = [(weight, Rows(torch.bmm(errors.transpose(1, 2), inputs)))]
            errors = errors.sum(1)
        if bias is not None:
            parts.append((bias, Rows(errors)))
        return result, parts


def _aligned(values: Tensor) -> Tensor:
    """Rows filled up with zeros to 64 bytes: where they are not, a matrix product's kernel takes a
    row by its address, and so a record's bits depend on its place (measured with MKL)."""
    missing = -values.shape[-1] % ALIGNMENT
    return F.pad(values, (0, missing)) if missing else values


class Convolution(Layer):
    """``nn.Conv1d`` and ``nn.Conv2d``, channels last: weight gradients are products of patches."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(module)
        flat = isinstance(module, nn.Conv1d)
        self._flat = flat
        self._size, self._stride, self._dilation = (
            (1, *pair) if flat else pair
            for pair in (module.kernel_size, module.stride, module.dilation)
        )
        padding = _padding(module)
        self._padding = (0, *padding) if flat else padding
        self._patched = module.in_channels // module.groups <= MOST_PATCHED_CHANNELS
        self._patched = self._patched and module.groups == 1

    def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
        module = self.module
        if self._flat:
            inputs = inputs.unsqueeze(2)  # (B, C, 1, L)
        if self._patched:
            patches, height, width = self._patches(inputs)
            weight = self._weight().permute(0, 2, 3, 1).reshape(module.out_channels, -1)
            output = F.linear(patches, weight, module.bias)  # (B, P, O)
            output = output.view(-1, height, width, module.out_channels).permute(0, 3, 1, 2)
            saved: Any = (inputs, patches)
        else:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            output = F.conv2d(
                inputs,
                self._weight(),
                module.bias,
                self._stride,
                self._padding,
                self._dilation,
                module.groups,
            )
            saved = (inputs, None)
        return (output.squeeze(2) if self._flat else output), saved

    def backward(self, errors: Tensor, saved: Any, wanted: bool) -> tuple[Tensor | None, Parts]:
        module, (inputs, patches) = self.module, saved
        if self._flat:
            errors = errors.unsqueeze(2)
        if patches is None:
            patches, _, _ = self._patches(inputs)
        groups, outputs = module.groups, module.out_channels
        flat = errors.permute(0, 2, 3, 1).flatten(1, 2)  # (B, P, O)
        gradient = self._product(patches, flat)  # (B, G, kh kw C/G, O/G)
        shape = (-1, groups, *self._size, module.in_channels // groups, outputs // groups)

        def order(rows: Tensor) -> Tensor:
            return rows.view(shape).permute(0, 1, 5, 4, 2, 3).flatten(1)

        parts: Parts = [(module.weight, Rows(gradient, order))]
        if module.bias is not None:
            parts.append((module.bias, Rows(flat.sum(1))))
        return (self._inputs(errors, inputs) if wanted else None), parts

    def _product(self, patches: Tensor, errors: Tensor) -> Tensor:
        """Weight gradients of each record: (B, P, K C), (B, P, O) -> (B, G, K C/G, O/G)."""
        groups, (batch, places, _) = self.module.groups, errors.shape
        if groups == 1:
            return torch.bmm(patches.transpose(1, 2), errors)[:, None]
        # A patch holds all channels at each of its K places: groups are apart within each place.
        split = patches.view(batch, places, math.prod(self._size), groups, -1)
        split = split.permute(0, 3, 2, 4, 1).flatten(2, 3)  # (B, G, K C/G, P)
        return split @ errors.view(batch, places, groups, -1).permute(0, 2, 1, 3)

    def _weight(self) -> Tensor:
        weight: Tensor = self.module.weight.unsqueeze(2) if self._flat else self.module.weight
        return weight.contiguous(memory_format=torch.channels_last)

    def _inputs(self, errors: Tensor, inputs: Tensor) -> Tensor:
        result = torch.ops.aten.convolution_backward(
            errors.contiguous(memory_format=torch.channels_last),
            inputs,
            self._weight(),
            None,
            self._stride,
            self._padding,
            self._dilation,
            False,
            [0, 0],
            self.module.groups,
            [True, False, False],
        )[0]
        return result.squeeze(2) if self._flat else result  # type: ignore[no-any-return]

    def _patches(self, inputs: Tensor) -> tuple[Tensor, int, int]:
        """What the kernel sees at each position: (B, P, kh kw C), and the output's two sizes."""
        last = inputs.permute(0, 2, 3, 1)  # (B, H, W, C)
        if any(self._padding):
            high, wide = self._padding
            last = F.pad(last, (0, 0, wide, wide, high, high))
        last = last.contiguous()
        (sample, row, column, _), channels = last.stride(), last.shape[3]
        (kh, kw), (sh, sw), (dh, dw) = self._size, self._stride, self._dilation
        height = (last.shape[1] - dh * (kh - 1) - 1) // sh + 1
        width = (last.shape[2] - dw * (kw - 1) - 1) // sw + 1
        view = last.as_strided(
            (len(last), height, width, kh, kw, channels),
            (sample, sh * row, sw * column, dh * row, dw * column, 1),
        )
        return view.reshape(len(last), height * width, kh * kw * channels), height, width


def _padding(module: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        pairs = zip(module.kernel_size, module.dilation, strict=True)
        return tuple(dilation * (size - 1) // 2 for size, dilation in pairs)
    return tuple(int(size) for size in module.padding)


class Embedding(Layer):
    """``nn.Embedding``: positions that read the same row are added before any norm is taken."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
        return F.embedding(inputs, self.module.weight), inputs

    def backward(self, errors: Tensor, saved: Any, wanted: bool) -> tuple[Tensor | None, Parts]:
        del wanted  # row numbers have no gradient
        rows = saved.reshape(len(saved), -1)  # (B, T)
        errors = errors.reshape(*rows.shape, -1)  # (B, T, D)
        if self.module.padding_idx is not None:
            errors = errors * (rows != self.module.padding_idx)[:, :, None]
        first = (rows[:, :, None] == rows[:, None, :]).to(torch.uint8).argmax(2)  # (B, T)
        values = torch.zeros_like(errors)
        values.scatter_add_(1, first[:, :, None].expand_as(errors), errors)
        weight = self.module.weight
        return None, [(weight, Picked(rows, values, len(weight)))]


class OverChannels(Layer):
    """Group and instance norms: parameters (C,); groups of channels share a mean in each record."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._groups = getattr(module, "num_groups", 0)  # 0: every channel by itself

    def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
        normal = inputs - self._spread(self._mean(inputs), inputs)
        variance = self._mean(normal.square())  # (B, C)
        deviation = (variance + self.module.eps).rsqrt()  # (B, C)
        normal *= self._spread(deviation, inputs)
        weight, bias = self.module.weight, self.module.bias
        if weight is None:
            return normal.clone(), (normal, deviation)  # an activation may work in place
        shape = (1, -1, *[1] * (inputs.dim() - 2))
        if bias is None:
            return normal * weight.view(shape), (normal, deviation)
        return torch.addcmul(bias.view(shape), normal, weight.view(shape)), (normal, deviation)

    def backward(self, errors: Tensor, saved: Any, wanted: bool) -> tuple[Tensor | None, Parts]:
        normal, deviation = saved
        weight, bias = self.module.weight, self.module.bias
        places = math.prod(errors.shape[2:])
        along, level = _places(errors * normal), _places(errors)  # (B, C)
        parts: Parts = [] if weight is None else [(weight, Rows(along))]
        if bias is not None:
            parts.append((bias, Rows(level)))
        if not wanted:
            return None, parts
        if weight is not None:
            along, level = along * weight, level * weight
        along, level = self._grouped(along / places), self._grouped(level / places)
        slope = deviation if weight is None else deviation * weight
        result = torch.addcmul(
            self._spread(-deviation * level, errors), errors, self._spread(slope, errors)
        )
        return result.addcmul_(normal, self._spread(-deviation * along, errors)), parts

    def _mean(self, values: Tensor) -> Tensor:
        """Each channel's group's mean: (B, C)."""
        return self._grouped(_places(values) / math.prod(values.shape[2:]))

    def _grouped(self, values: Tensor) -> Tensor:
        """Each group's mean of (B, C), for each of its channels: (B, C)."""
        if not self._groups:
            return values
        split = values.view(len(values), self._groups, -1)
        return split.mean(2, keepdim=True).expand_as(split).reshape(values.shape)

    @staticmethod
    def _spread(values: Tensor, like: Tensor) -> Tensor:
        return values.view(*values.shape, *[1] * (like.dim() - 2))


def _places(values: Tensor) -> Tensor:
    """Sums over a channel's positions: (B, C, …) -> (B, C)."""
    return values.sum(tuple(range(2, values.dim()))) if values.dim() > 2 else values


class OverFeatures(Layer):
    """Layer norm: parameters of the last axes' shape, over which each position has its mean."""

    def __init__(self, module: nn.LayerNorm) -> None:
        super().__init__(module)
        self._axes = tuple(range(-len(module.normalized_shape), 0))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
        normal = inputs - inputs.mean(self._axes, keepdim=True)
        deviation = normal.square().mean(self._axes, keepdim=True)
        deviation = (deviation + self.module.eps).rsqrt()
        normal *= deviation
        weight, bias = self.module.weight, self.module.bias
        # A copy, since an activation may work in place.
        output = normal.clone() if weight is None else normal * weight
        return (output if bias is None else output + bias), (normal, deviation)

    def backward(self, errors: Tensor, saved: Any, wanted: bool) -> tuple[Tensor | None, Parts]:
        normal, deviation = saved
        weight, bias = self.module.weight, self.module.bias
        parts: Parts = []
        if weight is not None:
            parts.append((weight, Rows(self._summed(errors * normal))))
        if bias is not None:
            parts.append((bias, Rows(self._summed(errors))))
        if not wanted:
            return None, parts
        scaled = errors if weight is None else errors * weight
        along = (scaled * normal).mean(self._axes, keepdim=True)
        result = scaled - scaled.mean(self._axes, keepdim=True)
        return result.addcmul_(normal, along, value=-1).mul_(deviation), parts

    def _summed(self, values: Tensor) -> Tensor:
        count = math.prod(self.module.normalized_shape)
        return values.reshape(len(values), -1, count).sum(1)


NATIVE: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.Embedding: Embedding,
    nn.GroupNorm: OverChannels,
    nn.InstanceNorm1d: OverChannels,
    nn.InstanceNorm2d: OverChannels,
    nn.InstanceNorm3d: OverChannels,
    nn.LayerNorm: OverFeatures,
}


def native(module: nn.Module) -> Layer | None:
    """The rule for a module, or None where :func:`is_native` says no."""
    return NATIVE[type(module)](module) if is_native(module) else None


def is_native(module: nn.Module) -> bool:
    """Whether a rule covers a module: no subclass, and no option beyond the rule."""
    if type(module) not in NATIVE:
        return False
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.padding == "same":  # an even kernel would be padded on one side only
            pairs = zip(module.kernel_size, module.dilation, strict=True)
            return module.padding_mode == "zeros" and not any(d * (k - 1) % 2 for k, d in pairs)
        return module.padding_mode == "zeros"
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return not module.track_running_stats
    return True
