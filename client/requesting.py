"""How does a device join where nothing comes in or goes out? By two files that a person carries.

The rules: the same keys, proofs and answers as over the network. What takes the token's place is a
fingerprint that the device's operator got by another way, and a person at the server who compares
the request's. What was decided when the request was written is kept on the device, so accepting
needs the answer alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from client.custody import Custody
from client.home import Home
from client.site import ENROLMENT, Site, make_keys
from common import durable
from common.canonical import CanonicalError, decode, encode
from common.config import Table
from common.data.binding import Binding
from common.enrolment import About, Enrolment, Join, certificate_fingerprint
from common.errors import InputError, TrustError
from common.keys import PublicKey
from common.policy import Policy

PENDING = "pending.json"
SCHEMA_VERSION = 1


def request(site: Site, name: str, about: bytes, federation: str) -> tuple[Join, bytes]:
    """Make this device's keys and a request; what it decided waits in its home.

    Asking again uses the same keys.

    Args:
        name: what the client wants to be called.
        about: what the coordinator says of itself, as a file.
        federation: fingerprint of the coordinator's key, got by another way.

    Raises:
        TrustError: ``wrong-coordinator``: the file is another's.
        PrivetError: as :meth:`client.site.Site.dataset`.
    """
    said, _ = About.verify(about, federation)
    dataset = site.dataset()
    authority = certificate_fingerprint(said.authority)
    keys = make_keys(site, dataset, name, federation)
    nonce = os.urandom(32).hex()
    asked = keys.join(name, federation, authority, invitation="", challenge=nonce)
    with durable.disk_errors(site.home):
        site.home.mkdir(parents=True, exist_ok=True)
    durable.replace(site.home / PENDING, encode(_pending(site, asked, about)))
    return asked, asked.sign(keys.identity.key, keys.node, None)


def accept(path: Path, signed: bytes) -> Home:
    """Take the coordinator's answer to this device's request; taking it again changes nothing.

    Raises:
        InputError: ``no-request``.
        TrustError: not the coordinator's, or an answer to another request.
    """
    if (path / "client.json").exists() and (path / ENROLMENT).exists():
        home = Home.read(path)
        Enrolment.verify(signed, home.coordinator)
        if (path / ENROLMENT).read_bytes() == signed:
            (path / PENDING).unlink(missing_ok=True)
            return home
    site, asked, coordinator = _read_pending(path)
    enrolment = Enrolment.verify(signed, coordinator)
    if (
        not enrolment.answers(asked)
        or certificate_fingerprint(enrolment.authority) != asked.authority
    ):
        raise TrustError(
            "this answers another request than the one that was made here",
            hint="carry this device's own request to the server, and its own answer back",
            code="wrong-request",
        )
    site.dataset()
    home = site.settle(signed, enrolment, coordinator)
    (path / PENDING).unlink(missing_ok=True)
    return home


def _pending(site: Site, asked: Join, about: bytes) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "request": decode(asked.encode()),
        "about": decode(about),
        "keys": str(site.keys.absolute()),
        "custody": str(site.custody.path.absolute()),
        "binding": site.binding.json(),
    }
    if site.owner_keys is not None:
        document["owner_keys"] = str(site.owner_keys.absolute())
    if site.owner is not None:
        document["owner"] = site.owner.text()
    if site.terms is not None:
        document["terms"] = site.terms.json()
    return document


def _read_pending(path: Path) -> tuple[Site, Join, PublicKey]:
    try:
        document = decode((path / PENDING).read_bytes())
    except (OSError, CanonicalError) as error:
        raise InputError(
            f"{path} holds no request that can be read: {error}",
            hint="privet client request makes one; accept its answer with the same --home",
            code="no-request",
        ) from error
    table = Table(document, source=str(path / PENDING), json_numbers=True)
    table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
    asked = Join.decode(encode(table.table("request").values))
    _, coordinator = About.verify(encode(table.table("about").values), asked.federation)
    owner = PublicKey.from_text(table.text("owner")) if table.has("owner") else None
    site = Site(
        home=path,
        keys=Path(table.text("keys")),
        custody=Custody(Path(table.text("custody"))),
        binding=Binding.decode(encode(table.table("binding").values)),
        owner_keys=Path(table.text("owner_keys")) if table.has("owner_keys") else None,
        owner=owner,
        terms=Policy.decode(encode(table.table("terms").values)) if table.has("terms") else None,
    )
    table.done()
    return site, asked, coordinator
