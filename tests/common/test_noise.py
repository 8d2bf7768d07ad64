"""One keyed stream: the standard's bits, the right distributions, and nobody else's state."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from common.privacy.noise import (
    CRYPTOGRAPHIC,
    GRID_BITS,
    SIMULATED,
    Stream,
    add_gaussian,
)

COUNT = 100_000


def test_the_keystream_is_aes_256_in_counter_mode_from_zero() -> None:
    # NIST SP 800-38A, F.1.5: AES-256-ECB of a block. A counter-mode stream is the ECB encryption
    # of 0, 1, 2 ..., so encrypting those blocks must give the stream's bytes.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    block = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    assert ecb.update(block) == bytes.fromhex("f3eed1bdb5d2a03c064b5a7e3db181f8")
    expected = ecb.update(b"".join(i.to_bytes(16, "big") for i in range(8)))
    drawn = Stream(key, CRYPTOGRAPHIC).integers(16)
    assert drawn.astype("<u8").tobytes() == expected


def test_a_stream_does_not_depend_on_how_it_is_drawn() -> None:
    whole, parts = Stream.simulated(1, "a"), Stream.simulated(1, "a")
    assert np.array_equal(
        whole.integers(1000), np.concatenate([parts.integers(n) for n in (1, 0, 299, 700)])
    )


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(key, CRYPTOGRAPHIC)


def test_uniform_values_are_in_zero_to_one_and_never_zero() -> None:
    values = Stream.simulated(2).uniform(COUNT)
    assert 0 < values.min() <= values.max() <= 1
    assert stats.kstest(values, "uniform").pvalue > 1e-4


def test_gaussian_values_are_standard_normal() -> None:
    values = Stream.simulated(3).gaussian(COUNT)
    assert abs(values.mean()) < 5 / np.sqrt(COUNT)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / COUNT)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(COUNT)
    halves = values.reshape(2, -1)  # cosine and sine of the same pair
    assert abs(np.corrcoef(halves)[0, 1]) < 5 / np.sqrt(COUNT / 2)
    assert abs(np.corrcoef(halves**2)[0, 1]) < 5 / np.sqrt(COUNT / 2)


def test_gaussian_tails_are_as_heavy_as_they_should_be() -> None:
    values = np.abs(Stream.simulated(4).gaussian(1_000_000))
    for threshold in (3.0, 4.0):
        expected = 2 * stats.norm.sf(threshold) * len(values)
        assert abs(np.sum(values > threshold) - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 1000])
def test_any_count_can_be_drawn(count: int) -> None:
    stream = Stream.simulated(5)
    assert stream.gaussian(count).shape == (count,)
    assert np.isfinite(stream.gaussian(count)).all()
    assert stream.integers(count).shape == stream.uniform(count).shape == (count,)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_batch_sizes_are_binomial(rate: float) -> None:
    stream, records, draws = Stream.simulated(6, str(rate)), 200, 3000
    samples = [stream.poisson_sample(records, rate) for _ in range(draws)]
    sizes = np.array([len(sample) for sample in samples])
    expected = records * rate
    assert abs(sizes.mean() - expected) < 5 * np.sqrt(expected * (1 - rate) / draws)
    variance = expected * (1 - rate)
    assert sizes.var() == pytest.approx(variance, rel=0.2)
    taken = np.bincount(np.concatenate(samples), minlength=records)
    p_value = stats.chisquare(taken).pvalue if rate < 0.5 else 0.5
    assert p_value > 1e-4
    assert abs(taken - draws * rate).max() < 6 * np.sqrt(draws * rate * (1 - rate))
    for sample in samples[:50]:
        assert np.all(np.diff(sample) > 0)


def test_a_rate_of_one_takes_every_record_and_draws_nothing() -> None:
    stream, untouched = Stream.simulated(7), Stream.simulated(7)
    assert np.array_equal(stream.poisson_sample(5, 1.0), np.arange(5))
    assert np.array_equal(stream.integers(4), untouched.integers(4))


def test_no_records_give_an_empty_batch() -> None:
    for rate in (0.5, 1.0):
        assert Stream.simulated(8).poisson_sample(0, rate).shape == (0,)


@pytest.mark.parametrize("rate", [5e-324, 2**-64, 1e-12, 1 - 2**-53])
def test_extreme_rates_do_not_overflow(rate: float) -> None:
    sample = Stream.simulated(9).poisson_sample(1000, rate)
    assert len(sample) == (1000 if Fraction(rate) > Fraction(1, 2) else 0)


def test_a_records_draw_does_not_depend_on_how_many_come_after_it() -> None:
    few = Stream.simulated(10).poisson_sample(100, 0.3)
    many = Stream.simulated(10).poisson_sample(101, 0.3)
    assert np.array_equal(many[many < 100], few)


def test_simulated_streams_repeat_and_differ_by_seed_and_label() -> None:
    names = [(1,), (2,), (1, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (1, "a", 1, 1), (11, "a")]
    first = {name: Stream.simulated(*name).integers(4).tobytes() for name in names}
    assert first == {name: Stream.simulated(*name).integers(4).tobytes() for name in names}
    assert len(set(first.values())) == len(names)
    assert Stream.simulated(1).kind == SIMULATED


def test_cryptographic_streams_never_repeat() -> None:
    np.random.seed(1)
    random.seed(1)
    drawn = set()
    for _ in range(100):
        stream = Stream.cryptographic()
        assert stream.kind == CRYPTOGRAPHIC
        drawn.add(stream.integers(4).tobytes())
    assert len(drawn) == 100


def test_nobody_elses_random_state_is_touched() -> None:
    torch = pytest.importorskip("torch")
    python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for stream in (Stream.cryptographic(), Stream.simulated(1)):
        stream.poisson_sample(100, 0.5)
        add_gaussian(np.zeros(100), clip=1.0, noise_multiplier=1.0, stream=stream)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), of_torch)
    after = np.random.get_state()
    assert all(np.array_equal(x, y) for x, y in zip(of_numpy, after, strict=True))


@pytest.mark.parametrize(("clip", "sigma"), [(1.0, 1.0), (0.1, 3.4), (7.3, 0.5)])
def test_noise_on_a_sum_has_sigma_times_clip_and_lies_on_the_grid(clip, sigma) -> None:
    total = np.full((10, COUNT // 10), 3.25 * clip)
    noised = add_gaussian(total, clip=clip, noise_multiplier=sigma, stream=Stream.simulated(11))
    assert noised.shape == total.shape
    assert total[0, 0] == 3.25 * clip
    noise = (noised - total).ravel() / (clip * sigma)
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    steps = noised / (clip * 2.0**-GRID_BITS)
    assert np.allclose(steps, np.rint(steps), rtol=1e-14, atol=1e-8)


def test_without_noise_a_sum_is_only_rounded() -> None:
    total = np.array([0.1, -0.7, 2.0**-21 * 1.01, 0.0])
    noised = add_gaussian(total, clip=1.0, noise_multiplier=0.0, stream=Stream.simulated(12))
    assert np.abs(noised - total).max() <= 2.0**-21
    assert noised[2] == 2.0**-20
    assert noised[3] == 0.0


def test_sums_that_differ_by_less_than_the_grid_cannot_be_told_apart_by_their_low_bits() -> None:
    one, other = np.full(1000, 0.1), np.full(1000, np.nextafter(0.1, 1))
    streams = Stream.simulated(13), Stream.simulated(13)
    first = add_gaussian(one, clip=1.0, noise_multiplier=1.0, stream=streams[0])
    second = add_gaussian(other, clip=1.0, noise_multiplier=1.0, stream=streams[1])
    assert np.array_equal(first, second)
