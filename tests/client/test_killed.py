"""Killed by SIGKILL at any durable step, again and again: never more disclosed than recorded.

A child process serves rounds with cryptographic noise and says what left it; the parent, which
plays the coordinator, kills it and compares with the ledger on disk.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from client.home import Home
from client.rounds import Client
from common import durable
from common.errors import Refusal
from common.ledger import Entry, Kind
from common.wire import digest_arrays
from tests.world import COORDINATOR, PLAN, POLICY, PRIVACY, ask, make_home, model, seen

LONG = replace(PLAN, rounds=10_000, privacy=replace(PRIVACY, noise_multiplier=200.0))
OWNER = replace(POLICY, simulated=False, spare_rounds=0)
MOST_STEPS = 24  # durable steps: two whole rounds and some
KILLS_A_HOME = 25  # a fresh ledger after so many, because opening one verifies all of it


def chain(home: Home) -> tuple[Entry, ...]:
    return home.open_ledger().chain(home.federation)


def serve_until_killed(home: Home, round_: int, step: int, pipe: int) -> None:
    """Serve rounds, saying each digest that left, and die at durable step ``step``."""
    os.environ[durable.FAULT_VARIABLE] = str(step)
    durable._steps = 0
    client = Client(home)
    while True:
        request = ask(round_, plan=LONG.digest, nonce=round_, **seen(chain(home)))
        try:
            answer = client.answer(request.sign(COORDINATOR), model())
        except Refusal:
            os._exit(4)
        os.write(pipe, f"{digest_arrays(answer.update)}\n".encode())
        round_ += 1


def kill_once(home: Home, round_: int, step: int) -> list[str]:
    """What left a client that was killed at ``step``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            serve_until_killed(home, round_, step, writing)
        finally:
            os._exit(3)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        left = pipe.read().split()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child ended by itself: {os.WEXITSTATUS(status)}"
    assert os.WTERMSIG(status) == signal.SIGKILL
    return left


@pytest.mark.parametrize("kills", [100, pytest.param(1000, marks=pytest.mark.figures)])
def test_whatever_is_killed_discloses_no_more_than_it_recorded(
    tmp_path: Path, kills: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")
    chance, disclosed, recorded, lost_most = random.Random(3), 0, 0, 0
    for start in range(0, kills, KILLS_A_HOME):
        home = make_home(tmp_path / str(start), plan=LONG, policy=OWNER, seed=None)
        received: list[str] = []
        for _ in range(min(KILLS_A_HOME, kills - start)):
            entries = chain(home)
            intents = [entry for entry in entries if entry.kind is Kind.INTENT]
            next_round = max((entry.body["round"] for entry in intents), default=0) + 1
            left = kill_once(home, next_round, chance.randrange(1, MOST_STEPS + 1))
            received += left
            after = chain(home)
            new = [entry for entry in after[len(entries) :] if entry.kind is Kind.INTENT]
            lost_most = max(lost_most, len(new) - len(left))
            updates = {e.body["update"] for e in after if e.kind is Kind.DISCLOSURE}
            # Everything that left is named by a disclosure, and each has an intent of its own.
            assert set(received) <= updates
            assert len(received) <= sum(entry.kind is Kind.INTENT for entry in after)
        disclosed += len(received)
        recorded += sum(entry.kind is Kind.INTENT for entry in chain(home))
        assert len(home.open_ledger().spent()) == sum(e.kind is Kind.INTENT for e in chain(home))
    print(f"{kills} kills: {disclosed} disclosed, {recorded} recorded, at most {lost_most} lost")
    assert disclosed <= recorded
    assert lost_most <= 1
