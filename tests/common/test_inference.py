"""An ONNX model runs from bytes, fits its schema, and never reads another file."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from common.data.schema import Schema
from common.errors import DataError, TrustError
from common.inference import KnownAnswers, Session, synthetic_records
from tests.client.device_fixtures import RECORDS, SCHEMA, Linear, linear_onnx

MODEL = Linear(3)
BYTES = MODEL.onnx().SerializeToString()
IMAGES = Schema(kind="image", shape=(2, 3, 5), classes=("a", "b"), lower=0.0, upper=255.0)


def image_model() -> bytes:
    """Flatten, then the linear model: (B, 2, 3, 5) to (B, 2)."""
    draw = np.random.default_rng(1)
    model = linear_onnx(draw.normal(0, 0.001, (30, 2)).astype(np.float32), np.zeros(2, np.float32))
    graph = model.graph
    graph.node[0].input[0] = "flat"
    graph.node.insert(0, helper.make_node("Flatten", ["input"], ["flat"], axis=1))
    shape = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, 3, 5])
    graph.input[0].CopyFrom(shape)
    return model.SerializeToString()


# -- running ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 300])
def test_probabilities_are_those_of_the_arithmetic(batch: int) -> None:
    records = np.tile(RECORDS, (100, 1))[:batch]
    found = Session(BYTES, SCHEMA).predict(records)
    assert found.shape == (batch, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, MODEL.answer(records), atol=1e-6)


def test_no_records_have_no_probabilities() -> None:
    assert Session(BYTES, SCHEMA).predict(np.zeros((0, 4))).shape == (0, 3)


def test_images_keep_their_axes() -> None:
    found = Session(image_model(), IMAGES).predict(np.full((4, 2, 3, 5), 200, np.uint8))
    assert found.shape == (4, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "records",
    [
        np.zeros((2, 5)),
        np.zeros(4),
        np.array(1.0),
        np.full((1, 4), np.nan),
        np.full((1, 4), np.inf),
        np.array([["x"] * 4]),
        np.zeros((1, 4), object),
    ],
)
def test_records_that_are_not_finite_numbers_of_the_shape_are_data_errors(records: Any) -> None:
    with pytest.raises(DataError):
        Session(BYTES, SCHEMA).predict(records)


def test_a_model_that_overflows_gives_an_error_and_not_a_nan() -> None:
    weights = np.full((4, 3), 3e38, np.float32) * np.array([1, -1, 1], np.float32)
    model = linear_onnx(weights, np.zeros(3, np.float32)).SerializeToString()
    with pytest.raises(DataError, match="no finite probabilities"):
        Session(model, SCHEMA).predict(RECORDS)


def test_latency_is_measured_in_microseconds() -> None:
    latency = Session(BYTES, SCHEMA).latency(50)
    assert 0.1 < latency.p50 <= latency.p99 < 1e6


# -- refusing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\0" * 64, BYTES[:-1], BYTES[: len(BYTES) // 2], BYTES + b"\x0b", b"\xff" * 64],
)
def test_bytes_that_are_no_model_are_a_trust_error(data: bytes) -> None:
    with pytest.raises(TrustError) as caught:
        Session(data, SCHEMA)
    assert caught.value.exit_code == 11
    assert caught.value.hint


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120), st.integers(0, len(BYTES)))
def test_no_bytes_crash_the_loader(data: bytes, cut: int) -> None:
    for candidate in (data, BYTES[:cut] + data, data + BYTES):
        try:
            Session(candidate, SCHEMA)
        except TrustError:
            continue


@pytest.mark.parametrize(
    "model",
    [
        linear_onnx(MODEL.weights, MODEL.bias, names=("x", "probabilities")),
        linear_onnx(MODEL.weights, MODEL.bias, names=("input", "logits")),
        linear_onnx(MODEL.weights[:3], MODEL.bias),
        linear_onnx(MODEL.weights[:, :2], MODEL.bias[:2]),
        linear_onnx(MODEL.weights, MODEL.bias, batch=1),
    ],
    ids=["input's name", "output's name", "features", "classes", "fixed batch"],
)
def test_a_model_that_does_not_fit_the_schema_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(TrustError) as caught:
        Session(model.SerializeToString(), SCHEMA)
    assert caught.value.code == "bad-model"


def test_nothing_is_printed_by_loading_or_refusing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(BYTES)
    code = (
        "import sys, pathlib\n"
        "from common.inference import Session\n"
        "from tests.client.device_fixtures import SCHEMA, RECORDS\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "Session(data, SCHEMA).predict(RECORDS)\n"
        "try: Session(data[:-1], SCHEMA)\n"
        "except Exception as error: assert type(error).__name__ == 'TrustError'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# -- known answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [SCHEMA, IMAGES], ids=["table", "image"])
def test_synthetic_records_lie_within_the_public_bounds_and_never_change(schema: Schema) -> None:
    records = synthetic_records(schema, 20)
    lower, upper = (np.array(b, np.float32).reshape(schema.shape) for b in schema.bounds())
    assert records.shape == (20, *schema.shape)
    assert (records >= lower).all()
    assert (records <= upper).all()
    assert (records.std(axis=0) > 0.1 * (upper - lower)).all()
    np.testing.assert_array_equal(records[:5], synthetic_records(schema, 5))


def test_the_first_synthetic_value_is_what_the_docstring_says() -> None:
    """SHA-256 of the seed and eight zero bytes; its first byte of 255, between 0 and 120 years."""
    import hashlib

    first = hashlib.sha256(b"privet known answers v1" + bytes(8)).digest()[0]
    assert synthetic_records(SCHEMA, 1)[0, 0] == np.float32(120 * first / 255)


def test_known_answers_come_back_to_the_bit_and_pass() -> None:
    made = KnownAnswers.make(SCHEMA, MODEL.answer)
    read = KnownAnswers.decode(made.encode(), SCHEMA)
    np.testing.assert_array_equal(read.inputs, made.inputs)
    np.testing.assert_array_equal(read.probabilities, made.probabilities)
    assert read.encode() == made.encode()
    assert read.check(Session(BYTES, SCHEMA)) < 1e-6


def test_a_machine_that_computes_otherwise_is_found_out() -> None:
    answers = KnownAnswers.make(SCHEMA, Linear(4).answer)
    with pytest.raises(TrustError) as caught:
        answers.check(Session(BYTES, SCHEMA))
    assert caught.value.code == "wrong-answer"


def test_a_difference_just_over_the_tolerance_is_refused() -> None:
    made = KnownAnswers.make(SCHEMA, MODEL.answer, tolerance=1e-3)
    for shift, passes in ((0.0009, True), (0.0011, False)):
        shifted = replace(made, probabilities=made.probabilities + np.float32(shift))
        if passes:
            shifted.check(Session(BYTES, SCHEMA))
        else:
            with pytest.raises(TrustError):
                shifted.check(Session(BYTES, SCHEMA))


def test_the_runtime_has_a_call_without_its_python_part() -> None:
    """It goes by no public name: an upgrade that moves it makes short calls a tenth slower."""
    called = Session(BYTES, SCHEMA)._alone.__self__
    assert not isinstance(called, onnxruntime.InferenceSession)
