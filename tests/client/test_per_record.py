"""A record's gradient is its own: the same bits whatever lies beside it, and autograd's numbers.

The first half is what privacy rests on: hostile weights can turn one bit of rounding into any
change of a gradient, so a record may not move one bit of another's. Where this machine's kernels do
not give a network the same bits, the sum computes each record alone, and nothing is tested here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opacus.layers import DPGRU, DPLSTM, DPRNN, DPMultiheadAttention
from torch import Tensor, nn

from client.training import invariance
from client.training.clipping import HEADROOM, SIZES, ClippedSum, micro_batches
from client.training.parts import dense
from client.training.per_record import Hooked, Native, per_record
from common.errors import PlanError
from tests.client.test_clipping import by_autograd, by_torch_func, clip_rows, relative
from tests.client.test_layers import (
    BLOCKS,
    FRONTS,
    composed,
    finished,
    furthest,
    model_a,
    model_b,
)

Make = Callable[[], nn.Module]
Bits = list[tuple[Tensor, ...]]  # of each record, all that its gradient is made of


class Words(nn.Module):
    """A table, attention's kind of residual block, and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 16)
        self.norm = nn.LayerNorm(16)
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.table(values.nan_to_num().clamp(0, 8).long())
        hidden = hidden + torch.tanh(self.inner(self.norm(hidden)))
        result: Tensor = self.head(hidden.mean(1))
        return result


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.body = kind(8, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(values)[0][:, -1])
        return result


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )


def grouped() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.GroupNorm(4, 32), nn.ReLU(), nn.Linear(32, 10))


NETWORKS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "mlp": (mlp, (784,)),
    "A": (model_a, (1, 28, 28)),
    "B": (model_b, (1, 28, 28)),
    "group norm": (grouped, (64,)),
    "embedding": (Words, (7,)),
    "lstm": (lambda: Recurrent(DPLSTM), (6, 8)),
}
SCALES = (1.0, 1e3, 1e4)  # of all weights; none above 1e4 gets past the guard


@cache
def made(name: str, scale: float) -> nn.Module:
    make, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


@cache
def runs_in_float32(name: str) -> bool:
    total = ClippedSum(made(name, 1.0))
    total(*records(name, 1), 1.0)
    return total.precision == torch.float32


def records(name: str, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    features = torch.rand((count, *NETWORKS[name][1]), generator=generator)
    if name == "embedding":
        features = (9 * features).floor()
    return features, torch.randint(0, 10, (count,), generator=generator)


def gradients(
    model: nn.Module, features: Tensor, labels: Tensor, sizes: tuple[int, ...] = SIZES[:8]
) -> Bits:
    """Each record's gradient in float32, computed in the micro-batches that the sum uses."""
    ours, rows = per_record(model, torch.float32), []
    for start, end, size in micro_batches(len(labels), sizes):
        padded = torch.zeros(size, *features.shape[1:]), torch.zeros(size, dtype=torch.long)
        padded[0][: end - start], padded[1][: end - start] = features[start:end], labels[start:end]
        pieces = [piece for part in ours.parts(*padded) for piece in part.pieces()]
        rows += [tuple(piece[i].clone() for piece in pieces) for i in range(end - start)]
    return rows


def same(one: Bits, other: Bits) -> bool:
    """Bit by bit: a nan is itself."""
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return all(torch.equal(bits(a), bits(b)) for a, b in pairs)


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int64)


@pytest.fixture(params=sorted(NETWORKS))
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if not runs_in_float32(chosen):
        pytest.skip("this machine's kernels do not give this network the same bits in float32")
    return chosen


# -- the same bits -------------------------------------------------------------------------------

HOSTILE = (float("nan"), float("inf"), float("-inf"), 3e38, -1e9, 1e3, 0.0, 1e-40)


@pytest.mark.parametrize("scale", SCALES)
def test_whatever_the_other_records_are_a_gradient_has_the_same_bits(
    name: str, scale: float
) -> None:
    model, (features, labels) = made(name, scale), records(name, 24)
    expected = gradients(model, features, labels)
    for position, value in enumerate(HOSTILE):
        kept = torch.arange(24) % 8 == position  # neighbours on both sides, in each vector unit
        changed = features.clone()
        changed[~kept] = value
        found = gradients(model, changed, labels)
        chosen = kept.nonzero().flatten().tolist()
        assert same([found[i] for i in chosen], [expected[i] for i in chosen]), value


@pytest.mark.parametrize("scale", SCALES)
def test_removing_a_record_leaves_every_other_gradient_as_it_was(name: str, scale: float) -> None:
    model, (features, labels) = made(name, scale), records(name, 33)
    expected = gradients(model, features, labels)
    for removed in (0, 7, 16, 32):
        rest = torch.arange(33) != removed
        found = gradients(model, features[rest], labels[rest])
        assert same(found, expected[:removed] + expected[removed + 1 :])


def test_the_size_of_a_micro_batch_and_the_place_in_it_do_not_matter(name: str) -> None:
    model, (features, labels) = made(name, 1.0), records(name, 64)
    expected = gradients(model, features, labels)
    for size in SIZES[:8]:
        assert same(gradients(model, features, labels, (size,)), expected), size
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = gradients(model, features[order], labels[order])
    assert same(shuffled, [expected[i] for i in order.tolist()])


@pytest.mark.parametrize("scale", SCALES)
def test_hostile_weights_and_a_hostile_record_move_the_sum_by_at_most_c(
    name: str, scale: float
) -> None:
    model, (features, labels) = made(name, scale), records(name, 33)
    features[5] *= 1e30
    features[6] = float("nan")
    total = ClippedSum(model)
    whole = total(features, labels, 0.1)
    for removed in (0, 5, 6, 32):
        rest = torch.arange(33) != removed
        assert float((whole - total(features[rest], labels[rest], 0.1)).norm()) <= 0.1


def trusted(model: nn.Module, shape: tuple[int, ...]) -> torch.dtype | None:
    """The precision in which the sum would compute many records at once; None: in neither."""
    total = ClippedSum(model)
    total(torch.zeros((1, *shape)), torch.zeros(1, dtype=torch.long), 1.0)
    return total.precision if len(total._sizes) > 1 else None


def check_trusted(model: nn.Module, shape: tuple[int, ...], seed: int) -> None:
    """Where many are computed at once, every place gives the same bits, with any weights."""
    dtype = trusted(model, shape)
    if dtype is None:
        return
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand((32, *shape), generator=generator)
    labels = torch.randint(0, 3, (32,), generator=generator)
    ours = per_record(model, dtype)
    # Positive, so that no unit is dead; of both signs, so that sums cancel.
    for low in (0.0, -0.5):
        ours.weights.copy_(low + torch.rand(ours.weights.shape, generator=generator))
        expected = [
            piece.clone() for part in ours.parts(features, labels) for piece in part.pieces()
        ]
        for size in (8, 16, 24, 32):
            for first in (0, 1, 2, 5, 12):
                chosen = (torch.arange(size) + first) % 32
                found = ours.parts(features[chosen], labels[chosen])
                pieces = [piece for part in found for piece in part.pieces()]
                for one, other in zip(expected, pieces, strict=True):
                    assert torch.equal(bits(one[chosen]), bits(other)), (dtype, size, first)


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariance, "SIZES", (8, 16, 24, 32))


@pytest.mark.usefixtures("few_sizes")
@pytest.mark.parametrize("squash", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(
    ("shape", "channels", "size"), [((9, 8), 3, 5), ((7, 7), 5, 3), ((7, 7), 9, 1), ((6, 5), 17, 3)]
)
def test_a_unit_that_is_dead_while_kernels_are_tried_hides_nothing(
    shape: tuple[int, int], channels: int, size: int, squash: type[nn.Module]
) -> None:
    # One channel before a ReLU: with the weights of a trial it may be off for every record, and
    # then all that comes after it is zero, whose bits are the same everywhere.
    torch.manual_seed(0)
    first = nn.Conv2d(1, 1, 3)
    model = finished((1, *shape), first, squash(), nn.Conv2d(1, channels, size, padding=2))
    check_trusted(model, (1, *shape), seed=1)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(sorted(set(FRONTS) - {"tokens"})),
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=6),
    st.integers(0, 2**32 - 1),
)
@pytest.mark.usefixtures("few_sizes")
def test_no_composition_is_trusted_whose_bits_depend_on_the_place(
    front: str, blocks: list[str], seed: int
) -> None:
    check_trusted(composed(front, blocks, seed), FRONTS[front], seed)


def test_the_bits_of_a_naive_batch_do_change() -> None:
    # So equality of bits is no matter of course: plain autograd of batches of other sizes.
    torch.manual_seed(0)
    differing = 0
    for inputs, hidden in [(13, 21), (9, 13), (100, 31), (784, 64), (784, 10)]:
        model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 3))
        features = torch.rand(33, inputs)
        expected = model(features)
        alike = [torch.equal(model(features[:count]), expected[:count]) for count in (1, 2, 5, 32)]
        differing += not all(alike)
    assert differing


# -- through Opacus' hooks -----------------------------------------------------------------------


class Scaled(nn.Module):
    """A module with a parameter of its own, and a layer inside."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.full(shape, 1.5))

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.scale * self.inner(values)
        return result


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = DPMultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(values, values, values)[0].mean(1))
        return result


class OwnLinear(nn.Linear):
    """A subclass may compute something else, so our rule for its parent is not used."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        return 2 * super().forward(input)


HOOKED: dict[str, tuple[Make, tuple[int, ...]]] = {
    "lstm": (lambda: Recurrent(DPLSTM), (5, 8)),
    "gru": (lambda: Recurrent(DPGRU), (5, 8)),
    "rnn": (lambda: Recurrent(DPRNN), (5, 8)),
    "bare parameter": (lambda: Scaled((3,)), (8,)),
    "parameter that is one number": (lambda: Scaled(()), (8,)),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3)),
        (2, 3, 4, 4),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.Linear(60, 3)),
        (2, 3, 4),
    ),
    "prelu": (lambda: nn.Sequential(nn.Linear(8, 6), nn.PReLU(6), nn.Linear(6, 3)), (8,)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6), nn.Linear(6, 3)), (8,)),
    "subclass": (lambda: nn.Sequential(OwnLinear(8, 6), nn.Tanh(), nn.Linear(6, 3)), (8,)),
    "uneven padding": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 4, padding="same"), nn.Flatten(), nn.Linear(60, 3)),
        (2, 5, 4),
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))),
        (8,),
    ),
}


def a_hooked(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = HOOKED[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(6)
    model, features = make(), torch.rand((5, *shape), generator=generator)
    return model, features, torch.randint(0, 3, (5,), generator=generator)


def all_rows(model: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    parts = per_record(model, torch.float64).parts(features, labels)
    return torch.cat([dense(part) for part in parts], 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", sorted(HOOKED))
def test_what_opacus_knows_has_the_gradients_of_torch_func_and_of_autograd(name: str) -> None:
    model, features, labels = a_hooked(name)
    assert isinstance(per_record(model, torch.float64), Hooked)
    found = all_rows(model, features, labels)
    assert furthest(found, by_torch_func(model, features, labels)) < 1e-12
    assert furthest(found, by_autograd(model, features, labels)) < 1e-12


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", sorted(HOOKED))
def test_the_clipped_sum_of_a_hooked_network_is_exact_again_and_again(name: str) -> None:
    model, features, labels = a_hooked(name)
    expected = by_torch_func(model, features, labels)
    clip = float(expected.norm(dim=1).median())
    total = ClippedSum(model, torch.float64)
    for _ in range(2):  # nothing is left of the last batch
        aimed = clip * (1 - HEADROOM)
        assert relative(total(features, labels, clip), clip_rows(expected, aimed)) < 1e-12
        features, labels = features[:3], labels[:3]
        expected = expected[:3]


def test_attention_of_opacus_is_made_of_native_layers() -> None:
    torch.manual_seed(0)
    model, features = Attending(), torch.rand(5, 4, 8)
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert isinstance(per_record(model, torch.float64), Native)
    found = all_rows(model, features, labels)
    assert furthest(found, by_torch_func(model, features, labels)) < 1e-12


def test_native_rules_and_hooks_agree() -> None:
    for make, shape in [(model_a, (1, 28, 28)), (grouped, (64,)), (Words, (7,))]:
        torch.manual_seed(0)
        model, features = make(), 8 * torch.rand(4, *shape)
        labels = torch.tensor([0, 1, 2, 0])
        hooked = Hooked(model, torch.float64).parts(features, labels)
        rows = torch.cat([dense(part) for part in hooked], 1)
        assert furthest(all_rows(model, features, labels), rows) < 1e-12


def test_one_layer_that_no_rule_covers_sends_the_whole_network_through_the_hooks() -> None:
    native: list[nn.Module] = [nn.Linear(4, 4), nn.LayerNorm(4)]
    assert isinstance(per_record(nn.Sequential(*native), torch.float32), Native)
    assert isinstance(per_record(nn.Sequential(*native, nn.PReLU()), torch.float32), Hooked)


def test_what_neither_covers_is_refused_with_what_to_use() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)))
    with pytest.raises(PlanError) as caught:
        per_record(model, torch.float32)
    assert caught.value.code == "untrainable-model"
    assert "opacus.layers" in str(caught.value.hint)


@pytest.mark.parametrize("kind", [nn.Identity, nn.PReLU])
def test_a_batch_that_failed_leaves_nothing_behind(kind: type[nn.Module]) -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 3), kind())

        def forward(self, values: Tensor) -> Tensor:
            result: Tensor = self.inner(values)
            if bool((values < 0).any()):
                raise ValueError("a negative value")
            return result

    torch.manual_seed(0)
    model, features, labels = Choosy(), torch.rand(3, 4), torch.zeros(3, dtype=torch.long)
    expected = all_rows(model, features, labels)
    ours = per_record(model, torch.float64)
    with pytest.raises(ValueError, match="negative"):
        ours.parts(-features, labels)
    found = torch.cat([dense(part) for part in ours.parts(features, labels)], 1)
    assert torch.equal(found, expected)
