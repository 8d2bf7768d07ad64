"""What does an operator hand to a new client? One token: where to go, whom to trust there, once.

The rules: a token is a secret until it is used. It holds the seed of an Ed25519 key that was made
for this one invitation; the server keeps the public half alone, so what it stores lets nobody in,
and the seed itself never crosses the network. A token has one spelling, and its checksum refuses
every mistake in copying before anything is connected to.

    privet1-<base64url of: expires (8), authority (32), coordinator (32), seed (32),
             length of name (1), name, address; then four bytes of SHA-256 over all of that>
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
from dataclasses import dataclass, field

from common.canonical import digest
from common.config import NAME
from common.errors import InputError
from common.keys import PublicKey, SigningKey

PREFIX = "privet1-"
MAX_TOKEN = 1024
_CHECK, _FIXED = 4, 8 + 3 * 32 + 1
_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


@dataclass(frozen=True)
class Address:
    """A server's host (a lower-case name, or an IP address) and port, 1 to 65535."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not is_host(self.host) or not 0 < self.port < 65536:
            raise InputError(
                f"{self.host!r} with port {self.port} is no address",
                hint="name a host in lower case, or an IP address, and a port from 1 to 65535",
                code="bad-address",
            )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read what ``str`` writes; :class:`InputError` on anything else."""
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        address = cls(bare, int(port) if re.fullmatch(r"[1-9][0-9]{0,4}", port) else 0)
        if str(address) != text:
            raise InputError(f"{text!r} is no address", hint="HOST:PORT", code="bad-address")
        return address


def is_host(text: str) -> bool:
    """Whether this is a host name in lower case, or an IP address in its usual spelling."""
    try:
        return str(ipaddress.ip_address(text)) == text and "%" not in text
    except ValueError:
        # A name whose last part is a number would be read as an address by some.
        return _HOST.fullmatch(text) is not None and not text.rpartition(".")[2].isdigit()


@dataclass(frozen=True)
class Invitation:
    """One invitation, as its token carries it.

    Args:
        name: what the client will be called.
        address: where the server is.
        authority: fingerprint of the federation's own certificate authority: SHA-256 of the DER
            of its certificate.
        federation: fingerprint of the coordinator's key.
        expires: seconds since 1970, UTC.
        seed: 32 secret bytes.
    """

    name: str
    address: Address
    authority: str
    federation: str
    expires: int
    seed: bytes = field(repr=False)

    @property
    def key(self) -> SigningKey:
        return SigningKey.from_seed(self.seed)

    @property
    def id(self) -> str:
        return invitation_id(self.key.public)

    def token(self) -> str:
        """The text to hand over."""
        name = self.name.encode()
        body = b"".join(
            (
                self.expires.to_bytes(8, "big"),
                bytes.fromhex(self.authority),
                bytes.fromhex(self.federation),
                self.seed,
                bytes([len(name)]),
                name,
                str(self.address).encode(),
            )
        )
        return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> Invitation:
        """Read a token that somebody pasted; white space around it does no harm.

        Raises:
            InputError: ``bad-token``: it is not one, or was altered or cut off.
        """
        text = text.strip()
        try:
            return cls._parse(text)
        except (ValueError, InputError) as error:
            raise InputError(
                f"this is not an invitation: {error}",
                hint="paste the whole token, as privet server invite printed it",
                code="bad-token",
            ) from error

    @classmethod
    def _parse(cls, text: str) -> Invitation:
        if not text.startswith(PREFIX) or len(text) > MAX_TOKEN:
            raise ValueError(f"it does not begin with {PREFIX}")
        coded = text.removeprefix(PREFIX)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", coded):
            raise ValueError("it holds characters that no token has")
        try:
            data = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
        except binascii.Error as error:
            raise ValueError("it was cut off") from error
        body, check = data[:-_CHECK], data[-_CHECK:]
        if len(body) < _FIXED or _checksum(body) != check:
            raise ValueError("its checksum is wrong")
        end = _FIXED + body[_FIXED - 1]
        name = body[_FIXED:end].decode("ascii")
        if not NAME.fullmatch(name):
            raise ValueError("it names no client")
        invitation = cls(
            name=name,
            address=Address.parse(body[end:].decode("ascii")),
            authority=body[8:40].hex(),
            federation=body[40:72].hex(),
            expires=int.from_bytes(body[:8], "big"),
            seed=body[72:104],
        )
        if invitation.token() != text:
            raise ValueError("it is written in another way than tokens are")
        return invitation


def invitation_id(key: PublicKey) -> str:
    """What an invitation is called on the server: 32 hexadecimal digits."""
    return digest(b"privet/invitation/v1\n" + key.raw)[:32]


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:_CHECK]
