"""What exactly crosses the network? Plain values: requests, receipts, and named arrays.

The rule: whatever arrives is hostile until its signature, its digest and its limits are checked;
size comes before decoding, and a signature before parsing. Nothing here knows Flower: the two apps
put these bytes into messages. A reply carries an update and a signed receipt. It carries no loss,
no accuracy and no number of records: those would be releases that nobody accounted for.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.canonical import CanonicalError, Json, decode, digest, encode
from common.errors import TrustError
from common.keys import PublicKey, SigningKey
from common.ledger import merkle
from common.ledger.head import Head
from common.statement import (
    CLOSED_TYPE,
    CLOSING_TYPE,
    HELLO_TYPE,
    LEDGER_CALL_TYPE,
    RECEIPT_TYPE,
    REQUEST_TYPE,
    ROLL_CALL_TYPE,
    Envelope,
)

SCHEMA_VERSION = 2
MAX_ENVELOPE_BYTES = 16 * 1024
MAX_DIMENSIONS = 32
# The one header that numpy writes for such an array. numpy's own reader evaluates it as Python,
# and raises a dozen different errors on what is none.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '<f4', 'fortran_order': False, "
    rb"'shape': \((?P<shape>|[0-9]{1,9},|[0-9]{1,9}(?:, [0-9]{1,9}){1,63})\), \} {0,128}\n",
    re.DOTALL,
)
_HEX = re.compile(r"[0-9a-f]{32,64}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX128 = re.compile(r"[0-9a-f]{128}")

Arrays = dict[str, NDArray[np.float32]]
Update = Arrays | bytes  # as it travels: plain, or in the plan's coding


class _Document:
    """A frozen dataclass of texts and counts that travels as a signed envelope of its type."""

    TYPE: str

    def sign(self, key: SigningKey) -> bytes:
        fields: Json = asdict(self)  # type: ignore[call-overload]
        payload = encode({"schema_version": SCHEMA_VERSION, **fields})
        return Envelope.sign(self.TYPE, payload, [key]).encode()

    @classmethod
    def verify(cls, data: bytes, key: PublicKey) -> Self:
        """Read hostile bytes: size, signature by ``key``, then exactly the fields of this class.

        Raises:
            TrustError: code ``malformed`` or ``bad-signature``.
        """
        if len(data) > MAX_ENVELOPE_BYTES:
            raise TrustError(f"an envelope of {len(data)} bytes", code="malformed")
        try:
            payload = Envelope.decode(data).verify(cls.TYPE, [key])
        except TrustError as error:
            if error.code == "bad-signature":
                raise
            raise TrustError(str(error), code="malformed") from error
        try:
            document = decode(payload)
        except CanonicalError as error:
            raise TrustError(f"signed, but not canonical: {error}", code="malformed") from error
        version = document.pop("schema_version", None)
        if type(version) is not int or version != SCHEMA_VERSION:
            raise TrustError("signed, but of another schema version", code="malformed")
        return cls._from(document)

    @classmethod
    def _from(cls, document: Json) -> Self:
        fields: dict[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
        if set(document) != set(fields):
            raise TrustError("signed, but with other fields", code="malformed")
        for name, field in fields.items():
            if not _is_good(name, field.type, document[name]):
                raise TrustError(f"signed, but {name} is malformed", code="malformed")
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in document.items()}
        return cls(**values)


def _is_good(name: str, kind: str, value: object) -> bool:
    """Whether a field of a signed document has the form of its name and type."""
    if kind == "int":
        return type(value) is int and 0 <= value < 2**31
    if kind != "str":  # a proof
        return (
            isinstance(value, list)
            and len(value) <= merkle.MAX_PROOF
            and all(isinstance(item, str) and _HEX64.fullmatch(item) for item in value)
        )
    if not isinstance(value, str):
        return False
    if name == "client":
        return 0 < len(value) <= 64
    pattern = {"signature": _HEX128, "root": _HEX64}.get(name, _HEX)
    return pattern.fullmatch(value) is not None


@dataclass(frozen=True)
class RollCall(_Document):
    """The server asks who is there. ``nonce``: 32 random hexadecimal digits or more."""

    TYPE = ROLL_CALL_TYPE
    run: str
    nonce: str


@dataclass(frozen=True)
class LedgerCall(_Document):
    """The server asks for what a ledger says of its federation: what a bundle publishes of it."""

    TYPE = LEDGER_CALL_TYPE
    client: str
    run: str


@dataclass(frozen=True)
class Hello(_Document):
    """A client says who it is, to a server that signed its :class:`RollCall`."""

    TYPE = HELLO_TYPE
    client: str
    nonce: str


@dataclass(frozen=True)
class RoundRequest(_Document):
    """The server asks one client for one round.

    Args:
        client: the enrolled name of the client that is asked; nobody else serves it.
        plan: digest of the plan.
        run: the run's random id, 32 hexadecimal digits.
        incarnation: 0, 1 … : how often the run was restored from a checkpoint.
        round: 1 … plan.rounds.
        model: :func:`digest_arrays` of the arrays sent along.
        nonce: random, stored by the server before it sends; tells a retry from a new request.
        entries, root: the client's ledger head as the server last saw it; 0 entries at first.
        signature: the server's countersignature of that :class:`~common.ledger.head.Head`.
    """

    TYPE = REQUEST_TYPE
    client: str
    plan: str
    run: str
    incarnation: int
    round: int
    model: str
    nonce: str
    entries: int
    root: str
    signature: str

    @property
    def digest(self) -> str:
        """What a retry has in common with its first attempt."""
        return digest(encode(asdict(self)))


@dataclass(frozen=True)
class Receipt(_Document):
    """The client vouches for an update and for having recorded what it cost.

    Args:
        request: :attr:`RoundRequest.digest`.
        intent: digest of the ledger entry that was fsynced before the noise was drawn.
        update: :func:`digest_update` of the update as it left.
        entries, root: the client's ledger head in this federation, this round included.
        signature: the client's own, over that :class:`~common.ledger.head.Head`.
        consistency: proof that the head in the request is a prefix of this one.
    """

    TYPE = RECEIPT_TYPE
    client: str
    plan: str
    round: int
    request: str
    intent: str
    update: str
    entries: int
    root: str
    signature: str
    consistency: tuple[str, ...]


@dataclass(frozen=True)
class Closing(_Document):
    """The server's last word to a client in a run: the head that it saw, countersigned."""

    TYPE = CLOSING_TYPE
    client: str
    run: str
    entries: int
    root: str
    signature: str


@dataclass(frozen=True)
class Closed(_Document):
    """The client has stored the server's last word; its own head with it, as in a receipt."""

    TYPE = CLOSED_TYPE
    client: str
    run: str
    entries: int
    root: str
    signature: str
    consistency: tuple[str, ...]


def head_in(
    document: RoundRequest | Receipt | Closing | Closed, federation: str, pseudonym: str
) -> Head:
    """The ledger head that a document speaks of."""
    return Head(federation, pseudonym, document.entries, document.root)


def digest_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and little-endian bytes, in the order of the names."""
    hasher = hashlib.sha256(b"privet/arrays/v1\n")
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")  # unlike ascontiguousarray, () stays ()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        header = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        hasher.update(encode(header) + b"\n")
        hasher.update(little.data if little.size else b"")
    return hasher.hexdigest()


def digest_update(update: Mapping[str, NDArray[Any]] | bytes) -> str:
    """SHA-256 that binds an update as it travels: arrays, or the very bytes of a coded one."""
    if isinstance(update, bytes):
        return hashlib.sha256(b"privet/coded-update/v1\n" + update).hexdigest()
    return digest_arrays(update)


def from_npy(data: bytes) -> NDArray[np.float32]:
    """Read one hostile NPY document without believing its header: nothing is allocated for a claim.

    Raises:
        TrustError: not NPY 1.0, not little-endian float32 in C order, or of another length than its
            shape needs.
    """
    header = _NPY_HEADER.match(data)
    if header is None or len(header[0]) != 10 + int.from_bytes(header["length"], "little"):
        raise TrustError(
            "not an array: not NPY 1.0 of little-endian float32 in C order", code="malformed"
        )
    shape = tuple(int(size) for size in re.findall(rb"[0-9]+", header["shape"]))
    if len(shape) > MAX_DIMENSIONS or len(data) - len(header[0]) != 4 * math.prod(shape):
        raise TrustError("not an array: its length is not what its shape needs", code="malformed")
    return np.frombuffer(data, "<f4", offset=len(header[0])).reshape(shape)


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named float32 arrays as safetensors bytes: what is stored before it is sent."""
    from safetensors.numpy import save

    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def unpack_arrays(data: bytes) -> Arrays:
    """The inverse of :func:`pack_arrays`, for bytes whose digest was checked."""
    from safetensors.numpy import load

    return dict(load(data))
