"""A coded update has one length and one form, and comes out as arithmetic says it must."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from common.canonical import encode
from common.coding import RESIDUAL, Codec, largest
from common.compression import Compression
from common.errors import PlanError, TrustError
from common.plan import Plan
from common.wire import Arrays, digest_arrays, digest_update
from tests.world import PLAN

SHAPES = {"weight": (10, 7), "bias": (10,), "empty": (0, 3), "one": ()}
VALUES = 81
METHODS = (Compression("fp16"), Compression("int8"), Compression("top-k", 0.1))


def codec(method: str, fraction: float = 0.1, bound: float = 1000.0) -> Codec:
    return Codec(Compression(method, fraction), SHAPES, bound)


def update_of(seed: int, scale: float = 1.0) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        name: (scale * generator.normal(size=shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


# -- the plan's table ----------------------------------------------------------------------------


def test_a_plan_without_compression_has_the_digest_it_always_had() -> None:
    assert "compression" not in PLAN.json()
    # As it was before there was such a table.
    assert PLAN.digest == "941fb58c9b27dfd359046a06be7c09dd0a5c13ec71e7048b30f3449f6feeb277"


def test_plans_that_differ_in_compression_alone_differ_in_their_digest_and_read_back() -> None:
    choices = [None, *METHODS, Compression("top-k", 0.01)]
    plans = [replace(PLAN, compression=choice) for choice in choices]
    assert len({plan.digest for plan in plans}) == len(plans)
    for plan in plans:
        assert Plan.decode(plan.encode()) == plan
    assert plans[1].json()["compression"] == {"method": "fp16"}
    assert plans[3].json()["compression"] == {"method": "top-k", "fraction": "0.1"}


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"method": "zip"},
        {"method": "top-k"},
        {"method": "top-k", "fraction": "0"},
        {"method": "top-k", "fraction": "0.5"},
        {"method": "top-k", "fraction": "-0.1"},
        {"method": "top-k", "fraction": "nan"},
        {"method": "int8", "fraction": "0.1"},
        {"method": "fp16", "level": 3},
    ],
    ids=str,
)
def test_a_table_that_says_nothing_sensible_is_a_plan_error(table: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        Plan.decode(encode({**PLAN.json(), "compression": table}))


# -- what goes in comes out ----------------------------------------------------------------------


def test_lengths_follow_from_the_plan_and_the_model() -> None:
    assert codec("fp16").size == 2 * VALUES
    assert codec("int8").size == 4 * 4 + VALUES
    assert codec("top-k", 0.1).size == 8 * math.ceil(8.1)
    assert codec("top-k", 1e-6).size == 8
    for compression in METHODS:
        one = Codec(compression, SHAPES, 1000.0)
        assert len(one.encode(update_of(1), {})[0]) == one.size


def test_half_precision_is_numpys_and_is_read_back_exactly() -> None:
    update = update_of(1)
    decoded = codec("fp16").decode(codec("fp16").encode(update, {})[0])
    for name, value in update.items():
        assert decoded[name].dtype == np.float32
        assert np.array_equal(decoded[name], value.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 900.0])
def test_int8_is_off_by_half_a_step_at_most_and_keeps_the_greatest_value(scale: float) -> None:
    update = update_of(2, scale)
    decoded = codec("int8").decode(codec("int8").encode(update, {})[0])
    for name, value in update.items():
        greatest = float(np.abs(value).max(initial=0))
        assert np.abs(decoded[name] - value).max(initial=0) <= greatest / 127 * 0.5000001
        assert np.abs(decoded[name]).max(initial=0) == pytest.approx(greatest, rel=1e-6)


def test_int8_by_hand() -> None:
    one = Codec(Compression("int8"), {"a": (4,), "b": (2,)}, 10.0)
    values = {"a": np.array([127, -63.5, 64.5, 0.4], np.float32), "b": np.zeros(2, np.float32)}
    data, _ = one.encode(values, {})
    # Scales 1 and 0; ties go to the even step.
    assert data == np.array([1, 0], "<f4").tobytes() + bytes([127, 256 - 64, 64, 0, 0, 0])
    assert one.decode(data)["a"].tolist() == [127.0, -64.0, 64.0, 0.0]


def test_values_too_small_for_a_scale_are_zero() -> None:
    update = {name: np.full(shape, 1e-38, np.float32) for name, shape in SHAPES.items()}
    data, _ = codec("int8").encode(update, {})
    assert data == bytes(codec("int8").size)
    assert not flat(codec("int8").decode(data)).any()


def test_the_largest_are_chosen_and_ties_go_to_the_lower_index() -> None:
    assert largest(np.array([1, -3, 2, 3, -2], np.float32), 3).tolist() == [1, 2, 3]
    assert largest(np.zeros(5, np.float32), 2).tolist() == [0, 1]
    assert largest(np.zeros(0, np.float32), 0).tolist() == []
    generator = np.random.default_rng(3)
    for _ in range(50):
        values = generator.integers(-4, 5, size=30).astype(np.float32)
        by_rule = sorted(sorted(range(30), key=lambda i: (-abs(values[i]), i))[:11])
        assert largest(values, 11).tolist() == by_rule


def test_what_was_sent_and_what_was_kept_add_up_to_all_updates() -> None:
    """Error feedback loses nothing: sent + kept = sum of the updates, up to float32's rounding."""
    one, kept, sent, total = codec("top-k"), Arrays(), np.zeros(VALUES), np.zeros(VALUES)
    for seed in range(40):
        update = update_of(seed)
        data, kept = one.encode(update, kept)
        decoded = flat(one.decode(data))
        assert np.count_nonzero(decoded) <= 9
        sent, total = sent + decoded, total + flat(update)
    assert np.allclose(sent + kept[RESIDUAL], total, atol=1e-4)
    # … and nothing waits for ever: every value was sent at some time (delay-bounded, Stich et al.).
    assert np.count_nonzero(sent) == VALUES


def test_values_beyond_the_bound_are_sent_as_the_bound_and_the_rest_stays_behind() -> None:
    bound = 0.1  # whose float32 is greater than it
    one = codec("top-k", bound=bound)
    update = {name: np.full(shape, 3.0, np.float32) for name, shape in SHAPES.items()}
    data, kept = one.encode(update, {})
    decoded = flat(one.decode(data))
    assert 0.0999 < decoded.max() <= bound
    assert np.allclose(decoded + kept[RESIDUAL], 3.0)


@pytest.mark.parametrize("compression", METHODS, ids=lambda c: c.method)
def test_the_same_update_gives_the_same_bytes_in_whatever_order_its_names_come(
    compression: Compression,
) -> None:
    one = Codec(compression, SHAPES, 1000.0)
    other = Codec(compression, dict(reversed(SHAPES.items())), 1000.0)
    update = update_of(4)
    assert one.encode(update, {})[0] == other.encode(dict(reversed(update.items())), {})[0]
    decoded = one.decode(one.encode(update, {})[0])
    assert digest_arrays(decoded) == digest_arrays(other.decode(one.encode(update, {})[0]))
    # What was read is written back as it was: there is one form.
    assert one.encode(decoded, {})[0] == one.encode(update, {})[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compression", METHODS, ids=lambda c: c.method)
def test_an_update_that_is_not_finite_arrives_as_such_and_leaves_what_was_kept(
    compression: Compression, value: float
) -> None:
    one = Codec(compression, SHAPES, 1000.0)
    _, kept = one.encode(update_of(5), {})
    before = {name: array.copy() for name, array in kept.items()}
    update = update_of(6)
    update["bias"][3] = value
    data, after = one.encode(update, kept)
    with pytest.raises(TrustError) as caught:
        one.decode(data)
    assert caught.value.code == "not-finite"
    assert digest_arrays(after) == digest_arrays(before)


def test_coded_bytes_and_arrays_never_share_a_digest() -> None:
    update = update_of(7)
    assert digest_update(update) == digest_arrays(update)
    assert len({digest_update(b""), digest_update({}), digest_update(b"\0")}) == 3


# -- what nobody honest sends --------------------------------------------------------------------

GOOD = {c.method: Codec(c, SHAPES, 1000.0).encode(update_of(8), {})[0] for c in METHODS}


def put(method: str, offset: int, value: object, kind: str) -> bytes:
    data = bytearray(GOOD[method])
    raw = np.array(value, kind).tobytes()
    data[offset : offset + len(raw)] = raw
    return bytes(data)


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "fp16-empty": ("fp16", b"", "malformed"),
    "fp16-short": ("fp16", GOOD["fp16"][:-1], "malformed"),
    "fp16-long": ("fp16", GOOD["fp16"] + b"\0", "malformed"),
    "fp16-inf": ("fp16", put("fp16", 6, np.inf, "<f2"), "not-finite"),
    "fp16-minus-inf": ("fp16", put("fp16", 0, -np.inf, "<f2"), "not-finite"),
    "fp16-nan": ("fp16", put("fp16", 2, np.nan, "<f2"), "not-finite"),
    "fp16-signalling-nan": ("fp16", put("fp16", 2, 0x7C01, "<u2"), "not-finite"),
    "int8-short": ("int8", GOOD["int8"][:-1], "malformed"),
    "int8-long": ("int8", GOOD["int8"] + b"\0", "malformed"),
    "int8-nan-scale": ("int8", put("int8", 0, np.nan, "<f4"), "not-finite"),
    "int8-inf-scale": ("int8", put("int8", 0, np.inf, "<f4"), "not-finite"),
    "int8-huge-scale": ("int8", put("int8", 0, 1e38, "<f4"), "malformed"),
    "int8-negative-scale": ("int8", put("int8", 0, -0.5, "<f4"), "malformed"),
    "int8-minus-zero-scale": ("int8", put("int8", 4, -0.0, "<f4"), "malformed"),
    "int8-denormal-scale": ("int8", put("int8", 0, 1e-40, "<f4"), "malformed"),
    "int8-scale-of-zeros": ("int8", put("int8", 4, 1.0, "<f4"), "malformed"),
    "int8-no-scale": ("int8", put("int8", 0, 0.0, "<f4"), "malformed"),
    "int8-minus-128": ("int8", put("int8", 16, -128, "<i1"), "malformed"),
    "int8-none-is-127": ("int8", GOOD["int8"][:16] + bytes([1]) * VALUES, "malformed"),
    "top-k-empty": ("top-k", b"", "malformed"),
    "top-k-short": ("top-k", GOOD["top-k"][:-8], "malformed"),
    "top-k-one-more": ("top-k", GOOD["top-k"] + bytes(8), "malformed"),
    "top-k-index-beyond": ("top-k", put("top-k", 32, VALUES, "<u4"), "malformed"),
    "top-k-index-huge": ("top-k", put("top-k", 32, 2**32 - 1, "<u4"), "malformed"),
    "top-k-duplicate": ("top-k", GOOD["top-k"][:4] * 2 + GOOD["top-k"][8:], "malformed"),
    "top-k-unsorted": (
        "top-k",
        GOOD["top-k"][4:8] + GOOD["top-k"][:4] + GOOD["top-k"][8:],
        "malformed",
    ),
    "top-k-all-the-same": ("top-k", bytes(36) + GOOD["top-k"][36:], "malformed"),
    "top-k-nan": ("top-k", put("top-k", 36, np.nan, "<f4"), "not-finite"),
    "top-k-inf": ("top-k", put("top-k", 68, -np.inf, "<f4"), "not-finite"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_encode_does_not_write_is_refused_with_a_code(name: str) -> None:
    method, data, code = HOSTILE[name]
    with pytest.raises(TrustError) as caught:
        codec(method).decode(data)
    assert caught.value.code == code


@pytest.mark.parametrize("method", GOOD)
def test_random_bytes_of_the_right_length_are_refused_or_decode_to_something_finite(
    method: str,
) -> None:
    generator, one = np.random.default_rng(9), codec(method)
    for _ in range(300):
        try:
            decoded = one.decode(generator.bytes(one.size))
        except TrustError as error:
            assert error.code in ("malformed", "not-finite")
        else:
            assert np.isfinite(flat(decoded)).all()
