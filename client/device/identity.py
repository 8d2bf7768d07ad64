"""Who is this device? Two keys that were made here and stay here, outside of its directory.

The rule: one key directory is one device. The Ed25519 key signs what the device decided and how far
it came; from the other one come the keys under which it seals its models: see
:mod:`client.device.sealing`. What is sealed is bound to the device, the release, the file and its
digest: anywhere else it does not open.

    device         Ed25519, signs decisions and the floor
    device-seal    32 random bytes, seal models
    floor.json     what must outlive the device's directory: see :mod:`client.device.floor`

The keys are files (0600) that the owner's account can read. That protects a stolen disk or backup
of the device's directory, and nothing against whoever has the whole machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from client.device import sealing
from common.canonical import encode
from common.errors import OperationError
from common.keys import KeyDirectory, SigningKey

SIGNING, SEALING = "device", "device-seal"
_PURPOSE = "privet/device/sealed-file/v2"  # 1: to an X25519 key


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
            self._secret = directory.secret(SEALING)
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

    @cached_property
    def fingerprint(self) -> str:
        """Of the signing key: the device's name."""
        return self.key.public.fingerprint

    def seal(self, data: bytes, what: Mapping[str, Any]) -> bytes:
        """Encrypt to this device; :data:`~client.device.sealing.LONGER` bytes longer.

        Args:
            what: all that has to be the same when it is opened, as canonical JSON takes it.
        """
        return sealing.seal(data, self._secret, self._purpose(what))

    def open(self, file: Path, what: Mapping[str, Any], *, most: int, shift: int = 0) -> memoryview:
        """What :meth:`seal` was given, from a file; see :func:`client.device.sealing.open_file`.

        Raises:
            OSError: the file cannot be read.
            TrustError: ``not-ours``: it was sealed by another device, as something else, or was
                changed.
        """
        purpose = self._purpose(what)
        return sealing.open_file(file, self._secret, purpose, most=most, shift=shift)

    def _purpose(self, what: Mapping[str, Any]) -> bytes:
        return encode({**what, "purpose": _PURPOSE, "device": self.fingerprint})
