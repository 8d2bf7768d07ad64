"""The mean does not depend on the order of arrival, to the bit, and is the mean to 1e-9."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.aggregation import mean as mean_module
from server.aggregation.mean import MAX_UPDATES, MAX_VALUE, SCALE, ExactMean

Updates = list[NDArray[np.float32]]
VALUES = st.floats(-MAX_VALUE, MAX_VALUE, width=32, allow_nan=False)


def mean_of(updates: Updates) -> NDArray[np.float64]:
    mean = ExactMean({"w": updates[0].shape})
    for update in updates:
        mean.add({"w": update})
    return mean.mean()["w"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(VALUES, min_size=5, max_size=5), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_does_not_change_a_bit(
    rows: list[list[float]], random: object
) -> None:
    updates = [np.array(row, np.float32) for row in rows]
    first = mean_of(updates)
    random.shuffle(updates)  # type: ignore[attr-defined]
    assert mean_of(updates).tobytes() == first.tobytes()


def test_float32_and_float64_sums_do_depend_on_the_order() -> None:
    """What the fixed point is for: plain sums of these differ between two orders."""
    generator = np.random.default_rng(3)
    rows = (generator.normal(size=(500, 200)) * 10.0 ** generator.integers(-6, 3, (500, 1))).astype(
        np.float32
    )
    orders = [rows, rows[::-1], rows[generator.permutation(500)]]
    for kind in (np.float32, np.float64):
        sums = {np.cumsum(order.astype(kind), axis=0)[-1].tobytes() for order in orders}
        assert len(sums) > 1
    assert len({mean_of(list(order)).tobytes() for order in orders}) == 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=30))
def test_it_is_the_mean_to_a_billionth(rows: list[list[float]]) -> None:
    updates = [np.array(row, np.float32) for row in rows]
    expected = np.mean(np.array(rows, np.float64), axis=0)
    np.testing.assert_allclose(mean_of(updates), expected, rtol=0, atol=1e-9)


def test_the_greatest_values_of_the_most_updates_do_not_overflow() -> None:
    assert SCALE * MAX_VALUE * MAX_UPDATES < 2**63
    mean = ExactMean({"w": (2,)})
    extreme = np.array([MAX_VALUE, -MAX_VALUE], np.float32)
    mean.add({"w": extreme})
    mean._sums["w"] *= MAX_UPDATES - 1  # as if it had been added so often
    mean.count = MAX_UPDATES - 1
    mean.add({"w": extreme})
    assert mean.mean()["w"].tolist() == [MAX_VALUE, -MAX_VALUE]


def test_one_update_too_many_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_module, "MAX_UPDATES", 2)
    mean = ExactMean({"w": ()})
    for _ in range(2):
        mean.add({"w": np.zeros((), np.float32)})
    with pytest.raises(ValueError, match="more than 2"):
        mean.add({"w": np.zeros((), np.float32)})


def test_adding_does_not_change_an_update() -> None:
    update = np.array([0.1, -0.1], np.float32)
    update.setflags(write=False)
    assert mean_of([update, update]).tolist() == pytest.approx([0.1, -0.1], abs=1e-8)


def rounded(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The rule as its sentence says it: each value to a multiple of 2^-36, sums in integers."""
    integers = np.rint(rows.astype(np.float64) * SCALE).astype(np.int64)
    return integers.sum(axis=0) / (SCALE * len(rows))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=1, max_size=20))
def test_it_is_the_integer_sum_of_rounded_values_to_the_bit(rows: list[list[float]]) -> None:
    updates = np.array(rows, np.float32)
    assert mean_of(list(updates)).tobytes() == rounded(updates).tobytes()


def test_a_value_halfway_between_two_multiples_goes_to_the_even_one_whatever_came_before() -> None:
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32) / np.float32(SCALE)
    even = np.array([0.0, 2.0, 2.0, -0.0, -2.0, -2.0]) / SCALE
    assert mean_of([halves]).tolist() == even.tolist()
    odd = np.full(6, 3.0, np.float32) / np.float32(SCALE)
    for order in ([halves, odd], [odd, halves]):
        assert (2 * mean_of(order)).tolist() == (even + 3 / SCALE).tolist()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 5), (2**16 - 1,), (2, 2**16 + 3)])
def test_any_shape_is_added_in_whole(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(3, *shape)).astype(np.float32)
    mean = ExactMean({"w": shape, "b": (2,)})
    for row in rows:
        mean.add({"b": np.ones(2, np.float32), "w": np.asarray(row)})
    assert mean.mean()["w"].shape == shape
    assert mean.mean()["w"].tobytes() == np.asarray(rounded(rows)).tobytes()
    assert mean.mean()["b"].tolist() == [1.0, 1.0]


def test_an_update_that_is_not_contiguous_is_the_same_update() -> None:
    update = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert mean_of([update.T]).tolist() == update.T.tolist()
