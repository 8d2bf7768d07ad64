"""How far has a ledger come, and who vouches for it? Signed heads. Pure.

The rule: a head names one chain, how many entries it has and the Merkle root over them. The client
signs its own; the coordinator countersigns what it has seen and hands that back, so that neither
can later show another history of the same length, or a shorter one. Two signatures by two parties
are what makes a chain's end checkable: a chain that only its owner signed can be cut off, or
written anew, by its owner.

A head is written as a C2SP signed note (c2sp.org/signed-note, c2sp.org/tlog-checkpoint), which
other transparency tools read: three lines, an empty one, and a line for each signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import TrustError
from common.keys import PublicKey, SigningKey
from common.ledger import merkle
from common.ledger.entry import Entry

CLIENT, COORDINATOR = "client", "coordinator"  # names of the two keys in a note
MAX_NOTE_BYTES = 2048
_ED25519 = b"\x01"
_SIGNATURE = "\N{EM DASH} "


@dataclass(frozen=True)
class Head:
    """What a chain is, up to here.

    Args:
        federation: fingerprint of the coordinator's key.
        client: the client's pseudonym there.
        entries: how many entries, >= 0.
        root: the Merkle root over them, 64 hexadecimal digits.
    """

    federation: str
    client: str
    entries: int
    root: str

    @classmethod
    def of(cls, federation: str, client: str, chain: Sequence[Entry]) -> Head:
        root = merkle.root(entry.leaf for entry in chain)
        return cls(federation, client, len(chain), root.hex())

    def text(self) -> bytes:
        """What is signed: origin, size and root, each on a line of its own."""
        root = base64.b64encode(bytes.fromhex(self.root)).decode()
        return f"privet/ledger/{self.federation}/{self.client}\n{self.entries}\n{root}\n".encode()

    def sign(self, key: SigningKey) -> str:
        """``key``'s signature, as 128 hexadecimal digits."""
        return key.sign(self.text()).hex()

    def signed_by(self, key: PublicKey, signature: str) -> bool:
        return key.verify(bytes.fromhex(signature), self.text())


@dataclass(frozen=True)
class SignedHead:
    """A head with signatures by name (:data:`CLIENT`, :data:`COORDINATOR`), each 64 bytes as hex.

    It is unverified until :meth:`verify` returns.
    """

    head: Head
    signatures: Mapping[str, tuple[str, str]]  # name to (key id, signature), both hexadecimal

    @classmethod
    def of(cls, head: Head) -> SignedHead:
        return cls(head, {})

    def with_signature(self, name: str, key: PublicKey, signature: str) -> SignedHead:
        """The same head, vouched for by one more."""
        return replace(self, signatures={**self.signatures, name: (_key_id(name, key), signature)})

    def verify(self, keys: Mapping[str, PublicKey]) -> Head:
        """The head, once every one of ``keys`` has signed it.

        Raises:
            TrustError: names who did not.
        """
        for name, key in keys.items():
            key_id, signature = self.signatures.get(name, ("", ""))
            if key_id != _key_id(name, key) or not self.head.signed_by(key, signature):
                raise TrustError(f"the ledger's head is not signed by the {name}")
        return self.head

    def encode(self) -> bytes:
        """The note."""
        lines = [
            f"{_SIGNATURE}{name} {base64.b64encode(bytes.fromhex(key_id + signature)).decode()}\n"
            for name, (key_id, signature) in self.signatures.items()
        ]
        return self.head.text() + b"\n" + "".join(lines).encode()

    @classmethod
    def decode(cls, data: bytes) -> SignedHead:
        """Read a hostile note; :class:`TrustError` on anything that :meth:`encode` does not write.

        Signatures are read here and checked by :meth:`verify`.
        """
        try:
            note = cls._parse(data.decode() if len(data) <= MAX_NOTE_BYTES else "")
        except (ValueError, binascii.Error) as error:
            raise TrustError("not a signed ledger head") from error
        if note.encode() != data:
            raise TrustError("a signed ledger head in another spelling than its own")
        return note

    @classmethod
    def _parse(cls, text: str) -> SignedHead:
        body, _, tail = text.partition("\n\n")
        origin, entries, root = body.split("\n")
        kind, _, federation, client = origin.split("/")
        if kind != "privet" or len(bytes.fromhex(federation)) != 32:
            raise ValueError("another log")
        if len(bytes.fromhex(client)) != 16 or not 0 < len(entries) < 16 or not entries.isdigit():
            raise ValueError("no pseudonym or no size")
        hash_ = base64.b64decode(root, validate=True)
        if len(hash_) != 32:
            raise ValueError("no SHA-256")
        signatures = {}
        for line in tail.splitlines():
            name, blob = line.removeprefix(_SIGNATURE).split(" ")
            raw = base64.b64decode(blob, validate=True)
            if name not in (CLIENT, COORDINATOR) or len(raw) != 68:
                raise ValueError("no Ed25519 signature")
            signatures[name] = (raw[:4].hex(), raw[4:].hex())
        return cls(Head(federation, client, int(entries), hash_.hex()), signatures)


def _key_id(name: str, key: PublicKey) -> str:
    """C2SP signed-note: the first four bytes of a hash over name, algorithm and key."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:4].hex()
