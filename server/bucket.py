"""May somebody ask once more?

The rule: a token bucket, so many at once and so many a second afterwards. It is two numbers,
however often it is asked, and may be forgotten when it is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """Tokens: ``rate`` come a second, and there are ``burst`` at most and in the beginning.

    Args:
        rate: > 0.
        burst: >= 1.
        now: seconds that only go forwards.

    >>> clock = iter([0.0, 0.0, 0.0, 0.0, 0.5, 1.0]).__next__
    >>> bucket = Bucket(1.0, 2.0, clock)
    >>> [bucket.take() for _ in range(5)]
    [True, True, False, False, True]
    """

    def __init__(
        self, rate: float, burst: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._left, self._at = burst, now()

    def take(self) -> bool:
        """Take one, if there is one."""
        if not self.any:
            return False
        self._left -= 1
        return True

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self._filled() >= 1

    @property
    def full(self) -> bool:
        """Whether it may be forgotten: nothing of its past matters any more."""
        return self._filled() >= self._burst

    def _filled(self) -> float:
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return self._left
