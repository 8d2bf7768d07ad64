"""What somebody else put into a directory is read within bounds, or refused at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.carried import Carried
from common.errors import InputError


def test_files_are_read_until_together_they_are_too_large(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"12345")
    carried = Carried(tmp_path, 10)
    assert (carried.read("a"), carried.read("b")) == (b"12345", b"12345")
    with pytest.raises(InputError) as caught:
        carried.read("c")
    assert caught.value.code == "too-large"


def test_what_is_no_plain_file_is_not_read_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    carried = Carried(tmp_path, 10)
    for name in ("pipe", "folder", "link", "nothing"):
        with pytest.raises(OSError, match=name):
            carried.read(name)
    assert carried.has("link")
    assert not carried.has("nothing")
