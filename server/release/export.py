"""From a trained model to one ONNX file, whole and reproducible.

The rule: the same weights give the same bytes, and the bytes hold the model and nothing about the
machine that made them: no path, no user, no date, no stack trace. Everything stands in one file,
with one input (raw records), one output (probabilities), and a batch axis of any length.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import nn

from common.data.schema import Schema
from common.errors import OperationError
from common.inference import INPUT, OUTPUT

OPSET = 20
PRODUCER = "privet"


def to_onnx(serving: nn.Module, schema: Schema) -> bytes:
    """A serving model (raw values to probabilities) as the bytes of one ONNX file.

    Args:
        serving: a :class:`common.models.preprocess.ServingModel`; left in the mode it was in.
        schema: gives the shape of one record.

    Raises:
        OperationError: an operation of the model has no ONNX form; the message names it.
    """
    was_training = serving.training
    serving.eval()
    try:
        model = _export(serving, schema)
    finally:
        serving.train(was_training)
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _export(serving: nn.Module, schema: Schema) -> onnx.ModelProto:
    example = (torch.zeros(2, *schema.shape),)
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                serving,
                example,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise OperationError(
            f"the model cannot be written as ONNX: {reason[0] if reason else error}"[:500],
            hint="build the network from standard torch.nn layers",
            code="cannot-export",
        ) from error
    assert program is not None  # dynamo=True always returns a program
    return program.model_proto


def strip(model: onnx.ModelProto) -> None:
    """Take off what says how and where the file was made, and what only a debugger reads."""
    model.producer_name, model.producer_version = PRODUCER, ""
    model.doc_string, model.domain = "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = PRODUCER, ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # stale shapes here make quantisation fail
    parts: list[Any] = [*graph.node, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about its own internals; nobody can act on either."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
