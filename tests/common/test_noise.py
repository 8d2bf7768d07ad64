"""One keyed stream: the standard's bits, the right distributions, and nobody else's state."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy import stats

from common.privacy import noise as module
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
    pairs = values.reshape(-1, 2).T  # cosine and sine of the same pair
    assert abs(np.corrcoef(pairs)[0, 1]) < 5 / np.sqrt(COUNT / 2)
    assert abs(np.corrcoef(pairs**2)[0, 1]) < 5 / np.sqrt(COUNT / 2)


def test_gaussian_values_are_box_and_mullers() -> None:
    radial, turn = Stream.simulated(3).integers(COUNT).reshape(-1, 2).T
    radius = np.sqrt(-2 * np.log(((radial >> 11) + 1) / 2.0**53))
    angle = 2 * np.pi * (turn / 2.0**64)
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
    values = Stream.simulated(3).gaussian(COUNT)
    # A float64 angle near 2 pi is itself known to 4e-16 only.
    np.testing.assert_allclose(values, expected, rtol=0, atol=8.6 * 2e-15)


@pytest.mark.parametrize("draws", [1, 4])
def test_gaussian_tails_are_as_heavy_as_they_should_be(draws: int) -> None:
    count = 2_000_000
    stream = Stream.simulated(4, draws)
    values = add_gaussian(
        np.zeros(count), clip=1.0, noise_multiplier=1.0, stream=stream, draws=draws
    )
    for threshold in (3.0, 4.0, 4.5):
        for beyond in (values > threshold, values < -threshold):
            tail = stats.norm.sf(threshold)
            assert stats.binomtest(int(beyond.sum()), count, tail).pvalue > 1e-4


def test_the_furthest_value_is_that_of_a_53_bit_radius() -> None:
    class Least(Stream):
        def integers(self, count: int) -> NDArray[np.uint64]:
            return np.zeros(count, np.uint64)

    class Greatest(Stream):
        def integers(self, count: int) -> NDArray[np.uint64]:
            return np.full(count, 2**64 - 1, np.uint64)

    furthest, zero = Least(bytes(32), SIMULATED).gaussian(2)
    assert furthest == pytest.approx(np.sqrt(2 * 53 * np.log(2)), rel=1e-15)
    assert zero == 0
    assert 2 * stats.norm.sf(furthest) < 2.0**-56
    assert np.array_equal(Greatest(bytes(32), SIMULATED).gaussian(2), [0, 0])


def test_drawing_in_even_parts_gives_the_values_of_drawing_at_once() -> None:
    whole, parts = Stream.simulated(14), Stream.simulated(14)
    drawn = [parts.gaussian(count) for count in (2, 0, 996, 3)]
    assert np.array_equal(whole.gaussian(1001), np.concatenate(drawn))


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
        for draws in (1, 4):
            noised_by(stream, draws)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), of_torch)
    after = np.random.get_state()
    assert all(np.array_equal(x, y) for x, y in zip(of_numpy, after, strict=True))


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize(("clip", "sigma"), [(1.0, 1.0), (0.1, 3.4), (7.3, 0.5)])
def test_noise_on_a_sum_has_sigma_times_clip_and_lies_on_the_grid(clip, sigma, draws) -> None:
    total = np.full((10, COUNT // 10), 3.25 * clip)
    stream = Stream.simulated(11, draws)
    noised = add_gaussian(total, clip=clip, noise_multiplier=sigma, stream=stream, draws=draws)
    assert noised.shape == total.shape
    assert (total == 3.25 * clip).all()
    noise = (noised - total).ravel() / (clip * sigma)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / COUNT)
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(noise[:-lag], noise[lag:])[0, 1]) < 5 / np.sqrt(COUNT)
    steps = noised / (clip * 2.0**-GRID_BITS)
    assert np.allclose(steps, np.rint(steps), rtol=1e-14, atol=1e-8)


def noised_by(stream: Stream, draws: int, count: int = 1000) -> NDArray[np.float64]:
    return add_gaussian(
        np.arange(float(count)), clip=0.5, noise_multiplier=2.0, stream=stream, draws=draws
    )


def test_a_sum_of_four_is_half_the_sum_of_the_streams_next_four_values() -> None:
    normal = Stream.simulated(15).gaussian(4000).reshape(1000, 4)
    noise = noised_by(Stream.simulated(15), draws=4) - np.arange(1000.0)
    np.testing.assert_allclose(noise, normal.sum(axis=1) / 2, rtol=0, atol=0.51 * 0.5 / 2**20)


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("count", [1, 2, 1000, 40_001])
def test_noise_takes_one_integer_of_keystream_for_each_draw(draws: int, count: int) -> None:
    stream, counted = Stream.simulated(16), Stream.simulated(16)
    noised_by(stream, draws, count)
    counted.integers(draws * count + draws * count % 2)
    assert np.array_equal(stream.integers(4), counted.integers(4))


@pytest.mark.parametrize("draws", [1, 4])
def test_the_same_stream_gives_the_same_noise_and_another_does_not(draws: int) -> None:
    first = noised_by(Stream.simulated(17), draws)
    assert np.array_equal(first, noised_by(Stream.simulated(17), draws))
    assert not np.array_equal(first, noised_by(Stream.simulated(18), draws))
    assert not np.array_equal(first, noised_by(Stream.simulated(17), 5 - draws))


@pytest.mark.parametrize("draws", [1, 4])
def test_noise_does_not_depend_on_how_much_is_drawn_at_a_time(draws: int, monkeypatch) -> None:
    at_once = noised_by(Stream.simulated(19), draws, 1001)
    for block in (8, 1000, 4004):
        monkeypatch.setattr(module, "_BLOCK", block)
        assert np.array_equal(noised_by(Stream.simulated(19), draws, 1001), at_once)


@pytest.mark.parametrize("draws", [-1, 0, 2, 3, 5, 8])
def test_another_number_of_draws_is_refused_and_draws_nothing(draws: int) -> None:
    stream = Stream.simulated(20)
    with pytest.raises(ValueError, match="set 1 or 4"):
        noised_by(stream, draws)
    assert np.array_equal(stream.integers(4), Stream.simulated(20).integers(4))


@pytest.mark.parametrize("draws", [1, 4])
def test_the_result_is_written_to_out_which_may_be_the_sum_itself(draws: int) -> None:
    total = np.arange(40_000.0).reshape(4, -1)
    options = {"clip": 1.0, "noise_multiplier": 1.0, "draws": draws}
    expected = add_gaussian(total, stream=Stream.simulated(21), **options)
    out = np.full_like(total, np.nan)
    assert add_gaussian(total, stream=Stream.simulated(21), out=out, **options) is out
    assert np.array_equal(out, expected)
    assert np.array_equal(total.ravel(), np.arange(40_000.0))
    assert add_gaussian(total, stream=Stream.simulated(21), out=total, **options) is total
    assert np.array_equal(total, expected)


@pytest.mark.parametrize(
    "out",
    [np.zeros(99), np.zeros((100, 1)), np.zeros(100, np.float32), np.zeros(200)[::2]],
    ids=["size", "shape", "float32", "strided"],
)
def test_an_unfit_out_is_refused_and_nothing_is_drawn_or_written(out) -> None:
    stream = Stream.simulated(22)
    with pytest.raises(ValueError, match="contiguous float64"):
        add_gaussian(np.ones(100), clip=1.0, noise_multiplier=1.0, stream=stream, out=out)
    assert not out.any()
    assert np.array_equal(stream.integers(4), Stream.simulated(22).integers(4))


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
