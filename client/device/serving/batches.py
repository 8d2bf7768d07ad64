"""Run requests that are there at the same time together: one call of the model for all of them.

The rules: nobody waits for company. Whatever came in while the model was at work, or before the
server had nothing else to do, goes into the next call, up to a number of records; a request alone
goes alone. A call that is expected to be short is made where it is asked for, and a longer one in a
thread of its own, so that other requests are still heard; what counts is the time that it computes,
not that it waits for a busy machine. A request that was given up, or waited longer than it may, is
left out. More than a bounded number of waiting records is refused at once instead of being kept.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from common.errors import OperationError
from common.inference import Array

INLINE_SECONDS = 0.001  # a call that is expected to take longer is made in the other thread

Outcome = Array | Exception


@dataclass(eq=False, slots=True)
class Waiting:
    """A request: its records, who is told, and until when it may wait (monotonic seconds)."""

    records: Array
    done: Callable[[Outcome], None]
    until: float
    given_up: bool = False


class Batches:
    """Calls ``run`` with the records of one or more requests.

    :meth:`submit`, :meth:`flush` and :meth:`retire` are for one thread; who is told what came out
    may be told from another one.

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
        self._queue: deque[Waiting] = deque()
        self._records = 0
        self._soonest = math.inf  # nobody waits longer than they may before this
        self._seconds = 0.0  # of a core, for a record of the last call; 0 before the first
        self._lock = threading.Lock()  # of the queue, and of who is at work
        self._working = self._retired = False  # whether the other thread is, or may not be any more
        self._at_work: list[Waiting] = []  # what it works on
        self._work = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Records that wait for a call."""
        return self._records

    @property
    def quick(self) -> bool:
        """Whether what waits is expected to be answered by the next :meth:`flush`."""
        return not self._working and 0 < self._records * self._seconds <= INLINE_SECONDS

    def submit(self, records: Array, done: Callable[[Outcome], None], until: float) -> Waiting:
        """Have some records answered; ``done`` is told, once, unless the request is given up.

        Args:
            until: monotonic seconds; later than that, ``done`` is told a TimeoutError.

        Raises:
            OperationError: too many records wait already; code ``busy``.
        """
        with self._lock:
            if self._records and self._records + len(records) > self._limit:
                raise OperationError("too many records are waiting", hint="ask again", code="busy")
            request = Waiting(records, done, until)
            self._queue.append(request)
            self._records += len(records)
            self._soonest = min(self._soonest, until)
        return request

    def flush(self) -> bool:
        """Call the model for what waits. False: it is, or was put, to work in the other thread."""
        if not self._queue and not self._working:
            return True
        while True:
            with self._lock:
                self._drop_late()
                if not self._queue:
                    return not self._working
                if self._working:
                    return False
                if not 0 < min(self._records, self._most) * self._seconds <= INLINE_SECONDS:
                    self._working = True
                    break
                taken = self._take()
            self._answer(taken)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="privet-model", daemon=True)
            self._thread.start()
        self._work.release()
        return False

    def retire(self) -> None:
        """Nothing is submitted any more; what waits is still answered."""
        self.flush()
        with self._lock:
            self._retired = True
        self._work.release()

    def _serve(self) -> None:
        """The other thread: as long as something waits, the model is called for it."""
        while True:
            self._work.acquire()
            while True:
                with self._lock:
                    taken = self._take()
                    self._at_work = taken
                    if not taken:
                        self._working = False
                        if self._retired:
                            return
                        break
                self._answer(taken)

    def _drop_late(self) -> None:
        """Tell those who have waited too long."""
        now = time.monotonic()
        if now < self._soonest:
            return
        self._soonest = math.inf
        for request in (*self._queue, *self._at_work):
            if request.given_up:
                continue
            if request.until <= now:
                request.given_up = True
                request.done(TimeoutError("the model did not answer in time"))
            else:
                self._soonest = min(self._soonest, request.until)

    def _take(self) -> list[Waiting]:
        taken: list[Waiting] = []
        count = 0
        while self._queue and (not taken or count + len(self._queue[0].records) <= self._most):
            request = self._queue.popleft()
            self._records -= len(request.records)
            if not request.given_up:
                taken.append(request)
                count += len(request.records)
        return taken

    def _answer(self, taken: list[Waiting]) -> None:
        if not taken:
            return
        outcomes = self._call([request.records for request in taken])
        for request, outcome in zip(taken, outcomes, strict=True):
            if not request.given_up:
                request.done(outcome)
        self._ran(sum([len(request.records) for request in taken]))

    def _call(self, parts: list[Array]) -> list[Outcome]:
        """The answers to each part; where the model has none for all, to each part by itself."""
        began = time.thread_time()
        try:
            whole = self._run(parts[0] if len(parts) == 1 else np.concatenate(parts))
        except Exception as error:  # noqa: BLE001  (whoever asked is told, and nobody else)
            if len(parts) == 1:
                return [error]
            return [self._call([part])[0] for part in parts]
        self._seconds = (time.thread_time() - began) / max(1, len(whole))
        if len(parts) == 1:
            return [whole]
        ends = accumulate(map(len, parts), initial=0)
        return [whole[i:j] for i, j in pairwise(ends)]
