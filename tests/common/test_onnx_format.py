"""What a model file may hold is what is listed, and the walk over it is short and never crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from benchmarks import hostile
from common import onnx_format, onnx_grammar
from common.errors import DataError, TrustError
from common.inference import Session
from tests.client.device_fixtures import RECORDS, SCHEMA, Linear

MODEL = Linear(3)
BYTES = MODEL.onnx().SerializeToString()


def refused(model: onnx.ModelProto | bytes) -> TrustError:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(TrustError) as caught:
        onnx_format.check(data)
    assert caught.value.hint
    return caught.value


# -- the list --------------------------------------------------------------------------------------


def test_the_grammar_is_part_of_onnx_and_names_all_that_it_leaves_out() -> None:
    """Held against the descriptors of the onnx package, so that an upgrade cannot add a field."""
    kinds: dict[str, Any] = {}

    def collect(kind: Any) -> None:
        if kind.name not in kinds:
            kinds[kind.name] = kind
            for field in kind.fields:
                if field.message_type:
                    collect(field.message_type)

    collect(onnx.ModelProto.DESCRIPTOR)
    for name, grammar in onnx_grammar.GRAMMAR.items():
        for field in kinds[name].fields:
            if field.number not in grammar:
                assert onnx_grammar.REFUSED[name, field.number] == field.name
                continue
            listed, what = grammar[field.number]
            if what == "packed" or field.message_type:
                assert listed.rstrip("*") == field.name
            else:
                assert listed == field.name + "*" * field.is_repeated
            assert (what in onnx_grammar.GRAMMAR) == bool(field.message_type)
            if field.message_type:
                assert what == field.message_type.name
                assert listed.endswith("*") == field.is_repeated


def test_no_listed_operator_loops_branches_draws_or_reads() -> None:
    """By the operators' own definitions: no graph inside, none of those that are not functions."""
    not_functions = {
        "Random",
        "Bernoulli",
        "Multinomial",
        "Optional",
        "Sequence",
        "String",
        "Regex",
    }
    for name in onnx_grammar.OPERATORS:
        schema = onnx.defs.get_schema(name)
        kinds = {attribute.type for attribute in schema.attributes.values()}
        assert not kinds & {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}
        assert not any(name.startswith(word) for word in not_functions)


def test_what_is_listed_is_let_through() -> None:
    onnx_format.check(BYTES)
    onnx_format.check(hostile.sound().SerializeToString())


@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        (TensorProto.FLOAT, "float_data"),
        (TensorProto.DOUBLE, "double_data"),
        (TensorProto.INT64, "int64_data"),
        (TensorProto.INT32, "int32_data"),
        (TensorProto.INT8, "int32_data"),
        (TensorProto.UINT8, "int32_data"),
        (TensorProto.UINT64, "uint64_data"),
    ],
)
def test_numbers_in_a_field_of_their_type_count_as_raw_ones_do(dtype: int, field: str) -> None:
    model = MODEL.onnx()
    signed = dtype not in (TensorProto.UINT8, TensorProto.UINT64)
    tensor = helper.make_tensor("more", dtype, [3], [1, -2 if signed else 200, 3])
    assert len(getattr(tensor, field)) == 3
    model.graph.initializer.append(tensor)
    onnx_format.check(model.SerializeToString())
    model.graph.initializer[-1].dims[0] = 4
    assert "elements for shape" in refused(model).message


def test_quantised_operators_and_numbers_are_listed() -> None:
    model = MODEL.onnx()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for name, domain in (("QLinearConv", ""), ("MatMulInteger", ""), ("QGemm", "com.microsoft")):
        model.graph.node.append(helper.make_node(name, ["input"], ["x"], domain=domain))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 2), np.int8), "q"))
    onnx_format.check(model.SerializeToString())


# -- what is not -----------------------------------------------------------------------------------


def test_an_operator_that_is_not_listed_is_named() -> None:
    model = MODEL.onnx()
    model.graph.node.append(helper.make_node("Gemm", ["input"], ["x"], domain="com.example"))
    error = refused(model)
    assert error.code == "unknown-operator"
    assert "'com.example.Gemm'" in error.message


def test_a_dropout_that_may_be_told_to_train_is_refused() -> None:
    """It would answer otherwise each time, and a known answer may come out right by chance."""
    for inputs, fine in (
        (["input", "", "on"], False),
        (["input", "", ""], True),
        (["input"], True),
    ):
        model = MODEL.onnx()
        model.graph.node.append(helper.make_node("Dropout", inputs, ["x"]))
        if fine:
            onnx_format.check(model.SerializeToString())
        else:
            assert "Dropout" in refused(model).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_tensor_that_is_not_finite_is_refused_by_name(value: float, dtype: type) -> None:
    model = MODEL.onnx()
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, value], dtype), "odd"))
    assert "'odd' holds a value that is not a finite number" in refused(model).message


def test_an_attribute_that_is_not_finite_is_refused() -> None:
    for value in (float("nan"), [1.0, float("inf")]):
        model = MODEL.onnx()
        model.graph.node.append(helper.make_node("LeakyRelu", ["input"], ["x"], alpha=value))
        assert "'alpha' is not a finite number" in refused(model).message


def test_a_graph_that_stands_twice_is_not_merged_but_refused() -> None:
    """Protobuf's readers merge the two; others take the last."""
    graph = MODEL.onnx().graph.SerializeToString()
    assert len(graph) > 127
    length = bytes([len(graph) & 127 | 128, len(graph) >> 7])
    assert "stands there twice" in refused(BYTES + b"\x3a" + length + graph).message


def outside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor whose content is said to lie in ``weights.bin``."""
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def in_an_initializer(model: onnx.ModelProto) -> str:
    outside(model.graph.initializer[0])
    return "external-data"


def in_a_constant(model: onnx.ModelProto) -> str:
    tensor = outside(helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))
    return "external-data"


def in_a_subgraph(model: onnx.ModelProto) -> str:
    inner = helper.make_graph([], "inner", [], [])
    inner.initializer.append(outside(helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0])))
    model.graph.node.insert(0, helper.make_node("If", ["c"], ["o"], then_branch=inner))
    return "bad-model"  # no node holds a graph


def in_a_function(model: onnx.ModelProto) -> str:
    tensor = outside(helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0]))
    node = helper.make_node("Constant", [], ["o"], value=tensor)
    function = helper.make_function("local", "f", [], ["o"], [node], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    return "bad-model"  # no model holds a function


@pytest.mark.parametrize("hide", [in_an_initializer, in_a_constant, in_a_subgraph, in_a_function])
def test_a_tensor_in_another_file_is_refused_wherever_it_hides(
    hide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(MODEL.weights.tobytes())
    model = MODEL.onnx()
    code = hide(model)
    with pytest.raises(TrustError) as caught:
        Session(model.SerializeToString(), SCHEMA)
    assert caught.value.code == code


def test_a_tensor_that_says_it_is_here_is_not_refused() -> None:
    model = MODEL.onnx()
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    assert Session(model.SerializeToString(), SCHEMA).predict(RECORDS).shape == (3, 3)


# -- how far the walk goes -------------------------------------------------------------------------


def test_a_walk_ends_at_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, word in (("MAX_FIELDS", "parts"), ("MAX_NODES", "nodes"), ("MAX_TENSORS", "tensors")):
        with monkeypatch.context() as patch:
            patch.setattr(onnx_format, name, 1)
            assert f"more than 1 {word}" in refused(BYTES).message
    monkeypatch.setattr(onnx_format, "MAX_MODEL_BYTES", len(BYTES) - 1)
    assert "bytes are over" in refused(BYTES).message


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(BYTES) - 1), st.integers(0, 255), st.binary(max_size=20))
def test_no_change_of_a_model_crashes_the_walk(place: int, value: int, tail: bytes) -> None:
    changed = bytearray(BYTES + tail)
    changed[place] = value
    try:
        onnx_format.check(bytes(changed))
    except TrustError as error:
        assert error.code in ("bad-model", "unknown-operator", "external-data")


def test_a_small_file_cannot_ask_the_runtime_for_any_amount_of_memory() -> None:
    """Four gigabytes from a shape of eight bytes; every operator of it is listed."""
    model = MODEL.onnx()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([2**30], np.int64), "shape"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    graph.node.insert(0, helper.make_node("Expand", ["zero", "shape"], ["large"]))
    graph.node.insert(1, helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0))
    graph.node.insert(2, helper.make_node("Add", ["input", "sum"], ["sums"]))
    graph.node[3].input[0] = "sums"
    with pytest.raises((TrustError, DataError), match="cannot be"):
        Session(model.SerializeToString(), SCHEMA).predict(RECORDS)
