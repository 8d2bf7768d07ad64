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
import stat
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common import durable
from common.canonical import digest
from common.errors import OperationError, TrustError

SEAL_HEADER, EPOCH_HEADER = "privet-seal", "privet-epoch"
WINDOW = 256  # counters that may overtake each other: requests on a few connections
MAX_SEAL = 400  # characters of the header; a P-521 signature takes 139 bytes
_DOMAIN = b"privet node request v1"
_SEAL = re.compile(r"v1 ([0-9a-f]{64}) ([0-9a-f]{32}) ([0-9]{1,19}) ([0-9a-f]{64}) (\S{1,200})")
_EPOCH = re.compile(r"[0-9a-f]{32}")
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True)
class Seal:
    """What a sealed request says about itself.

    Args:
        node: SHA-256 of the node's public key, 64 hexadecimal digits.
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


@dataclass(frozen=True)
class NodePublicKey:
    """A node's public key, in the bytes that Flower knows it by: PEM of a NIST curve's point."""

    pem: bytes
    _key: ec.EllipticCurvePublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            key = serialization.load_pem_public_key(self.pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise TrustError("that is no public key in PEM", code="bad-node-key") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
            raise TrustError(
                "a node key is on the NIST curve P-256, P-384 or P-521",
                hint="make one with `privet client`",
                code="bad-node-key",
            )
        if _public_pem(key) != self.pem:
            raise TrustError("a node key's PEM has one spelling", code="bad-node-key")
        object.__setattr__(self, "_key", key)

    @property
    def fingerprint(self) -> str:
        return digest(self.pem)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` (ECDSA, SHA-256) is this key's over ``message``."""
        try:
            self._key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class NodeKey:
    """A node's private key; its bytes stay in their file (mode 0600) and in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self.ec = key
        self.public = NodePublicKey(_public_pem(key.public_key()))

    def __repr__(self) -> str:
        return f"NodeKey({self.public.fingerprint[:12]}…)"

    def sign(self, message: bytes) -> bytes:
        return self.ec.sign(message, ec.ECDSA(hashes.SHA256()))

    @classmethod
    def create(cls, file: Path) -> NodeKey:
        """Make a key in ``file``, which must not exist; its directory must be private (0700)."""
        _check_private(file.parent)
        if file.exists():
            raise OperationError(
                f"there is already a key at {file}", hint="use that one", code="key-exists"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        durable.replace(file, pem, mode=0o600)
        return cls(key)

    @classmethod
    def load(cls, file: Path) -> NodeKey:
        """Read a key.

        Raises:
            TrustError: it is not there, is no EC key, or others may read it.
        """
        try:
            _check_private(file)
            key = serialization.load_pem_private_key(file.read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TrustError(
                f"{file} holds no node key that can be read",
                hint="a node key is made when a client is enrolled",
                code="no-node-key",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TrustError(f"{file} is no key on a NIST curve", code="bad-node-key")
        return cls(key)


class Sealer:
    """Seals one process's requests; may be used by several threads."""

    def __init__(self, key: NodeKey) -> None:
        self._key, self._lock = key, threading.Lock()
        self._epoch, self._counter = "0" * 32, 0

    def seal(self, method: str, path: str, body: bytes) -> str:
        """The header for one request; each call uses up one counter."""
        with self._lock:
            # A restarted process goes on above what it used before, as long as time goes forwards.
            self._counter = max(self._counter + 1, time.time_ns() // 1000)
            counter, epoch = self._counter, self._epoch
        seal = Seal(self._key.public.fingerprint, epoch, counter, digest(body))
        signature = self._key.sign(seal.message(method, path, len(body)))
        return Seal(seal.node, epoch, counter, seal.body, signature).header()

    def learn(self, epoch: str, after: str) -> bool:
        """Take a listener's epoch, and the counter to go on above; whether either was news."""
        if not _EPOCH.fullmatch(epoch) or not re.fullmatch(r"[0-9]{1,18}", after):
            return False
        with self._lock:
            news = epoch != self._epoch or int(after) > self._counter
            self._epoch, self._counter = epoch, max(self._counter, int(after))
        return news


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _check_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise TrustError(
            f"{path} can be read by other users (mode {mode:04o})",
            hint=f"chmod go-rwx {path}",
            code="key-exposed",
        )
