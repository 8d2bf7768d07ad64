"""Where does a federation's link keep its state, and how does a coordinator's process find it?

The rules: the link lives in a directory of its own in its federation's, its secret in the key
directory. Where it listens inside is written down at each start and taken again at the next, so
that whoever waits for a link that is being restarted waits at the right place. A link that is at
work holds its own directory, never the federation's: commands that change that need not wait.

    link/state.db      Flower's state: nodes, messages on their way
    link/ports.json    the loopback port
    link/coordinator/  held by the one process that runs a run
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, decode, encode
from common.errors import InputError
from common.keys import KeyDirectory
from server.federation.directory import Federation

LOOPBACK = "127.0.0.1"
EXECUTOR = "executor"  # in the key directory: who knows it may take a run's task


@dataclass(frozen=True)
class Place:
    """A link's files."""

    federation: Federation

    @property
    def path(self) -> Path:
        return self.federation.path / "link"

    @property
    def database(self) -> Path:
        return self.path / "state.db"

    def make(self) -> None:
        """Make the directory, readable by its owner alone."""
        with durable.disk_errors(self.path):
            self.path.mkdir(mode=0o700, exist_ok=True)
            self.path.chmod(0o700)

    def coordinator(self) -> Path:
        """A directory that the one coordinator at work holds."""
        path = self.path / "coordinator"
        with durable.disk_errors(path):
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def secret(self, *, make: bool = False) -> bytes:
        """The executor secret, 32 bytes.

        Args:
            make: make it if there is none.

        Raises:
            InputError: ``no-link``: no link was ever started here.
            TrustError: others could have read it.
        """
        keys = KeyDirectory(self.federation.keys)
        if not keys.has(EXECUTOR):
            if not make:
                raise self._nothing()
            keys.create_secret(EXECUTOR)
        return keys.secret(EXECUTOR)

    def flower_token(self, *, make: bool = False) -> str:
        """What Flower's command shows: it opens its four routes, and is no executor secret.

        Args, raises: as :meth:`secret`. 64 hexadecimal digits.
        """
        return hmac.digest(self.secret(make=make), b"privet/flower-command", "sha256").hex()

    def inside(self) -> str:
        """``host:port`` of the loopback interface, while a link runs or once it did.

        Raises:
            InputError: ``no-link``: no link was ever started here.
        """
        if not self.port():
            raise self._nothing()
        return f"{LOOPBACK}:{self.port()}"

    def port(self) -> int:
        """The loopback port of the last start; 0 if there was none."""
        try:
            port = int(decode(self._file.read_bytes())["inside"])
        except (OSError, CanonicalError, KeyError, TypeError, ValueError):
            return 0
        return port if 0 < port < 65536 else 0

    def note(self, port: int) -> None:
        """Remember the loopback port."""
        if port != self.port():
            durable.replace(self._file, encode({"inside": port}), mode=0o600)

    @property
    def _file(self) -> Path:
        return self.path / "ports.json"

    def _nothing(self) -> InputError:
        return InputError(
            f"no link was ever started in {self.federation.path}",
            hint=f"start one with `privet server start {self.federation.path}`",
            code="no-link",
        )
