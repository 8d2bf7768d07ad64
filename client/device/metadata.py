"""What does a repository offer, who signed it, and is it what was offered before?

The rule: The Update Framework decides (specification 1.0, 5.3 to 5.6), on a copy of what this
device has seen, at a time that never goes back; what verified as a whole is kept, and nothing else
but a new root. Beyond it, root and timestamp are never older than the floor's, and two timestamps
under one version are refused with both digests: TUF's own client goes on with the old one and says
nothing. A root with other timestamp keys lets timestamps count anew, as TUF's recovery from a thief
who counted far ahead (5.3.11) needs.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp  # type: ignore[attr-defined]
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig  # type: ignore[attr-defined]

from client.device.floor import Floor
from client.device.home import STAGING, DeviceHome
from client.device.release import LIMITS
from client.device.transport import (
    Bounded,
    DirectoryFetcher,
    Recording,
    UnsafePathError,
    WebFetcher,
)
from common import durable
from common.canonical import digest, encode
from common.errors import NetworkError, TrustError

_TIMESTAMP = "timestamp.json"
_ONLINE = (_TIMESTAMP, "snapshot.json", "targets.json")  # in the order that TUF verifies them


class Equivocation(TrustError):
    """Two signed things where there should be one: ``evidence`` holds both digests."""

    code = "equivocation"

    def __init__(self, what: str, version: int, had: str, offered: str) -> None:
        super().__init__(
            f"{what} version {version} is another than the {what} version {version} that this "
            "device has accepted before",
            hint="somebody signed two under one number: compare both digests in the device's log "
            "with other devices', and ask who",
        )
        self.evidence = {"what": what, "version": str(version), "had": had, "offered": offered}


@dataclass(frozen=True)
class Seen:
    """What the metadata that were believed are.

    Args:
        root, timestamp: their versions.
        keys: SHA-256 over the ids of the keys that sign timestamps.
        digest: SHA-256 of what is signed in the timestamp.
    """

    root: int
    timestamp: int
    keys: str
    digest: str


@dataclass(frozen=True)
class Source:
    """A transport, and what comes before ``metadata/`` and ``targets/`` in what it is asked for."""

    fetcher: FetcherInterface
    base: str

    @classmethod
    def of(cls, home: DeviceHome, fetcher: FetcherInterface | None, seconds: float) -> Source:
        location = home.repository()
        base = ""
        if fetcher is None and isinstance(location, Path):
            fetcher = DirectoryFetcher(location)
        elif fetcher is None:
            fetcher, base = WebFetcher(home.authority), str(location).rstrip("/") + "/"
        return cls(Bounded(fetcher, seconds), base)

    def download(self, target: TargetFile) -> bytes:
        """The target's bytes: at most its signed length is read, and what is returned verified."""
        (path, *_) = target.get_prefixed_paths()
        data: bytes = self.fetcher.download_bytes(f"{self.base}targets/{path}", target.length)
        target.verify_length_and_hashes(data)
        return data


def refresh(
    home: DeviceHome, source: Source, now: datetime, floor: Floor
) -> tuple[dict[str, TargetFile], Seen]:
    """Verify the repository's metadata up to its targets, then keep it; TUF specification 5.3-5.6.

    TUF's client works on a copy: it writes what it has verified so far, which would leave a mixture
    when a later part is refused.

    Args:
        now: when metadata have to be valid.

    Returns:
        The targets of a release, and what was believed.
    """
    recording = Recording(source.fetcher, f"{source.base}metadata/{_TIMESTAMP}")
    with tempfile.TemporaryDirectory(dir=home.path, prefix=STAGING) as name:
        staging = Path(name)
        shutil.copytree(home.tuf, staging, dirs_exist_ok=True)
        updater = Updater(
            metadata_dir=name,
            metadata_base_url=f"{source.base}metadata/",
            fetcher=recording,
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
        seen = _check_seen(staging, recording.data, floor)
        targets = {name: _target(updater, name) for name in LIMITS}
        for name in _ONLINE:
            _keep(staging / name, home.tuf / name)
    return targets, seen


def _check_seen(staging: Path, offered: bytes, floor: Floor) -> Seen:
    """What TUF's client believes, held against what was offered and against the floor.

    TUF's client verifies a timestamp of an equal version that says otherwise, and then goes on with
    the old one (5.4.3.1): here it is refused. Digests are of what is signed, since a signature has
    more than one spelling.
    """
    root: Root = Metadata.from_bytes((staging / "root.json").read_bytes()).signed
    keys = digest(encode(sorted(root.roles["timestamp"].keyids)))
    version, believed = _signed((staging / _TIMESTAMP).read_bytes())
    seen = Seen(root.version, version, keys, believed)
    if offered and (version, believed) != (other := _signed(offered)):
        raise Equivocation("timestamp", version, believed, other[1])
    _not_before(root.version, floor.root, "root")
    if keys == floor.timestamp_keys:
        _not_before(version, floor.timestamp, "timestamp")
        if version == floor.timestamp and believed != floor.timestamp_digest:
            raise Equivocation("timestamp", version, floor.timestamp_digest, believed)
    return seen


def _not_before(version: int, least: int, what: str) -> None:
    if version < least:
        raise TrustError(
            f"the repository's {what} is version {version}, and this device has seen version "
            f"{least}",
            hint=_OLDER,
            code="rollback",
        )


def _signed(data: bytes) -> tuple[int, str]:
    metadata: Metadata[Timestamp] = Metadata.from_bytes(data)
    return metadata.signed.version, digest(metadata.signed_bytes)


def _target(updater: Updater, name: str) -> TargetFile:
    target = updater.get_targetinfo(name)
    if target is None or "sha256" not in target.hashes:
        raise TrustError(
            f"the repository's release has no {name}",
            hint="this is not a repository of models, or an incomplete release was signed",
            code="incomplete-release",
        )
    if target.length > LIMITS[name]:
        raise TrustError(f"{name} has {target.length} bytes, over {LIMITS[name]}")
    return target


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
def typed_errors() -> Iterator[None]:
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


_OLDER = "the repository shows an older state than this device has seen: find out who put it there"
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
        _OLDER,
    ),
    (exceptions.LengthOrHashMismatchError, "wrong-digest", _REFUSED),
)
