"""What a round is, besides private: the paper's algorithm, repeatable, and without side effects.

That its noise, clipping and sampling are what a plan says: ``test_conformance.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training import Engine
from client.training.clipping import ClippedSum
from common.data.schema import Schema
from common.models.networks import parameters_of
from common.models.registry import build
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream

IMAGE = Schema(kind="image", shape=(1, 8, 8), classes=tuple("0123456789"))
PRIVACY = Privacy(
    trust="local",
    sampling_rate=0.4,
    noise_multiplier=1.5,
    clipping_norm=0.7,
    steps=3,
    divisor=20.0,
    delta=1e-5,
)
PLAIN = Optimizer(learning_rate=0.25)

Update = dict[str, NDArray[np.float32]]


def network() -> nn.Module:
    return build("mlp", IMAGE, seed=4).network


def records(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    features = torch.rand((count, 64), generator=generator)
    return features, torch.randint(0, 10, (count,), generator=generator)


def one_round(stream: Stream, data: tuple[Tensor, Tensor], optimizer: Optimizer = PLAIN) -> Update:
    return Engine(network(), PRIVACY, optimizer).round(parameters_of(network()), *data, stream)


def flat(update: Update) -> NDArray[np.float64]:
    return np.concatenate([value.ravel() for value in update.values()]).astype(np.float64)


def test_a_round_is_algorithm_one_of_abadi_et_al() -> None:
    """Computed a second time from the paper, with momentum, by code that shares only the parts."""
    optimizer = Optimizer(learning_rate=0.25, momentum=0.9)
    features, labels = records(30)
    update = one_round(Stream.simulated(8), (features, labels), optimizer=optimizer)

    model, stream = network(), Stream.simulated(8)
    begin = flat(parameters_of(model))
    weights, velocity = begin.copy(), np.zeros_like(begin)
    for _ in range(PRIVACY.steps):
        nn.utils.vector_to_parameters(torch.from_numpy(weights).float(), model.parameters())
        chosen = stream.integers(30) < np.uint64(int(0.4 * 2**64))
        total = ClippedSum(model)(features[chosen], labels[chosen], 0.7)
        noise = 1.5 * 0.7 * stream.gaussian(begin.size)
        grid = 0.7 / 2**20
        velocity = 0.9 * velocity + np.rint((total.numpy() + noise) / grid) * grid / 20
        weights -= 0.25 * velocity
    np.testing.assert_allclose(flat(update), weights - begin, rtol=0, atol=1e-7)


def test_the_same_stream_gives_the_same_bits_and_another_does_not() -> None:
    one, again, other = (
        flat(one_round(Stream.simulated(*labels), records(20))) for labels in ((1,), (1,), (2,))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_labels_of_a_stream_cannot_run_into_each_other() -> None:
    one = Stream.simulated(1, "plan", "client-1", 12).integers(4)
    other = Stream.simulated(1, "plan", "client-11", 2).integers(4)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_every_size_of_client_answers_alike(count: int) -> None:
    update = one_round(Stream.simulated(5), records(count))
    expected = parameters_of(network())
    assert {name: (value.shape, value.dtype) for name, value in update.items()} == {
        name: (value.shape, np.dtype(np.float32)) for name, value in expected.items()
    }
    assert all(np.isfinite(value).all() and value.any() for value in update.values())


def test_a_round_leaves_the_servers_arrays_as_they_were() -> None:
    start = parameters_of(network())
    for value in start.values():
        value.setflags(write=False)
    before = {name: value.copy() for name, value in start.items()}
    Engine(network(), PRIVACY, PLAIN).round(start, *records(10), Stream.simulated(1))
    assert all(np.array_equal(before[name], start[name]) for name in start)


def test_a_round_does_not_touch_torchs_or_numpys_generators() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()
    one_round(Stream.cryptographic(), records(10))
    assert torch.equal(torch_before, torch.get_rng_state())
    assert numpy_before[1].tolist() == np.random.get_state()[1].tolist()  # type: ignore[index]


def test_an_engine_keeps_nothing_between_rounds() -> None:
    shared = Engine(network(), PRIVACY, Optimizer(learning_rate=0.25, momentum=0.9))
    start = parameters_of(network())
    first = shared.round(start, *records(10), Stream.simulated(1))
    shared.round(
        {name: 9 * value for name, value in start.items()}, *records(5), Stream.simulated(2)
    )
    again = shared.round(start, *records(10), Stream.simulated(1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
