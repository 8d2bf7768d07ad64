"""Who is this device? Two keys that were made here and stay here, outside of its directory.

The rule: one key directory is one device. The Ed25519 key signs what the device decided and how far
it came; the X25519 key opens models that were sealed to it (HPKE, RFC 9180, base mode). What is
sealed is bound to the device, the release, the file and its digest: anywhere else it does not open.
Base mode lets anybody seal who has the public key; here a secret of the device is part of the
``info`` too, so what opens was sealed by this device, and need not be hashed again.

    device         Ed25519, signs decisions and the floor
    device-seal    X25519, opens models
    floor.json     what must outlive the device's directory: see :mod:`client.device.floor`

The keys are files (0600) that the owner's account can read. That protects a stolen disk or backup
of the device's directory, and nothing against whoever has the whole machine.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from common.canonical import encode
from common.errors import OperationError, TrustError
from common.keys import KeyDirectory, SigningKey

SIGNING, SEALING = "device", "device-seal"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PURPOSE = "privet/device/sealed-file/v1"


class Identity:
    """A device's keys, read from their directory.

    Args:
        keys: made by :meth:`create`.

    Raises:
        OperationError: a key is missing.
        TrustError: others can read the keys.
    """

    def __init__(self, keys: Path) -> None:
        self.path = keys
        directory = KeyDirectory(keys)
        try:
            self.key: SigningKey = directory.load(SIGNING)
            secret = directory.secret(SEALING)
            self._opener = X25519PrivateKey.from_private_bytes(secret)
            self._by = hmac.digest(secret, _PURPOSE.encode(), "sha256").hex()
        except OperationError as error:
            raise OperationError(
                error.message,
                hint="without its keys a device can open nothing: enrol it again, as a new one",
                code=error.code,
            ) from error

    @classmethod
    def create(cls, keys: Path) -> Identity:
        """The device whose keys lie there; they are made if there are none."""
        directory = KeyDirectory(keys)
        for name in (SIGNING, SEALING):
            if not directory.has(name):
                directory.create_secret(name)
        return cls(keys)

    @property
    def fingerprint(self) -> str:
        """Of the signing key: the device's name."""
        return self.key.public.fingerprint

    def seal(self, data: bytes, what: dict[str, str | int]) -> bytes:
        """Encrypt to this device; 48 bytes longer.

        Args:
            what: all that has to be the same when it is opened.
        """
        return _SUITE.encrypt(data, self._opener.public_key(), self._info(what))

    def open(self, sealed: bytes, what: dict[str, str | int]) -> bytes:
        """What :meth:`seal` was given.

        Raises:
            TrustError: it was sealed to another device, as something else, or was changed.
        """
        try:
            return _SUITE.decrypt(sealed, self._opener, self._info(what))
        except (InvalidTag, ValueError) as error:
            raise TrustError(
                "it does not open with this device's key: it was changed, or sealed as another "
                "release or for another device",
                code="not-ours",
            ) from error

    def _info(self, what: dict[str, str | int]) -> bytes:
        device = {"purpose": _PURPOSE, "device": self.fingerprint, "by": self._by}
        return encode({**what, **device})
