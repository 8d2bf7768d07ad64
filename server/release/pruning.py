"""What in a repository does no device need any more? It is removed; the rest is left as it lies.

The rule: what verifies from the newest root is kept, and nothing goes unless all of it does. Kept
are every root, since devices walk from the one they know to the newest; what is published, and the
release before it; each snapshot that has not ended, since a device that is between two updates, or
a mirror, may be about to follow it; and all that these name. A version that is not in force is kept
too, for whoever began it finishes it. Files that are no part of a repository are left alone.

Removed is first what names, then what is named, so that a kill leaves no metadata without its
files, and the same call goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets  # type: ignore[attr-defined]

from common import durable
from common.errors import TrustError
from server.release.published import METADATA, TARGETS, Published
from server.release.roots import RESTORE, SKEW, Role, parse, require

_HEXADECIMAL = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Pruned:
    """What :func:`prune` found.

    Args:
        removed: files relative to the repository with their lengths in bytes, in order of removal.
        kept: how many files of the repository stay.
    """

    removed: dict[str, int]
    kept: int


def prune(repository: Published, now: datetime, *, dry_run: bool = False) -> Pruned:
    """Remove what no device needs. After a kill the same call goes on.

    Args:
        now: aware date and time; a clock that runs ahead keeps less, and never less than what is
            published and the release before.
        dry_run: find it, and remove nothing.

    Raises:
        TrustError: something there does not verify; nothing was removed.
        OperationError: the disk refused; what was removed so far was not needed.
    """
    with durable.in_turn(repository.path):
        there = Published(repository.path)
        there.files()
        useless = list(_useless(there, now))
        removed = {file.relative_to(there.path).as_posix(): file.stat().st_size for file in useless}
        if not dry_run:
            for file in useless:
                durable.remove(file)
        every = [file for folder in (METADATA, TARGETS) for file in (there.path / folder).iterdir()]
        return Pruned(removed, len(set(every) - set(useless)))


def _useless(there: Published, now: datetime) -> Iterator[Path]:
    """Files that go, those that name others first."""
    metadata, targets = there.path / METADATA, there.path / TARGETS
    yield from durable.leftovers(metadata)
    yield from durable.leftovers(targets)
    current = there.current()
    if current is None:
        return
    roots = [parse(data, Root).signed for data in there.roots()]
    newest = current[1].signed.version, current[2].signed.version
    releases = {
        version: _read(file, Targets, roots) if version <= newest[1] else _begun(file)
        for version, file in there.versions(Targets.type)
    }
    snapshots = {
        version: _read(file, Snapshot, roots)
        for version, file in there.versions(Snapshot.type)
        if version <= newest[0]
    }
    before = _before(releases, newest[1])
    wanted = {newest[1], before, *(version for version in releases if version > newest[1])}
    last = max((v for v, one in snapshots.items() if _named(one) == before), default=None)
    for version, one in snapshots.items():
        if version in (newest[0], last) or one.signed.expires + SKEW > now:
            wanted.add(_named(one))
        else:
            yield metadata / f"{version}.snapshot.json"
    needed = set()
    for version, release in releases.items():
        if version in wanted:
            needed |= _files(release)
        else:
            yield metadata / f"{version}.targets.json"
    yield from (file for file in sorted(targets.iterdir())
                if _is_target(file) and file.name not in needed)  # fmt: skip


def _before(releases: dict[int, Metadata[Targets] | None], newest: int) -> int | None:
    """The newest version that published other files than the newest one of all does."""
    present = releases[newest]
    others = [version for version, one in releases.items()
              if version < newest and one and present
              and one.signed.targets != present.signed.targets]  # fmt: skip
    return max(others, default=None)


def _read(file: Path, kind: type[Role], roots: Sequence[Root]) -> Metadata[Role]:
    """Metadata that some root vouched for: an older release may bear keys that changed since."""
    try:
        metadata = parse(file.read_bytes(), kind)
    except OSError as error:
        raise TrustError(f"cannot read {file.name}: {error.strerror}", hint=RESTORE) from error
    for root in reversed(roots):
        try:
            require(root, metadata)
        except TrustError as error:
            refusal = error
        else:
            return metadata
    raise refusal


def _begun(file: Path) -> Metadata[Targets] | None:
    """Targets that are not in force yet; None: a kill, or somebody else, left something else."""
    try:
        return parse(file.read_bytes(), Targets)
    except (OSError, TrustError, RepositoryError):
        return None


def _named(snapshot: Metadata[Snapshot]) -> int:
    return int(snapshot.signed.meta["targets.json"].version)


def _files(release: Metadata[Targets] | None) -> set[str]:
    described = release.signed.targets.values() if release else ()
    return {name for target in described for name in target.get_prefixed_paths()}


def _is_target(file: Path) -> bool:
    """Whether a file is named as the published ones are: SHA256.NAME."""
    prefix, dot, name = file.name.partition(".")
    return bool(dot and name) and len(prefix) == 64 and set(prefix) <= _HEXADECIMAL
