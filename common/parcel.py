"""How do a few things travel in one body? Each after its length.

The rule: whoever reads says first how much there may be; a length is believed only within that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.errors import TrustError

LENGTH = 4  # bytes of a length, big-endian


def frame(part: bytes) -> bytes:
    """One part, with its length before it."""
    return len(part).to_bytes(LENGTH, "big") + part


def pack(parts: Iterable[bytes]) -> bytes:
    """All parts in one body.

    >>> pack([b"ab", b""])
    b'\\x00\\x00\\x00\\x02ab\\x00\\x00\\x00\\x00'
    """
    return b"".join(frame(part) for part in parts)


def unpack(body: bytes, most: int) -> list[bytes]:
    """The parts of a body.

    Args:
        most: how many there may be.

    Raises:
        TrustError: it is cut off, or holds more parts.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        end = at + LENGTH + int.from_bytes(body[at : at + LENGTH], "big")
        if end > len(body) or at + LENGTH > len(body) or len(parts) == most:
            raise TrustError("that is no parcel", code="malformed")
        parts.append(body[at + LENGTH : end])
        at = end
    return parts


def batches(parts: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Parts in groups that are at most ``size`` bytes each, or a single part."""
    group: list[bytes] = []
    total = 0
    for part in parts:
        if group and total + len(part) > size:
            yield group
            group, total = [], 0
        group.append(part)
        total += len(part) + LENGTH
    if group:
        yield group
