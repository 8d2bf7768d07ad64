"""Batches go in finer steps than a vector loop only where every tensor still is whole loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from client.training import invariance, loops
from client.training.loops import LEAVES, LOOP, step
from client.training.per_record import Hooked, PerRecord, per_record

SMALL = LOOP // 2  # what an even number of values a record allows

Make = Callable[[], nn.Module]


def found(network: nn.Module, shape: tuple[int, ...]) -> int:
    return step(network, per_record(network, torch.float32), torch.Size(shape))


def dense(*between: nn.Module, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), *between, nn.Linear(8, classes))


def picture(*between: nn.Module, channels: int = 4, size: int = 8) -> nn.Sequential:
    """Convolutions of pictures (1, size, size); ``between`` must leave (channels, size, size)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        *between,
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels * (size // 2) ** 2, 10),
    )


PICTURE = (1, 8, 8)
EVEN: dict[str, tuple[tuple[int, ...], Make]] = {
    **{
        kind.__name__: ((8,), lambda kind=kind: dense(kind()))
        for kind in (
            *(nn.Tanh, nn.Sigmoid, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU),
            *(nn.GELU, nn.Softplus, nn.Mish, nn.Identity),
        )
    },
    "nested": ((8,), lambda: dense(nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.SiLU())))),
    "in place": ((8,), lambda: dense(nn.SiLU(inplace=True))),
    "plain cnn": (PICTURE, lambda: picture(nn.SiLU())),
    "wide cnn": (PICTURE, lambda: picture(nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.GELU())),
    "deep cnn": (
        PICTURE,
        lambda: picture(nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Mish(), channels=8),
    ),
    "squashed before pooling": (PICTURE, lambda: picture(nn.Tanh())),
    "average": (PICTURE, lambda: picture(nn.SiLU(), nn.AvgPool2d(3, 1, 1))),
    "group norm": (PICTURE, lambda: picture(nn.GroupNorm(2, 4), nn.SiLU())),
    "instance norm": (PICTURE, lambda: picture(nn.InstanceNorm2d(4, affine=True), nn.SiLU())),
    "layer norm": (PICTURE, lambda: picture(nn.LayerNorm([8, 8]), nn.SiLU())),
    "a series": (
        (2, 16),
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 3, padding=1),
            nn.InstanceNorm1d(8),
            nn.SiLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 6, 3),
            nn.Softplus(),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(18, 10),
        ),
    ),
}


@pytest.mark.parametrize("name", EVEN)
def test_networks_of_listed_layers_with_even_sizes_get_finer_steps(name: str) -> None:
    shape, make = EVEN[name]
    torch.manual_seed(0)
    assert found(make(), shape) == SMALL


def test_every_layer_on_the_list_is_tried_here() -> None:
    used = {type(module) for _, make in EVEN.values() for module in make().modules()}
    assert used == {*LEAVES, nn.Sequential}


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("name", EVEN)
def test_a_finer_batch_gives_each_record_the_bits_of_whole_loops(name: str, scale: float) -> None:
    """Of thousands of values: the scalar formulas differ in a few of a hundred."""
    shape, make = EVEN[name]
    torch.manual_seed(0)
    ours = per_record(make(), torch.float32)
    ours.weights.mul_(scale)
    features = 3 * torch.randn(60 * LOOP, *shape, generator=torch.Generator().manual_seed(1))
    expected = gradients(ours, features, LOOP)
    for size in (LOOP + SMALL, 2 * LOOP + SMALL):
        for one, other in zip(expected, gradients(ours, features, size), strict=True):
            assert torch.equal(one, other), size


def gradients(ours: PerRecord, features: Tensor, size: int) -> list[Tensor]:
    """All pieces' bits, in batches of ``size``, which divides the number of records."""
    labels = torch.zeros(size, dtype=torch.long)
    batches = [
        [piece.clone() for part in ours.parts(some, labels) for piece in part.pieces()]
        for some in features.split(size)
    ]
    return [torch.cat(pieces).view(torch.int32) for pieces in zip(*batches, strict=True)]


@pytest.mark.parametrize("name", EVEN)
def test_whatever_a_finer_batch_makes_is_whole_loops_or_the_same_in_each_batch(name: str) -> None:
    """Seen at the sizes in use, where the rule extrapolates from smaller ones."""
    shape, make = EVEN[name]
    ours, size = per_record(make(), torch.float32), torch.Size(shape)
    watched = [loops._watch(ours, size, LOOP + SMALL), loops._watch(ours, size, 2 * LOOP + SMALL)]
    for one, other in zip(*watched, strict=True):
        assert one == other or not (one % LOOP or other % LOOP)


# -- whole loops ---------------------------------------------------------------------------------

ODD: dict[str, tuple[tuple[int, ...], Make]] = {
    "odd features": ((7,), lambda: nn.Sequential(nn.Linear(7, 8), nn.SiLU(), nn.Linear(8, 10))),
    "one hidden value": ((8,), lambda: dense(nn.Linear(8, 1), nn.SiLU(), nn.Linear(1, 8))),
    "odd classes": ((8,), lambda: dense(nn.SiLU(), classes=3)),
    "odd channels": (PICTURE, lambda: picture(nn.SiLU(), channels=3)),
    "odd pixels": ((1, 7, 7), lambda: picture(nn.SiLU(), size=7)),
    "odd where pooled": (
        (1, 6, 6),
        lambda: nn.Sequential(
            nn.MaxPool2d(2), nn.SiLU(), nn.Flatten(), nn.Linear(9, 8), nn.Linear(8, 10)
        ),
    ),
    "odd groups": (
        PICTURE,
        lambda: picture(nn.GroupNorm(3, 6), nn.SiLU(), channels=6),
    ),
    "one group": (PICTURE, lambda: picture(nn.GroupNorm(1, 4), nn.SiLU())),
    "one mean": ((8,), lambda: dense(nn.LayerNorm(8), nn.SiLU())),
}


@pytest.mark.parametrize("name", ODD)
def test_one_tensor_of_an_odd_size_keeps_whole_loops(name: str) -> None:
    shape, make = ODD[name]
    assert found(make(), shape) == LOOP


class Wrapped(nn.Module):
    """Another's network, whose forward pass might do anything."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.network(values)
        return result


class Own(nn.Sequential):
    """A subclass."""


class Gate(nn.SiLU):
    """A subclass."""


def hooked(register: str) -> nn.Module:
    network = dense(nn.SiLU())
    getattr(network[1], register)(lambda *_: None)
    return network


def patched() -> nn.Module:
    network = dense(nn.SiLU())
    network[1].forward = nn.functional.silu
    return network


UNLISTED: dict[str, Make] = {
    "a module of its own": lambda: Wrapped(dense(nn.SiLU())),
    "one within": lambda: dense(Wrapped(nn.SiLU())),
    "a Sequential's subclass": lambda: Own(*dense(nn.SiLU())),
    "a layer's subclass": lambda: dense(Gate()),
    "a layer that is not listed": lambda: dense(nn.Softmax(1)),
    "a parametrisation": lambda: dense(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    "a forward pass put in": patched,
    "a hook after": lambda: hooked("register_forward_hook"),
    "a hook before": lambda: hooked("register_forward_pre_hook"),
    "a hook backwards": lambda: hooked("register_full_backward_hook"),
    "a hook before backwards": lambda: hooked("register_full_backward_pre_hook"),
}


@pytest.mark.parametrize("name", UNLISTED)
def test_what_is_not_known_to_depend_on_shapes_alone_keeps_whole_loops(name: str) -> None:
    watched = per_record(dense(nn.SiLU()), torch.float32)  # so that the list alone decides
    assert step(UNLISTED[name](), watched, torch.Size([8])) == LOOP
    assert step(dense(nn.SiLU()), watched, torch.Size([8])) == SMALL


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_network_that_another_library_differentiates_keeps_whole_loops() -> None:
    network = dense(nn.SiLU())
    assert step(network, Hooked(network, torch.float32), torch.Size([8])) == LOOP


def test_a_network_that_does_not_take_its_features_keeps_whole_loops() -> None:
    assert found(dense(nn.SiLU()), (5,)) == LOOP


def test_kernels_that_round_by_rows_at_finer_steps_alone_leave_float32_to_whole_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered: list[tuple[int, ...]] = []

    def alike(_: PerRecord, __: torch.Size, sizes: tuple[int, ...]) -> bool:
        offered.append(sizes)
        return all(size % LOOP == 0 for size in sizes)

    monkeypatch.setattr(invariance, "_alike", alike)
    gradients, sizes = invariance.choose(dense(nn.SiLU()), torch.Size([8]), batch=64)
    assert gradients.weights.dtype == torch.float32
    assert LOOP + SMALL in offered[0]
    assert sizes == offered[1] == tuple(range(LOOP, 96 + 1, LOOP))
