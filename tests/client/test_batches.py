"""Requests that are there at the same time share a call of the model, and nothing else."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from client.device.serving.batches import Batches
from common.errors import DataError, OperationError
from common.inference import Array

UNLUCKY = 1313.0


def records(*values: float) -> Array:
    return np.array(values, np.float32).reshape(-1, 1)


class Model:
    """Doubles; fails on ``UNLUCKY``; counts its calls, which wait while ``gate`` is clear."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch: Array) -> Array:
        self.gate.wait(20)
        self.calls.append(len(batch))
        if (batch == UNLUCKY).any():
            raise DataError("the model has no finite probabilities for these records")
        return batch * 2


async def under_way(batches: Batches) -> asyncio.Future[Array]:
    """A request that the model is at work on."""
    first = asyncio.ensure_future(batches.submit(records(1)))
    while batches.waiting or not batches._due:
        await asyncio.sleep(0)
    return first


def test_what_comes_in_one_turn_of_the_loop_is_one_call() -> None:
    model = Model()

    async def main() -> list[Array]:
        batches = Batches(model, most=64, waiting=64)
        return list(await asyncio.gather(*(batches.submit(records(i, i)) for i in range(20))))

    answers = asyncio.run(main())
    assert model.calls == [40]
    assert [answer.ravel().tolist() for answer in answers] == [[2 * i] * 2 for i in range(20)]


def test_what_comes_while_the_model_works_is_the_next_call() -> None:
    model = Model()
    model.gate.clear()

    async def main() -> None:
        batches = Batches(model, most=64, waiting=64)
        first = await under_way(batches)
        later = [asyncio.ensure_future(batches.submit(records(i))) for i in range(5)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *later)

    asyncio.run(main())
    assert model.calls == [1, 5]


def test_a_call_has_at_most_so_many_records_and_a_larger_request_goes_alone() -> None:
    model = Model()

    async def main() -> None:
        batches = Batches(model, most=4, waiting=64)
        await asyncio.gather(*(batches.submit(records(*[1.0] * n)) for n in (3, 2, 2, 9, 1)))

    asyncio.run(main())
    assert model.calls == [3, 4, 9, 1]


def test_more_than_may_wait_is_refused_at_once_and_the_rest_is_served() -> None:
    async def main() -> list[Array | BaseException]:
        batches = Batches(Model(), most=4, waiting=6)
        found = await asyncio.gather(
            *(batches.submit(records(1.0, 2.0)) for _ in range(5)), return_exceptions=True
        )
        assert batches.waiting == 0
        return list(found)

    found = asyncio.run(main())
    assert [type(one) for one in found[3:]] == [OperationError] * 2
    assert {getattr(one, "code", "") for one in found[3:]} == {"busy"}
    assert all(isinstance(one, np.ndarray) for one in found[:3])


def test_a_request_that_the_model_fails_on_takes_no_other_along() -> None:
    async def main() -> list[Array | BaseException]:
        batches = Batches(Model(), most=64, waiting=64)
        return list(
            await asyncio.gather(
                *(batches.submit(records(i)) for i in (1, UNLUCKY, 2)), return_exceptions=True
            )
        )

    one, failed, two = asyncio.run(main())
    assert isinstance(failed, DataError)
    assert isinstance(one, np.ndarray)
    assert isinstance(two, np.ndarray)
    assert (one.item(), two.item()) == (2, 4)


def test_a_request_that_was_given_up_is_not_run() -> None:
    model = Model()

    async def main() -> None:
        batches = Batches(model, most=64, waiting=64)
        first = await under_way(batches)
        given_up = asyncio.ensure_future(batches.submit(records(1)))
        kept = asyncio.ensure_future(batches.submit(records(2, 3)))
        await asyncio.sleep(0)
        given_up.cancel()
        model.gate.set()
        await first
        assert (await kept).ravel().tolist() == [4, 6]
        with pytest.raises(asyncio.CancelledError):
            await given_up

    model.gate.clear()
    asyncio.run(main())
    assert model.calls == [1, 2]


def test_a_model_that_is_replaced_still_answers_what_it_took() -> None:
    async def main() -> Array:
        batches = Batches(Model(), most=64, waiting=64)
        under_way = asyncio.ensure_future(batches.submit(records(4)))
        await asyncio.sleep(0)
        batches.retire()
        return await under_way

    assert asyncio.run(main()).item() == 8
