"""Claims about the scattering transform, from its mathematics; no number is a recorded output."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from common.models.scattering import (
    Scattering,
    averaging,
    channels,
    morlet,
    reflected,
    wavelets,
)

FINE, COARSE, SECOND = slice(1, 9), slice(9, 17), slice(17, 81)


def images(count: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed))


def wave(angle: float, frequency: float, size: int = 32) -> Tensor:
    """A plane wave along ``angle``: (1, 1, size, size)."""
    down, right = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = math.cos(angle) * down + math.sin(angle) * right
    return torch.cos(frequency * along)[None, None]


def test_two_scales_and_eight_angles_give_81_channels_at_a_quarter_of_the_size() -> None:
    # 1 average, 2 x 8 first-order paths, 8 x 8 second-order paths from the finer to the coarser.
    assert channels(2, 8) == 1 + 16 + 64
    assert Scattering(28, 28)(images(2, 28, 28)).shape == (2, 81, 7, 7)
    assert Scattering(8, 8)(images(2, 8, 8)).shape == (2, 81, 2, 2)
    assert Scattering(9, 14)(images(2, 9, 14)).shape == (2, 81, 3, 4)


def test_nothing_is_trained() -> None:
    layer = Scattering(28, 28)
    assert not list(layer.parameters())
    assert all(not buffer.requires_grad for buffer in layer.buffers())


@pytest.mark.parametrize("scale", [0, 1])
def test_every_wavelet_sums_to_zero(scale: int) -> None:
    sums = wavelets(scale, 8).astype(np.float64).sum(axis=(1, 2, 3))
    assert np.abs(sums).max() < 1e-6


@pytest.mark.parametrize("scale", [0, 1])
def test_a_wavelet_answers_most_to_its_own_frequency(scale: int) -> None:
    # The centre is at 3 pi / 4, halved per scale; taking off the mean moves the peak a little.
    wavelet = morlet(0.8 * 2**scale, 3 * math.pi / 4 / 2**scale, 0.0, 0.5, 24)
    spectrum = np.abs(np.fft.fft2(wavelet, (256, 256)))
    down, right = np.unravel_index(int(spectrum.argmax()), spectrum.shape)
    peak = 2 * math.pi * down / 256
    assert right == 0
    assert abs(peak - 3 * math.pi / 4 / 2**scale) < 0.15


def test_a_flat_image_scatters_to_its_own_value_and_nothing_else() -> None:
    flat = torch.full((1, 1, 28, 28), 0.7)
    scattered = Scattering(28, 28)(flat)
    torch.testing.assert_close(scattered[:, 0], torch.full((1, 7, 7), 0.7))
    assert scattered[:, 1:].abs().max() < 1e-5


def test_a_plane_wave_lights_up_its_own_angle() -> None:
    layer = Scattering(32, 32)
    for index in range(8):
        scattered = layer(wave(index * math.pi / 8, 3 * math.pi / 8))
        inner = scattered[0, COARSE, 3:5, 3:5].mean((1, 2))
        assert int(inner.argmax()) == index


def test_turning_the_image_by_a_right_angle_turns_the_angle_channels() -> None:
    layer = Scattering(33, 33)  # a stride of 4 then has a grid with the same centre
    image = images(1, 33, 33)
    straight, turned = layer(image), layer(torch.rot90(image, 1, (2, 3)))
    back = torch.rot90(turned, -1, (2, 3))
    torch.testing.assert_close(back[:, 0], straight[:, 0], atol=1e-5, rtol=1e-4)
    for order in (FINE, COARSE):  # 8 angles over 180 degrees: 90 degrees is 4 channels
        moved = torch.roll(back[:, order], 4, 1)
        torch.testing.assert_close(moved, straight[:, order], atol=1e-5, rtol=1e-4)
    second = back[:, SECOND].reshape(1, 8, 8, *back.shape[2:]).roll((4, 4), (1, 2))
    torch.testing.assert_close(
        second, straight[:, SECOND].reshape(second.shape), atol=1e-5, rtol=1e-4
    )


def test_a_shift_of_one_pixel_moves_scattering_less_than_it_moves_pixels() -> None:
    # The representation is stable to translation up to its window, 2^2 pixels (Mallat 2012).
    big = images(8, 33, 33)
    image, shifted = big[..., :32, :32], big[..., :32, 1:]
    layer = Scattering(32, 32)
    one, other = layer(image), layer(shifted)
    by_pixels = (image - shifted).norm() / image.norm()
    by_scattering = (one - other).norm() / one.norm()
    assert by_scattering < by_pixels / 3


def test_scattering_never_adds_energy() -> None:
    # Each layer's filters satisfy |phi|^2 + sum |psi|^2 <= 1 (the wavelets cover half of the plane
    # because real images are symmetric), so pixels of one output channel carry at most the image's
    # energy; the stride of 4 leaves one output pixel for 16 of the image.
    image = images(4, 32, 32) - 0.5
    energy = image.pow(2).sum((1, 2, 3))
    assert (16 * Scattering(32, 32)(image).pow(2).sum((1, 2, 3)) <= energy * 1.05).all()


def test_filters_together_cover_no_frequency_twice() -> None:
    total = np.zeros((64, 64))
    for scale in (0, 1):
        bank = wavelets(scale, 8)[:, 0]
        spectra = np.abs(np.fft.fft2(bank[:8] + 1j * bank[8:], (64, 64))) ** 2
        mirrored = np.roll(spectra[:, ::-1, ::-1], (1, 1), (1, 2))
        total += (spectra + mirrored).sum(0) / 2
    assert total.max() < 1.05


def test_the_window_is_an_average() -> None:
    matrix = averaging(28, 1.6, 4)
    assert matrix.shape == (7, 28)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert (matrix >= 0).all()


def test_borders_are_mirrored_however_small_the_image() -> None:
    assert reflected(4, 2).tolist() == [2, 1, 0, 1, 2, 3, 2, 1]
    assert reflected(3, 5).tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]


def test_channels_of_an_image_are_scattered_apart() -> None:
    layer = Scattering(16, 16)
    red, green = images(2, 16, 16, seed=3), images(2, 16, 16, seed=4)
    both = layer(torch.cat([red, green], dim=1))
    torch.testing.assert_close(both[:, :81], layer(red))
    torch.testing.assert_close(both[:, 81:], layer(green))
