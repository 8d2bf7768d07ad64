"""What cannot be trained record by record is refused by name, with what to use instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from client.training.trainable import check_trainable
from common.errors import PlanError
from tests.client.test_clipping import MODELS, batch, network
from tests.client.test_layers import CASES, Make, Tokens, finished, model_a, model_b
from tests.client.test_per_record import HOOKED, NETWORKS, Attending

Forward = Callable[[Any, Tensor], Tensor]


def refusal(model: nn.Module, *shape: int) -> PlanError:
    """The error, which must say what to do whatever it is about."""
    with pytest.raises(PlanError) as caught:
        check_trainable(model, torch.rand((1, *shape), generator=torch.Generator().manual_seed(1)))
    assert caught.value.code == "untrainable-model"
    assert caught.value.hint
    return caught.value


def around(culprit: nn.Module) -> nn.Module:
    """A network with one bad layer, called 'culprit'."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 8))
    model.add_module("culprit", culprit)
    model.add_module("last", nn.Linear(8, 2))
    return model


class With(nn.Module):
    """A network of one layer, ``fc``, used as ``forward`` says."""

    def __init__(self, forward: Forward, inputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(inputs, 3)
        self._forward = forward

    def forward(self, values: Tensor) -> Tensor:
        return self._forward(self, values)


# -- by name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(8), nn.SyncBatchNorm(8), nn.LazyBatchNorm1d()],
    ids=lambda n: str(n)[:12],
)
def test_a_batch_norm_is_refused_and_a_group_norm_named(norm: nn.Module) -> None:
    kind = type(norm).__name__
    error = refusal(around(norm), 4)
    assert "culprit" in error.message
    assert kind in error.message
    hint = str(error.hint)
    assert "GroupNorm" in hint
    assert "without_batch_norm" in hint
    assert "Lazy" in kind or "GroupNorm(2, 8)" in hint


def test_the_group_norm_that_is_named_fits_the_layer() -> None:
    for channels in (1, 3, 6, 10, 17, 48, 64, 100):
        model = nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels))
        hint = str(refusal(model, 1, 5, 5).hint)
        named = hint.split("GroupNorm(")[1].split(")")[0]
        groups, size = (int(word) for word in named.split(", "))
        assert size == channels
        nn.GroupNorm(groups, size)(torch.rand(1, channels, 3, 3))


@pytest.mark.parametrize(
    "culprit",
    [
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        nn.FeatureAlphaDropout(0.5),
        nn.Dropout1d(0.5),
        nn.RReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_draws_numbers_is_refused_by_name(culprit: nn.Module) -> None:
    error = refusal(around(culprit), 4)
    assert "culprit" in error.message
    assert type(culprit).__name__ in error.message
    assert "random" in error.message


def test_a_layer_that_draws_numbers_for_some_records_only_is_refused() -> None:
    # RReLU draws for negative values: synthetic records in [0, 1) have none.
    torch.manual_seed(0)
    error = refusal(nn.Sequential(nn.RReLU(), nn.Linear(4, 3)), 4)
    assert "RReLU" in error.message


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.InstanceNorm2d])
def test_running_statistics_are_refused(kind: Any) -> None:
    model = nn.Sequential(kind(3, affine=True, track_running_stats=True), nn.Flatten())
    error = refusal(model, 3, *[5] * (1 if kind is nn.InstanceNorm1d else 2))
    assert "'0'" in error.message
    assert "track_running_stats=False" in str(error.hint)


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
def test_a_frozen_parameter_is_refused_by_name(name: str) -> None:
    model = With(lambda self, values: self.fc(values))
    model.get_parameter(name).requires_grad_(False)
    assert name in refusal(model, 4).message


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.body = kind(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(values)[0][:, -1])
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(values, values, values)[0].mean(1))
        return result


@pytest.mark.parametrize(
    ("make", "name", "instead"),
    [
        (lambda: Recurrent(nn.LSTM), "LSTM", "DPLSTM"),
        (lambda: Recurrent(nn.GRU), "GRU", "DPGRU"),
        (lambda: Recurrent(nn.RNN), "RNN", "DPRNN"),
        (Attention, "MultiheadAttention", "DPMultiheadAttention"),
    ],
)
def test_a_layer_that_opacus_has_another_one_for_is_refused_and_that_one_named(
    make: Make, name: str, instead: str
) -> None:
    error = refusal(make(), 5, 4)
    assert "body" in error.message
    assert name in error.message
    assert instead in str(error.hint)


# -- by trying -----------------------------------------------------------------------------------


def noisy(self: Any, values: Tensor) -> Tensor:
    result: Tensor = self.fc(values) + torch.randn(3)
    return result


def dropping(self: Any, values: Tensor) -> Tensor:
    result: Tensor = self.fc(F.dropout(values, 0.5, training=self.training))
    return result


def behind_its_back(self: Any, values: Tensor) -> Tensor:
    return F.linear(values, self.fc.weight, self.fc.bias)


def half_behind_its_back(self: Any, values: Tensor) -> Tensor:
    result: Tensor = self.fc(values) + values @ self.fc.weight.T
    return result


def weights_penalised(self: Any, values: Tensor) -> Tensor:
    result: Tensor = self.fc(values) * self.fc.weight.square().sum()
    return result


def centred(self: Any, values: Tensor) -> Tensor:
    result: Tensor = self.fc(values - values.mean(0))
    return result


def scaled_by_the_batch(self: Any, values: Tensor) -> Tensor:
    result: Tensor = self.fc(values) / values.abs().max()
    return result


def rolled(self: Any, values: Tensor) -> Tensor:
    result: Tensor = self.fc(values.roll(1, 0))
    return result


@pytest.mark.parametrize(
    "forward",
    [
        behind_its_back,
        half_behind_its_back,
        weights_penalised,
    ],
)
def test_a_network_whose_records_have_no_gradient_of_their_own_is_refused(forward: Forward) -> None:
    error = refusal(With(forward), 4)
    assert "fc." in error.message
    assert "gradient of its own" in error.message


@pytest.mark.parametrize("forward", [centred, scaled_by_the_batch, rolled])
def test_a_network_that_looks_across_records_is_refused(forward: Forward) -> None:
    assert "looks across records" in refusal(With(forward), 4).message


@pytest.mark.parametrize("forward", [noisy, dropping])
def test_a_network_that_draws_random_numbers_is_refused(forward: Forward) -> None:
    assert "draws random numbers" in refusal(With(forward), 4).message


def test_positions_taken_for_records_are_refused() -> None:
    def flattened(self: Any, values: Tensor) -> Tensor:
        result: Tensor = self.fc(values.reshape(-1, 4)).view(len(values), -1, 3).sum(1)
        return result

    error = refusal(With(flattened), 5, 4)
    # Whichever check met it first: the hint is what helps.
    assert "first axis" in str(error.hint)


@pytest.mark.parametrize(
    "kind",
    [ValueError, RuntimeError, NotImplementedError, KeyError, AssertionError, ZeroDivisionError],
)
def test_a_network_that_raises_is_refused_with_its_reason(kind: type[Exception]) -> None:
    def failing(self: Any, values: Tensor) -> Tensor:
        raise kind("no such luck")

    assert "no such luck" in refusal(With(failing), 4).message


def test_a_network_that_does_not_fit_its_records_is_refused() -> None:
    assert "cannot be trained" in refusal(With(lambda self, values: self.fc(values)), 5).message


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    def infinite(self: Any, values: Tensor) -> Tensor:
        result: Tensor = self.fc(values) * float("inf")
        return result

    assert "finite" in refusal(With(infinite), 4).message


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: nn.Conv2d(2, 3, 3, padding_mode="circular", padding=1), id="circular"),
        pytest.param(lambda: nn.Conv2d(2, 3, 3, padding_mode="reflect", padding=1), id="reflect"),
        pytest.param(
            lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), id="spectral norm"
        ),
        pytest.param(lambda: nn.Embedding(3, 4, scale_grad_by_freq=True), id="embedding by freq"),
    ],
)
def test_what_opacus_has_another_gradient_for_is_refused_by_name(make: Make) -> None:
    torch.manual_seed(0)
    body = nn.Sequential()
    layer = make()
    if isinstance(layer, nn.Embedding):
        body.add_module("tokens", Tokens(1))
    body.add_module("culprit", layer)
    features = torch.zeros(1, 2, 6, 5)
    width = body(features).numel()
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(width, 3))
    assert "culprit" in refusal(model, 2, 6, 5).message


# -- what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_built_in_networks_are_accepted(name: str) -> None:
    check_trainable(network(name), batch(name, records=1)[0])


@pytest.mark.parametrize(("shape", "make"), CASES[:: max(1, len(CASES) // 25)])
def test_native_layers_are_accepted(shape: tuple[int, ...], make: Make) -> None:
    torch.manual_seed(0)
    check_trainable(finished(shape, make()), torch.zeros(1, *shape))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", sorted(HOOKED))
def test_what_opacus_knows_is_accepted(name: str) -> None:
    make, shape = HOOKED[name]
    torch.manual_seed(0)
    check_trainable(make(), torch.rand(1, *shape))


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"A", "B"}))
def test_networks_of_each_kind_are_accepted(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    check_trainable(make(), torch.rand(1, *shape))


@pytest.mark.parametrize("make", [model_a, model_b])
def test_the_networks_of_the_papers_are_accepted(make: Make) -> None:
    check_trainable(make(), torch.rand(1, 1, 28, 28))


def test_a_dropout_that_drops_nothing_is_accepted() -> None:
    # opacus.layers.DPMultiheadAttention holds one.
    torch.manual_seed(0)
    check_trainable(Attending(), torch.rand(1, 4, 8))
    check_trainable(around(nn.Dropout(0.0)), torch.rand(1, 4))


def test_the_check_leaves_the_network_as_it_was() -> None:
    model = network("cnn").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_trainable(model, batch("cnn", records=1)[0])
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
