"""A question that is asked again is known by its bytes, and means what protobuf says it means."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from client.device.serving import open_inference_pb2 as oip
from client.device.serving.messages import Exchange, Question
from common.errors import DataError
from common.inference import Array
from tests.client.device_fixtures import RECORDS, SCHEMA
from tests.client.serving_fixtures import MODEL, infer

LABELS = ("no", "perhaps", "yes")
PROBABILITIES = np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]], np.float32)


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(MODEL, 3, SCHEMA, most=8)


def read(exchange: Exchange, message: bytes) -> tuple[Question, Array]:
    return exchange.read(oip.ModelInferRequest.FromString(message), message)


def test_other_values_in_the_same_words_are_read_as_protobuf_reads_them(
    exchange: Exchange,
) -> None:
    first = infer(number="").SerializeToString()
    assert exchange.again(first) is None
    asked, _ = read(exchange, first)
    other = np.random.default_rng(1).normal(size=RECORDS.shape).astype(np.float32)
    message = infer(other, number="").SerializeToString()
    known = exchange.again(message)
    assert known is not None
    assert known[0] == asked == read(Exchange(MODEL, 3, SCHEMA, most=8), message)[0]
    np.testing.assert_array_equal(known[1], other)


def test_every_other_question_is_read_anew(exchange: Exchange) -> None:
    read(exchange, infer(number="").SerializeToString())
    named = infer(number="")
    named.outputs.add(name="label")
    for request in (infer(), infer(RECORDS[:1], number=""), infer(raw=False, number=""), named):
        assert exchange.again(request.SerializeToString()) is None
    other = infer(number="")
    other.model_name = "x" * len(MODEL)  # as long
    assert exchange.again(other.SerializeToString()) is None


def test_a_question_with_a_number_of_its_own_is_not_kept(exchange: Exchange) -> None:
    message = infer(number="17").SerializeToString()
    read(exchange, message)
    assert exchange.again(message) is None


def test_a_message_whose_values_do_not_come_last_is_not_kept(exchange: Exchange) -> None:
    """Its end may look like the values and be something else, which another one could change."""
    whole = infer(number="")
    values = whole.raw_input_contents[0]
    raw = oip.ModelInferRequest(raw_input_contents=[values]).SerializeToString()
    whole.ClearField("raw_input_contents")
    rest = whole.SerializeToString()
    posing = oip.ModelInferRequest()  # a text that ends like a message with raw values
    posing.parameters["note"].string_param = "\0" * len(values)
    for message in (
        raw + rest,
        raw + rest + posing.SerializeToString(),
        rest + raw + b"\x12\x00",  # an empty model_version after them
    ):
        _, records = read(exchange, message)
        np.testing.assert_array_equal(records, RECORDS)
        assert exchange.again(message) is None
    read(exchange, rest + raw)
    assert exchange.again(rest + raw) is not None


def test_no_more_than_some_questions_are_kept(exchange: Exchange) -> None:
    for length in range(100):
        request = infer(number="")
        request.parameters["note"].string_param = "x" * length
        read(exchange, request.SerializeToString())
        assert exchange.again(request.SerializeToString()) is not None
    assert len(exchange._asked) <= 16
    request.parameters["note"].string_param = "x" * 1000
    read(exchange, request.SerializeToString())
    assert exchange.again(request.SerializeToString()) is None


def test_what_is_refused_is_not_kept(exchange: Exchange) -> None:
    request = infer(number="")
    request.inputs[0].contents.fp32_contents.append(1.0)
    with pytest.raises(DataError):
        read(exchange, request.SerializeToString())
    assert exchange.again(request.SerializeToString()) is None


@pytest.mark.parametrize("number", ["17", ""])
@pytest.mark.parametrize(
    "outputs", [("probabilities", "label"), ("label", "probabilities"), ("label",)]
)
def test_a_raw_answer_is_the_message_of_the_protocol(
    exchange: Exchange, outputs: tuple[str, ...], number: str
) -> None:
    question = Question(number, outputs, raw=True, shape=(2, 4))
    for probabilities in (PROBABILITIES, PROBABILITIES[::-1].copy()):
        expected = oip.ModelInferResponse(model_name=MODEL, model_version="3", id=number)
        for name in outputs:
            if name == "label":
                expected.outputs.add(name=name, datatype="BYTES", shape=[2])
                words = [LABELS[index].encode() for index in probabilities.argmax(axis=1)]
                packed = b"".join(struct.pack("<I", len(word)) + word for word in words)
                expected.raw_output_contents.append(packed)
            else:
                expected.outputs.add(name=name, datatype="FP32", shape=[2, 3])
                expected.raw_output_contents.append(probabilities.tobytes())
        found = oip.ModelInferResponse.FromString(exchange.answer(question, probabilities))
        assert found == expected
