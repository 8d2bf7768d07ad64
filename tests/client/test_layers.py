"""Each layer's rule gives every record's own gradient: alone, behind others, in any composition.

The oracles share no code with ours: ``torch.func.vmap`` of ``grad``, and Opacus' hooks.

Tolerances, of the norm of a record's whole gradient, against float64: 1e-12 in float64. In float32,
1e-6, but where a norm divides by the deviation of very few values: there plain autograd in float32
misses float64 by 1e-6 itself (and by 3e-6 in the worst of these cases), and ours may miss it by
thrice what autograd does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.training import clipping
from client.training.clipping import HEADROOM, ClippedSum
from client.training.layers import NATIVE
from client.training.parts import dense
from client.training.per_record import Native, per_record
from tests.client.test_clipping import by_opacus, by_torch_func, clip_rows, relative

RECORDS = 4
EXACT = 1e-12
SINGLE = 1e-6

Make = Callable[[], nn.Module]

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.fixture(autouse=True, scope="module")
def few_sizes() -> Iterator[None]:
    """Numbers are the claim here, so a sum need not try all its sizes of micro-batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipping, "SIZES", clipping.SIZES[:1])
        yield


class Tokens(nn.Module):
    """Features in [0, 1) as row numbers of a table."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.height = height

    def forward(self, values: Tensor) -> Tensor:
        return (values * self.height).long()


def case(shape: tuple[int, ...], make: Make, name: str) -> Any:
    return pytest.param(shape, make, id=name)


def described(kind: str, shape: tuple[int, ...], options: dict[str, Any]) -> str:
    words = [f"{key}={value}" for key, value in options.items()]
    return f"{kind}-{'x'.join(map(str, shape))}-{','.join(words)}".replace(" ", "")


def convolutions() -> list[Any]:
    """Every option, alone and with others."""
    flat: list[tuple[tuple[int, int], dict[str, Any]]] = [
        ((1, 11), {}),
        ((3, 11), {"stride": 2, "padding": 2}),
        ((3, 11), {"padding": "same", "dilation": 2}),
        ((16, 9), {"padding": "valid", "bias": False}),
        ((17, 9), {"dilation": 3, "padding": 1}),
        ((32, 9), {"stride": 3, "padding": 4}),
        ((32, 9), {"padding": "same", "bias": False}),
        ((4, 9), {"groups": 2, "stride": 2}),
        ((6, 9), {"groups": 6, "padding": 1, "dilation": 2}),
        ((36, 7), {"groups": 2}),
    ]
    wide: list[tuple[tuple[int, int, int], dict[str, Any]]] = [
        ((1, 9, 7), {}),
        ((1, 9, 7), {"stride": (2, 1), "padding": (0, 2)}),
        ((3, 8, 9), {"kernel_size": (3, 2), "stride": 2, "padding": 1}),
        ((3, 8, 9), {"kernel_size": (1, 5), "padding": "same", "dilation": 2}),
        ((3, 8, 9), {"kernel_size": 1, "bias": False}),
        ((16, 6, 5), {"padding": "same"}),
        ((16, 6, 5), {"padding": "valid", "bias": False}),
        ((16, 7, 9), {"dilation": (1, 2), "padding": 2, "stride": (1, 3)}),
        ((17, 6, 5), {"padding": "same", "dilation": 2}),
        ((17, 7, 5), {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0)}),
        ((32, 6, 7), {"stride": 2, "bias": False}),
        ((32, 7, 6), {"kernel_size": (3, 1), "dilation": (2, 1), "padding": "valid"}),
        ((32, 1, 1), {"kernel_size": 1}),
        ((4, 6, 5), {"groups": 2}),
        ((6, 7, 6), {"groups": 6, "padding": 1}),
        ((6, 7, 6), {"groups": 3, "stride": 2, "dilation": 2, "padding": 2, "bias": False}),
        ((36, 5, 5), {"groups": 2, "kernel_size": (2, 3)}),
        ((18, 5, 5), {"groups": 18, "padding": "same"}),
    ]
    cases = []
    for shape, options in [*flat, *wide]:
        kind: Any = nn.Conv1d if len(shape) == 2 else nn.Conv2d
        groups = options.get("groups", 1)
        settled = {"kernel_size": 3, "out_channels": 5 if groups == 1 else 2 * groups} | options
        make = _making(kind, in_channels=shape[0], **settled)
        cases.append(case(shape, make, described(kind.__name__, shape, options)))
    return cases


def _making(kind: Any, **options: Any) -> Make:
    def make() -> nn.Module:
        module: nn.Module = kind(**options)
        return module

    return make


def linears() -> list[Any]:
    return [
        case(shape, _making(nn.Linear, in_features=shape[-1], out_features=4, bias=bias), name)
        for shape in [(7,), (1,), (5, 7), (1, 7), (2, 3, 7)]
        for bias in (True, False)
        for name in [described("Linear", shape, {"bias": bias})]
    ]


def norms() -> list[Any]:
    cases = []
    for shape in [(6,), (6, 5), (6, 3, 4)]:
        for groups in (1, 2, 3, 6):
            # A group of one value has no deviation: torch refuses to train it.
            if len(shape) == 1 and groups == 6:
                continue
            for affine in (True, False):
                make = _making(nn.GroupNorm, num_groups=groups, num_channels=6, affine=affine)
                name = described("GroupNorm", shape, {"groups": groups, "affine": affine})
                cases.append(case(shape, make, name))
    for shape in [(5, 7), (5, 3, 4), (5, 2, 3, 2)]:
        kind: Any = {2: nn.InstanceNorm1d, 3: nn.InstanceNorm2d, 4: nn.InstanceNorm3d}[len(shape)]
        for affine in (True, False):
            make = _making(kind, num_features=5, affine=affine)
            cases.append(case(shape, make, described(kind.__name__, shape, {"affine": affine})))
    for kind, shape, options in [
        (nn.GroupNorm, (6, 5), {"num_groups": 2, "num_channels": 6}),
        (nn.InstanceNorm1d, (5, 7), {"num_features": 5, "affine": True}),
    ]:
        name = described(kind.__name__, shape, options | {"bias": False})
        cases.append(case(shape, _making(kind, bias=False, **options), name))
    choices: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        ((6,), {"normalized_shape": 6}),
        ((3, 6), {"normalized_shape": 6, "eps": 0.1}),
        ((3, 6), {"normalized_shape": (3, 6)}),
        ((2, 3, 6), {"normalized_shape": (3, 6)}),
        ((2, 3, 6), {"normalized_shape": 6, "bias": False}),
        ((2, 3, 6), {"normalized_shape": (3, 6), "elementwise_affine": False}),
    ]
    for shape, chosen in choices:
        cases.append(
            case(shape, _making(nn.LayerNorm, **chosen), described("LayerNorm", shape, chosen))
        )
    return cases


def tables() -> list[Any]:
    def make(height: int, **options: Any) -> Make:
        return lambda: nn.Sequential(Tokens(height), nn.Embedding(height, 5, **options))

    return [
        # Nine positions that read three rows: every record reads some row more than once.
        case((9,), make(3), "Embedding-repeated"),
        case((3, 3), make(3), "Embedding-two-axes"),
        case((9,), make(20), "Embedding-sparse-rows"),
        case((9,), make(3, padding_idx=1), "Embedding-padding"),
        case((9,), make(3, padding_idx=-1), "Embedding-padding-from-the-end"),
        case((1,), make(3), "Embedding-one-position"),
        case((), make(3), "Embedding-no-axis"),
    ]


FLOATING = [*linears(), *convolutions(), *norms()]
CASES = [*FLOATING, *tables()]


def finished(shape: tuple[int, ...], *modules: nn.Module, seed: int = 1) -> nn.Module:
    """A network that ends in three logits, and in which no parameter is a plain 0 or 1."""
    body = nn.Sequential(*modules, nn.Tanh(), nn.Flatten())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        width = body(torch.rand((2, *shape), generator=generator)).shape[1]
    model = nn.Sequential(*modules, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3))
    return stirred(model, seed)


def stirred(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator) / fan**0.5
            parameter.copy_((1.0 if parameter.dim() == 1 else 0.0) + noise)
    return model


def records(shape: tuple[int, ...], count: int = RECORDS, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand((count, *shape), generator=generator)
    return features, torch.randint(0, 3, (count,), generator=generator)


def ours(
    model: nn.Module, features: Tensor, labels: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Per-record gradients (B, P), by the native rules."""
    gradients = per_record(model, dtype)
    assert isinstance(gradients, Native)
    return torch.cat([dense(part) for part in gradients.parts(features, labels)], 1)


def furthest(one: Tensor, other: Tensor) -> float:
    """The greatest relative difference of any record's gradient."""
    return max(relative(a, b) for a, b in zip(one.double(), other, strict=True))


def check(model: nn.Module, features: Tensor, labels: Tensor) -> None:
    """All claims about one network."""
    expected = by_torch_func(model, features, labels)
    assert furthest(ours(model, features, labels), expected) < EXACT

    clip = float(expected.norm(dim=1).median())  # some are clipped, some are not
    norms = expected.norm(dim=1, keepdim=True)
    aimed = clip * (1 - HEADROOM)  # so the sum is that of this clip, exactly
    target = (expected * (aimed / norms).clamp_max(1.0)).sum(0)
    total = ClippedSum(model, torch.float64)(features, labels, clip)
    assert relative(total, target) < EXACT

    plain = by_torch_func(model, features, labels, torch.float32)
    allowed = max(SINGLE, 3 * furthest(plain, expected))
    assert furthest(ours(model, features, labels, torch.float32), expected) < allowed
    total = ClippedSum(model, torch.float32)(features, labels, clip)
    allowed = max(SINGLE, 3 * relative(clip_rows(plain, aimed), target))
    assert relative(total, target) < allowed


@pytest.mark.parametrize(("shape", "make"), CASES)
def test_a_first_layers_gradients_are_each_records_own(shape: tuple[int, ...], make: Make) -> None:
    torch.manual_seed(0)
    check(finished(shape, make()), *records(shape))


@pytest.mark.parametrize(("shape", "make"), FLOATING)
def test_a_layer_passes_on_the_gradient_of_its_input(shape: tuple[int, ...], make: Make) -> None:
    torch.manual_seed(0)
    before = nn.Linear(shape[-1], shape[-1])
    check(finished(shape, before, nn.Tanh(), make()), *records(shape))


# Of these, Opacus 1.6.0 has another gradient (it trains the padding row) or none at all.
BEYOND_OPACUS = {
    "Embedding-padding",
    "Embedding-padding-from-the-end",
    "Embedding-no-axis",
    "LayerNorm-2x3x6-normalized_shape=6,bias=False",
    "GroupNorm-6x5-num_groups=2,num_channels=6,bias=False",
    "InstanceNorm1d-5x7-num_features=5,affine=True,bias=False",
}


@pytest.mark.parametrize(("shape", "make"), [c for c in CASES if c.id not in BEYOND_OPACUS])
def test_opacus_agrees(shape: tuple[int, ...], make: Make) -> None:
    torch.manual_seed(0)
    model, (features, labels) = finished(shape, make()), records(shape)
    found = ours(model, features, labels)
    assert furthest(found, by_opacus(model, features, labels)) < EXACT


def test_every_native_layer_is_in_these_tests() -> None:
    tried = {type(module) for param in CASES for module in param.values[1]().modules()}
    assert set(NATIVE) <= tried


# -- the networks of the papers ------------------------------------------------------------------


def model_a() -> nn.Module:
    """The tanh network of Papernot et al. 2021 and of Opacus' example for MNIST."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def model_b() -> nn.Module:
    """Two 3x3 convolutions with group norms."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


PAPERS = [pytest.param(model_a, 26_010, id="A"), pytest.param(model_b, 119_722, id="B")]


@pytest.mark.parametrize(("make", "size"), PAPERS)
def test_the_networks_of_the_papers_are_trained_exactly(make: Make, size: int) -> None:
    model = make()
    assert sum(p.numel() for p in model.parameters()) == size
    check(model, *records((1, 28, 28)))


def pictures(shape: tuple[int, ...], count: int = RECORDS) -> Tensor:
    """Images of few values on a constant ground, as scans are: most pooling windows hold ties."""
    generator = torch.Generator().manual_seed(3)
    features = torch.zeros((count, *shape))
    strokes = torch.randint(
        0, 3, (count, shape[0], *[s // 3 for s in shape[1:]]), generator=generator
    )
    features[..., : strokes.shape[-2], : strokes.shape[-1]] = strokes / 2
    return features


@pytest.mark.parametrize(("make", "size"), PAPERS)
def test_ties_in_a_pooling_window_are_broken_as_autograd_breaks_them(make: Make, size: int) -> None:
    del size
    features = pictures((1, 28, 28))
    check(make(), features, torch.arange(len(features)))


@pytest.mark.parametrize("squash", [nn.Tanh, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("pool", [2, 3])
def test_squashing_after_pooling_is_the_same_as_before(squash: type[nn.Module], pool: int) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3, padding=1), squash(), nn.MaxPool2d(pool, 1), nn.Conv2d(4, 3, 2))
    model = finished((2, 9, 9), *layers)
    for features in (pictures((2, 9, 9)), records((2, 9, 9))[0] - 0.5, torch.zeros(4, 2, 9, 9)):
        check(model, features, torch.tensor([0, 1, 2, 0]))


# -- how authors write networks ------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        pytest.param((nn.Conv2d(4, 6, 3),), id="conv-of-few-channels"),
        pytest.param((nn.Conv2d(4, 20, 1), nn.Conv2d(20, 6, 3)), id="conv-of-many-channels"),
        pytest.param((nn.Linear(7, 6),), id="linear-at-many-positions"),
        pytest.param((nn.Flatten(), nn.Linear(252, 6)), id="linear"),
        pytest.param((nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)), id="group-norm"),
        pytest.param((nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4, affine=False)), id="plain-group-norm"),
        pytest.param((nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4)), id="plain-instance-norm"),
        pytest.param(
            (nn.Conv2d(4, 4, 3), nn.LayerNorm(5, elementwise_affine=False)), id="plain-layer-norm"
        ),
    ],
)
def test_an_activation_may_work_in_place(before: tuple[nn.Module, ...]) -> None:
    check(finished((4, 9, 7), *before, nn.ReLU(inplace=True)), *records((4, 9, 7)))


def test_the_layers_of_a_sequence_may_be_called_one_by_one() -> None:
    class Tapped(nn.Module):
        """Uses what comes before the pooling, too."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.MaxPool2d(2))
            self.head = nn.Linear(3 * 4 * 4 + 3 * 2 * 2, 3)

        def forward(self, values: Tensor) -> Tensor:
            squashed = self.body[1](self.body[0](values))
            both = (squashed.flatten(1), self.body[2](squashed).flatten(1))
            result: Tensor = self.head(torch.cat(both, 1))
            return result

    torch.manual_seed(0)
    check(Tapped(), *records((2, 6, 6)))


def test_a_layer_may_be_given_its_input_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, values: Tensor) -> Tensor:
            result: Tensor = self.layer(input=values)
            return result

    torch.manual_seed(0)
    check(Named(), *records((5,)))


def test_an_unused_layer_has_a_gradient_of_zero() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(4, 4)
            self.layer = nn.Linear(5, 3)

        def forward(self, values: Tensor) -> Tensor:
            result: Tensor = self.layer(values)
            return result

    torch.manual_seed(0)
    found = ours(Idle(), *records((5,)))
    assert not found[:, :20].any()
    assert found[:, 20:].any()


# -- any composition -----------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = values + self.inner(values)
        return result


class Twice(nn.Module):
    """The same layer, applied to its own output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.inner(torch.tanh(self.inner(values)))
        return result


class Tied(nn.Module):
    """Two layers of one kind with one weight, and biases of their own."""

    def __init__(self, shape: tuple[int, ...], seed: float) -> None:
        super().__init__()
        self.one, self.other = (keeping(shape, random.Random(seed)) for _ in range(2))
        self.other.weight = self.one.weight

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.one(values) * torch.tanh(self.other(values))
        return result


class Averaged(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.mean(1)


def keeping(shape: tuple[int, ...], chance: random.Random) -> nn.Module:
    """A layer whose output has its input's shape."""
    channels = shape[0]
    if len(shape) == 1:
        return nn.Linear(channels, channels, bias=chance.random() < 0.7)
    if len(shape) == 2 and chance.random() < 0.5:
        return nn.Linear(shape[1], shape[1])
    kind: Any = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    groups = chance.choice([size for size in (1, 2, channels) if channels % size == 0])
    conv: nn.Module = kind(channels, channels, 3, padding="same", groups=groups)
    return conv


def changing(shape: tuple[int, ...], chance: random.Random) -> nn.Module | None:
    """A layer whose output has another shape, if there is room for one."""
    if len(shape) == 1:
        return nn.Linear(shape[0], chance.randint(2, 9))
    if min(shape[1:]) < 3:
        return None
    groups = chance.choice([size for size in (1, 2) if shape[0] % size == 0])
    kind: Any = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    conv: nn.Module = kind(
        shape[0],
        groups * chance.choice([1, 3, 9, 17]),
        chance.randint(1, 3),
        stride=chance.randint(1, 2),
        padding=chance.randint(0, 2),
        groups=groups,
        bias=chance.random() < 0.7,
    )
    return conv


def normalising(shape: tuple[int, ...], chance: random.Random) -> nn.Module | None:
    affine = chance.random() < 0.7
    groups = [size for size in (1, 2, 3) if shape[0] % size == 0 and shape[0] // size > 2]
    choices: list[Make] = [
        _making(nn.GroupNorm, num_groups=size, num_channels=shape[0], affine=affine)
        for size in groups
    ]
    if shape[-1] > 2:
        choices.append(_making(nn.LayerNorm, normalized_shape=shape[-1], elementwise_affine=affine))
    if len(shape) > 1 and min(shape[1:]) > 2:
        kind = nn.InstanceNorm1d if len(shape) == 2 else nn.InstanceNorm2d
        choices.append(_making(kind, num_features=shape[0], affine=affine))
    return chance.choice(choices)() if choices else None


def pooling(shape: tuple[int, ...], chance: random.Random) -> nn.Module | None:
    if len(shape) == 1 or min(shape[1:]) < 3:
        return None
    kinds: list[Any] = [nn.MaxPool1d, nn.AvgPool1d]
    if len(shape) == 3:
        kinds = [nn.MaxPool2d, nn.AvgPool2d]
    pool: nn.Module = chance.choice(kinds)(chance.randint(2, 3), chance.randint(1, 2))
    return pool


def flattening(shape: tuple[int, ...], chance: random.Random) -> nn.Module | None:
    if len(shape) == 1:
        return None
    return Averaged() if len(shape) == 2 and chance.random() < 0.5 else nn.Flatten()


Block = Callable[[tuple[int, ...], random.Random], nn.Module | None]

BLOCKS: dict[str, Block] = {
    "layer": keeping,
    "other shape": changing,
    "norm": normalising,
    "pool": pooling,
    "flatten": flattening,
    "tanh": lambda *_: nn.Tanh(),
    "softplus": lambda *_: nn.Softplus(),
    "relu": lambda *_: nn.ReLU(),
    "residual": lambda shape, chance: Residual(keeping(shape, chance)),
    "residual block": lambda shape, chance: Residual(
        nn.Sequential(keeping(shape, chance), nn.Tanh(), keeping(shape, chance))
    ),
    "twice": lambda shape, chance: Twice(keeping(shape, chance)),
    "tied": lambda shape, chance: Tied(shape, chance.random()),
}
FRONTS: dict[str, tuple[int, ...]] = {
    "image": (2, 8, 7),
    "one channel": (1, 9, 8),
    "sequence": (4, 9),
    "row": (12,),
    "tokens": (7,),
}


def composed(front: str, blocks: list[str], seed: int) -> nn.Module:
    """A network of those blocks that fit one after another; the others are left out."""
    chance, shape = random.Random(seed), FRONTS[front]
    modules: list[nn.Module] = []
    if front == "tokens":
        padding = chance.choice([None, 0])
        modules = [Tokens(5), nn.Embedding(5, 6, padding_idx=padding)]
        shape = (7, 6)
    for name in blocks:
        module = BLOCKS[name](shape, chance)
        if module is not None:
            modules.append(module)
            with torch.no_grad():
                shape = tuple(module(torch.rand(1, *shape)).shape[1:])
    return finished(FRONTS[front], *modules, seed=seed)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(FRONTS)),
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_any_composition_gives_each_records_own_gradient(
    front: str, blocks: list[str], seed: int
) -> None:
    model = composed(front, blocks, seed)
    features, labels = records(FRONTS[front], seed=seed)
    expected = by_torch_func(model, features, labels)
    found = ours(model, features, labels)
    assert furthest(found, expected) < EXACT
    clip = float(expected.norm(dim=1).median())
    total = ClippedSum(model, torch.float64)(features, labels, clip)
    aimed = clip * (1 - HEADROOM)
    assert relative(total, clip_rows(expected, aimed)) < EXACT


def test_compositions_hold_every_kind_of_layer() -> None:
    # Else the property would be about less than its name says.
    seen: set[type[nn.Module]] = set()
    for seed in range(200):
        chance = random.Random(seed)
        blocks = chance.choices(sorted(BLOCKS), k=6)
        seen |= {type(m) for m in composed(chance.choice(sorted(FRONTS)), blocks, seed).modules()}
    assert set(NATIVE) - {nn.InstanceNorm3d} <= seen
    assert {Residual, Twice, Tied, nn.MaxPool2d, nn.AvgPool2d, nn.MaxPool1d, Averaged} <= seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_asked_for_is_that_of_every_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, (features, labels) = finished((5,), nn.Linear(5, 4)), records((5,))
    for given_in in (torch.float32, torch.float64):
        parts = per_record(model, dtype).parts(features.to(given_in), labels)
        assert {piece.dtype for part in parts for piece in part.pieces()} == {dtype}
