"""Where is a reply of which parts are still missing? In a file, part by part, until it is whole.

The rule: a part is kept if it was announced, with the very children that it names, and once; all
parts together have a limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

from common.errors import TrustError
from common.parcel import MOST_BYTES, Part

SPOOL = 4 * 1024 * 1024  # bytes that are in memory; the rest is in a file


class Coming:
    """A reply on its way in: what it is to be, and the parts that are here."""

    def __init__(self, head: bytes) -> None:
        self.head, self.size = head, 0
        self.places: dict[str, tuple[int, int]] = {}
        self.file = tempfile.SpooledTemporaryFile(max_size=SPOOL)  # noqa: SIM115  (its owner closes it)

    def take(self, data: bytes, tree: Mapping[str, tuple[str, ...]]) -> None:
        """Keep a part, if it was announced, and is what was announced.

        Raises:
            TrustError: it is not, or there is too much.
        """
        part = Part.read(data)
        if part.name in self.places:
            return
        if tree.get(part.name) != part.children:
            raise TrustError("another part than was announced", code="malformed")
        if self.size + len(data) > MOST_BYTES:
            raise TrustError("a reply that is too large", code="too-large")
        start = self.file.seek(0, 2)
        self.file.write(data)
        self.size += len(data)
        self.places[part.name] = (start, len(data))  # last: the disk may have been full

    def part(self, name: str) -> bytes:
        start, length = self.places[name]
        self.file.seek(start)
        return self.file.read(length)
