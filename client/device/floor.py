"""How far has this device come? What must not be forgotten when its directory is wiped.

The rule: the floor lies with the device's keys, is signed by them, and only rises. It is on disk
before what it allows takes effect: a release is in the floor before it is switched to, so that no
crash and no wiped, restored or swapped directory brings an older one back. A release that was
accepted under a version is the only one of that version for ever, and so is a signed timestamp.

What it cannot do: whoever deletes the keys deletes the floor. Against that stands the owner's own
``least_version``, given anew at each enrolment; a counter in hardware is not used.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace

from client.device.identity import Identity
from common import durable
from common.canonical import CanonicalError, Json, decode, encode
from common.config import Table
from common.errors import InputError, TrustError
from common.keys import b64

SCHEMA_VERSION = 1
FILE = "floor.json"
NOTHING = "0" * 64  # in the place of a digest
_CONTEXT = b"privet/device-floor/v1\n"
_MOST = 2**53 - 1


@dataclass(frozen=True)
class Floor:
    """How far a device came.

    Args:
        name: of the model that it runs; empty before the first release.
        version, digest: the newest release that was accepted, and its ``release.json``'s SHA-256.
        running: the version that the device last switched to, here or back; 0: none.
        seen: the latest time at which a repository was believed, seconds since 1970 (UTC).
        root: version of the newest TUF root.
        timestamp, timestamp_digest, timestamp_keys: version of the newest TUF timestamp, SHA-256 of
            what is signed in it, and of the ids of the keys that sign timestamps.
        decisions, head: how many decisions there are, and the digest of the last one's line.
        policy: the owner's terms as they were last set, canonical JSON; empty: never. They are
            replaced, not raised: an owner may become stricter or more generous.
    """

    name: str = ""
    version: int = 0
    digest: str = NOTHING
    running: int = 0
    seen: int = 0
    root: int = 0
    timestamp: int = 0
    timestamp_digest: str = NOTHING
    timestamp_keys: str = NOTHING
    decisions: int = 0
    head: str = NOTHING
    policy: str = ""

    def json(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "running": self.running,
            "seen": self.seen,
            "root": self.root,
            "timestamp": self.timestamp,
            "timestamp_digest": self.timestamp_digest,
            "timestamp_keys": self.timestamp_keys,
            "decisions": self.decisions,
            "head": self.head,
            "policy": self.policy,
        }

    def accept(self, name: str, version: int, digest: str) -> Floor:
        """The same with a release that was accepted; it only rises."""
        if version < self.version:
            return self
        return replace(self, name=name, version=version, digest=digest)

    def decided(self, count: int, head: str) -> Floor:
        """The same with another end of the log."""
        return replace(self, decisions=count, head=head)


def read(identity: Identity) -> Floor:
    """The floor; an empty one before the first enrolment.

    Raises:
        TrustError: it is unreadable, or not this device's.
    """
    try:
        data = (identity.path / FILE).read_bytes()
    except FileNotFoundError:
        return Floor()
    except OSError as error:
        raise _untrusted(identity, error.strerror) from error
    try:
        document = decode(data)
        signature = b64(document.pop("signature", None))
        if document.pop("device", None) != identity.fingerprint:
            raise TrustError("it is another device's")
        message = _CONTEXT + encode({"device": identity.fingerprint, **document})
        if not identity.key.signed(signature, message):
            raise TrustError("its signature is not this device's")
        return _parse(document)
    except (CanonicalError, InputError, TrustError) as error:
        raise _untrusted(identity, error) from error


def write(identity: Identity, floor: Floor) -> None:
    """Replace the floor, durably; nothing happens where it is the same."""
    if read(identity) == floor:
        return
    document = {"device": identity.fingerprint, **floor.json()}
    signature = identity.key.sign(_CONTEXT + encode(document))
    document["signature"] = base64.b64encode(signature).decode()
    durable.replace(identity.path / FILE, encode(document), mode=0o600)


def _untrusted(identity: Identity, why: object) -> TrustError:
    return TrustError(
        f"{identity.path / FILE} cannot be trusted: {why}",
        hint="restore it from nowhere: find out who changed it; to start anew, enrol the device "
        "with another key directory",
        code="floor-damaged",
    )


def _parse(document: Json) -> Floor:
    table = Table(document, source=FILE)
    table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
    values = {
        key: table.integer(key, low=0, high=_MOST)
        for key in ("version", "running", "seen", "root", "timestamp", "decisions")
    }
    name = "" if document.get("name") == "" else table.name("name")
    document.pop("name", None)
    policy = document.pop("policy", "")  # a floor of an earlier build has none
    if not isinstance(policy, str):
        raise TrustError("its policy is no text")
    texts = {
        key: table.text(key) for key in ("digest", "timestamp_digest", "timestamp_keys", "head")
    }
    table.done()
    return Floor(name=name, policy=policy, **texts, **values)  # type: ignore[arg-type]
