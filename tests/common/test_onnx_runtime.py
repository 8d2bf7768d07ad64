"""What the runtime is told; and what it made of a model, loaded again, answers alike."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from common import inference
from common.data.schema import Schema
from common.errors import OperationError, TrustError
from common.inference import KnownAnswers, Session, synthetic_records
from common.models.model import Model
from common.models.preprocess import ServingModel
from common.onnx_runtime import load_optimized, optimized
from server.release.export import to_onnx
from server.release.smaller.quantize import INNER, PRODUCTS, quantize


def test_constants_are_not_folded_beyond_what_memory_is_bounded_by() -> None:
    """A kilobyte that says: four times a hundred million ones, kept for when they are needed."""
    done = subprocess.run(
        [sys.executable, "-c", FOLDED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400  # MiB; folded it would be 1,600 more


FOLDED = """
import resource, numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from common.onnx_runtime import load
nodes = [
    helper.make_node("Shape", ["input"], ["shape"]),
    helper.make_node("Gather", ["shape", "zeroth"], ["count"]),
    helper.make_node("Sub", ["count", "count"], ["index"]),
]
last = "input"
for number in range(4):
    nodes += [
        helper.make_node("Expand", [f"own{number}", "huge"], [f"big{number}"]),
        helper.make_node("Gather", [f"big{number}", "index"], [f"picked{number}"]),
        helper.make_node("Mul", [last, f"picked{number}"], [f"sum{number}"]),
    ]
    last = f"sum{number}"
nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=-1))
values = {"huge": np.array([10**8]), "zeroth": np.array([0])}
values |= {f"own{number}": np.float32(number) for number in range(4)}
graph = helper.make_graph(
    nodes, "g",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
    [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
    [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session = load(model.SerializeToString())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def laid_out(model: bytes, begins: int) -> memoryview:
    """The model where its largest tensor lies at a multiple of 16."""
    memory = np.zeros(len(model) + 32, np.uint8)
    shift = -(memory.ctypes.data + begins) % 16
    memory[shift : shift + len(model)] = np.frombuffer(model, np.uint8)
    return memoryview(memory)[shift : shift + len(model)]


def wide_model(seed: int = 5) -> bytes:
    """(784 -> 64 -> 10) with weights of 200 kB and 2.5 kB."""
    random = np.random.default_rng(seed)
    first = random.normal(0, 0.05, (784, 64)).astype(np.float32)
    last = random.normal(0, 0.1, (64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["rectified"]),
        helper.make_node("MatMul", ["rectified", "last"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(last, "last")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


PIXELS = Schema("image", (1, 28, 28), tuple("0123456789"), lower=0.0, upper=255.0)


def test_an_optimized_model_reads_its_weights_from_the_first_ones_bytes_and_answers_alike() -> None:
    model = wide_model()
    graph, begins = optimized(model)
    assert len(graph) < 10_000  # none of the weights
    stored = {tensor.name: tensor for tensor in onnx.load_from_string(model).graph.initializer}
    for tensor in onnx.load_from_string(graph).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        start, length = int(place["offset"]), int(place["length"])
        assert model[start : start + length] == stored[tensor.name].raw_data
        assert (start == begins) == (tensor.name == "first")
    records = synthetic_records(PIXELS, 5)
    found = Session(graph, PIXELS, laid_out(model, begins)).predict(records)
    np.testing.assert_array_equal(found, Session(model, PIXELS).predict(records))


def test_weights_are_read_where_they_lie_and_held_as_long_as_they_are() -> None:
    model = wide_model()
    graph, begins = optimized(model)
    session = Session(graph, PIXELS, laid_out(model, begins))
    gc.collect()
    junk = [np.full(len(model), 7, np.uint8) for _ in range(8)]  # takes freed memory's place
    records = synthetic_records(PIXELS, 3)
    expected = Session(model, PIXELS).predict(records)
    np.testing.assert_array_equal(session.predict(records), expected)
    assert junk


def test_an_optimized_model_without_its_weights_is_not_loaded() -> None:
    graph, _ = optimized(wide_model())
    with pytest.raises(TrustError):
        Session(graph, PIXELS)  # as any model that names a second file
    with pytest.raises(TrustError):
        Session(graph, PIXELS, memoryview(b"\0" * 100))


def test_optimizing_leaves_no_file() -> None:
    opened = len(list(Path("/proc/self/fd").iterdir()))
    optimized(wide_model())
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


# -- one record, and several -----------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each load of an optimized model: whether its weights were ordered."""
    seen: list[bool] = []

    def noted(graph: bytes, weights: memoryview, *, ordered: bool) -> Any:
        seen.append(ordered)
        return load_optimized(graph, weights, ordered=ordered)

    monkeypatch.setattr(inference, "load_optimized", noted)
    return seen


def test_weights_are_ordered_for_batches_when_the_first_one_comes_and_once(
    loads: list[bool],
) -> None:
    session, records = Session.optimized(wide_model(), PIXELS), synthetic_records(PIXELS, 3)
    alone = [session.predict(records[i : i + 1]) for i in range(3)]
    assert loads == [False]
    together = session.predict(records)
    session.predict(records)
    session.expect_batches()
    assert loads == [False, True]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


def test_several_threads_first_batches_order_the_weights_once(loads: list[bool]) -> None:
    session, records = Session.optimized(wide_model(), PIXELS), synthetic_records(PIXELS, 3)
    expected, found = Session(wide_model(), PIXELS).predict(records), []
    asking = [
        threading.Thread(target=lambda: found.append(session.predict(records))) for _ in range(8)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert loads == [False, True]
    for answer in found:
        np.testing.assert_array_equal(answer, expected)
    assert len(found) == 8


def test_who_expects_batches_does_not_wait_at_the_first_one(loads: list[bool]) -> None:
    session = Session.optimized(wide_model(), PIXELS)
    session.expect_batches()
    assert loads == [False, True]
    session.predict(synthetic_records(PIXELS, 2))
    assert loads == [False, True]


def test_without_memory_for_the_order_a_batch_is_refused_and_one_record_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, records = Session.optimized(wide_model(), PIXELS), synthetic_records(PIXELS, 2)

    def full(*_: object, **__: object) -> Any:
        raise TrustError("the ONNX runtime cannot load it: no memory")

    monkeypatch.setattr(inference, "load_optimized", full)
    with pytest.raises(OperationError) as caught:
        session.predict(records)
    assert caught.value.code == "no-memory"
    assert session.predict(records[:1]).shape == (1, 10)
    monkeypatch.undo()
    assert session.predict(records).shape == (2, 10)


def test_what_is_in_another_order_is_held_to_its_known_answer_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = wide_model()
    graph, begins = optimized(model)
    known = KnownAnswers.make(PIXELS, Session(model, PIXELS).predict, count=1)
    session = Session(graph, PIXELS, laid_out(model, begins), known)
    monkeypatch.setattr(session, "_weights", laid_out(wide_model(6), begins))
    assert known.check(session) < 1e-6  # one record alone
    with pytest.raises(TrustError) as caught:
        session.expect_batches()
    assert caught.value.code == "wrong-answer"
    with pytest.raises(TrustError):
        session.predict(synthetic_records(PIXELS, 2))
    assert session.predict(synthetic_records(PIXELS, 1)).shape == (1, 10)


def test_what_the_runtime_has_ordered_before_is_loaded_once(loads: list[bool]) -> None:
    """Convolutions: their weights are in the graph, and a second load would hold them twice."""
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(24), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    model = to_onnx(ServingModel(Model(nn.Identity(), network), PIXELS), PIXELS)
    session, records = Session.optimized(model, PIXELS), synthetic_records(PIXELS, 2)
    session.predict(records)
    session.predict(records[:1])
    assert loads == [True]


def test_weights_in_eight_bits_are_ordered_at_once(loads: list[bool]) -> None:
    """One record takes twice as long without: see docs/adr/0023."""
    model = quantize(wide_model(), synthetic_records(PIXELS, 64))
    session, records = Session.optimized(model, PIXELS), synthetic_records(PIXELS, 3)
    found = session.predict(records)
    session.predict(records[:1])
    assert loads == [True]
    np.testing.assert_array_equal(found, Session(model, PIXELS).predict(records))


# -- where eight bits begin ------------------------------------------------------------------------


def pooling_model() -> bytes:
    """Two convolutions, each with a pooling after it, and a product."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(784, 10),
    )  # fmt: skip
    return to_onnx(ServingModel(Model(nn.Identity(), network), PIXELS), PIXELS)


@pytest.mark.parametrize(
    ("scope", "order"),
    [
        (INNER, ["Conv", "MaxPool", "QuantizeLinear", "QLinearConv", "NhwcMaxPool", "QGemm"]),
        (PRODUCTS, ["Conv", "MaxPool", "Conv", "MaxPool", "QuantizeLinear", "QGemm"]),
    ],
)
def test_eight_bits_begin_where_the_file_says(scope: str, order: list[str]) -> None:
    """Moved up through a pooling, they would have it done in a layout that nothing is fast in."""
    model = quantize(pooling_model(), synthetic_records(PIXELS, 64), scope)
    graph, _ = optimized(model)
    kinds = [node.op_type for node in onnx.load_from_string(graph).graph.node]
    assert [kind for kind in kinds if kind in order] == order
