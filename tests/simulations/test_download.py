"""Claims about fetching example data: what is kept, and what is said where there is no network."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from common.data import source
from common.data.binding import Binding
from common.errors import DataError, NetworkError
from simulations import download

FASHION = Binding("fashion-mnist", clients=2, partition="equal")
NAMES = tuple(download.FASHION_SHA256)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Debian's package, whose cache is empty."""
    monkeypatch.setattr(source, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setenv("PRIVET_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fashion-mnist"


def serve(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> list[str]:
    """The network is a dictionary here; returns the addresses that are asked for."""
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        if not content:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO(content[url.rpartition("/")[2]])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_without_a_network_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, {})
    with pytest.raises(NetworkError, match="no route to host") as caught:
        download.ensure(FASHION)
    assert "apt-get install dataset-fashion-mnist" in caught.value.hint
    assert not folder.exists()


def test_a_file_with_another_digest_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, {f"{name}.gz": gzip.compress(b"something else") for name in NAMES})
    with pytest.raises(DataError, match="SHA-256 differs"):
        download.ensure(FASHION)
    assert not folder.exists()


def test_fetched_files_are_kept_and_not_asked_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {name: name.encode() for name in NAMES}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    monkeypatch.setattr(download, "FASHION_SHA256", digests)
    packed = {f"{name}.gz": gzip.compress(data) for name, data in content.items()}
    asked = serve(monkeypatch, packed)
    for _ in range(2):
        download.ensure(FASHION)
    assert len(asked) == 4
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == packed


def test_nothing_is_fetched_for_data_that_its_owner_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, {})
    download.ensure(Binding("fashion-mnist", path=str(tmp_path)))
    download.ensure(Binding("digits"))
    assert asked == []
