"""How do a few things travel in one body, and how large may what is in them become?

The rules: each part comes after its length, and whoever reads says first how much there may be; a
length is believed only within that. The parts are objects of Flower's, which build others: an array
is made of chunks, and may name one of them many times. So what they say of one another is added up
before any is built.

A node takes its messages and gives its replies so, on a path each, and says in between that it is
there.

An object is ``KIND CHILD,CHILD,… LENGTH``, a zero byte, and a body (flwr 1.41, ``inflatable``); its
name is the SHA-256 of all that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from common.canonical import digest
from common.errors import TrustError

TAKE, GIVE = "/privet/v1/take", "/privet/v1/give"
HEARTBEAT_SECONDS = 10.0  # the shortest that Flower takes of a node; it forgets it after two
LENGTH = 4  # bytes of a length, big-endian
MOST_PARTS = 1000  # of one message: a model of a few hundred arrays
MOST_BYTES = 256 * 1024 * 1024  # that a message may be, and become
_ARRAY, _CHUNK, _MOST_ARRAY_BODY = "Array", "ArrayChunk", 1024 * 1024


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


@dataclass(frozen=True)
class Part:
    """An object, as far as its head says.

    Args:
        name: SHA-256, 64 hexadecimal digits.
        kind: its type.
        children: names of the objects that it is built of.
        body: its own bytes.
    """

    name: str
    kind: str
    children: tuple[str, ...]
    body: bytes

    @classmethod
    def read(cls, data: bytes) -> Part:
        """Read an object's head; TrustError if it has none."""
        head, divider, body = data.partition(b"\0")
        try:
            kind, children, length = head.decode("ascii").split(" ")
            if not divider or int(length) != len(body):
                raise ValueError("no head, or another length")
        except ValueError as error:
            raise TrustError("that is no object", code="malformed") from error
        names = tuple(children.split(",")) if children else ()
        return cls(digest(data), kind, names, body)


def check_size(objects: Sequence[bytes], limit: int) -> None:
    """Whether these objects together become at most ``limit`` bytes.

    Raises:
        TrustError: ``too-large``, or ``malformed``: one is no object.
    """
    parts = [Part.read(data) for data in objects]
    chunks = {part.name: len(part.body) for part in parts if part.kind == _CHUNK}
    total = sum(len(part.body) for part in parts if part.kind != _CHUNK)
    for part in parts:
        if part.kind == _ARRAY:
            total += sum(chunks.get(part.children[i], 0) for i in _indices(part))
    if total > limit:
        raise TrustError(f"objects that become more than {limit} bytes", code="too-large")


def _indices(part: Part) -> list[int]:
    """Which of its children an array is made of, in order."""
    try:
        if len(part.body) > _MOST_ARRAY_BODY:
            raise ValueError("too long")
        indices = json.loads(part.body)["arraychunk_ids"]
        if not isinstance(indices, list) or not all(
            type(index) is int and 0 <= index < len(part.children) for index in indices
        ):
            raise ValueError("other chunks than it has")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError("that is no array", code="malformed") from error
    return indices
