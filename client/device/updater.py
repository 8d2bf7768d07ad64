"""Get a newer release, if there is one, from a repository that nobody has to trust.

The rule: bytes reach a slot only after TUF (who signed, how new, how long valid) and :mod:`verify`
(what it is, what it cost in privacy) have both passed on them in memory, and they are never read
again from a place where others could change them. A refusal changes nothing but the log of
decisions; TUF metadata is kept only if all of it verified (a new root: if it did).

How far back a replay can reach: never behind what this directory has seen. A device whose directory
was wiped accepts an older release until that one's timestamp expires; a floor that is kept outside
of the directory is a later step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import ssl
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import urllib3
from tuf.api import exceptions
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]
from tuf.ngclient import (  # type: ignore[attr-defined]
    FetcherInterface,
    Updater,
    UpdaterConfig,
    Urllib3Fetcher,
)

from client.device import log, slots, verify
from client.device.home import STAGING, DeviceHome
from client.device.log import Accepted
from common import durable
from common.errors import NetworkError, OperationError, TrustError

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

CHUNK_BYTES = 64 * 2**10
DEADLINE = 600.0  # seconds for one file: a server that drips must not hold a device for ever
SEEN_EVERY = 86_400  # seconds; how often an update that finds nothing new writes to the disk

_ONLINE = ("timestamp.json", "snapshot.json", "targets.json")  # in the order that TUF verifies them
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")


@dataclass(frozen=True)
class Outcome:
    """What an update did.

    Args:
        installed: a release was installed; otherwise this one was current already.
        name, version: of the release that is current now.
    """

    installed: bool
    name: str
    version: int


def update(home: DeviceHome, now: datetime, fetcher: FetcherInterface | None = None) -> Outcome:
    """Bring a device up to date with its repository.

    Args:
        now: the device's clock, aware; a time before what was last seen counts as that.
        fetcher: for another transport than the policy's location implies; it is asked for
            ``metadata/NAME`` and ``targets/NAME``.

    Raises:
        NetworkError: the repository did not answer, or not in full. Nothing was decided.
        TrustError: what it offers is refused; the model in use stays in use.
        OperationError: the disk refused, or another update is running.
    """
    with home.lock():
        offered: dict[str, bytes] = {}
        try:
            return _update(home, now, fetcher, offered)
        except TrustError as error:
            name, version = verify.label(offered.get(verify.RELEASE, b""))
            decision = log.Decision(now, False, name, version, None, error.code, error.message)
            log.append(home.decisions, decision)
            raise


def _update(
    home: DeviceHome,
    now: datetime,
    fetcher: FetcherInterface | None,
    offered: dict[str, bytes],
) -> Outcome:
    pointer, healthy = _installed(home)
    reference = max(now, datetime.fromtimestamp(pointer.seen if pointer else 0, UTC))
    seen = int(reference.timestamp())
    with _typed_errors(), durable.disk_errors(home.path):
        source = _Source.of(home, fetcher)
        targets = _refresh(home, source, reference)
        if pointer and healthy and _digests(targets) == pointer.digests:
            if seen - pointer.seen >= SEEN_EVERY:
                slots.note_seen(home, pointer, seen)
            return Outcome(False, pointer.name, pointer.version)
        for name, target in targets.items():
            offered[name] = source.download(target)
    accepted = log.accepted(home.decisions)
    if pointer:
        accepted.append(Accepted(pointer.name, pointer.version, pointer.digests[verify.RELEASE]))
    candidate = verify.verify(
        offered,
        home.policy,
        home.keys(),
        floor=max((past.version for past in accepted), default=0),
        name=accepted[-1].name if accepted else None,
        successors=home.successors,
    )
    digest = candidate.digests()[verify.RELEASE]
    _check_same(accepted, candidate.version, digest)
    log.append(
        home.decisions,
        log.Decision(
            now, True, candidate.name, candidate.version, digest, "accepted", _praise(candidate)
        ),
    )
    slots.install(home, candidate, pointer, seen)
    return Outcome(True, candidate.name, candidate.version)


def _installed(home: DeviceHome) -> tuple[slots.Current | None, bool]:
    """What is current as far as it can be read, and whether it is whole."""
    try:
        pointer, _ = slots.load(home)
    except OperationError:
        return None, False
    except TrustError:  # damaged: this update will repair it
        with contextlib.suppress(TrustError):
            return slots.current(home), False
        return None, False
    return pointer, True


def _check_same(accepted: list[Accepted], version: int, digest: str) -> None:
    """A version is one release for ever: TUF alone would not notice two under one number."""
    for past in accepted:
        if past.version == version and past.digest != digest:
            raise TrustError(
                f"version {version} is another release than the version {version} that this device "
                "has accepted before",
                hint="somebody signed two releases under one number: compare them, and ask who",
                code="equivocation",
            )


def _praise(candidate: verify.Candidate) -> str:
    return (
        f"epsilon {candidate.epsilon:g} at delta {candidate.delta:g} for each {candidate.unit}"
        + (", simulated" if candidate.simulated else "")
    )


# -- TUF -------------------------------------------------------------------------------------------


def _refresh(home: DeviceHome, source: _Source, now: datetime) -> dict[str, TargetFile]:
    """Verify the repository's metadata up to its targets, then keep it; TUF specification 5.3-5.6.

    TUF's client works on a copy: it writes what it has verified so far, which would leave a mixture
    when a later part is refused.
    """
    with tempfile.TemporaryDirectory(dir=home.path, prefix=STAGING) as name:
        staging = Path(name)
        shutil.copytree(home.tuf, staging, dirs_exist_ok=True)
        updater = Updater(
            metadata_dir=name,
            metadata_base_url=f"{source.base}metadata/",
            fetcher=source.fetcher,
            # Delegations are never followed (python-tuf does not verify a role again that two
            # roles delegate to), and nothing of ours uses them.
            config=UpdaterConfig(max_delegations=0, app_user_agent="privet"),
            bootstrap=home.root,
        )
        # The only way to give TUF's client a clock; a test holds that it is believed.
        updater._trusted_set.reference_time = now
        try:
            updater.refresh()
        finally:
            _keep_roots(home, staging)
        targets = {name: _target(updater, name) for name in verify.LIMITS}
        for name in _ONLINE:
            _keep(staging / name, home.tuf / name)
    return targets


def _target(updater: Updater, name: str) -> TargetFile:
    target = updater.get_targetinfo(name)
    if target is None or "sha256" not in target.hashes:
        raise TrustError(
            f"the repository's release has no {name}",
            hint="this is not a repository of models, or an incomplete release was signed",
            code="incomplete-release",
        )
    if target.length > verify.LIMITS[name]:
        raise TrustError(f"{name} has {target.length} bytes, over {verify.LIMITS[name]}")
    return target


def _digests(targets: dict[str, TargetFile]) -> dict[str, str]:
    return {name: target.hashes["sha256"] for name, target in targets.items()}


def _keep_roots(home: DeviceHome, staging: Path) -> None:
    history = staging / "root_history"
    for file in sorted(history.glob("*.root.json"), key=lambda file: int(file.name.split(".")[0])):
        if file.read_bytes() != home.root:
            _keep(file, home.tuf / "root_history" / file.name)


def _keep(source: Path, target: Path) -> None:
    data = source.read_bytes()
    if not target.exists() or target.read_bytes() != data:
        durable.replace(target, data)


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    """TUF's errors as Privet's, by what the caller should do next."""
    try:
        yield
    except (exceptions.DownloadLengthMismatchError, UnsafePathError) as error:
        raise TrustError(str(error), hint=_REFUSED, code="wrong-length") from error
    except exceptions.DownloadError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise NetworkError(
            f"the repository did not answer: {error or type(error).__name__}{cause}",
            hint="check the repository in policy.json and the connection, then try again",
        ) from error
    except exceptions.RepositoryError as error:
        code, hint = next(
            ((code, hint) for kind, code, hint in _REFUSALS if isinstance(error, kind)),
            ("bad-metadata", _REFUSED),
        )
        raise TrustError(
            f"the repository's metadata are refused: {error}", hint=hint, code=code
        ) from error


_REFUSED = "try again later; if it is still refused, tell whoever runs the repository"
_REFUSALS = (
    (
        exceptions.ExpiredMetadataError,
        "expired",
        "check this device's clock; if it is right, the repository is no longer renewed, or "
        "somebody replays an old one",
    ),
    (exceptions.UnsignedMetadataError, "bad-signature", _REFUSED),
    (
        exceptions.BadVersionNumberError,
        "rollback",
        "the repository shows an older state than this device has seen: find out who put it there",
    ),
    (exceptions.LengthOrHashMismatchError, "wrong-digest", _REFUSED),
)


# -- where releases come from ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A transport, and what comes before ``metadata/`` and ``targets/`` in what it is asked for."""

    fetcher: FetcherInterface
    base: str

    @classmethod
    def of(cls, home: DeviceHome, fetcher: FetcherInterface | None) -> _Source:
        if fetcher is not None:
            return cls(fetcher, "")
        location = home.repository()
        if isinstance(location, Path):
            return cls(DirectoryFetcher(location), "")
        authority = home.authority
        web = WebFetcher(authority=authority) if authority else WebFetcher()
        return cls(web, location.rstrip("/") + "/")

    def download(self, target: TargetFile) -> bytes:
        """The target's bytes: at most its signed length is read, and what is returned verified."""
        (path, *_) = target.get_prefixed_paths()
        data: bytes = self.fetcher.download_bytes(f"{self.base}targets/{path}", target.length)
        target.verify_length_and_hashes(data)
        return data


class UnsafePathError(exceptions.DownloadError):
    """A name in a repository directory leads elsewhere, or to something that is not a file."""


class DirectoryFetcher(FetcherInterface):
    """Read a repository from a directory, and nothing outside of it.

    Args:
        root: the repository; below it no symbolic link is followed, and only plain files are read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _fetch(self, url: str) -> Iterator[bytes]:
        parts = url.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise UnsafePathError(f"{url!r} is not a path inside of a repository")
        try:
            return _chunks(self._open(parts))
        except FileNotFoundError as error:
            raise exceptions.DownloadHTTPError(f"{self.root} has no {url}", 404) from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnsafePathError(f"{url} is a symbolic link in {self.root}") from error
            raise

    def _open(self, parts: list[str]) -> int:
        *folders, name = parts
        with contextlib.ExitStack() as stack:
            handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            for folder in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                handle = os.open(folder, flags, dir_fd=handle)
                stack.callback(os.close, handle)
            # Not blocking: a named pipe would otherwise hold the device for ever.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise UnsafePathError(f"{name} in {self.root} is not a file")
        return file


def _chunks(handle: int) -> Iterator[bytes]:
    with os.fdopen(handle, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class WebFetcher(Urllib3Fetcher):
    """TUF's own fetcher for https and http, with a deadline for a whole file.

    Args:
        deadline: seconds from the first byte to the last.
        authority: certificate, PEM, of the only authority that counts, over TLS 1.3 and without a
            proxy; None: those that this machine trusts.
    """

    def __init__(self, deadline: float = DEADLINE, authority: str | None = None) -> None:
        super().__init__(app_user_agent="privet")
        self.deadline = deadline
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=authority)
            # Whatever TUF's fetcher asks, it asks this; a test with a link holds that it does.
            headers = {"User-Agent": "privet"}
            self._proxy_env = urllib3.PoolManager(  # type: ignore[assignment]
                headers=headers, ssl_context=context
            )

    def _chunks(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        end = time.monotonic() + self.deadline
        try:
            while chunk := response.read1(CHUNK_BYTES):  # what is there, without waiting for more
                yield chunk
                if time.monotonic() > end:
                    raise exceptions.SlowRetrievalError(f"not done in {self.deadline:g} seconds")
        except exceptions.DownloadError:
            raise
        except Exception as error:  # urllib3 has kinds of its own for a connection that breaks
            raise exceptions.DownloadError("the connection broke") from error
        finally:
            response.close()
