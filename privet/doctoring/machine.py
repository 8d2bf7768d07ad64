"""Does this machine have what either side needs: room, a clock, packages, keys of its own?

The rule: looking changes nothing and spends nothing.
"""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from cryptography import x509

from common.errors import (
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_TRUST,
    InputError,
    TrustError,
)
from privet.doctoring.findings import OK, WARNING, WRONG, Finding

LITTLE_DISK, NO_DISK = 2**30, 2**26  # bytes
SOON = timedelta(days=7)
FUTURE = 120.0  # seconds that a file may be younger than now


def machine(path: Path, packages: tuple[str, ...]) -> Iterator[Finding]:
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


def private(path: Path) -> Iterator[Finding]:
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


def certificate(check: str, pem: str) -> Finding:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        trust = TrustError(f"not a certificate: {error}")
        return Finding(check, WRONG, trust.message, "restore the directory", EXIT_TRUST)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return dates(f"{check} dates", begins, ends, "a new authority is a new federation")


def dates(check: str, begins: datetime, ends: datetime, mend: str) -> Finding:
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
