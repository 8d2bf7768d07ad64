"""Networks and weights that were made to move the clipped sum by more than C; they do not.

Each attack moved an earlier engine by the factor that its test names.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from client.training import invariance
from client.training.clipping import ClippedSum
from client.training.invariance import ALONE, SIZES
from client.training.loops import FINEST, LOOP
from client.training.trainable import check_trainable
from common.errors import PlanError

ROUNDING = 1e-9


def change(total: ClippedSum, features: Tensor, removed: int) -> float:
    """How far one record moves the sum, at C = 1 and with label 0."""
    rest = torch.arange(len(features)) != removed
    labels = torch.zeros(len(features), dtype=torch.long)
    whole = total(features, labels, 1.0)
    return float((whole - total(features[rest], labels[rest], 1.0)).norm())


def one_bit_into_a_class(activation: nn.Module, width: int) -> tuple[nn.Sequential, float]:
    """Weights that turn one bit of an activation into another class, and the value for it.

    The vector formula and the scalar one differ in it where they differ at all; where they do not,
    it still is an attack, if a blunt one.

    Args:
        activation: elementwise.
        width: values a record has there, of which one counts.
    """
    values = torch.linspace(-3, 3, 4000)
    vector = activation(values)
    scalar = torch.stack([activation(value[None])[0] for value in values])
    differing = (vector != scalar).nonzero().flatten()
    place = int(differing[0]) if len(differing) else 0
    low, high = sorted((float(vector[place]), float(scalar[place])))
    network = nn.Sequential(
        nn.Linear(6 + width, width), activation, nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    first, _, second, _, last = network
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        first.weight[-1, 0] = 1
        second.weight[:, -1] = 1e4
        second.bias.fill_(-low * 1e4)
        last.weight[1] = 1e4
        last.bias[0] = (high - low) * 8e8
    return network, float(values[place])


def changes(total: ClippedSum, features: int, value: float) -> list[float]:
    """What one record moves the sum by, in batches of as many records as sizes break at."""
    found = []
    for records in (1, 2, 8, 9, 17, 25, 33, 40, 41, 57):
        batch = torch.zeros(records, features)
        batch[:, 0] = value
        found += [change(total, batch, removed) for removed in {0, records - 1}]
    return found


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ELU, nn.Sigmoid, nn.Softplus, nn.Mish, nn.GELU])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_the_scalar_end_of_a_vector_loop_rounds_no_records_activation_otherwise(
    activation: type[nn.Module], width: int
) -> None:
    """12 C for nine records of one value each; with an even number, batches go in finer steps."""
    network, value = one_bit_into_a_class(activation(), width)
    total = ClippedSum(network, batch=64)
    assert max(changes(total, 6 + width, value)) <= 1 + ROUNDING
    whole = all(size % LOOP == 0 for size in total._sizes)
    assert whole == (width % 2 == 1)


def test_the_same_attack_succeeds_if_steps_are_finer_than_loops_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So the test above would show it. That trying all sizes does not, is why the rule is needed.
    monkeypatch.setattr(invariance, "step", lambda *_: FINEST)
    network, value = one_bit_into_a_class(nn.SiLU(), 1)
    total = ClippedSum(network, batch=64)
    found = changes(total, 7, value)
    assert LOOP + FINEST in total._sizes
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert max(found) > 1.5


class MixedWords(nn.Module):
    """The largest hidden value of the batch is added to each: invisible among equal records."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.output = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.words(values.long()).mean(1)
        result: Tensor = self.output(hidden + hidden.detach().amax(0, keepdim=True))
        return result


class WrongAxis(nn.Module):
    """Attention over the batch, as with a forgotten ``batch_first``."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.query, self.output = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.words(values.long())
        scores = torch.einsum("btd,ctd->tbc", self.query(hidden), hidden)
        mixed = torch.einsum("tbc,ctd->btd", torch.softmax(scores, -1), hidden)
        result: Tensor = self.output(mixed.mean(1))
        return result


@pytest.mark.parametrize("network", [MixedWords, WrongAxis])
def test_words_that_are_mixed_are_refused_though_a_blank_example_hides_it(
    network: type[nn.Module],
) -> None:
    """63 C in a batch of 64."""
    with pytest.raises(PlanError, match="records"):
        check_trainable(network(), torch.zeros(1, 6))
    total = ClippedSum(network())
    generator = torch.Generator().manual_seed(1)
    features = torch.randint(50, (30, 6), generator=generator).float()
    assert change(total, features, 7) <= 1 + ROUNDING
    assert total._sizes == ALONE


class Blind(nn.Module):
    """Reads nothing of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(4, 2)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.output(torch.zeros_like(values))
        return result


def test_a_network_that_tells_no_records_apart_is_refused_since_nothing_was_tried() -> None:
    with pytest.raises(PlanError, match="same logits"):
        check_trainable(Blind(), torch.zeros(1, 4))


class Bins(nn.Module):
    """Cuts [-1, 1] into ten bins, and forgot the upper end."""

    def __init__(self) -> None:
        super().__init__()
        self.bins, self.output = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.output(self.bins(((values + 1) / 2 * 10).long()).mean(1))
        return result


@pytest.mark.parametrize("culprit", [1.0, float("nan"), -7.0])
def test_a_record_that_the_network_cannot_take_counts_as_zero_and_costs_no_other(
    culprit: float, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to discard the whole round: 29 C."""
    network = Bins()
    check_trainable(network, torch.zeros(1, 6))
    features = torch.rand(50, 6, generator=torch.Generator().manual_seed(2)) * 1.9 - 1
    total = ClippedSum(network)
    labels = torch.zeros(50, dtype=torch.long)
    clean = total(features, labels, 1.0)
    with caplog.at_level(logging.DEBUG, "privet.client"):
        more = torch.cat([features[:20], torch.full((1, 6), culprit), features[20:]])
        whole = total(more, torch.zeros(51, dtype=torch.long), 1.0)
    assert float(clean.norm()) > 10
    assert float((whole - clean).norm()) < ROUNDING
    assert "counts as zero" in caplog.text


def test_two_threads_are_not_used_since_they_cut_loops_anywhere() -> None:
    """Of 600 batches 54 had other bits, in float64."""
    network = nn.Sequential(nn.Linear(8, 1025), nn.ELU(), nn.Linear(1025, 2))
    features = torch.rand(64, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    labels = torch.zeros(64, dtype=torch.long)
    before = torch.get_num_threads()
    alone = ClippedSum(network)(features, labels, 1.0)
    try:
        torch.set_num_threads(2)
        together = ClippedSum(network)(features, labels, 1.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


class Gated(nn.Module):
    """A use behind the layer's back that the author's own first weights multiply by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.output, self.gate = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        nn.init.zeros_(self.gate.weight)

    def forward(self, values: Tensor) -> Tensor:
        behind = nn.functional.linear(values, self.shared.weight)
        result: Tensor = self.output(self.shared(values)) + self.gate(behind)
        return result


def test_weights_that_hide_a_use_behind_a_layers_back_do_not_get_it_accepted() -> None:
    torch.manual_seed(0)
    with pytest.raises(PlanError, match=r"shared\.weight"):
        check_trainable(Gated(), torch.zeros(1, 5))


def test_patches_of_grouped_convolutions_count_towards_the_memory_bound() -> None:
    network = nn.Sequential(
        nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    total = ClippedSum(network, batch=256)
    total(torch.rand(1, 64, 16, 16), torch.zeros(1, dtype=torch.long), 1.0)
    # A record holds 256 positions of 49 x 64 values.
    assert total._sizes[-1] <= max(SIZES[0], 2**24 // (256 * 49 * 64))
