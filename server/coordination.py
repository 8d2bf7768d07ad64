"""How does an operator run a plan's rounds over a link: begin, go on, and not twice at once?

The rules: a run begins once; what was begun is resumed, by name, and ends in the bits that it would
have ended in. One process at a time works on a run. How a link is reached is remembered beside the
run, so that to resume needs no more than the run's directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, decode, encode
from common.errors import InputError
from common.models.networks import parameters_of
from common.models.registry import build
from server.app import coordinate
from server.checkpoint import Checkpoint, CheckpointStore
from server.home import ServerHome
from server.link import LinkHome
from server.rounds import RoundReport
from server.superlink.grid import run_on


@dataclass(frozen=True)
class Watcher:
    """Who is told how a run is doing.

    Args:
        progress: called as (round, answers so far, asked) while a round waits.
        on_round: called after each round.
    """

    progress: Callable[[int, int, int], None] | None = None
    on_round: Callable[[RoundReport], None] | None = None


def begin(path: Path, link: Path, watcher: Watcher | None = None) -> None:
    """Run a prepared run that was not begun yet.

    Args:
        path: the run directory.
        link: the link's directory.

    Raises:
        InputError: ``begun-already``, or there is no run or no link; another process runs it.
        PrivetError: as :func:`server.app.coordinate`.
    """
    home = ServerHome.read(path)
    with _alone(home):
        if _begun(home):
            raise InputError(
                f"{path} was begun already",
                hint=f"go on with `privet server resume {path}`",
                code="begun-already",
            )
        LinkHome(link).inside()
        durable.replace(_link_file(home), encode({"link": str(link.absolute())}))
        _work(home, link, watcher or Watcher())


def resume(path: Path, link: Path | None = None, watcher: Watcher | None = None) -> bool:
    """Go on with a run that was stopped or killed; False if it is finished.

    Args:
        link: where the link is now, if it has moved.

    Raises:
        InputError: ``nothing-to-resume``, or as :func:`begin`.
        PrivetError: as :func:`server.app.coordinate`.
    """
    home = ServerHome.read(path)
    with _alone(home):
        if not _begun(home):
            raise InputError(
                f"there is nothing to resume: {path} was not begun",
                hint=f"begin it with `privet server run {path} --link DIR`",
                code="nothing-to-resume",
            )
        latest = _latest(home)
        if latest is not None and latest.ended and latest.closed:
            return False
        if link is not None:
            durable.replace(_link_file(home), encode({"link": str(link.absolute())}))
        _work(home, _remembered(home), watcher or Watcher())
        return True


def _work(home: ServerHome, link: Path, watcher: Watcher) -> None:
    place = LinkHome(link)
    with _interrupt_stops(), run_on(place.inside(), place.secret()) as grid:
        model = parameters_of(build(home.plan.model, home.plan.schema, seed=0).network)
        grid.limit = sum(value.nbytes for value in model.values())
        coordinate(grid, home.path, progress=watcher.progress, on_round=watcher.on_round)


def _begun(home: ServerHome) -> bool:
    return _link_file(home).exists() or (home.checkpoints / "pending.json").exists()


def _latest(home: ServerHome) -> Checkpoint | None:
    return CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()


def _link_file(home: ServerHome) -> Path:
    return home.path / "link.json"


def _remembered(home: ServerHome) -> Path:
    try:
        return Path(str(decode(_link_file(home).read_bytes())["link"]))
    except (OSError, CanonicalError, KeyError) as error:
        raise InputError(
            f"{_link_file(home)} does not say where the link is",
            hint="name it with --link DIR",
            code="no-link",
        ) from error


def _alone(home: ServerHome) -> contextlib.AbstractContextManager[None]:
    busy = InputError(
        f"{home.path} is being run by another process",
        hint="`privet server status` says how it stands",
        code="directory-in-use",
    )
    return durable.exclusively(home.path, busy)


@contextlib.contextmanager
def _interrupt_stops() -> Iterator[None]:
    """The first Ctrl-C is a wish to stop after the round; the second one ends it now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
