"""A reply on its way in: what a full disk did not take is not counted as here."""

from __future__ import annotations

import errno

import pytest

from common.parcel import Part
from server.link.superlink.coming import Coming

PART = b"Array  5\0hello"
NAME = Part.read(PART).name


def test_a_part_that_the_disk_refused_is_taken_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coming = Coming(b"head")

    def full(_: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(coming.file, "write", full)
        with pytest.raises(OSError, match="space"):
            coming.take(PART, {NAME: ()})
    assert coming.places == {}
    coming.take(PART, {NAME: ()})
    assert (coming.part(NAME), coming.size) == (PART, len(PART))
    coming.file.close()
