"""How does an operator run a plan's rounds over a link: begin, go on, and not twice at once?

The rules: a run begins once; what was begun is resumed, by name, and ends in the bits that it would
have ended in. One process at a time works on a run. A run names its federation, and there the link
is found: nothing more than the run's directory is needed to go on.
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
from common.bundle import MAX_FILE_BYTES
from common.models.networks import parameters_of
from common.models.registry import build
from server.app import coordinate
from server.checkpoint import CheckpointStore
from server.home import ServerHome
from server.link.place import Place
from server.link.readiness import in_use, is_finished, link_in_use, may_begin, may_go_on
from server.link.superlink.run import run_on
from server.release.ledgers import collect as collect_ledgers
from server.release.ledgers import missing
from server.rounds import RoundReport


@dataclass(frozen=True)
class Watcher:
    """Who is told how a run is doing.

    Args:
        progress: called as (round, answers so far, asked) while a round waits.
        on_round: called after each round.
    """

    progress: Callable[[int, int, int], None] | None = None
    on_round: Callable[[RoundReport], None] | None = None


def begin(path: Path, watcher: Watcher | None = None) -> None:
    """Run a run that was not begun yet.

    Args:
        path: the run's directory.

    Raises:
        PrivetError: as :func:`may_begin`, and as :func:`server.app.coordinate`.
    """
    home = ServerHome.read(path)
    with _alone(home):
        _work(home, may_begin(home), watcher or Watcher())


def resume(path: Path, watcher: Watcher | None = None) -> bool:
    """Go on with a run that was stopped or killed; False if it is finished.

    Raises:
        PrivetError: as :func:`may_go_on`, and as :func:`server.app.coordinate`.
    """
    home = ServerHome.read(path)
    with _alone(home):
        place = may_go_on(home)
        if is_finished(home):
            return False
        _work(home, place, watcher or Watcher())
        return True


def collect(path: Path) -> dict[str, str]:
    """Ask the clients of a run that has ended for the ledgers that a release needs.

    Returns:
        By client, why its ledger is still missing.

    Raises:
        PrivetError: as :func:`may_go_on`, and as :func:`server.release.ledgers.collect`.
    """
    home = ServerHome.read(path)
    with _alone(home):
        place = may_go_on(home)
        latest = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
        if latest is None or not missing(home, latest.heads):
            return {}
        with _only_run(place), run_on(place.inside(), place.secret()) as grid:
            grid.limit = MAX_FILE_BYTES
            return collect_ledgers(home, grid, latest.heads)


def _work(home: ServerHome, place: Place, watcher: Watcher) -> None:
    with (
        _interrupt_stops(),
        _only_run(place),
        run_on(place.inside(), place.secret(), run=home.path) as grid,
    ):
        model = parameters_of(build(home.plan.model, home.plan.schema, seed=0).network)
        grid.limit = sum(value.nbytes for value in model.values())
        coordinate(grid, home.path, progress=watcher.progress, on_round=watcher.on_round)


def _only_run(place: Place) -> contextlib.AbstractContextManager[None]:
    """A link carries one run at a time: a second one would end the first one's transport."""
    return durable.exclusively(place.coordinator(), link_in_use(place), patience=1.0)


def _alone(home: ServerHome) -> contextlib.AbstractContextManager[None]:
    return durable.exclusively(home.path, in_use(home), patience=1.0)


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
