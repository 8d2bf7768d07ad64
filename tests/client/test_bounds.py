"""One comparison of bits says what two comparisons of numbers would, of every float32 there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.device.bounds import Bounds
from common.data.schema import Column, Schema
from common.errors import DataError

SCHEMAS = {
    "pixels from 0": Schema("image", (1, 1, 2), ("a", "b"), lower=0.0, upper=255.0),
    "pixels from 0 to no float32": Schema("image", (1, 1, 2), ("a", "b"), lower=0.0, upper=0.1),
    "pixels around 0": Schema("image", (1, 1, 2), ("a", "b"), lower=-1.0, upper=1.0),
    "columns from 0": Schema(
        "table", (2,), ("a", "b"), (Column("x", 0.0, 9.0), Column("y", 0.0, 1e-40)), target="t"
    ),
    "columns from 0 to 0 as float32": Schema(
        "table", (2,), ("a", "b"), (Column("x", -1e-50, -0.0), Column("y", 0.0, 9.0)), target="t"
    ),
    "columns from anywhere": Schema(
        "table", (2,), ("a", "b"), (Column("x", 0.0, 9.0), Column("y", -7.0, -3.0)), target="t"
    ),
    "columns up to 0": Schema(
        "table", (2,), ("a", "b"), (Column("x", -2.0, 0.0), Column("y", -2.0, -0.0)), target="t"
    ),
}


def is_let_through(bounds: Bounds, records: np.ndarray) -> bool:
    try:
        found = bounds.check(records)
    except DataError:
        return False
    np.testing.assert_array_equal(found, records)
    assert type(found) is np.ndarray
    assert found.flags.c_contiguous
    return True


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@given(bits=st.integers(0, 2**32 - 1))
def test_any_float32_is_let_through_just_if_it_is_within(schema: Schema, bits: int) -> None:
    value = float(np.array(bits, np.uint32).view(np.float32))
    check_both_places(schema, value)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_the_values_beside_a_bound_are_on_the_right_side(schema: Schema) -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    values = [0.0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan, -np.nan]
    for bound in (*schema.bounds()[0], *schema.bounds()[1]):
        near = np.float32(bound)
        values += [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, -np.inf)]
    for value in values:
        check_both_places(schema, float(np.float32(value)))


def check_both_places(schema: Schema, value: float) -> None:
    """The value in either place, and within its bounds in the other."""
    lower, upper = (np.array(one, np.float32).tolist() for one in schema.bounds())
    bounds = Bounds(schema)
    for place in (0, 1):
        row = [lower[0], lower[1]]
        row[place] = value
        records = np.array([row], np.float32).reshape(1, *schema.shape)
        assert is_let_through(bounds, records) == (lower[place] <= value <= upper[place])


def test_arrays_that_are_not_plain_are_looked_at_all_the_same() -> None:
    bounds = Bounds(SCHEMAS["columns from anywhere"])
    good, bad = np.array([[1.0, -4.0]], np.float32), np.array([[1.0, -8.0]], np.float32)
    for made in (np.asfortranarray, lambda one: one[::-1], lambda one: one.astype(">f4")):
        assert is_let_through(bounds, made(np.concatenate([good, good])))
        assert not is_let_through(bounds, made(np.concatenate([good, bad])))
    hidden = np.ma.masked_array(bad, mask=True)
    assert not is_let_through(bounds, hidden)
