"""How does Flower's own command learn of a link? As of any other: an address, and a token.

The rules: the address goes to Flower's configuration and the token to its credential store, a file
that only its owner can read, as after ``flwr login``. So the command prints no token, sends it with
each request, and finds it by the address. What else stands in the two files stays.
"""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from flwr.cli.constant import (
    ACCESS_TOKEN_STORE_KEY,
    AUTHN_TYPE_STORE_KEY,
    DEFAULT_FLOWER_CONFIG_TOML,
    FLOWER_CONFIG_FILE,
    REFRESH_TOKEN_STORE_KEY,
)
from flwr.common.constant import AuthnType
from flwr.supercore.credential_store.file_credential_store import FileCredentialStore
from flwr.supercore.utils import get_flwr_home

from common import durable
from common.errors import InputError, OperationError

CREDENTIALS = "credentials.yaml"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NEVER_REFRESHED = b"none"  # Flower wants a second token; it is sent to nobody who does not ask


def introduce(name: str, address: str, token: str) -> Path:
    """Write a link into Flower's home (``$FLWR_HOME``, or ``~/.flwr``), and its token.

    Args:
        name: what the command calls it.
        address: ``host:port`` of its loopback interface.
        token: 64 hexadecimal digits.

    Returns:
        Flower's configuration file.

    Raises:
        InputError: ``bad-name``, ``name-taken``, ``bad-flower-config``; nothing was changed.
        OperationError: the disk refused.
    """
    home = get_flwr_home()
    file = home / FLOWER_CONFIG_FILE
    content = _configured(file, name, address)
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o600
    with durable.disk_errors(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = FileCredentialStore(home / CREDENTIALS)
    for key, value in (
        (AUTHN_TYPE_STORE_KEY, AuthnType.OIDC.encode()),
        (ACCESS_TOKEN_STORE_KEY, token.encode()),
        (REFRESH_TOKEN_STORE_KEY, _NEVER_REFRESHED),
    ):
        store.set(key % address, value)
        if store.get(key % address) != value:  # it swallows what the disk says
            raise OperationError(
                f"cannot write {home / CREDENTIALS}",
                hint="check that path and run the command again",
                code="cannot-write",
            )
    durable.replace(file, content, mode=mode)
    return file


def _configured(file: Path, name: str, address: str) -> bytes:
    """Flower's configuration with this connection in it; as it was written, where that goes."""
    if not _NAME.fullmatch(name) or name == "default":
        raise InputError(
            f"{name!r} is no name for a connection",
            hint="letters, digits, - and _",
            code="bad-name",
        )
    try:
        text = file.read_text("utf-8") if file.exists() else DEFAULT_FLOWER_CONFIG_TOML
        document = tomllib.loads(text)
        connections: dict[str, Any] = document.setdefault("superlink", {})
        before = connections.get(name)
        if before is not None and not _is_a_links(before):
            raise InputError(
                f"{file} has another connection of the name {name}",
                hint="choose another with --name",
                code="name-taken",
            )
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} cannot be used: {error}",
            hint="mend it, or set FLWR_HOME to a directory of its own",
            code="bad-flower-config",
        ) from error
    wanted = connections[name] = {"address": address, "insecure": True}
    if before == wanted:
        return text.encode()
    added = f'{text.rstrip()}\n\n[superlink.{name}]\naddress = "{address}"\ninsecure = true\n'
    try:
        if tomllib.loads(added) == document:
            return added.encode()
    except ValueError:
        pass  # it is there already, with another port, or written in a way that goes on no further
    return tomli_w.dumps(document).encode()


def _is_a_links(connection: Any) -> bool:
    """Whether a connection is one that was written here, for whatever port."""
    return (
        isinstance(connection, dict)
        and set(connection) == {"address", "insecure"}
        and re.fullmatch(r"127\.0\.0\.1:[0-9]{1,5}", str(connection["address"])) is not None
    )
