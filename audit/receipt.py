"""What does one data owner need to check their own spend? A receipt, of at most a kilobyte.

The rules: a receipt holds the last entry that the coordinator countersigned, which states what the
whole chain has cost so far, the proof that this entry is under the countersigned root, and the
head with both signatures. Nothing else of the federation is needed, and nothing of it is shown.
A receipt vouches for the entries up to its own; what was spent after it is in a later one.

A file is canonical JSON, compressed (zlib), because most of it is hexadecimal.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audit.wording import called, up
from common.bundle import Bundle, Trust
from common.canonical import CanonicalError, Json, decode, encode, parse_number
from common.errors import InputError, TrustError
from common.keys import PublicKey, b64
from common.ledger import Entry, Head, SignedHead, merkle
from common.ledger.head import CLIENT, COORDINATOR
from common.privacy import accountant

SCHEMA_VERSION = 1
MAX_BYTES = 4096  # compressed; a receipt over a million entries has 1.2 kB
_MAX_JSON = 16 * 1024


@dataclass(frozen=True)
class Receipt:
    """One client's spend, as the client and the coordinator both signed it.

    Args:
        entry: the last entry that the coordinator countersigned; it states what was spent.
        proof: from that entry's leaf to the root, raw hashes.
        head: the head, with both signatures.
        keys: the two public keys by name; they prove nothing until somebody knows them.
    """

    entry: Entry
    proof: Sequence[bytes]
    head: SignedHead
    keys: dict[str, PublicKey]

    @classmethod
    def of(cls, bundle: Bundle, pseudonym: str) -> Receipt:
        """The receipt of one client of a bundle.

        Raises:
            InputError: the bundle has no such client, or the coordinator never saw its ledger.
        """
        if pseudonym not in bundle.heads:
            raise InputError(
                f"the bundle holds no countersigned head of a client {pseudonym!r:.40}",
                hint="name a client by its whole pseudonym, as `privet audit verify --format json` "
                "lists it",
                code="no-such-client",
            )
        head = SignedHead.decode(bundle.heads[pseudonym])
        covered = bundle.ledgers[pseudonym][: head.head.entries]
        if not covered or "spent" not in covered[-1].body:
            raise InputError("the countersigned entries end with one that states no spending")
        proof = merkle.inclusion_proof([entry.leaf for entry in covered], len(covered) - 1)
        keys = {CLIENT: bundle.clients[pseudonym], COORDINATOR: bundle.signers[COORDINATOR]}
        return cls(covered[-1], proof, head, keys)

    def encode(self) -> bytes:
        # What follows from the rest is left out: the federation is the coordinator key's
        # fingerprint, and the root is where the proof leads.
        entry = self.entry.json()
        del entry["federation"]
        document = {
            "schema_version": SCHEMA_VERSION,
            "entry": entry,
            "proof": [base64.b64encode(hash_).decode() for hash_ in self.proof],
            "signatures": {
                name: base64.b64encode(bytes.fromhex(signature)).decode()
                for name, (_, signature) in self.head.signatures.items()
            },
            "keys": {name: key.text() for name, key in self.keys.items()},
        }
        return zlib.compress(encode(document), 9)

    @classmethod
    def decode(cls, data: bytes) -> Receipt:
        """Read a hostile receipt; :class:`TrustError` if it is none. :meth:`check` comes next."""
        if len(data) > MAX_BYTES:
            raise TrustError(f"a receipt of {len(data)} bytes")
        try:
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(data, _MAX_JSON)
            if not unpacker.eof or unpacker.unused_data:
                raise CanonicalError("it does not end where it should")
            return cls._from(decode(text))
        except (zlib.error, CanonicalError, KeyError, TypeError, ValueError) as error:
            raise TrustError(f"not a receipt: {error}") from error

    @classmethod
    def _from(cls, document: Json) -> Receipt:
        if set(document) != {"schema_version", "entry", "proof", "signatures", "keys"}:
            raise CanonicalError("other fields than a receipt has")
        version = document["schema_version"]
        if type(version) is not int or version != SCHEMA_VERSION:
            raise CanonicalError("another schema version")
        for field in ("signatures", "keys"):
            if set(document[field]) != {CLIENT, COORDINATOR}:
                raise CanonicalError(f"other {field} than a receipt has")
        if len(document["proof"]) > merkle.MAX_PROOF:
            raise CanonicalError("too long a proof")
        keys = {name: PublicKey.from_text(text) for name, text in document["keys"].items()}
        federation = keys[COORDINATOR].fingerprint
        entry = Entry.from_json({**document["entry"], "federation": federation})
        proof = [b64(text) for text in document["proof"]]
        root = merkle.root_of_last(entry.leaf, entry.seq, proof)
        head = SignedHead.of(Head(federation, entry.client, entry.seq + 1, root.hex()))
        for name, text in document["signatures"].items():
            head = head.with_signature(name, keys[name], b64(text).hex())
        return cls(entry, proof, head, keys)

    @property
    def order(self) -> int:
        """The Rényi order that the owner's filter adds up at."""
        return int(self.entry.body["spent"]["order"])

    @property
    def cost(self) -> float:
        """What the whole chain has cost, at that order."""
        return parse_number(self.entry.body["spent"]["cost"])

    def epsilon(self, delta: float) -> float:
        """``epsilon_filter`` of this federation at ``delta``, in (0, 1)."""
        return accountant.to_epsilon(self.cost, self.order, delta)

    def check(self, trust: Trust | None) -> None:
        """Whether both signed, and the entry is where they say.

        Args:
            trust: fingerprints from outside; without them it is only consistent with itself.

        Raises:
            TrustError: names what is wrong.
        """
        head = self.head.verify(self.keys)
        if trust is not None:
            _vouched(self.keys[COORDINATOR], trust.signers.get(COORDINATOR), COORDINATOR)
            _vouched(self.keys[CLIENT], trust.clients.get(head.client), CLIENT)
        if not self.entry.signed_by(self.keys[CLIENT]):
            raise TrustError("the entry is not signed by the client")
        if "spent" not in self.entry.body or not 2 <= self.order <= max(accountant.ORDERS):
            raise TrustError("the entry states no spending that can be read")

    def json(self, delta: float) -> Json:
        return {
            "federation": self.head.head.federation,
            "client": self.head.head.client,
            "entries": self.head.head.entries,
            "time": self.entry.time,
            "order": self.order,
            "cost": self.cost,
            "delta": delta,
            "epsilon_filter": self.epsilon(delta),
        }

    def words(self, delta: float, trust: Trust | None) -> str:
        """The same for a person."""
        return (
            f"{called(trust is not None)}\n"
            f"client {self.entry.client[:12]}… in federation {self.entry.federation[:12]}…: "
            f"{self.entry.seq + 1} entries up to {self.entry.time}, signed by the client and the "
            f"coordinator\n"
            f"spent so far: Rényi cost {self.cost:.6g} at order {self.order}, which is "
            f"epsilon_filter {up(self.epsilon(delta), 4)} at delta {delta:g}\n"
            "The cost is what the client stated; whoever holds the bundle can add it up again.\n"
            "This is one federation's spending on the data set; another's is in another receipt."
        )


def read(path: Path) -> Receipt:
    """A receipt from a file; :class:`InputError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return Receipt.decode(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _vouched(key: PublicKey, fingerprint: str | None, who: str) -> None:
    if key.fingerprint != fingerprint:
        raise TrustError(
            f"the {who} has key {key.fingerprint[:16]}…, which the trust file does not vouch for",
            hint="get the fingerprints again from whoever runs the federation",
            code="untrusted-key",
        )
