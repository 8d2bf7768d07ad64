"""The scattering transform: image features that were designed, not trained, and so cost no privacy.

The rule: everything here is a constant of the mathematics. The wavelets are buffers, never
parameters, and no value in them comes from data. The layer is made of convolutions, matrix products
and one modulus, so that the same graph runs in training and, exported to ONNX, on a device.

A first layer takes the modulus of the image filtered by Morlet wavelets at ``scales`` scales and
``angles`` angles; a second filters those moduli again by the wider wavelets; both, and the image
itself, are averaged by a Gaussian window of width 2^scales pixels.

Source: Bruna and Mallat 2013 (arXiv 1203.1513); the wavelets are those of Kymatio (Andreux et al.
2020, arXiv 1812.11214), here as truncated kernels with reflected borders at every layer. Away from
the border the two agree to half a percent.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WIDTH = 0.8  # of the finest wavelet's envelope, in pixels
FREQUENCY = 3 * math.pi / 4  # of the finest wavelet, in radians per pixel
WAVELET_REACH = 2.5  # kernels end at this many widths of the longer axis of the envelope
WINDOW_REACH = 4.0  # the averaging window ends at this many widths


def channels(scales: int = 2, angles: int = 8) -> int:
    """How many channels one input channel becomes.

    >>> channels(2, 8)
    81
    """
    return 1 + scales * angles + angles * angles * scales * (scales - 1) // 2


def morlet(
    width: float, frequency: float, angle: float, slant: float, radius: int
) -> NDArray[np.complex128]:
    """A Morlet wavelet on a square grid: an oriented wave under a Gaussian, with exactly zero sum.

    Args:
        width: standard deviation of the envelope along the wave, pixels; width / slant across it.
        frequency: of the wave, radians per pixel.
        angle: direction of the wave, radians.
        slant: in (0, 1]; smaller is longer across the wave and more selective of its angle.
        radius: the grid is (2 radius + 1) x (2 radius + 1).
    """
    down, right = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = math.cos(angle) * down + math.sin(angle) * right
    across = -math.sin(angle) * down + math.cos(angle) * right
    envelope = np.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2))
    wave = envelope * np.exp(1j * frequency * along)
    # Take off as much of the envelope as makes the sum zero: flat areas then give exactly nothing.
    wavelet = wave - envelope * (wave.sum() / envelope.sum())
    return np.asarray(wavelet * slant / (2 * math.pi * width**2), dtype=np.complex128)


def wavelets(scale: int, angles: int) -> NDArray[np.float32]:
    """All angles of one scale: (2 angles, 1, K, K), real parts first, then imaginary ones."""
    slant = 4 / angles
    width = WIDTH * 2**scale
    radius = math.ceil(WAVELET_REACH * width / slant)
    bank = [
        morlet(width, FREQUENCY / 2**scale, index * math.pi / angles, slant, radius)
        for index in range(angles)
    ]
    parts = [wavelet.real for wavelet in bank] + [wavelet.imag for wavelet in bank]
    return np.stack(parts)[:, None].astype(np.float32)


def averaging(length: int, width: float, stride: int) -> NDArray[np.float32]:
    """One axis of the Gaussian window as a matrix (ceil(length / stride), length); rows sum to one.

    Weights that fall over the border are folded back onto the pixels that a reflection would show.
    """
    reach = math.ceil(WINDOW_REACH * width)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * width**2))
    weights /= weights.sum()
    source = reflected(length, reach)
    matrix = np.zeros((math.ceil(length / stride), length))
    for row in range(matrix.shape[0]):
        np.add.at(matrix[row], source[row * stride : row * stride + weights.size], weights)
    return matrix.astype(np.float32)


def reflected(length: int, reach: int) -> NDArray[np.int64]:
    """Which pixel stands at each place of an axis with mirrored borders: (length + 2 reach,).

    >>> reflected(3, 4).tolist()
    [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    """
    return np.pad(np.arange(length), reach, mode="reflect").astype(np.int64)


class Bank(nn.Module):
    """One scale of wavelets and the modulus: (N, 1, H, W) -> (N, angles, h, w), h = H / stride."""

    def __init__(self, scale: int, angles: int, stride: int, height: int, width: int) -> None:
        super().__init__()
        kernels = wavelets(scale, angles)
        reach = kernels.shape[-1] // 2
        self.angles, self.stride = angles, stride
        self.register_buffer("kernels", torch.from_numpy(kernels))
        self.register_buffer("rows", torch.from_numpy(reflected(height, reach)))
        self.register_buffer("columns", torch.from_numpy(reflected(width, reach)))
        self.kernels: Tensor
        self.rows: Tensor
        self.columns: Tensor

    def forward(self, image: Tensor) -> Tensor:
        padded = image.index_select(2, self.rows).index_select(3, self.columns)
        parts = nn.functional.conv2d(padded, self.kernels, stride=self.stride)  # (N, 2A, h, w)
        real, imaginary = parts[:, : self.angles], parts[:, self.angles :]
        return torch.sqrt(real * real + imaginary * imaginary)


class Window(nn.Module):
    """The Gaussian average, as one matrix product per axis: (N, M, H, W) -> (N, M, h, w).

    The constant stands on the left of both products: torch then multiplies map by map. On the right
    it would fold all maps into one tall matrix, and a record's last bits would depend on its place.
    """

    def __init__(self, height: int, width: int, spread: float, stride: int) -> None:
        super().__init__()
        self.register_buffer("down", torch.from_numpy(averaging(height, spread, stride)))
        self.register_buffer("right", torch.from_numpy(averaging(width, spread, stride)))
        self.down: Tensor
        self.right: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        rows = self.down @ maps  # (N, M, h, W)
        return (self.right @ rows.transpose(2, 3)).transpose(2, 3)


class Scattering(nn.Module):
    """Two layers of scattering at two scales: (B, C, H, W) -> (B, C x channels(2, angles), h, w).

    ``h`` and ``w`` are a quarter of the image, rounded up. Channels of one input channel are: the
    average; the finer scale's angles; the coarser scale's angles; then for each finer angle, the
    coarser angles of its modulus.
    """

    scales = 2

    def __init__(self, height: int, width: int, angles: int = 8) -> None:
        super().__init__()
        self.angles = angles
        half = (math.ceil(height / 2), math.ceil(width / 2))
        spread = WIDTH * 2 ** (self.scales - 1)
        self.fine = Bank(0, angles, 1, height, width)
        self.coarse = Bank(1, angles, 2, height, width)
        self.full_window = Window(height, width, spread, 4)
        self.half_window = Window(*half, spread / 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        _, count, height, width = images.shape  # (B, C, H, W)
        image = images.reshape(-1, 1, height, width)  # (B C, 1, H, W)
        fine = self.fine(image)  # (B C, A, H, W)
        coarse = self.coarse(image)  # (B C, A, H/2, W/2)
        second = self.coarse(fine.reshape(-1, 1, height, width))  # (B C A, A, H/2, W/2)
        average = self.full_window(image)  # (B C, 1, h, w)
        h, w = average.shape[-2:]
        layers = [
            average,
            self.full_window(fine),
            self.half_window(coarse),
            self.half_window(second).reshape(-1, self.angles**2, h, w),
        ]
        return torch.cat(layers, dim=1).reshape(-1, count * channels(2, self.angles), h, w)
