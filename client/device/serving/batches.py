"""Run requests that are there at the same time together: one call of the model for all of them.

The rules: nobody waits for company. Whatever came in while the model was at work, or in one turn of
the event loop, goes into the next call, up to a number of records; a request alone goes alone. A
request that was given up meanwhile is left out. More than a bounded number of waiting records is
refused at once instead of being kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from common.errors import OperationError
from common.inference import Array

INLINE_SECONDS = 0.001  # a call that is expected to take longer runs beside the event loop


class Batches:
    """Calls ``run`` with the records of one or more requests; for one event loop.

    Args:
        run: (B, *shape) to (B, classes), row by row: no row's answer depends on another's.
        most: records in a call, unless a single request has more.
        waiting: records that may wait for a call.
        ran: called with the number of records of each call.
    """

    def __init__(
        self,
        run: Callable[[Array], Array],
        *,
        most: int,
        waiting: int,
        ran: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._run, self._most, self._limit, self._ran = run, most, waiting, ran
        self._queue: deque[tuple[Array, asyncio.Future[Array]]] = deque()
        self._records = 0
        self._due = False  # whether a flush is scheduled, or a call is under way
        self._seconds = 0.0  # a record took in the last call; 0 before the first
        self._worker = ThreadPoolExecutor(1, "privet-model")

    @property
    def waiting(self) -> int:
        """Records that wait for a call."""
        return self._records

    async def submit(self, records: Array) -> Array:
        """The answers to some records.

        Raises:
            OperationError: too many records wait already; code ``busy``.
                DataError: the model has no answer for these.
        """
        if self._records and self._records + len(records) > self._limit:
            raise OperationError("too many records are waiting", hint="ask again", code="busy")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Array] = loop.create_future()
        self._queue.append((records, future))
        self._records += len(records)
        if not self._due:
            self._due = True
            loop.call_soon(self._flush)
        return await future

    def retire(self) -> None:
        """Nothing is submitted any more; what waits is still answered."""
        if self._due:
            asyncio.get_running_loop().call_soon(self.retire)
        else:
            self._worker.shutdown(wait=False)

    def _flush(self) -> None:
        taken: list[tuple[Array, asyncio.Future[Array]]] = []
        count = 0
        while self._queue and (not taken or count + len(self._queue[0][0]) <= self._most):
            records, future = self._queue.popleft()
            self._records -= len(records)
            if not future.done():  # else its caller is gone
                taken.append((records, future))
                count += len(records)
        if not taken:
            self._due = False
            return
        parts = [part for part, _ in taken]
        futures = [future for _, future in taken]
        if 0 < count * self._seconds <= INLINE_SECONDS:
            self._answer(futures, self._call(parts), count)
            return
        call = asyncio.get_running_loop().run_in_executor(self._worker, self._call, parts)
        call.add_done_callback(lambda done: self._answer(futures, done.result(), count))

    def _call(self, parts: list[Array]) -> list[Array | Exception]:
        """The answers to each part; where the model has none for all, to each part by itself."""
        began = time.perf_counter()
        sizes = [len(part) for part in parts]
        try:
            whole = self._run(parts[0] if len(parts) == 1 else np.concatenate(parts))
        except Exception as error:  # noqa: BLE001  (whoever asked is told, and nobody else)
            if len(parts) == 1:
                return [error]
            return [self._call([part])[0] for part in parts]
        self._seconds = (time.perf_counter() - began) / max(1, sum(sizes))
        return list(np.split(whole, np.cumsum(sizes)[:-1]))

    def _answer(
        self, futures: list[asyncio.Future[Array]], answers: list[Array | Exception], count: int
    ) -> None:
        for future, answer in zip(futures, answers, strict=True):
            if future.done():
                continue  # its caller is gone
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._ran(count)
        if self._queue:
            asyncio.get_running_loop().call_soon(self._flush)
        else:
            self._due = False
