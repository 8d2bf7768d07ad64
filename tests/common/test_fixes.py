"""A network with batch norms becomes one that can be trained record by record."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from client.training.trainable import check_trainable
from common.errors import PlanError
from common.models.fixes import instead_of, without_batch_norm


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.tanh(self.norm(self.convolution(values)))


def network() -> nn.Module:
    head = nn.Sequential(nn.Flatten(), nn.Linear(48 * 16, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    return nn.Sequential(nn.Conv2d(1, 48, 3, padding=1), Block(48), head)


def test_every_batch_norm_is_replaced_wherever_it_is() -> None:
    fixed = without_batch_norm(network())
    assert not [m for m in fixed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [(m.num_groups, m.num_channels) for m in fixed.modules() if isinstance(m, nn.GroupNorm)]
    assert norms == [(8, 48), (2, 8)]
    check_trainable(fixed, torch.zeros(1, 1, 4, 4))


def test_weights_are_kept_and_a_norm_without_them_stays_without() -> None:
    one, other = nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False)
    with torch.no_grad():
        one.weight.copy_(torch.arange(6.0))
    fixed = without_batch_norm(nn.Sequential(one, other))
    assert fixed[0].weight is one.weight  # type: ignore[index]
    assert fixed[1].weight is None  # type: ignore[index]


def test_a_network_without_one_stays_what_it_is() -> None:
    plain = nn.Sequential(nn.Linear(2, 3), nn.GroupNorm(1, 3))
    layers = list(plain)
    assert list(without_batch_norm(plain)) == layers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("norm", "words"),
    [(nn.BatchNorm2d(48), "GroupNorm(8, 48)"), (nn.LazyBatchNorm1d(), "GroupNorm instead of")],
)
def test_advice_names_the_replacement(norm: nn.Module, words: str) -> None:
    assert words in instead_of(norm)  # type: ignore[arg-type]


def test_a_norm_with_two_names_is_replaced_under_both() -> None:
    norm = nn.BatchNorm2d(8)
    fixed = without_batch_norm(nn.Sequential(nn.Conv2d(1, 8, 1), norm, nn.Conv2d(8, 8, 1), norm))
    assert isinstance(fixed[1], nn.GroupNorm)  # type: ignore[index]
    assert fixed[1] is fixed[3]  # type: ignore[index]


@pytest.mark.parametrize("norm", [nn.LazyBatchNorm1d(), nn.BatchNorm1d(1)])
def test_a_norm_that_no_group_norm_can_stand_in_for_is_refused(norm: nn.Module) -> None:
    with pytest.raises(PlanError, match="no group norm") as caught:
        without_batch_norm(nn.Sequential(nn.Linear(4, 1), norm))
    assert caught.value.hint
