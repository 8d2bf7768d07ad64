"""Fetch what a simulation's example data needs, where this machine does not have it.

The rule: reading data never touches the network; this is the one place that does, for a simulation
that is being prepared, from one fixed address, and only content of the expected SHA-256 is kept.
"""

from __future__ import annotations

import hashlib
import tempfile
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

from common.data.binding import Binding
from common.data.source import FASHION_HINT, fashion_folder
from common.durable import disk_errors
from common.errors import DataError, NetworkError

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DOWNLOAD_SECONDS = 60.0
MOST_BYTES = 64 * 2**20
# SHA-256 of the files' contents, uncompressed, since archives are compressed in several ways.
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def ensure(binding: Binding) -> None:
    """Make sure that the data a binding names is here; only Fashion-MNIST can be fetched.

    Raises:
        NetworkError: it is not here, and cannot be fetched; the hint says how else to get it.
        DataError: what was fetched is not what was expected; it was not kept.
    """
    if binding.source != "fashion-mnist" or binding.path is not None:
        return
    folder = fashion_folder(None)
    missing = [name for name in FASHION_SHA256 if not (folder / f"{name}.gz").exists()]
    for name in missing:
        packed = _fetch(f"{FASHION_URL}/{name}.gz", FASHION_SHA256[name])
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=folder) as beside:
                unnamed = Path(beside) / "packed"
                unnamed.write_bytes(packed)
                unnamed.replace(folder / f"{name}.gz")


def _fetch(url: str, expected: str) -> bytes:
    """Fetch one archive, and give it back only if its content has the expected SHA-256."""
    try:
        # The address is a constant of this module, and the content is checked by its digest.
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:  # noqa: S310
            packed: bytes = response.read(MOST_BYTES)
    except (OSError, HTTPException) as error:
        raise NetworkError(
            f"Fashion-MNIST is not on this machine, and {url} cannot be fetched: {error}",
            hint=FASHION_HINT,
        ) from error
    try:
        content = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(packed, MOST_BYTES)
    except zlib.error:
        content = b""
    if hashlib.sha256(content).hexdigest() != expected:
        raise DataError(
            f"{url} is not the file that was expected: its SHA-256 differs", hint=FASHION_HINT
        )
    return packed
