"""Is what a federation publishes whole, signed, believed for a while yet, and nothing half done?

The rule: looking changes nothing and spends nothing. All is verified as a device would, and what is
wrong with one part keeps no other from being looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import EXIT_FAILED, EXIT_TRUST, PrivetError
from common.release import ANSWERS, MODEL, WEIGHTS
from privet.doctoring.findings import OK, WARNING, WRONG, Finding, look

if TYPE_CHECKING:
    from server.federation.directory import Federation
    from server.release.published import Published, Signed

MOST_PLACES = 1000  # directories that are looked into for what was not finished
# What is written first and last of a directory that people carry, and what else is at its top.
_CARRIED = {
    "proposal": ("bundle", "proposal.json", "privet server propose"),
    "change of keys": ("1.root.json", "change.json", "privet release rotate or revoke"),
}
_PARTS = {
    "bundle", "parents", WEIGHTS, MODEL, ANSWERS, "root.json", "former-targets.json",
    "targets.json",
}  # fmt: skip


def check(here: Federation, now: datetime) -> Iterator[Finding]:
    """Everything about a federation's repository, and what was to go into it."""
    from server.release.published import Published

    yield from _unfinished(here.path)
    if not Published.is_at(here.repository):
        yield Finding("repository", OK, "nothing is published yet")
        return
    found: list[Finding] = []
    published = look(
        "repository", lambda: Published(here.repository), found, "its root is signed as it requires"
    )
    yield from found
    if published is not None:
        yield from _keys(here, published)
        yield from _metadata(published, now)
        yield from _files(published)


def _keys(here: Federation, published: Published) -> Iterator[Finding]:
    """The chain of roots, whether it is this federation's, and whether its key is here."""
    from server.release.roots import roles_in

    found: list[Finding] = []
    look("roots", published.roots, found, "each follows from the one before")
    roles = look("root's keys", lambda: roles_in(published.root), found, "three parties'")
    if roles is not None:
        words = "the one that signs timestamps is here"
        look("release key", lambda: here.release_key(roles.coordinator), found, words)
        own = look("root's speaker", here.signing_key, found, "this federation signs statements")
        if own is not None and roles.speaker != own.public:
            found[-1] = Finding(
                "root's speaker",
                WRONG,
                f"another federation signs statements here: {roles.speaker.fingerprint[:16]}…",
                "privet release revoke coordinator --key hands a repository over",
                EXIT_TRUST,
            )
    yield from found


def _metadata(published: Published, now: datetime) -> Iterator[Finding]:
    found: list[Finding] = []
    signed = look("metadata", published.signed, found, "each role's is signed by who may")
    yield from found
    for one in signed or [published.newest_root]:
        yield _expiry(one, now)
    if signed is None:
        return
    if not published.version:
        yield Finding(
            "release",
            WARNING,
            "the repository was made, and nothing is published in it",
            "if a privet release publish was killed, the same command finishes it",
        )
    if begun := published.begun():
        yield Finding(
            "unfinished",
            WARNING,
            f"begun, and not put in force: {', '.join(begun[:5])}",
            "the same privet release publish or commit again finishes it; what was meant to be "
            "dropped is replaced by the next one, or removed by privet release prune",
        )


def _expiry(one: Signed, now: datetime) -> Finding:
    from server.release.standing import FINE, MEND, PAST, state_of

    state, check = state_of(one, now), f"{one.role} expiry"
    words = f"version {one.version}, until {one.expires:%Y-%m-%d %H:%M} UTC"
    if state == PAST:
        return Finding(check, WRONG, f"devices refuse {words}", MEND[one.role], EXIT_TRUST)
    return Finding(check, OK if state == FINE else WARNING, words, MEND[one.role])


def _files(published: Published) -> Iterator[Finding]:
    """The published files against their digests, and whether as many would fit once more."""
    try:
        whole, broken = published.verified()
    except PrivetError:
        return  # of the metadata, which was told
    if broken:
        yield Finding(
            "published files",
            WRONG,
            f"missing or not the ones that were signed: {', '.join(sorted(broken)[:5])}",
            "copy them back from a mirror or a backup: SHA256.NAME says which they are; and find "
            "out who changed them",
            EXIT_TRUST,
        )
    elif whole:
        words = f"{len(whole)} files, {sum(whole.values()):,} bytes, each the one that was signed"
        yield Finding("published files", OK, words)
    free = shutil.disk_usage(published.path).free
    if free < sum(whole.values()):
        yield Finding(
            "release room",
            WRONG,
            f"{free:,} bytes are free, and a release has {sum(whole.values()):,}",
            "free some space: privet release prune removes what no device needs any more",
            EXIT_FAILED,
        )


def _unfinished(path: Path) -> Iterator[Finding]:
    """Proposals and changes of keys whose last file is missing, in the directory or beside it."""
    try:
        places = [place for folder in (path, path.parent) for place in folder.iterdir()]
    except OSError:
        return  # of a directory that cannot be listed: told by the checks of the machine
    for place in islice(sorted(places), MOST_PLACES):
        try:
            names = {file.name for file in place.iterdir() if not file.name.startswith(".")}
        except OSError:
            continue  # a file, or somebody else's directory
        for what, (first, last, command) in _CARRIED.items():
            rest = names - _PARTS - {f"{number}.root.json" for number in range(1, len(names) + 1)}
            if first in names and last not in names and not rest:
                yield Finding(
                    what,
                    WARNING,
                    f"{place} is half written: {last} is missing",
                    f"remove it, and write it anew with {command}",
                )
