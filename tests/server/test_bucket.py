"""A token bucket gives its burst at once, then its rate, and can be forgotten when it is full."""

from __future__ import annotations

from server.bucket import Bucket


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_there_is_a_burst_at_once_and_then_the_rate_and_never_more_than_a_burst() -> None:
    clock = Clock()
    bucket = Bucket(2.0, 3.0, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.seconds = 0.49
    assert not bucket.any
    clock.seconds = 0.5  # one more after half a second
    assert bucket.any
    assert [bucket.take() for _ in range(2)] == [True, False]
    clock.seconds = 1000.0
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_it_is_full_when_nothing_of_its_past_matters_and_looking_takes_nothing() -> None:
    clock = Clock()
    bucket = Bucket(1.0, 2.0, clock)
    assert bucket.full
    bucket.take()
    assert not bucket.full
    assert [bucket.any for _ in range(5)] == [True] * 5
    clock.seconds = 1.0
    assert bucket.full
