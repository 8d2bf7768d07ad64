"""Clients in processes of their own hang, exit or are killed in a round: it ends in time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from server.nodes import Nodes
from server.rounds import RoundLoop, RoundReport
from simulations.grid import InProcessGrid
from tests.server.federation import World
from tests.world import PLAN, model

DEADLINE = 4.0  # seconds
ENDED_FROM_OUTSIDE = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
ENDS = ("hang", "exit", *ENDED_FROM_OUTSIDE)
ROUNDS = 5
PATIENT = replace(PLAN, cohort=replace(PLAN.cohort, deadline=120.0))


def workers() -> list[int]:
    """Ids of the client processes that this process started."""
    return [process.pid for process in multiprocessing.active_children() if process.pid]


@pytest.mark.figures
@pytest.mark.parametrize("how", ENDS)
def test_a_round_ends_a_second_after_its_deadline_at_the_latest(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setenv("PRIVET_TEST_END", how if how in ("hang", "exit") else "slow")
    cohort = replace(PLAN.cohort, deadline=DEADLINE, quorum=1)
    in_time = 0
    for attempt in range(ROUNDS):
        world = World.make(tmp_path / str(attempt), replace(PLAN, rounds=1, cohort=cohort))
        reports: list[RoundReport] = []
        marks = tmp_path / f"marks-{attempt}"
        marks.mkdir()
        monkeypatch.setenv("PRIVET_TEST_MARKS", str(marks))
        with InProcessGrid("tests.server.ending_app:app", 3, workers=3) as grid:
            # Processes take longer to start than this round's deadline.
            patient = replace(world.home, plan=PATIENT)
            assert len(Nodes(patient, grid, world.home.signing_key()).who_is_there()) == 3
            loop = RoundLoop(world.home, grid, model(), on_round=reports.append)
            if how in ENDED_FROM_OUTSIDE:
                ends = (marks, ENDED_FROM_OUTSIDE[how])
                threading.Thread(target=_end, args=ends, daemon=True).start()
            loop.run()
            for process in workers():
                os.kill(process, signal.SIGKILL)  # what hangs would be waited for
        (report,) = reports
        assert report.valid == 2, report
        in_time += report.seconds <= DEADLINE + 1
    print(f"client {how}: {in_time} of {ROUNDS} rounds ended by the deadline + 1 s")
    assert in_time == ROUNDS


def _end(marks: Path, sign: signal.Signals) -> None:
    """End the client that has been reached by its round: it leaves its process id as a mark."""
    while not (mark := list(marks.iterdir())):
        time.sleep(0.01)
    os.kill(int(mark[0].name), sign)
