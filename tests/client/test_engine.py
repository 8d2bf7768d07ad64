"""The engine adds the noise that it says, and one record moves it by at most C; planted bugs show.

Each check below is a claim about an engine. The first tests hold the real engine to all of them;
the table at the end plants a bug that a DP-SGD implementation has had, and shows which check says
so. Records and streams are seeded, so a check that passes once always passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from client.training import Engine, engine
from client.training.clipping import clipped_sum
from common.data.schema import Schema
from common.models.networks import parameters_of
from common.models.registry import build
from common.plan import Optimizer, Privacy
from common.privacy.noise import GRID_BITS, Stream, add_gaussian

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
ALPHA = 1e-6  # of each statistical check; the seeds below are fixed

Update = dict[str, NDArray[np.float32]]


class Replay(Stream):
    """Sampling and noise from two streams, so that another record leaves the noise as it was."""

    def __init__(self, label: int) -> None:
        super().__init__(bytes(32), "simulated")
        self._sampling = Stream.simulated(label, "sampling")
        self._noise = Stream.simulated(label, "noise")
        self._draws = 0

    def poisson_sample(self, records: int, rate: float) -> NDArray[np.intp]:
        self._draws += 1  # a stream for each step: the draw for a record is its own
        return Stream.simulated(self._draws, "step").poisson_sample(records, rate)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        return self._noise.gaussian(count)


def network() -> nn.Module:
    return build("mlp", IMAGE, seed=4).network


def records(count: int, scale: float = 1.0, seed: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.rand((count, 64), generator=generator)
    return features, torch.randint(0, 10, (count,), generator=generator)


def one_round(
    stream: Stream,
    data: tuple[Tensor, Tensor],
    privacy: Privacy = PRIVACY,
    optimizer: Optimizer = PLAIN,
) -> Update:
    model = network()
    # Looked up here, so that a planted bug is met.
    return engine.Engine(model, privacy, optimizer).round(parameters_of(network()), *data, stream)


def flat(update: Update) -> NDArray[np.float64]:
    return np.concatenate([value.ravel() for value in update.values()]).astype(np.float64)


def two_sided(statistic: float, degrees: int) -> float:
    below = float(stats.chi2.cdf(statistic, degrees))
    return 2 * min(below, 1 - below)


# -- the checks ----------------------------------------------------------------------------------


def check_noise_variance() -> None:
    """On no records, each tensor of an update has variance T (sigma C lr / divisor)^2."""
    updates = [one_round(Stream.simulated(seed, "chi2"), records(0)) for seed in range(12)]
    deviation = PRIVACY.noise_multiplier * PRIVACY.clipping_norm / PRIVACY.divisor
    variance = PRIVACY.steps * (PLAIN.learning_rate * deviation) ** 2
    for name in updates[0]:
        values = np.concatenate([update[name].ravel() for update in updates]).astype(np.float64)
        p = two_sided(float((values**2).sum() / variance), values.size)
        assert p > ALPHA, f"{name}: variance is {(values**2).mean() / variance:.3f} of what it is"
        assert abs(values.mean()) < 6 * np.sqrt(variance / values.size)


def check_noise_is_normal() -> None:
    values = flat(one_round(Stream.simulated(2, "ks"), records(0), replace(PRIVACY, steps=1)))
    assert stats.kstest(values / values.std(), "norm").pvalue > ALPHA


def check_steps_are_independent() -> None:
    """Two steps of one round, taken apart by training once with one step and once with two."""
    one, two = (
        flat(one_round(Stream.simulated(6, "steps"), records(0), replace(PRIVACY, steps=steps)))
        for steps in (1, 2)
    )
    assert abs(np.corrcoef(one, two - one)[0, 1]) < 5 / np.sqrt(one.size)


def check_sensitivity() -> None:
    """The same streams, with and without one record, at gradient scales from 0.1 to 1e6."""
    privacy = replace(PRIVACY, steps=1, divisor=1.0, sampling_rate=1.0, noise_multiplier=50.0)
    plain = Optimizer(learning_rate=1.0)
    for position, scale in enumerate((0.1, 1.0, 10.0, 1e3, 1e6)):
        features, labels = records(9, seed=position)
        features[8] *= scale
        whole = one_round(Replay(position), (features, labels), privacy, plain)
        rest = one_round(Replay(position), (features[:8], labels[:8]), privacy, plain)
        change = float(np.linalg.norm(flat(whole) - flat(rest)))
        clip = privacy.clipping_norm
        # Each sum is rounded to the grid; then the update to float32.
        grid = clip * 2.0**-GRID_BITS * np.sqrt(flat(whole).size)
        rounding = 2.0**-22 * float(np.linalg.norm(flat(whole)))
        assert change <= clip + grid + rounding, f"{change / clip:.3g} C at scale {scale:g}"


def check_divisor_ignores_the_number_of_records() -> None:
    """|D| and |D| + 1, where the additional record has no gradient: no more than rounding."""
    features, labels = records(8)
    more = torch.cat([features, torch.full((1, 64), float("nan"))]), torch.cat([labels, labels[:1]])
    one, other = one_round(Replay(3), (features, labels)), one_round(Replay(3), more)
    grid = PRIVACY.clipping_norm * 2.0**-GRID_BITS
    step = PLAIN.learning_rate * grid / PRIVACY.divisor
    assert np.abs(flat(one) - flat(other)).max() <= PRIVACY.steps * step + 1e-7


def check_batch_sizes() -> None:
    """Batches are Binomial(N, q), and so is each record's participation."""
    sizes, seen = [], np.zeros(50, int)

    class Spy(Stream):
        def poisson_sample(self, records: int, rate: float) -> NDArray[np.intp]:
            chosen = super().poisson_sample(records, rate)
            sizes.append(len(chosen))
            seen[chosen] += 1
            return chosen

    rounds, q = 60, PRIVACY.sampling_rate
    for number in range(rounds):
        one_round(Spy(number.to_bytes(32, "big"), "simulated"), records(50))
    expected, variance = 50 * q, 50 * q * (1 - q)
    steps = rounds * PRIVACY.steps
    p = two_sided(float((((np.array(sizes) - expected) ** 2) / variance).sum()), steps)
    assert p > ALPHA, "batch sizes are not binomial"
    participation = (seen - steps * q) ** 2 / (steps * q * (1 - q))
    assert two_sided(float(participation.sum()), 50) > ALPHA


CHECKS: dict[str, Callable[[], None]] = {
    "variance": check_noise_variance,
    "normal": check_noise_is_normal,
    "steps": check_steps_are_independent,
    "sensitivity": check_sensitivity,
    "divisor": check_divisor_ignores_the_number_of_records,
    "batches": check_batch_sizes,
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_engine_passes_every_check(name: str) -> None:
    CHECKS[name]()


# -- what else holds of a round ------------------------------------------------------------------


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
        total = clipped_sum(model)(features[chosen], labels[chosen], 0.7)
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


def test_noise_of_clients_and_rounds_is_not_correlated() -> None:
    labels = [("plan", client, round_) for client in ("a", "b", "c") for round_ in (1, 2, 3)]
    noises = [flat(one_round(Stream.simulated(7, *label), records(0))) for label in labels]
    noises += [flat(one_round(Stream.cryptographic(), records(0))) for _ in range(2)]
    correlation = np.corrcoef(np.stack(noises)) - np.eye(len(noises))
    assert np.abs(correlation).max() < 6 / np.sqrt(noises[0].size)


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
    shared.round({name: 9 * value for name, value in start.items()}, *records(5), Replay(1))
    again = shared.round(start, *records(10), Stream.simulated(1))
    assert all(np.array_equal(first[name], again[name]) for name in first)


# -- planted bugs --------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def noise(patch: Patch, wrong: Callable[..., NDArray[np.float64]]) -> None:
    patch.setattr(engine, "add_gaussian", wrong)


def no_noise(patch: Patch) -> None:
    noise(patch, lambda total, **_: total)


def tenth_too_little(patch: Patch) -> None:
    def wrong(total: Any, *, noise_multiplier: float, **rest: Any) -> NDArray[np.float64]:
        return add_gaussian(total, noise_multiplier=0.9 * noise_multiplier, **rest)

    noise(patch, wrong)


def not_scaled_by_c(patch: Patch) -> None:
    def wrong(total: Any, *, clip: float, **rest: Any) -> NDArray[np.float64]:
        return add_gaussian(total, clip=1.0, **rest)

    noise(patch, wrong)


def missing_on_one_layer(patch: Patch) -> None:
    def wrong(total: Any, **rest: Any) -> NDArray[np.float64]:
        result = add_gaussian(total, **rest)
        result[-10:] = total[-10:]
        return result

    noise(patch, wrong)


def uniform_instead(patch: Patch) -> None:
    def wrong(total: Any, *, clip: float, noise_multiplier: float, stream: Stream) -> Any:
        spread = np.sqrt(12) * noise_multiplier * clip
        return total + spread * (stream.uniform(total.size) - 0.5)

    noise(patch, wrong)


def same_seed_each_step(patch: Patch) -> None:
    def wrong(total: Any, *, stream: Stream, **rest: Any) -> NDArray[np.float64]:
        return add_gaussian(total, stream=Stream.simulated(0), **rest)

    noise(patch, wrong)


def divided_by_the_batch(patch: Patch) -> None:
    """Opacus' own expected batch size is q |D|; this is the same bug with the real one."""
    batches = []

    def spying(model: nn.Module) -> Any:
        inner = clipped_sum(model)

        def total(features: Tensor, labels: Tensor, clip: float) -> Tensor:
            batches.append(max(1, len(labels)))
            return inner(features, labels, clip)

        return total

    patch.setattr(engine, "clipped_sum", spying)
    noise(patch, lambda total, **rest: add_gaussian(total, **rest) / batches[-1])


def other_sum(patch: Patch, wrong: Callable[[Any, Tensor, Tensor, float], Tensor]) -> None:
    def patched(model: nn.Module) -> Any:
        inner = clipped_sum(model)
        return lambda features, labels, clip: wrong(inner, features, labels, clip)

    patch.setattr(engine, "clipped_sum", patched)


def no_clip(patch: Patch) -> None:
    other_sum(patch, lambda inner, features, labels, _: inner(features, labels, 1e9))


def batch_clipped(patch: Patch) -> None:
    """The batch's mean gradient is clipped, then taken times the batch."""

    def wrong(inner: Any, features: Tensor, labels: Tensor, clip: float) -> Tensor:
        mean = inner(features, labels, 1e9) / max(1, len(labels))
        return len(labels) * mean * (clip / mean.norm().clamp_min(clip))  # type: ignore[no-any-return]

    other_sum(patch, wrong)


def each_layer_clipped(patch: Patch) -> None:
    def wrong(inner: Any, features: Tensor, labels: Tensor, clip: float) -> Tensor:
        total = torch.zeros_like(inner(features[:0], labels[:0], clip))
        for position in range(len(labels)):
            part = inner(features[position][None], labels[position][None], 1e9)
            for layer in torch.split(part, [2048, 32, 320, 10]):
                layer *= min(1.0, clip / max(1e-9, float(layer.norm())))
            total += part
        return total

    other_sum(patch, wrong)


def shuffled(patch: Patch) -> None:
    """Batches of fixed size, accounted for as if they were Poisson."""

    def fixed(self: Stream, count: int, rate: float) -> NDArray[np.intp]:
        return np.argsort(self.integers(count))[: int(rate * count)]

    patch.setattr(Stream, "poisson_sample", fixed)


def rate_from_the_data(patch: Patch) -> None:
    """A batch of twelve is wanted, so the rate is twelve by the number of records."""
    right = Stream.poisson_sample
    patch.setattr(
        Stream, "poisson_sample", lambda self, count, _: right(self, count, min(1, 12 / count))
    )


PLANTED: list[tuple[Callable[[Patch], None], str]] = [
    (no_noise, "variance"),
    (tenth_too_little, "variance"),
    (not_scaled_by_c, "variance"),
    (missing_on_one_layer, "variance"),
    (uniform_instead, "normal"),
    (same_seed_each_step, "steps"),
    (divided_by_the_batch, "sensitivity"),
    (divided_by_the_batch, "divisor"),
    (no_clip, "sensitivity"),
    (batch_clipped, "sensitivity"),
    (each_layer_clipped, "sensitivity"),
    (shuffled, "batches"),
    (rate_from_the_data, "batches"),
]


@pytest.mark.parametrize(
    ("plant", "check"), PLANTED, ids=[f"{plant.__name__}-{check}" for plant, check in PLANTED]
)
def test_a_planted_bug_fails_its_check(
    plant: Callable[[Patch], None], check: str, monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check]()
