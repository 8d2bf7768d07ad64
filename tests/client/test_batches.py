"""Requests that are there at the same time share a call of the model, and nothing else."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

from client.device.serving.batches import INLINE_SECONDS, Batches, Outcome, Waiting
from common.errors import DataError, OperationError
from common.inference import Array

UNLUCKY = 1313.0
FOREVER = math.inf


def records(*values: float) -> Array:
    return np.array(values, np.float32).reshape(-1, 1)


class Model:
    """Doubles; fails on ``UNLUCKY``; notes its calls, which wait while ``gate`` is clear."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, batch: Array) -> Array:
        self.entered.release()
        self.gate.wait(20)
        self.calls.append(len(batch))
        self.threads.add(threading.current_thread().name)
        if (batch == UNLUCKY).any():
            raise DataError("the model has no finite probabilities for these records")
        return batch * 2


class Asked:
    """A request, and what came of it."""

    def __init__(self, batches: Batches, *values: float, until: float = FOREVER) -> None:
        self._outcome: Outcome | None = None
        self._told = threading.Event()
        self.times_told = 0
        self.waiting: Waiting = batches.submit(records(*values), self._done, until)

    def _done(self, outcome: Outcome) -> None:
        self.times_told += 1
        self._outcome = outcome
        self._told.set()

    @property
    def told(self) -> bool:
        return self._told.is_set()

    def outcome(self) -> Outcome:
        assert self._told.wait(20)
        assert self._outcome is not None
        return self._outcome

    def values(self) -> list[float]:
        found = self.outcome()
        assert isinstance(found, np.ndarray), found
        return [float(value) for value in found.ravel()]


def at_work(model: Model, batches: Batches, value: float = 1.0) -> Asked:
    """A request that the model is at work on, in the other thread, until the gate opens."""
    model.gate.clear()
    first = Asked(batches, value)
    batches.flush()
    assert model.entered.acquire(timeout=20)
    return first


def test_what_is_there_when_the_server_is_idle_is_one_call() -> None:
    model = Model()
    batches = Batches(model, most=64, waiting=64)
    asked = [Asked(batches, i, i) for i in range(20)]
    batches.flush()
    assert [one.values() for one in asked] == [[2.0 * i] * 2 for i in range(20)]
    assert model.calls == [40]


def test_what_comes_while_the_model_works_is_the_next_call() -> None:
    model = Model()
    batches = Batches(model, most=64, waiting=64)
    first = at_work(model, batches)
    later = [Asked(batches, i) for i in range(5)]
    batches.flush()
    model.gate.set()
    assert [one.values() for one in (first, *later)] == [[2.0], [0.0], [2.0], [4.0], [6.0], [8.0]]
    assert model.calls == [1, 5]


def test_a_call_that_is_expected_to_be_short_is_made_at_once() -> None:
    """The first one tells how long a call is; here a later one is looked at."""
    model = Model()
    batches = Batches(model, most=64, waiting=64)
    Asked(batches, 1.0)
    assert not batches.flush()  # in the other thread, as nobody knows how long it takes
    while not batches.flush():
        time.sleep(0.001)
    batches._seconds = 1e-6  # whatever this machine's first call took
    second = Asked(batches, 2.0)
    assert batches.quick
    assert batches.flush()
    assert second.told
    assert model.threads == {"privet-model", threading.current_thread().name}


def test_a_call_that_waited_for_the_machine_is_not_taken_for_a_long_one() -> None:
    model = Model()
    batches = Batches(model, most=64, waiting=64)
    first = at_work(model, batches)
    until = time.perf_counter() + 5 * INLINE_SECONDS
    while time.perf_counter() < until:
        continue
    model.gate.set()
    first.outcome()
    while not batches.flush():
        continue
    Asked(batches, 2.0)
    assert batches.quick


def test_a_call_has_at_most_so_many_records_and_a_larger_request_goes_alone() -> None:
    model = Model()
    batches = Batches(model, most=4, waiting=64)
    asked = [Asked(batches, *[1.0] * n) for n in (3, 2, 2, 9, 1)]
    batches.flush()
    for one in asked:
        one.outcome()
    assert model.calls == [3, 4, 9, 1]


def test_more_than_may_wait_is_refused_at_once_and_the_rest_is_served() -> None:
    batches = Batches(Model(), most=4, waiting=6)
    asked = [Asked(batches, 1.0, 2.0) for _ in range(3)]
    for _ in range(2):
        with pytest.raises(OperationError) as caught:
            Asked(batches, 1.0, 2.0)
        assert caught.value.code == "busy"
    batches.flush()
    assert [one.values() for one in asked] == [[2.0, 4.0]] * 3
    assert batches.waiting == 0


def test_a_request_that_the_model_fails_on_takes_no_other_along() -> None:
    batches = Batches(Model(), most=64, waiting=64)
    one, failed, two = (Asked(batches, value) for value in (1.0, UNLUCKY, 2.0))
    batches.flush()
    assert isinstance(failed.outcome(), DataError)
    assert (one.values(), two.values()) == ([2.0], [4.0])


def test_a_request_that_was_given_up_is_not_run() -> None:
    model = Model()
    batches = Batches(model, most=64, waiting=64)
    first = at_work(model, batches)
    given_up, kept = Asked(batches, 1.0), Asked(batches, 2.0, 3.0)
    given_up.waiting.given_up = True
    model.gate.set()
    assert first.values() == [2.0]
    assert kept.values() == [4.0, 6.0]
    assert model.calls == [1, 2]
    assert not given_up.told


def test_who_has_waited_long_enough_is_told_while_the_model_is_still_at_work() -> None:
    model = Model()
    batches = Batches(model, most=64, waiting=64)
    first = at_work(model, batches)
    first.waiting.until = 0.0
    late = Asked(batches, 2.0, until=0.0)
    patient = Asked(batches, 3.0)
    batches.flush()
    for one in (first, late):
        assert isinstance(one.outcome(), TimeoutError)
    model.gate.set()
    assert patient.values() == [6.0]
    assert model.calls == [1, 1]
    assert (first.times_told, late.times_told, patient.times_told) == (1, 1, 1)


def test_a_model_that_is_replaced_still_answers_what_it_took() -> None:
    model = Model()
    batches = Batches(model, most=64, waiting=64)
    first = at_work(model, batches, 4.0)
    second = Asked(batches, 5.0)
    batches.retire()
    model.gate.set()
    assert (first.values(), second.values()) == ([8.0], [10.0])
    thread = batches._thread
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()
