"""What a device decided is signed, chained and counted elsewhere: no change of it goes unseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.device import floor, log
from client.device.floor import Floor
from client.device.identity import Identity
from client.device.log import Decision, History, Kind
from common.canonical import decode, digest, encode
from common.errors import OperationError, TrustError
from tests.client.device_fixtures import DAY, NOW, STRANGER

COUNT = 6


@pytest.fixture
def device(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "keys")


@pytest.fixture
def file(tmp_path: Path, device: Identity) -> Path:
    """A log of six decisions, and the floor that counted them."""
    path = tmp_path / "decisions.jsonl"
    for number in range(COUNT):
        add(path, device, number + 1)
    assert history(path, device).wrong == ()
    return path


def add(path: Path, device: Identity, version: int, **changes: object) -> None:
    made = Decision(NOW, Kind.ACCEPTED, "model", version, "ab", "accepted", "fine")
    before = floor.read(device)
    floor.write(device, log.append(path, replace(made, **changes), device.key, before))


def history(path: Path, device: Identity) -> History:
    return log.read(path, device.key.public, floor.read(device))


def edited(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"version":3', b'"version":2'), *lines[3:]]


def signed_by_another(lines: list[bytes]) -> list[bytes]:
    line = decode(lines[2])
    del line["signature"]
    return [*lines[:2], log._sign(line, STRANGER), *lines[3:]]


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a word changed": (edited, "a line after decision 2 is not this device's"),
    "a line by another key": (signed_by_another, "a line after decision 2 is not this device's"),
    "a line made unreadable": (lambda x: [*x[:2], x[2][:-9], *x[3:]], "decision 3 is missing"),
    "one taken out": (lambda x: x[:2] + x[3:], "decision 3 is missing"),
    "two taken out": (lambda x: x[:2] + x[4:], "decisions 3 to 4 are missing"),
    "the first taken out": (lambda x: x[1:], "decision 1 is missing"),
    "the last cut off": (lambda x: x[:-1], "decision 6 is missing"),
    "all but the first cut off": (lambda x: x[:1], "decisions 2 to 6 are missing"),
    "emptied": (lambda x: [], "decisions 1 to 6 are missing"),
    "two swapped": (lambda x: [x[0], x[2], x[1], *x[3:]], "decision 2 is missing"),
    "one there twice": (lambda x: [*x[:3], x[2], *x[3:]], "decision 3 stands after decision 3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_log_is_found_and_where_is_said(
    file: Path, device: Identity, change: str
) -> None:
    alter, words = CHANGES[change]
    file.write_bytes(b"".join(line + b"\n" for line in alter(file.read_bytes().splitlines())))
    assert words in history(file, device).wrong
    add(file, device, 9)  # going on does not heal it
    assert words in history(file, device).wrong


def test_a_log_written_anew_with_the_devices_key_is_not_the_one_that_was_counted(
    file: Path, device: Identity
) -> None:
    counted, anew = floor.read(device), Floor()
    file.unlink()
    for number in range(COUNT):
        made = Decision(NOW + DAY, Kind.ACCEPTED, "model", number + 1, "ab", "accepted", "fine")
        anew = log.append(file, made, device.key, anew)
    assert log.read(file, device.key.public, anew).wrong == ()
    found = log.read(file, device.key.public, counted)
    assert found.wrong == ("decision 6 is not the one that was made",)


def test_a_line_names_the_digest_of_the_one_before(file: Path) -> None:
    lines = file.read_bytes().splitlines()
    assert [decode(line)["prev"] for line in lines] == ["0" * 64, *map(digest, lines[:-1])]
    assert [decode(line)["seq"] for line in lines] == list(range(COUNT))
    assert [decode(line)["first"] for line in lines] == [True] + [False] * (COUNT - 1)


def test_a_torn_line_is_skipped_and_does_not_swallow_the_next(file: Path, device: Identity) -> None:
    with open(file, "ab") as opened:
        opened.write(b'{"at":"20')
    add(file, device, 7)
    found = history(file, device)
    assert found.wrong == ()
    assert [line["version"] for line in found.lines] == [1, 2, 3, 4, 5, 6, 7]


def test_a_line_that_the_floor_had_not_counted_yet_is_no_gap(file: Path, device: Identity) -> None:
    """A crash between the two."""
    made = Decision(NOW, Kind.REFUSED, None, None, None, "expired", "old")
    log.append(file, made, device.key, floor.read(device))
    assert history(file, device).wrong == ()
    add(file, device, 7)
    assert history(file, device).wrong == ()
    assert history(file, device).count == COUNT + 2


def test_a_new_directory_goes_on_where_the_wiped_one_was(file: Path, device: Identity) -> None:
    file.unlink()
    assert (history(file, device).before, history(file, device).wrong) == (COUNT, ())
    add(file, device, 7)
    found = history(file, device)
    assert (found.before, found.count, found.wrong) == (COUNT, COUNT + 1, ())


def test_a_reason_with_anything_in_it_makes_one_short_line(
    tmp_path: Path, device: Identity
) -> None:
    path = tmp_path / "d.jsonl"
    add(path, device, 1, reason="a\nb\ud800" + "c" * 9999, code="accepted")
    assert len(history(path, device).lines) == 1
    assert path.stat().st_size < log.LONGEST_LINE / 4


def test_only_signed_lines_count_as_accepted(file: Path, device: Identity) -> None:
    line = decode(file.read_bytes().splitlines()[-1])
    with open(file, "ab") as opened:
        opened.write(encode({**line, "version": 99}) + b"\n")
    found = log.accepted(file, device.key.public)
    assert [one.version for one in found] == [1, 2, 3, 4, 5, 6]


# -- keys and floor --------------------------------------------------------------------------------


def test_what_is_sealed_opens_as_the_same_on_the_same_device_alone(
    tmp_path: Path, device: Identity
) -> None:
    what: dict[str, str | int] = {"name": "m", "version": 3, "file": "f", "digest": "ab" * 32}
    sealed = device.seal(b"model", what)
    assert len(sealed) == len(b"model") + 48
    assert device.seal(b"model", what) != sealed  # each time under a key of its own
    file = tmp_path / "sealed"

    def opened(by: Identity, data: bytes, what: dict[str, str | int], most: int = 5) -> bytes:
        file.write_bytes(data)
        return bytes(by.open(file, what, most=most))

    assert opened(Identity(device.path), sealed, what) == b"model"
    others = [{**what, key: value} for key, value in
              (("name", "n"), ("version", 4), ("file", "g"), ("digest", "cd" * 32))]  # fmt: skip
    for other in others:
        with pytest.raises(TrustError) as caught:
            opened(device, sealed, other)
        assert caught.value.code == "not-ours"
    with pytest.raises(TrustError):
        opened(Identity.create(tmp_path / "other"), sealed, what)
    for changed in (sealed[:-1], sealed[:-1] + b"\0", b"", sealed[:40], b"\0" + sealed):
        with pytest.raises(TrustError):
            opened(device, changed, what)
    with pytest.raises(TrustError):
        opened(device, sealed, what, most=4)


@pytest.mark.parametrize("size", [0, 1, 2**19 - 1, 2**19, 2**19 + 1, 2**20, 3 * 2**20 + 5])
def test_a_file_of_any_size_opens_where_it_is_wanted_in_memory(
    tmp_path: Path, device: Identity, size: int
) -> None:
    data = np.random.default_rng(1).bytes(size)
    file = tmp_path / "sealed"
    file.write_bytes(device.seal(data, {}))
    for shift in (0, 5):
        held = device.open(file, {}, most=size, shift=shift)
        assert held == data
        assert held.readonly
        assert not size or np.frombuffer(held, np.uint8).ctypes.data % 16 == shift


def test_keys_are_made_once_and_only_their_owner_reads_them(device: Identity) -> None:
    assert Identity.create(device.path).fingerprint == device.fingerprint
    modes = {file.name: oct(file.stat().st_mode)[-3:] for file in device.path.iterdir()}
    assert modes == {"device": "600", "device-seal": "600"}
    device.path.joinpath("device-seal").unlink()
    with pytest.raises(OperationError) as caught:
        Identity(device.path)
    assert "enrol it again" in caught.value.hint


def test_a_floor_comes_back_as_it_was_written(device: Identity) -> None:
    assert floor.read(device) == Floor()
    made = Floor(
        "m", 3, "ab" * 32, 2, 17, 1, 9, "cd" * 32, "ef" * 32, 4, "01" * 32, '{"threshold":2}'
    )
    floor.write(device, made)
    assert floor.read(device) == made
    assert oct((device.path / "floor.json").stat().st_mode)[-3:] == "600"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"version":3', b'"version":2'),
        (b'"seen":17', b'"seen":16'),
        (b'"name"', b'"nane"'),
        (b'"running":2,', b""),
        (b"{", b""),
    ],
)
def test_a_changed_floor_is_refused(device: Identity, old: bytes, new: bytes) -> None:
    floor.write(device, Floor("m", 3, running=2, seen=17))
    file = device.path / "floor.json"
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))
    with pytest.raises(TrustError) as caught:
        floor.read(device)
    assert caught.value.code == "floor-damaged"


def test_another_devices_floor_is_refused(tmp_path: Path, device: Identity) -> None:
    other = Identity.create(tmp_path / "other")
    floor.write(other, Floor("m", 3))
    (device.path / "floor.json").write_bytes((other.path / "floor.json").read_bytes())
    with pytest.raises(TrustError, match="another device's"):
        floor.read(device)


def test_a_floor_never_falls_to_an_older_release() -> None:
    high = Floor().accept("m", 3, "ab" * 32)
    assert high.accept("m", 2, "cd" * 32) == high
    assert high.accept("m", 4, "cd" * 32).version == 4
