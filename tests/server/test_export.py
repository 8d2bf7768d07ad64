"""Claims about the exported model: same answers, same bytes, nothing about the machine."""

from __future__ import annotations

import getpass
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
)
from opacus.layers import DPGRU, DPLSTM, DPRNN, DPMultiheadAttention
from torch import Tensor, nn

from common import onnx_format
from common.data.schema import Column, Schema
from common.errors import OperationError
from common.inference import Session
from common.models.model import Model
from common.models.preprocess import ServingModel
from common.models.registry import build
from server.release.export import INPUT, OUTPUT, to_onnx

TEN = tuple("0123456789")
DIGITS = Schema("image", (1, 8, 8), TEN, upper=16.0)
FASHION = Schema("image", (1, 28, 28), TEN, upper=255.0)
TABLE = Schema(
    "table",
    (2,),
    ("no", "yes"),
    (Column("age", 0.0, 120.0), Column("change", -5.0, 5.0)),
    target="ill",
)
CASES = [("softmax", TABLE), ("mlp", TABLE), ("cnn", DIGITS), ("scattering", FASHION)]


def serving(name: str, schema: Schema) -> ServingModel:
    """A model with parameters that are not zero."""
    model = build(name, schema, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.normal_(0, 0.05, generator=generator)
    return ServingModel(model, schema)


def records(schema: Schema, count: int) -> NDArray[np.float32]:
    """Raw values, some of them outside their bounds."""
    lower, upper = (np.array(bound).reshape(schema.shape) for bound in schema.bounds())
    margin = 0.1 * (upper - lower)
    random = np.random.default_rng(0)
    shape = (count, *schema.shape)
    return random.uniform(lower - margin, upper + margin, shape).astype(np.float32)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def exported(request: pytest.FixtureRequest) -> tuple[ServingModel, Schema, bytes]:
    name, schema = request.param
    model = serving(name, schema)
    return model, schema, to_onnx(model, schema)


Exported = tuple[ServingModel, Schema, bytes]


def run(data: bytes, raw: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (result,) = session.run([OUTPUT], {INPUT: raw})
    return np.asarray(result)


@pytest.mark.parametrize("count", [1, 2, 33])
def test_the_exported_model_answers_as_torch_does_at_any_batch(
    exported: Exported, count: int
) -> None:
    model, schema, data = exported
    raw = records(schema, count)
    with torch.inference_mode():
        expected = model(torch.from_numpy(raw)).numpy()
    answer = run(data, raw)
    assert answer.shape == (count, len(schema.classes))
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    np.testing.assert_allclose(answer.sum(1), 1, atol=1e-5)


def test_the_file_is_whole_and_has_one_input_and_one_output(exported: Exported) -> None:
    _, schema, data = exported
    model = onnx.load_from_string(data)
    assert [value.name for value in model.graph.input] == [INPUT]
    assert [value.name for value in model.graph.output] == [OUTPUT]
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert dimensions[0].dim_param == "batch"
    assert tuple(d.dim_value for d in dimensions[1:]) == schema.shape
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {opset.domain for opset in model.opset_import} == {""}  # standard operators alone


def test_a_device_runs_every_operator_that_is_exported(exported: Exported) -> None:
    onnx_format.check(exported[2])


class Recurrent(nn.Module):
    """A step for each column, by a layer that Opacus trains record by record."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.output = layer, nn.Linear(6, 2)

    def forward(self, records: Tensor) -> Tensor:
        states: Tensor = self.layer(records.unsqueeze(-1))[0]
        logits: Tensor = self.output(states[:, -1])
        return logits


def attention(*, ours: bool) -> nn.Module:
    kind = DPMultiheadAttention if ours else nn.MultiheadAttention

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Linear(1, 6), kind(6, 2, batch_first=True)
            self.output = nn.Linear(6, 2)

        def forward(self, records: Tensor) -> Tensor:
            states = self.first(records.unsqueeze(-1))
            logits: Tensor = self.output(self.layer(states, states, states)[0].mean(1))
            return logits

    return Attentive()


def stacked(*layers: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2)), *layers, nn.Flatten(), nn.Linear(features, 2))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "DPLSTM": lambda: Recurrent(DPLSTM(1, 6, batch_first=True)),
    "DPGRU": lambda: Recurrent(DPGRU(1, 6, batch_first=True)),
    "DPRNN": lambda: Recurrent(DPRNN(1, 6, batch_first=True)),
    "LSTM": lambda: Recurrent(nn.LSTM(1, 6, batch_first=True)),
    "GRU": lambda: Recurrent(nn.GRU(1, 6, batch_first=True)),
    "RNN": lambda: Recurrent(nn.RNN(1, 6, batch_first=True)),
    "DPMultiheadAttention": lambda: attention(ours=True),
    "MultiheadAttention": lambda: attention(ours=False),
    "Conv1d and norms": lambda: stacked(
        nn.Conv1d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.InstanceNorm1d(4, affine=True),
        nn.SiLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.LayerNorm(4),
        nn.Dropout(0.1),
        features=4,
    ),
    "activations": lambda: stacked(
        nn.ReLU6(),
        nn.Hardtanh(),
        nn.ELU(),
        nn.SELU(),
        nn.LeakyReLU(),
        nn.PReLU(),
        nn.Softplus(),
        nn.Softsign(),
        nn.Mish(),
        nn.Hardswish(),
        nn.LogSigmoid(),
        nn.Softshrink(),
        nn.Threshold(0.1, 0.0),
        features=2,
    ),
}
IN_CI = ("DPLSTM", "Conv1d and norms")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_CI else pytest.mark.figures)
        for name in sorted(LAYERS)
    ],
)
def test_a_device_runs_what_layers_that_can_be_trained_are_exported_to(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ServingModel(Model(nn.Identity(), LAYERS[name]()), TABLE).eval()
    data = to_onnx(model, TABLE)
    raw = records(TABLE, 5)
    with torch.inference_mode():
        expected = model(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(Session(data, TABLE).predict(raw), expected, atol=1e-4)


class Calibration(CalibrationDataReader):
    """Eight made-up records, once."""

    def __init__(self) -> None:
        self._batches = iter([{INPUT: records(TABLE, 8)}])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._batches, None)


def test_a_device_runs_what_a_model_is_quantised_to(tmp_path: Path) -> None:
    """By the runtime's own quantiser, which adds operators of its own domain."""
    source, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    model = serving("mlp", TABLE).eval()
    source.write_bytes(to_onnx(model, TABLE))
    raw = records(TABLE, 5)
    with torch.inference_mode():
        expected = model(torch.from_numpy(raw)).numpy()
    for form in (QuantFormat.QDQ, QuantFormat.QOperator, None):
        if form is None:
            quantize_dynamic(source, target)
        else:
            quantize_static(source, target, Calibration(), quant_format=form, per_channel=True)
        found = Session(target.read_bytes(), TABLE).predict(raw)
        np.testing.assert_allclose(found, expected, atol=0.1)


def test_the_file_says_nothing_about_the_machine(exported: Exported) -> None:
    _, _, data = exported
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # weights can spell anything
    text = model.SerializeToString()
    private = {getpass.getuser(), socket.gethostname(), str(Path.cwd()), sys.prefix}
    for word in private:
        assert len(word) < 3 or word.encode() not in text
    assert not re.search(rb"\.py\b|/home/|/tmp/|/usr/|[A-Z]:\\", text)
    for part in (model, model.graph, *model.graph.node):
        assert not part.doc_string
        assert not part.metadata_props


def test_the_same_weights_give_the_same_bytes() -> None:
    one, other = (to_onnx(serving("mlp", TABLE), TABLE) for _ in range(2))
    assert one == other


def test_exporting_leaves_the_model_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    model = serving("softmax", TABLE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        to_onnx(model, TABLE)
        assert model.training is training
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


class Branching(nn.Module):
    """Decides by a value, which no graph can express."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, raw: Tensor) -> Tensor:
        logits: Tensor = self.linear(raw)
        return logits if logits.sum() > 0 else -logits


def test_a_model_without_an_onnx_form_is_refused_with_a_next_step() -> None:
    with pytest.raises(OperationError, match="cannot be written as ONNX") as caught:
        to_onnx(Branching(), TABLE)
    assert caught.value.code == "cannot-export"
    assert caught.value.hint
