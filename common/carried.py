"""How is a directory read that somebody else filled, and that people carried here?

The rule: only plain files are read, and no more of them than was said beforehand; a link is not
followed, and a pipe or a device is waited for by nobody. What the files say is for the caller.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from common.errors import InputError


class Carried:
    """A directory whose files are read as hostile.

    Args:
        path: the directory.
        most: bytes, at most, of all files that are read through this object.

    Raises:
        OSError: of :meth:`read`: the file is not there, or is no plain file.
        InputError: ``too-large``.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self._most, self._left = path, most, most

    def has(self, name: str) -> bool:
        """Whether something lies there, whatever it is."""
        return os.path.lexists(self.path / name)

    def read(self, name: str) -> bytes:
        file = self.path / name
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(f"{file} is not a plain file")
        with os.fdopen(handle, "rb") as stream:
            data = stream.read(self._left + 1)
        if len(data) > self._left:
            raise InputError(
                f"the files of {self.path} are larger than {self._most} bytes together",
                hint="ask whoever gave it to you",
                code="too-large",
            )
        self._left -= len(data)
        return data
