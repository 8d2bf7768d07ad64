"""What is wrong here, and how is it mended? Every check of a client's or a federation's directory.

The rules: looking changes nothing and spends nothing. A check that cannot be made because of
another is not guessed. Each finding says what is wrong and the next step; the exit code is that of
the gravest class found: trust (11), budget (10), input (4), network (3), operation (1).
"""

from __future__ import annotations

import shutil
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from cryptography import x509

from common.enrolment import ABOUT_PATH, About
from common.errors import (
    EXIT_BUDGET,
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_NETWORK,
    EXIT_TRUST,
    InputError,
    PrivetError,
    TrustError,
)

OK, WARNING, WRONG = "ok", "warning", "wrong"
GRAVEST = (EXIT_TRUST, EXIT_BUDGET, EXIT_INPUT, EXIT_NETWORK, EXIT_FAILED)
LITTLE_DISK, NO_DISK = 2**30, 2**26  # bytes
SOON = timedelta(days=7)
FUTURE = 120.0  # seconds that a file may be younger than now


@dataclass(frozen=True)
class Finding:
    """One check.

    Args:
        check: its name, stable.
        state: ``ok``, ``warning`` or ``wrong``.
        what: what was found, in words.
        mend: the next step; "" if there is none to take.
        exit_code: of its class, if ``wrong``; else 0.
    """

    check: str
    state: str
    what: str
    mend: str = ""
    exit_code: int = 0


def exit_code(findings: Iterable[Finding]) -> int:
    """That of the gravest class which was found; 0 if nothing is wrong."""
    found = {finding.exit_code for finding in findings}
    return next((code for code in GRAVEST if code in found), 0)


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """As JSON."""
    rows = [asdict(finding) for finding in findings]
    states = {row["state"] for row in rows}
    worst = next(state for state in (WRONG, WARNING, OK) if state in states or state == OK)
    return {"state": worst, "findings": rows}


# -- a client ------------------------------------------------------------------------------------


def client(path: Path) -> list[Finding]:
    """Everything about a client's directory, its data, its ledger and its server."""
    from client.home import Home

    findings = [*_machine(path, ("flwr", "torch", "cryptography"))]
    home = _look("home", lambda: Home.read(path), findings, "readable, and the policy is signed")
    if home is None:
        return findings
    findings += _private(home.keys)
    ledger = _look("ledger", home.read_ledger, findings, "whole, signed, and as long as it was")
    if ledger is not None:
        findings += _client_ledger(home, ledger)
    findings += _client_enrolment(home)
    return findings


def _client_ledger(home: Any, ledger: Any) -> Iterator[Finding]:
    from client.approval import approved_plans, examine
    from common.statement import PLAN_TYPE, Envelope

    spent, budget = home.terms().budget.spent(ledger.spent()), home.terms().budget.epsilon
    words = f"epsilon_filter {spent:.4g} of {budget:g} is spent"
    if spent >= 0.9 * budget:
        yield Finding("budget", WARNING, words, "ask the data owner before planning more rounds")
    else:
        yield Finding("budget", OK, words)
    found: list[Finding] = []
    plans = _look("plans", lambda: approved_plans(home), found, "those that were approved verify")
    yield from found
    listed = home.terms().approved_plans
    for plan in (plans or {}).values():
        if plan.digest not in listed:
            continue
        file = home.plans / f"{plan.digest}.json"
        assert Envelope.decode(file.read_bytes()).payload_type == PLAN_TYPE
        found = []
        proposal = _look(
            f"plan {plan.name}",
            lambda file=file: examine(home, file.read_bytes()),  # type: ignore[misc]
            found,
            "the data fits its schema, its model can be trained, the budget covers the rest",
        )
        if proposal is not None and not proposal.approved:
            found = [
                Finding(
                    f"plan {plan.name}",
                    WRONG,
                    "the code, the model or the terms changed since it was approved",
                    "look at it again with privet client approve",
                    EXIT_TRUST,
                )
            ]
        yield from found


def _client_enrolment(home: Any) -> Iterator[Finding]:
    from client.joining import Clock, Line
    from client.site import AUTHORITY, node_key, read_enrolment
    from common.invitation import Address

    if not (home.path / AUTHORITY).exists():
        yield Finding("enrolment", WARNING, "this client was not enrolled over a network")
        return
    found: list[Finding] = []
    enrolment = _look("enrolment", lambda: read_enrolment(home), found, "signed, for this client")
    _look("node key", lambda: node_key(home), found, "the one that was enrolled")
    yield from found
    if enrolment is None:
        return
    if _secret_matches(home, enrolment):
        yield Finding("ledger key", OK, "the one that was enrolled")
    else:
        yield Finding(
            "ledger key",
            WRONG,
            "the key directory holds another secret than the one that was enrolled",
            "restore the key directory, or enrol again as another client",
            EXIT_TRUST,
        )
    yield _certificate("authority", enrolment.authority)
    line = Line(Address.parse(enrolment.address), Clock(sleep=lambda _: None))

    def reach() -> None:
        line.pin(enrolment.authority)
        About.verify(line.ask(ABOUT_PATH, None), home.federation)

    found = []
    _look("server", reach, found, f"{enrolment.address} answers, and is the right one")
    yield from found


def _secret_matches(home: Any, enrolment: Any) -> bool:
    from common.keys import Identity, KeyDirectory

    try:
        secret = KeyDirectory(home.keys).secret(home.policy.dataset)
    except PrivetError:
        return False
    mine = Identity.derive(secret, home.federation)
    return (mine.key.public.text(), mine.pseudonym) == (enrolment.ledger_key, enrolment.pseudonym)


# -- a federation --------------------------------------------------------------------------------


def server(path: Path) -> list[Finding]:
    """Everything about a federation's directory, its keys, its certificate and its port."""
    from server.federation.directory import Federation
    from server.federation.invitations import Invitations

    findings = [*_machine(path, ("flwr", "torch", "cryptography"))]
    here = _look("federation", lambda: Federation.read(path), findings, "readable")
    if here is None:
        return findings
    findings += _private(here.keys)
    _look("coordinator", here.signing_key, findings, "its key is here, the approver's is not")
    if not here.approver:
        findings.append(
            Finding(
                "approver",
                WARNING,
                "nobody is named who approves releases",
                "privet approver init on another machine, then privet server approver FINGERPRINT",
            )
        )
    authority = _look("authority key", here.authority, findings, "its own certificate's")
    if authority is not None:
        findings.append(_certificate("authority", authority.certificate))
        findings += _server_certificate(here, authority)
    registry = _look("registry", here.registry.entries, findings, "whole")
    if registry is not None:
        active = len(here.registry.active())
        findings.append(Finding("clients", OK, f"{active} active of {len(registry)} enrolled"))
    _look("invitations", lambda: Invitations(here).open(), findings, "readable")
    _look("heads", lambda: _heads(here), findings, "readable")
    findings.append(_port(here))
    return findings


def _heads(here: Any) -> None:
    from server.federation.lasting import HEADS, read_heads

    read_heads(here.path / HEADS)


def _server_certificate(here: Any, authority: Any) -> Iterator[Finding]:
    found: list[Finding] = []
    current = _look("certificate", authority.server_certificate, found, "of this authority")
    yield from found
    if current is None:
        return
    yield _dates("certificate dates", current.begins, current.ends, "privet server rotate")
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


# -- either side ---------------------------------------------------------------------------------


def _look(check: str, work: Callable[[], Any], findings: list[Finding], words: str) -> Any | None:
    """What ``work`` returns; what it raises becomes a finding, and then None is returned."""
    try:
        result = work()
    except PrivetError as error:
        mend = error.hint or "put the file back as it was written; without it, enrol again"
        findings.append(Finding(check, WRONG, error.message, mend, error.exit_code))
        return None
    findings.append(Finding(check, OK, words))
    return result if result is not None else True


def _machine(path: Path, packages: tuple[str, ...]) -> Iterator[Finding]:
    yield from _versions(packages)
    if not path.is_dir():
        error = InputError(f"there is no directory {path}", hint="name the one that was made")
        yield Finding("directory", WRONG, error.message, error.hint, EXIT_INPUT)
        return
    free = shutil.disk_usage(path).free
    words = f"{free / 2**30:.1f} GiB free"
    if free < NO_DISK:
        yield Finding("disk", WRONG, words, "free some space: nothing can be recorded", EXIT_FAILED)
    elif free < LITTLE_DISK:
        yield Finding("disk", WARNING, words, "free some space")
    else:
        yield Finding("disk", OK, words)
    newest = max((entry.stat().st_mtime for entry in path.iterdir()), default=0.0)
    ahead = newest - datetime.now(UTC).timestamp()
    if ahead > FUTURE:
        yield Finding(
            "clock",
            WRONG,
            f"files here are {ahead / 3600:.1f} hours younger than now: the clock was set back",
            "set the clock; certificates and invitations depend on it",
            EXIT_FAILED,
        )
    else:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        yield Finding("clock", OK, f"{now}; not before anything that was written here")


def _versions(packages: tuple[str, ...]) -> Iterator[Finding]:
    pinned = dict(_pins())
    found = []
    for package in packages:
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding(
                "versions",
                WRONG,
                f"{package} is not installed",
                "install the extra: client or server",
                EXIT_FAILED,
            )
            continue
        wanted = pinned.get(package, installed)
        if installed.split("+")[0] != wanted:
            yield Finding(
                "versions",
                WRONG,
                f"{package} is {installed}, and this Privet was made with {wanted}",
                f"install {package}=={wanted}",
                EXIT_FAILED,
            )
        found.append(f"{package} {installed}")
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("versions", OK, f"Python {python}, {', '.join(found)}")


def _pins() -> Iterator[tuple[str, str]]:
    """Packages that Privet names in one exact version; none in a checkout that is not installed."""
    try:
        lines = requires("privet") or []
    except PackageNotFoundError:
        return
    for line in lines:
        name, pinned, rest = line.partition("==")
        if pinned and name.isidentifier():
            yield name, rest.split(";")[0].strip()


def _private(path: Path) -> Iterator[Finding]:
    """Key directories and what lies in them are their owner's alone."""
    try:
        places = [path, *path.iterdir()]
        exposed = [place for place in places if stat.S_IMODE(place.stat().st_mode) & 0o077]
    except OSError as error:
        yield Finding(
            "key directory",
            WRONG,
            f"cannot look into {path}: {error.strerror}",
            "run this as the user that owns the keys",
            EXIT_FAILED,
        )
        return
    if exposed:
        names = ", ".join(str(place) for place in exposed[:5])
        yield Finding(
            "key directory",
            WRONG,
            f"other users can read {names}",
            f"chmod -R go-rwx {path}",
            EXIT_TRUST,
        )
    else:
        yield Finding("key directory", OK, f"{path}, its owner's alone")


def _certificate(check: str, pem: str) -> Finding:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        trust = TrustError(f"not a certificate: {error}")
        return Finding(check, WRONG, trust.message, "restore the directory", EXIT_TRUST)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return _dates(f"{check} dates", begins, ends, "a new authority is a new federation")


def _dates(check: str, begins: datetime, ends: datetime, mend: str) -> Finding:
    now = datetime.now(UTC)
    words = f"from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
    if now < begins:
        mend = f"check this machine's clock first; else {mend}"
        return Finding(check, WRONG, f"not valid yet: {words}", mend, EXIT_TRUST)
    if now > ends:
        return Finding(check, WRONG, f"no longer valid: {words}", mend, EXIT_TRUST)
    if ends - now < SOON:
        return Finding(check, WARNING, f"ends soon: {words}", mend)
    return Finding(check, OK, words)
