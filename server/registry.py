"""Which node keys may come in, and whose are they?

The rule: the link asks at every request and keeps nothing of its own, so that a change to the
registry counts from the next request on, and a restart is never needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from common.canonical import CanonicalError, decode, encode
from common.durable import replace
from common.errors import TrustError
from common.seal import NodePublicKey

SCHEMA_VERSION = 1


class Registry(Protocol):
    """What the link needs to know of who is enrolled."""

    def node_keys(self) -> Mapping[bytes, str]:
        """Client names by node public key (PEM, as Flower registers it); cheap to ask again."""


class FileRegistry:
    """A registry in one file, ``members.json``; read again when the file is another.

    A file that is not there enrols nobody. A damaged one enrols nobody either, and the link says
    so: who may come in is not guessed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._version: tuple[int, ...] | None = None
        self._keys: Mapping[bytes, str] = {}

    def node_keys(self) -> Mapping[bytes, str]:
        """See :class:`Registry`.

        Raises:
            TrustError: the file is damaged; nobody is enrolled until it is mended.
        """
        try:
            status = self.file.stat()
        except FileNotFoundError:
            self._version, self._keys = None, {}
            return self._keys
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version != self._version:
            self._version, self._keys = None, {}
            self._keys = self._read()
            self._version = version
        return self._keys

    def _read(self) -> Mapping[bytes, str]:
        try:
            members = decode(self.file.read_bytes())["members"]
            keys = {
                NodePublicKey(member["node_key"].encode("ascii")).pem: str(name)
                for name, member in members.items()
            }
        except (CanonicalError, KeyError, AttributeError, TypeError, UnicodeError) as error:
            raise TrustError(f"{self.file} is damaged: {error}", code="bad-members") from error
        if len(keys) != len(members):
            raise TrustError(f"{self.file} gives one node key to two names", code="bad-members")
        return keys

    def write(self, members: Mapping[str, Mapping[str, str]]) -> None:
        """Replace the file: by name a client's ``node_key``, and what else enrolment keeps."""
        document = {name: dict(member) for name, member in members.items()}
        replace(self.file, encode({"schema_version": SCHEMA_VERSION, "members": document}))
