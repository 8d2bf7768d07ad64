"""Which node is speaking? Flower's node key: a NIST elliptic-curve key, kept as Flower reads it.

The rule: one curve (P-256), one form for each half. The public half is PEM, byte for byte as Flower
registers a node; any other curve, form or spelling of the same key is refused, so that a key has
one name. The private half is stored in OpenSSH's form, which ``flower-supernode`` reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.canonical import digest
from common.errors import TrustError

MAX_PEM_BYTES = 512
_ALGORITHM = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class NodePublicKey:
    """A node's public key, by its PEM text (SubjectPublicKeyInfo)."""

    pem: str
    _key: ec.EllipticCurvePublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", _load(self.pem))
        if _pem(self._key) != self.pem:
            raise TrustError("a node key in another spelling than Flower's", code="bad-node-key")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the key's DER (SubjectPublicKeyInfo), 64 hexadecimal digits."""
        der = serialization.Encoding.DER
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        return digest(self._key.public_bytes(der, spki))

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` (DER, ECDSA with SHA-256) is this key's over ``message``."""
        try:
            self._key.verify(signature, message, _ALGORITHM)
        except InvalidSignature:
            return False
        return True


class NodeKey:
    """A node's private key in memory. Its bytes are never printed or logged."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = NodePublicKey(_pem(key.public_key()))

    def __repr__(self) -> str:
        return f"NodeKey({self.public.fingerprint[:12]}…)"

    @property
    def ec(self) -> ec.EllipticCurvePrivateKey:
        """The key object, for Flower, which signs by itself."""
        return self._key

    @classmethod
    def generate(cls) -> NodeKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, _ALGORITHM)

    def encode(self) -> bytes:
        """The private key in OpenSSH's form, for a key directory."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )

    @classmethod
    def decode(cls, data: bytes) -> NodeKey:
        """Read what :meth:`encode` wrote; :class:`TrustError` on anything else."""
        try:
            key = serialization.load_ssh_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TrustError(f"not a node's private key: {error}", code="bad-node-key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TrustError("a node's key is on the curve P-256", code="bad-node-key")
        return cls(key)


def _load(pem: str) -> ec.EllipticCurvePublicKey:
    try:
        if len(pem) > MAX_PEM_BYTES:
            raise ValueError("too long")
        key = serialization.load_pem_public_key(pem.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"not a node's public key: {error}", code="bad-node-key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("a node's key is on the curve P-256", code="bad-node-key")
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, spki).decode()
