"""The clipped sum is what the papers say, and one record moves it by at most C, whatever it is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.training import invariance
from client.training.clipping import HEADROOM, SIZES, ClippedSum, micro_batches
from client.training.loops import LOOP
from client.training.parts import Part
from client.training.per_record import PerRecord
from common.data.schema import Schema
from common.models.registry import build

IMAGE = Schema(kind="image", shape=(1, 8, 8), classes=tuple("0123456789"))
MODELS = ("softmax", "mlp", "cnn")
PRECISIONS = (None, torch.float64)


def network(name: str, seed: int = 3) -> nn.Module:
    """A built-in network with parameters that are nowhere zero."""
    model = build(name, IMAGE, seed=seed).network
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(name: str, records: int = 24, scale: float = 1.0, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 8, 8) if name == "cnn" else (64,)
    features = scale * torch.rand((records, *shape), generator=generator)
    return features, torch.randint(0, 10, (records,), generator=generator)


# -- the definition, by libraries that share no code with ours ------------------------------------


def clip_rows(gradients: Tensor, clip: float) -> Tensor:
    """The definition: each row scaled to a norm of at most C, then summed. (B, P) -> (P,)."""
    gradients = gradients.double()
    norms = gradients.norm(dim=1)
    return (gradients * (clip / norms).clamp_max(1.0)[:, None]).sum(0)


def by_torch_func(
    model: nn.Module, features: Tensor, labels: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Per-record gradients (B, P) by ``torch.func``."""
    parameters = {name: value.detach().to(dtype) for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, values, (record[None],))
        return nn.functional.cross_entropy(logits, label[None])

    per_record = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, features.to(dtype), labels)
    return torch.cat([per_record[name].reshape(len(labels), -1) for name in parameters], 1)


def by_opacus(model: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Per-record gradients (B, P), float64, by hooks of Opacus."""
    wrapped = GradSampleModule(model.double(), loss_reduction="sum")
    loss = nn.functional.cross_entropy(wrapped(features.double()), labels, reduction="sum")
    loss.backward()
    rows = [p.grad_sample.flatten(1) for p in wrapped.parameters()]  # type: ignore[union-attr]
    return torch.cat(rows, dim=1).detach()


def by_autograd(model: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Per-record gradients (B, P), float64, by one backward pass for each record."""
    model, rows = model.double(), []
    for record, label in zip(features.double().split(1), labels.split(1), strict=True):
        loss = nn.functional.cross_entropy(model(record), label)
        found = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_per_record_gradients_by_torch_func(name: str, clip: float) -> None:
    model, (features, labels) = network(name), batch(name)
    total = ClippedSum(model)(features, labels, clip)
    assert total.dtype == torch.float64
    expected = clip_rows(by_torch_func(model, features, labels), clip)
    # Its clip aims HEADROOM below C on purpose: every record of these is above 0.05, none above 10.
    assert relative(total, expected) < 2.1e-6
    if clip != 1.0:
        assert relative(total / (1 - HEADROOM * (clip < 1)), expected) < 1e-6


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_per_record_gradients_by_opacus(name: str) -> None:
    features, labels = batch(name)
    total = ClippedSum(network(name))(features, labels, 0.05)
    expected = clip_rows(by_opacus(network(name), features, labels), 0.05)
    assert relative(total / (1 - HEADROOM), expected) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_in_float64_it_is_exact(name: str) -> None:
    features, labels = batch(name)
    total = ClippedSum(network(name), precision=torch.float64)(features, labels, 0.05)
    expected = clip_rows(by_torch_func(network(name), features, labels), 0.05)
    assert relative(total / (1 - HEADROOM), expected) < 1e-12


def test_a_container_with_a_forward_of_its_own_is_not_taken_for_its_layers() -> None:
    class Scaled(nn.Sequential):
        def forward(self, value: Tensor) -> Tensor:
            result: Tensor = 3 * super().forward(value)
            return result

    model, (features, labels) = Scaled(nn.Linear(64, 10)), batch("softmax")
    total = ClippedSum(model)(features, labels, 1e6)
    assert relative(total, clip_rows(by_torch_func(model, features, labels), 1e6)) < 1e-6


def test_the_networks_weights_are_those_that_were_loaded_last() -> None:
    model, other, (features, labels) = network("mlp"), network("mlp", seed=4), batch("mlp")
    weights = [
        torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (model, other)
    ]
    total = ClippedSum(model)
    first = total(features, labels, 1.0)
    total.load(weights[1].double())
    assert torch.equal(total(features, labels, 1.0), ClippedSum(other)(features, labels, 1.0))
    total.load(weights[0].double())
    assert torch.equal(total(features, labels, 1.0), first)
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), weights[0])


# -- sensitivity ---------------------------------------------------------------------------------

# Gradient scales, and inputs for which float32 overflows or has no value at all.
SCALES = (0.0, 1e-20, 0.1, 1.0, 10.0, 1e3, 1e6, 1e18, 3e38)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip", [1e-12, 0.01, 1.0, 100.0])
def test_one_record_moves_the_sum_by_at_most_c(
    name: str, clip: float, precision: torch.dtype | None
) -> None:
    total = ClippedSum(network(name), precision)
    for position, scale in enumerate(SCALES):
        features, labels = batch(name, records=9, seed=position)
        features[3] *= scale
        whole = total(features, labels, clip)
        for removed in (0, 3, 8):
            rest = torch.arange(9) != removed
            change = whole - total(features[rest], labels[rest], clip)
            assert float(change.norm()) <= clip, (scale, removed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("cells", ["one", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_a_record_that_is_not_finite_counts_as_zero(name: str, cells: str, value: float) -> None:
    features, labels = batch(name, records=6)
    clean = ClippedSum(network(name))(features[1:], labels[1:], 1.0)
    features[0].view(-1)[0 if cells == "one" else slice(None)] = value
    total = ClippedSum(network(name))(features, labels, 1.0)
    assert torch.isfinite(total).all()
    assert float((total - clean).norm()) < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_finite_gives_zero_for_every_record(name: str) -> None:
    model, (features, labels) = network(name), batch(name)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert not ClippedSum(model)(features, labels, 1.0).any()


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_thousands_of_aligned_records_do_not_carry_one_records_change_above_c(name: str) -> None:
    # All gradients point one way, so rounding of a float32 sum adds up: it reached 1.00007 C.
    total = ClippedSum(network(name))
    generator = torch.Generator().manual_seed(0)
    centre = 100 * torch.randn(64, generator=generator)
    features = centre + torch.randn((4099, 64), generator=generator)
    labels = torch.zeros(4099, dtype=torch.long)
    whole = total(features, labels, 1e-3)
    for removed in (0, 2000, 4098):
        rest = torch.arange(4099) != removed
        assert float((whole - total(features[rest], labels[rest], 1e-3)).norm()) <= 1e-3


def test_no_sum_is_longer_than_its_records_allow() -> None:
    generator = np.random.default_rng(8)
    for _ in range(40):
        records, clip = int(generator.integers(1, 40)), float(10 ** generator.uniform(-3, 3))
        scale = float(10 ** generator.uniform(-1, 6))
        features, labels = batch("softmax", records, scale, int(generator.integers(1000)))
        total = ClippedSum(network("softmax"))(features, labels, clip)
        assert float(total.norm()) <= records * clip


# The guard lets no weight above this through (client/guard.py).
GREATEST_WEIGHT = 1e4


def two_logits_that_only_rounding_tells_apart(inputs: int, hidden: int) -> nn.Module:
    """A server's hostile weights: in real arithmetic, logits 0 and 1 are always equal.

    Both sum the same hidden values, held twice, but in other places of the sum. The logits are so
    large that their last bits are worth many units: they alone say which class wins, for every
    record of the batch. A record of class 2 then adds C in one of two directions.
    """
    generator = torch.Generator().manual_seed(0)
    half = hidden // 2
    model = nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 3),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight.copy_(torch.rand(hidden, inputs, generator=generator))  # type: ignore[operator]
        twice = torch.rand(half, hidden, generator=generator)
        model[2].weight[: 2 * half] = twice.repeat(2, 1)  # type: ignore[index]
        last = torch.rand(half, generator=generator)
        model[4].weight[0, :half] = model[4].weight[1, half : 2 * half] = last  # type: ignore[index]
        for parameter in model.parameters():
            parameter.mul_(GREATEST_WEIGHT)
    return model


def greatest_change(total: ClippedSum, features: Tensor, labels: Tensor, clip: float) -> float:
    """What one record moves the sum by, at most, of a few: 1.0 is C."""
    whole, records = total(features, labels, clip), torch.arange(len(labels))
    changes = []
    for removed in (0, 3, len(labels) // 2, len(labels) - 1):
        rest = records != removed
        changes.append(float((whole - total(features[rest], labels[rest], clip)).norm()) / clip)
    return max(changes)


@pytest.mark.parametrize("records", [9, 33, 70])
@pytest.mark.parametrize(("inputs", "hidden"), [(64, 32), (784, 32), (13, 21), (100, 31)])
def test_hostile_weights_cannot_turn_rounding_into_more_than_c(
    inputs: int, hidden: int, records: int
) -> None:
    features = torch.rand((records, inputs), generator=torch.Generator().manual_seed(1))
    labels = torch.full((records,), 2)
    total = ClippedSum(two_logits_that_only_rounding_tells_apart(inputs, hidden))
    change = greatest_change(total, features, labels, 1.0)
    assert change <= 1.0, total.precision


def naive_sum(model: nn.Module, features: Tensor, labels: Tensor, clip: float) -> Tensor:
    """What anybody would write: float32, the whole batch at once, in whatever size it has."""
    return clip_rows(by_torch_func(model, features, labels, torch.float32), clip)


def test_the_same_weights_move_a_naive_float32_sum_by_more_than_c() -> None:
    # So the test above would show an engine without the rule. One of a few shapes is enough: on
    # which of them a library's kernels round by the batch's size, is the machine's affair.
    changes = []
    for inputs, hidden in [(13, 21), (9, 13), (100, 31), (63, 33), (3969, 10)]:
        model = two_logits_that_only_rounding_tells_apart(inputs, hidden)
        features = torch.rand((33, inputs), generator=torch.Generator().manual_seed(1))
        labels = torch.full((33,), 2)
        rest = torch.arange(33) != 3
        whole = naive_sum(model, features, labels, 1.0)
        changes.append(float((whole - naive_sum(model, features[rest], labels[rest], 1.0)).norm()))
    assert max(changes) > 1.5


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e4])
@pytest.mark.parametrize("name", MODELS)
def test_hostile_scales_of_the_weights_do_not_carry_one_records_change_above_c(
    name: str, scale: float
) -> None:
    model, (features, labels) = network(name), batch(name, records=33)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    assert greatest_change(ClippedSum(model), features, labels, 0.1) <= 1.0


@pytest.mark.parametrize("offset", [1, 2, 4, 5])
@pytest.mark.parametrize("classes", [3, 10])
def test_where_the_features_lie_in_memory_does_not_change_the_sum(
    offset: int, classes: int
) -> None:
    # Kernels may choose by alignment: a slice of a larger tensor begins anywhere.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 3), nn.Tanh(), nn.Linear(3, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    features, labels = torch.rand(64, 12), torch.randint(0, classes, (64,))
    memory = torch.zeros(64 * 12 + offset)
    moved = memory[offset:].view(64, 12)
    moved.copy_(features)
    total = ClippedSum(model)
    assert torch.equal(total(moved, labels, 1.0), total(features, labels, 1.0))


# -- which precision -----------------------------------------------------------------------------


class Leaking(nn.Module):
    """A layer that lets a trace of the whole batch into each record."""

    def forward(self, values: Tensor) -> Tensor:
        return values * (1 + 1e-6 * values.mean(0))


def test_a_network_with_the_same_bits_in_every_batch_runs_in_float32() -> None:
    # As wide as every vector unit: if this one needs float64, nothing here would run in float32.
    torch.manual_seed(0)
    total = ClippedSum(nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16)))
    total(torch.rand(9, 64), torch.zeros(9, dtype=torch.long), 1.0)
    assert total.precision == torch.float32


def test_a_network_whose_records_are_not_alike_in_any_batch_computes_each_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), Leaking(), nn.Linear(32, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    total, labels = ClippedSum(model), torch.zeros(33, dtype=torch.long)
    assert greatest_change(total, torch.rand(33, 64), labels, 1.0) <= 1.0
    assert total.precision == torch.float64


def test_kernels_that_round_by_the_batchs_size_send_a_network_to_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A fake: a hidden layer whose last bit depends on how many records there are.
    class Rounding(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values * (1 + 2e-7 * (len(values) > SIZES[0]))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), Rounding(), nn.Linear(32, 16))
    records = torch.rand(9, 64), torch.zeros(9, dtype=torch.long)
    total = ClippedSum(model)
    total(*records, 1.0)
    assert total.precision == torch.float64
    # Where memory allows the least size only, there is nothing to tell them apart.
    monkeypatch.setattr(invariance, "MAX_FLOATS", 1)
    total = ClippedSum(model)
    total(*records, 1.0)
    assert total.precision == torch.float32


def test_whatever_was_tried_leaves_the_weights_as_they_were() -> None:
    model, (features, labels) = network("mlp"), batch("mlp")
    before = [parameter.clone() for parameter in model.parameters()]
    total = ClippedSum(model)
    first = total(features, labels, 0.5)
    assert torch.equal(total(features, labels, 0.5), first)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# -- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_gives_zeros(name: str) -> None:
    features, labels = batch(name, records=0)
    model = network(name)
    total = ClippedSum(model)(features, labels, 1.0)
    assert total.shape == (sum(p.numel() for p in model.parameters()),)
    assert not total.any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("records", [1, 7, 24, 70])
def test_micro_batches_do_not_change_the_sum(
    name: str, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = batch(name, records)
    whole = ClippedSum(network(name))(features, labels, 0.5)
    monkeypatch.setattr(invariance, "MAX_FLOATS", 1)  # the least size only
    # Each record's gradient has the same bits; only the order of float64 sums differs.
    assert relative(ClippedSum(network(name))(features, labels, 0.5), whole) < 1e-12


def sizes_up_to(most: int) -> tuple[int, ...]:
    return tuple(size for size in SIZES if size <= most)


ALLOWED = st.sampled_from(SIZES).map(sizes_up_to)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 5000), ALLOWED)
def test_micro_batches_cover_each_record_once_in_sizes_that_were_tried(
    records: int, sizes: tuple[int, ...]
) -> None:
    cuts = list(micro_batches(records, sizes))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == records
    assert all(one[1] == other[0] for one, other in pairwise(cuts))
    assert all(0 < end - start <= size for start, end, size in cuts)
    assert {size for *_, size in cuts} <= set(sizes)
    # Only the last is padded, so a record is never far from a place that was tried.
    assert all(end - start == size for start, end, size in cuts[:-1])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 5000), ALLOWED)
def test_padding_is_less_than_one_more_micro_batch(records: int, sizes: tuple[int, ...]) -> None:
    start, end, size = list(micro_batches(records, sizes))[-1]
    assert size - (end - start) < max(SIZES[0], (end - start) // 4)


def test_no_records_need_no_micro_batch() -> None:
    assert not list(micro_batches(0, SIZES))


def sizes_in_use(
    model: nn.Module, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[set[int], int]:
    """How many records were computed at once, and how many values one holds."""
    seen: set[int] = set()
    right = PerRecord.parts

    def noting(self: PerRecord, features: Tensor, labels: Tensor) -> list[Part]:
        seen.add(len(labels))
        return right(self, features, labels)

    monkeypatch.setattr(PerRecord, "parts", noting)
    labels = torch.zeros(len(features), dtype=torch.long)
    total = ClippedSum(model)
    total(features, labels, 1.0)
    floats = total._gradients.floats(features[:1])
    return seen - {1, LOOP // 2}, floats  # so few were only measured


def test_values_held_at_once_are_bounded_whatever_the_batch_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 400_000
    monkeypatch.setattr(invariance, "MAX_FLOATS", most)
    seen, floats = sizes_in_use(network("cnn"), batch("cnn", 600)[0], monkeypatch)
    assert SIZES[0] < max(seen) < 512  # the bound was met between least and greatest
    assert max(seen) * floats <= most


def test_the_smallest_micro_batch_is_used_even_where_it_holds_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invariance, "MAX_FLOATS", 1)
    seen, _ = sizes_in_use(network("cnn"), batch("cnn", 20)[0], monkeypatch)
    assert seen == {SIZES[0]}
