"""Is this HTTP request an enrolled node's own: whole, meant for here, and the first of its kind?

The rules: a seal is the node key's signature of everything that a request is: method, path, length
and digest of the body, the listener's epoch and a counter that only grows. The epoch is drawn when
a listener starts, so nothing that was sealed for an earlier one counts; within one, a counter
counts once. No clock takes part, so a device whose clock is wrong is neither locked out nor easier
to replay. Flower's own signature covers a timestamp alone, for five minutes (flwr 1.41,
``NodeAuthHttpInterceptor``), and is checked besides.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
from dataclasses import dataclass

from common.canonical import digest
from common.errors import TrustError
from common.nodekey import NodeKey, NodePublicKey

SEAL_HEADER, EPOCH_HEADER = "privet-seal", "privet-epoch"
AFTER_HEADER = "privet-after"  # beside an epoch: the counter that a node has to go beyond
WINDOW = 256  # counters that may overtake each other: requests on a few connections
MAX_SEAL = 400  # characters of the header; a signature takes at most 72 bytes
_DOMAIN = b"privet node request v1"
_SEAL = re.compile(r"v1 ([0-9a-f]{64}) ([0-9a-f]{32}) ([0-9]{1,19}) ([0-9a-f]{64}) (\S{1,200})")
_EPOCH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Seal:
    """What a sealed request says about itself.

    Args:
        node: fingerprint of the node's public key, 64 hexadecimal digits.
        epoch: of the listener that it is meant for, 32 hexadecimal digits.
        counter: >= 0, greater than all that this node used before, or close.
        body: SHA-256 of the body, 64 hexadecimal digits.
        signature: the node key's, of :meth:`message`.
    """

    node: str
    epoch: str
    counter: int
    body: str
    signature: bytes = b""

    def message(self, method: str, path: str, length: int) -> bytes:
        """What is signed. No part can hold a line break, so no two requests share a message."""
        parts = (method, path, str(length), self.node, self.epoch, str(self.counter), self.body)
        return b"\n".join([_DOMAIN, *(part.encode("ascii") for part in parts)])

    def header(self) -> str:
        signature = base64.b64encode(self.signature).decode()
        return f"v1 {self.node} {self.epoch} {self.counter} {self.body} {signature}"

    @classmethod
    def parse(cls, text: str) -> Seal:
        """Read a header.

        Raises:
            TrustError: it is no seal.
        """
        match = _SEAL.fullmatch(text) if len(text) <= MAX_SEAL else None
        if match is None:
            raise TrustError("that is no seal")
        node, epoch, counter, body, signature = match.groups()
        try:
            raw = base64.b64decode(signature, validate=True)
        except binascii.Error as error:
            raise TrustError("that is no seal") from error
        return cls(node, epoch, int(counter), body, raw)

    def signed_by(self, key: NodePublicKey, method: str, path: str, length: int) -> bool:
        """Whether ``key`` signed this seal for such a request."""
        return key.verify(self.signature, self.message(method, path, length))


class Replays:
    """Which counters of one node were used: constant memory, whatever is sent."""

    def __init__(self) -> None:
        self._highest, self._seen = -1, 0

    def first(self, counter: int) -> bool:
        """Take a counter; False if it was taken before, or is too old to know.

        >>> replays = Replays()
        >>> [replays.first(n) for n in (5, 7, 6, 6, 5, 7, 1000, 8)]
        [True, True, True, False, False, False, True, False]
        """
        if counter > self._highest:
            step = min(counter - self._highest, WINDOW)
            self._seen = (self._seen << step | 1) & ((1 << WINDOW) - 1)
            self._highest = counter
            return True
        behind = self._highest - counter
        if behind >= WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


class Sealer:
    """Seals one process's requests; may be used by several threads."""

    def __init__(self, key: NodeKey) -> None:
        self._key, self._lock = key, threading.Lock()
        # A restarted process goes on above what it used before, as long as time goes forwards.
        self._epoch, self._counter = "0" * 32, time.time_ns() // 1000

    def seal(self, method: str, path: str, body: bytes) -> str:
        """The header for one request; each call uses up one counter."""
        with self._lock:
            self._counter += 1
            counter, epoch = self._counter, self._epoch
        seal = Seal(self._key.public.fingerprint, epoch, counter, digest(body))
        signature = self._key.sign(seal.message(method, path, len(body)))
        return Seal(seal.node, epoch, counter, seal.body, signature).header()

    def learn(self, epoch: str, after: str) -> bool:
        """Take a listener's epoch, and the counter to go on above; False if they are malformed."""
        if not _EPOCH.fullmatch(epoch) or not re.fullmatch(r"[0-9]{1,18}", after):
            return False
        with self._lock:
            self._epoch, self._counter = epoch, max(self._counter, int(after))
        return True
