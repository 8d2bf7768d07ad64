"""Is everything well with a federation: keys, registry, certificate, port, heads, repository?

The rule: looking changes nothing and spends nothing.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import (
    EXIT_INPUT,
    EXIT_NETWORK,
    EXIT_TRUST,
    PrivetError,
)
from privet.doctoring.findings import OK, WARNING, WRONG, Finding, look
from privet.doctoring.machine import certificate, dates, machine, private
from privet.doctoring.repository import check as repository


def check(path: Path) -> list[Finding]:
    """Everything about a federation's directory, its keys, certificate, port and repository."""
    from server.federation.directory import Federation
    from server.federation.invitations import Invitations

    findings = [*machine(path, ("flwr", "torch", "cryptography"))]
    here = look("federation", lambda: Federation.read(path), findings, "readable")
    if here is None:
        return findings
    findings += private(here.keys)
    look("coordinator", here.signing_key, findings, "its key is here, the approver's is not")
    if not here.approver:
        findings.append(
            Finding(
                "approver",
                WARNING,
                "nobody is named who approves releases",
                "privet approver init on another machine, then privet server approver FINGERPRINT",
            )
        )
    authority = look("authority key", here.authority, findings, "its own certificate's")
    if authority is not None:
        findings.append(certificate("authority", authority.certificate))
        findings += _servercertificate(here, authority)
    registry = look("registry", here.registry.entries, findings, "whole")
    if registry is not None:
        active = len(here.registry.active())
        findings.append(Finding("clients", OK, f"{active} active of {len(registry)} enrolled"))
    look("invitations", lambda: Invitations(here).open(), findings, "readable")
    look("heads", lambda: _heads(here), findings, "readable")
    findings += repository(here, datetime.now(UTC))
    findings.append(_port(here))
    return findings


def _heads(here: Any) -> None:
    from server.federation.lasting import HEADS, read_heads

    read_heads(here.path / HEADS)


def _servercertificate(here: Any, authority: Any) -> Iterator[Finding]:
    found: list[Finding] = []
    current = look("certificate", authority.server_certificate, found, "of this authority")
    yield from found
    if current is None:
        return
    yield dates("certificate dates", current.begins, current.ends, "privet server rotate")
    missing = [name for name in here.names if name not in current.names]
    if missing:
        yield Finding(
            "certificate names",
            WRONG,
            f"it does not name {', '.join(missing)}",
            "privet server rotate",
            EXIT_INPUT,
        )
    else:
        yield Finding("certificate names", OK, ", ".join(current.names))


def _port(here: Any) -> Finding:
    """Who is at the address: this federation's server, nobody, or somebody else."""
    address, context = here.address, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=here.authority().certificate)
        with (
            socket.create_connection((address.host, address.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            return Finding("port", OK, f"{address} answers with this federation's certificate")
    except ConnectionRefusedError:
        words = f"nobody listens at {address}"
        return Finding("port", WARNING, words, "start the server, unless it is meant to be off")
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "port",
            WRONG,
            f"another server, or an old certificate, is at {address}: {error.verify_message}",
            "stop what listens there, or have the server read its certificate again",
            EXIT_TRUST,
        )
    except (OSError, PrivetError) as error:
        return Finding(
            "port",
            WRONG,
            f"{address} cannot be reached from here: {error}",
            "check name resolution, routes and firewalls",
            EXIT_NETWORK,
        )
