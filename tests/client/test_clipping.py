"""The clipped sum is what the papers say, and one record moves it by at most C, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.training import clipping
from client.training.clipping import check_trainable, clipped_sum
from common.data.schema import Schema
from common.errors import PlanError
from common.models.registry import build

IMAGE = Schema(kind="image", shape=(1, 8, 8), classes=tuple("0123456789"))
MODELS = ("softmax", "mlp", "cnn")


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


def clip_rows(gradients: Tensor, clip: float) -> Tensor:
    """The definition: each row scaled to a norm of at most C, then summed. (B, P) -> (P,)."""
    norms = gradients.norm(dim=1)
    return (gradients * (clip / norms).clamp_max(1.0)[:, None]).sum(0)


def by_torch_func(model: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Per-record gradients (B, P), float64, by ``torch.func``."""
    parameters = {name: value.detach().double() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, values, (record[None],))
        return nn.functional.cross_entropy(logits, label[None])

    per_record = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, features.double(), labels)
    return torch.cat([per_record[name].reshape(len(labels), -1) for name in parameters], 1)


def by_opacus(model: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Per-record gradients (B, P), float64, by hooks of Opacus, which shares no code."""
    wrapped = GradSampleModule(model.double(), loss_reduction="sum")
    loss = nn.functional.cross_entropy(wrapped(features.double()), labels, reduction="sum")
    loss.backward()
    rows = [p.grad_sample.flatten(1) for p in wrapped.parameters()]  # type: ignore[union-attr]
    return torch.cat(rows, dim=1).detach()


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_per_record_gradients_by_torch_func(name: str, clip: float) -> None:
    model, (features, labels) = network(name), batch(name)
    total = clipped_sum(model)(features, labels, clip)
    assert total.dtype == torch.float64
    expected = clip_rows(by_torch_func(model, features, labels), clip)
    # Its clip aims 1e-5 below C on purpose.
    assert relative(total, expected) < 2.1e-5
    assert relative(total / (1 - clipping.HEADROOM * (clip < 10)), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_per_record_gradients_by_opacus(name: str) -> None:
    features, labels = batch(name)
    total = clipped_sum(network(name))(features, labels, 0.5)
    expected = clip_rows(by_opacus(network(name), features, labels), 0.5)
    assert relative(total / (1 - clipping.HEADROOM), expected) < 1e-5


def test_the_closed_form_equals_the_general_path() -> None:
    model, (features, labels) = network("softmax"), batch("softmax")
    closed = clipping._linear(model, features, labels, 0.3)  # type: ignore[arg-type]
    assert clipping._only_linear(model) is model
    assert relative(closed, clipping._general(model, features, labels, 0.3)) < 1e-5


def test_a_linear_layer_without_bias_has_its_own_closed_form() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    features, labels = batch("softmax")
    total = clipped_sum(model)(features, labels, 0.5)
    expected = clip_rows(by_torch_func(model, features, labels), 0.5)
    assert relative(total, expected) < 2.1e-5


def test_a_container_with_a_forward_of_its_own_is_not_taken_for_its_layers() -> None:
    class Scaled(nn.Sequential):
        def forward(self, value: Tensor) -> Tensor:
            result: Tensor = 3 * super().forward(value)
            return result

    model, (features, labels) = Scaled(nn.Linear(64, 10)), batch("softmax")
    total = clipped_sum(model)(features, labels, 1e6)
    assert relative(total, clip_rows(by_torch_func(model, features, labels), 1e6)) < 1e-5


def test_a_parameter_that_is_one_number_is_trained_like_any_other() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, value: Tensor) -> Tensor:
            result: Tensor = self.scale * self.layer(value)
            return result

    model, (features, labels) = Scaled(), batch("softmax")
    total = clipped_sum(model)(features, labels, 0.5)
    assert relative(total, clip_rows(by_torch_func(model, features, labels), 0.5)) < 2.1e-5


# -- sensitivity ---------------------------------------------------------------------------------

# Gradient scales, and inputs for which float32 overflows or has no value at all.
SCALES = (0.0, 1e-20, 0.1, 1.0, 10.0, 1e3, 1e6, 1e18, 3e38)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip", [1e-12, 0.01, 1.0, 100.0])
def test_one_record_moves_the_sum_by_at_most_c(name: str, clip: float) -> None:
    total = clipped_sum(network(name))
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
    clean = clipped_sum(network(name))(features[1:], labels[1:], 1.0)
    features[0].view(-1)[0 if cells == "one" else slice(None)] = value
    total = clipped_sum(network(name))(features, labels, 1.0)
    assert torch.isfinite(total).all()
    assert float((total - clean).norm()) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_finite_gives_zero_for_every_record(name: str) -> None:
    model, (features, labels) = network(name), batch(name)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert not clipped_sum(model)(features, labels, 1.0).any()


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_thousands_of_aligned_records_do_not_carry_one_records_change_above_c(name: str) -> None:
    # All gradients point one way, so rounding of a float32 sum adds up: it reached 1.00007 C.
    total = clipped_sum(network(name))
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
        total = clipped_sum(network("softmax"))(features, labels, clip)
        assert float(total.norm()) <= records * clip


# -- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_gives_zeros(name: str) -> None:
    features, labels = batch(name, records=0)
    model = network(name)
    total = clipped_sum(model)(features, labels, 1.0)
    assert total.shape == (sum(p.numel() for p in model.parameters()),)
    assert not total.any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 5, 23, 24, 1000])
def test_micro_batches_do_not_change_the_sum(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = batch(name)
    whole = clipped_sum(network(name))(features, labels, 0.5)
    size = sum(p.numel() for p in network(name).parameters())
    monkeypatch.setattr(clipping, "MAX_LINEAR_RECORDS", chunk)
    monkeypatch.setattr(clipping, "MAX_GRADIENT_FLOATS", chunk * size)
    assert relative(clipped_sum(network(name))(features, labels, 0.5), whole) < 1e-6


# -- what cannot be trained record by record -----------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.BatchNorm1d(8), "BatchNorm1d"),
        (nn.SyncBatchNorm(8), "SyncBatchNorm"),
        (nn.LazyBatchNorm1d(), "BatchNorm"),
        (nn.Dropout(0.5), "Dropout"),
        (nn.AlphaDropout(0.5), "AlphaDropout"),
    ],
)
def test_a_layer_that_mixes_records_or_draws_numbers_is_refused_by_name(
    layer: nn.Module, word: str
) -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 8))
    model.add_module("culprit", layer)
    model.add_module("last", nn.Linear(8, 2))
    with pytest.raises(PlanError, match="culprit") as caught:
        check_trainable(model, torch.zeros(1, 4))
    assert caught.value.code == "untrainable-model"
    assert word in caught.value.message
    assert caught.value.hint


def test_a_model_with_random_numbers_in_its_forward_pass_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, value: Tensor) -> Tensor:
            result: Tensor = self.layer(value) + torch.randn(2)
            return result

    with pytest.raises(PlanError, match="example by example"):
        check_trainable(Noisy(), torch.zeros(1, 4))


@pytest.mark.parametrize("name", MODELS)
def test_built_in_networks_can_be_trained(name: str) -> None:
    check_trainable(network(name), batch(name, records=1)[0])
