"""Who is who: Ed25519 keys, kept in a directory that only their owner can read.

The rule: a private key is born in a key directory (mode 0700, files 0600) and never leaves it; a
run, a bundle and a repository hold fingerprints and public keys alone. A key is named by its
fingerprint, the SHA-256 of its 32 public bytes (RFC 8032), and a fingerprint means nothing until
somebody got it from outside of the thing that it vouches for.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common import durable
from common.canonical import digest, encode
from common.errors import OperationError, TrustError

MAX_KEY_BYTES = 2**16


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key: 32 bytes, and the fingerprint that names it."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise TrustError(f"an Ed25519 public key has 32 bytes, not {len(self.raw)}")

    @property
    def fingerprint(self) -> str:
        return digest(self.raw)

    def text(self) -> str:
        """The key as base64, for JSON."""
        return base64.b64encode(self.raw).decode()

    @classmethod
    def from_text(cls, text: object) -> PublicKey:
        return cls(b64(text))

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` is this key's over ``message``."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class SigningKey:
    """An Ed25519 private key in memory. Its bytes are never printed, logged or compared."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey({self.public.fingerprint[:12]}…)"

    @property
    def ed25519(self) -> Ed25519PrivateKey:
        """The key object, for libraries that sign by themselves (TUF)."""
        return self._key

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``message`` (RFC 8032)."""
        return self._key.sign(message)

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` is what :meth:`sign` gives for ``message``.

        Ed25519 signs the same message with the same bits, in a third of the time of verifying.
        """
        return hmac.compare_digest(signature, self.sign(message))

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key whose RFC 8032 private seed is these 32 bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))


@dataclass(frozen=True)
class Identity:
    """What a client is to one federation: a pseudonym, and a ledger key used nowhere else.

    Both are derived (HKDF-SHA-256, RFC 5869) from one secret of the client and the federation's
    name, so two federations that compare notes cannot tell from these that they share a client.
    """

    pseudonym: str
    key: SigningKey
    salt: bytes = field(default=b"", repr=False)

    @classmethod
    def derive(cls, secret: bytes, federation: str) -> Identity:
        return cls(
            pseudonym=_derive(secret, f"privet/pseudonym/{federation}", 16).hex(),
            key=SigningKey.from_seed(_derive(secret, f"privet/ledger-key/{federation}", 32)),
            salt=_derive(secret, f"privet/commitment-salt/{federation}", 32),
        )

    def commit(self, purpose: str, what: bytes) -> str:
        """A commitment that can be opened later and tells nobody anything before: 64 hex digits.

        HMAC-SHA-256 under a salt of this federation alone. Without the salt, whoever can guess a
        small data set could test the guess; with one salt for all, federations could be linked.

        Args:
            purpose: what kind of thing it is, so that no two kinds share a commitment.
            what: the bytes that are committed to.
        """
        if len(self.salt) != 32:
            raise TrustError("an identity without its salt cannot commit to anything")
        message = b"privet/commitment/v1\n" + encode([purpose]) + b"\n" + what
        return hmac.digest(self.salt, message, "sha256").hex()


class KeyDirectory:
    """A directory of private keys. Refuses to read what others could have read.

    Args:
        path: made on first use with mode 0700.

    Raises:
        TrustError: the directory or a key file is open to other users.
        OperationError: a key is missing, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, name: str) -> SigningKey:
        """Make and store a new key; an existing one is an error, never overwritten."""
        return SigningKey.from_seed(self.create_secret(name))

    def load(self, name: str) -> SigningKey:
        return SigningKey.from_seed(self.secret(name))

    def create_secret(self, name: str) -> bytes:
        """Make and store 32 random bytes."""
        secret = os.urandom(32)
        self.store(name, secret)
        return secret

    def secret(self, name: str) -> bytes:
        """Read the 32 bytes stored under ``name``."""
        secret = self.read(name)
        if len(secret) != 32:
            raise TrustError(f"{self.path / name} holds {len(secret)} bytes where a key has 32")
        return secret

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def store(self, name: str, secret: bytes, *, again: bool = False) -> None:
        """Keep another kind of private key; an existing one is an error unless ``again``."""
        with durable.disk_errors(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_private(self.path, self.path.stat())
        file = self.path / name
        if file.exists() and not again:
            raise OperationError(
                f"there is already a key at {file}",
                hint="use it, or name another key directory",
                code="key-exists",
            )
        durable.replace(file, secret, mode=0o600)

    def read(self, name: str, *, most: int = MAX_KEY_BYTES) -> bytes:
        """Read the bytes stored under ``name``, at most 64 KiB unless ``most`` says otherwise."""
        file = self.path / name
        try:
            self._check_private(self.path, self.path.stat())
            with open(file, "rb", opener=durable.without_waiting) as stream:
                status = os.fstat(stream.fileno())
                self._check_private(file, status)
                if not stat.S_ISREG(status.st_mode):
                    raise TrustError(f"{file} is no file", code="key-exposed")
                return stream.read(most)
        except FileNotFoundError as error:
            raise OperationError(
                f"no key at {file}",
                hint="keys are made on the machine that uses them and do not travel with a run: "
                "run where they are, or start anew",
                code="key-missing",
            ) from error
        except OSError as error:
            raise OperationError(
                f"cannot read the key {file}: {error.strerror or error}",
                hint="check the permissions of that path",
            ) from error

    @staticmethod
    def _check_private(path: Path, status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise TrustError(
                f"{path} can be read by other users (mode {mode:04o})",
                hint=f"chmod go-rwx {path}",
                code="key-exposed",
            )


def b64(text: object) -> bytes:
    """Decode strict base64 from untrusted JSON; :class:`TrustError` if it is anything else."""
    if not isinstance(text, str):
        raise TrustError("expected base64 text")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise TrustError("expected base64 text") from error
    # The last characters can hold bits that mean nothing: one value, one spelling.
    if base64.b64encode(data).decode() != text:
        raise TrustError("expected base64 text in its only spelling")
    return data


def _derive(secret: bytes, purpose: str, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt=None, info=purpose.encode()).derive(secret)
