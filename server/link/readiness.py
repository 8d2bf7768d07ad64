"""May a run be begun or gone on with now, and where is the link that it is run over?

The rule: nothing is changed by asking. A run names its federation, and there the link is found. Who
asks over a link instead of beside the run's directory names a path, which may be anybody's: what is
started from it is started in the operator's name, so only the operator may have written there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from common import durable
from common.errors import InputError, TrustError
from server.checkpoint import CheckpointStore
from server.federation.directory import Federation
from server.home import ServerHome
from server.link.place import Place


def may_begin(home: ServerHome) -> Place:
    """Where the link of a run that was not begun yet is.

    Raises:
        InputError: ``begun-already``, ``not-in-a-federation``, or no link was ever started.
    """
    place = _place(home)
    if _begun(home):
        raise InputError(
            f"{home.path} was begun already",
            hint=f"go on with `privet server resume {home.path}`",
            code="begun-already",
        )
    return place


def may_go_on(home: ServerHome) -> Place:
    """Where the link of a run that was begun is.

    Raises:
        InputError: ``nothing-to-resume``, ``not-in-a-federation``, or no link was ever started.
    """
    place = _place(home)
    if not _begun(home):
        raise InputError(
            f"there is nothing to resume: {home.path} was not begun",
            hint=f"begin it with `privet server run {home.path}`",
            code="nothing-to-resume",
        )
    return place


def may_be_started(path: Path, place: Place) -> ServerHome:
    """The run in this directory, if it can be begun or gone on with over this link, now.

    Raises:
        InputError: ``no-run``, ``not-in-a-federation``, ``another-federation``, ``run-finished``,
            ``directory-in-use``, or ``link-in-use``.
        TrustError: ``run-exposed``: somebody else than this process's user could have made it; or
            its checkpoints are damaged.
    """
    path = path.resolve()
    home = ServerHome.read(_only_ours(path))
    here = place.federation.path
    if home.deployed().resolve() != here.resolve():
        raise InputError(
            f"{path} is a run of another federation",
            hint=f"this link is that of {here}",
            code="another-federation",
        )
    if is_finished(home):
        raise InputError(
            f"{path} is finished", hint="privet server create makes another", code="run-finished"
        )
    if is_at_work(home):
        raise in_use(home)
    if durable.is_held(place.coordinator()):
        raise link_in_use(place)
    return home


def is_at_work(home: ServerHome) -> bool:
    """Whether a process runs this run now."""
    return durable.is_held(home.path)


def is_finished(home: ServerHome) -> bool:
    """Whether its rounds are over and its clients were told."""
    latest = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
    return latest is not None and bool(latest.ended) and latest.closed


def in_use(home: ServerHome) -> InputError:
    """Another process has this run."""
    return InputError(
        f"{home.path} is being run by another process",
        hint="`privet server status` says how it stands",
        code="directory-in-use",
    )


def link_in_use(place: Place) -> InputError:
    """Another run has this link: it carries one at a time."""
    return InputError(
        f"another run is at work in the federation {place.federation.path}",
        hint="wait for its end, or stop it with `privet server stop`",
        code="link-in-use",
    )


def _only_ours(path: Path) -> Path:
    """This path, if nobody else could have written what lies there."""
    for file in (path, path / "server.json", path / "plan.json"):
        try:
            status = file.stat(follow_symlinks=False)
        except OSError as error:
            raise InputError(
                f"{path} holds no run", hint="privet server create makes one", code="no-run"
            ) from error
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise TrustError(
                f"{file} is not this link's user's, or others can write to it",
                hint="a run is made by the user that the link runs as, for itself alone",
                code="run-exposed",
            )
    return path


def _place(home: ServerHome) -> Place:
    place = Place(Federation.read(home.deployed()))
    place.inside()
    return place


def _begun(home: ServerHome) -> bool:
    return (home.checkpoints / "pending.json").exists()
