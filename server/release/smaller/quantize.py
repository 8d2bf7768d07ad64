"""The same model in eight bits: weights and what flows between layers, calibrated beforehand.

The rule: onnxruntime's own static quantization, with seven of the eight bits of a weight: without
VNNI an x86 processor adds pairs of products in 16 bits, which eight would overflow, so that two
machines would answer differently. What a product gives stays a float, so that no logit is cut off
at the largest one of the calibration. A scope says which layers, since on some processors
convolutions are slower in eight bits, and the first one, of one channel or three, on all that were
tried. The result holds no path, no date, and only standard operators.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from common.errors import OperationError
from common.inference import INPUT
from server.release.export import strip

CALIBRATION = 512  # records
_BATCH = 32
_MULTIPLY, _CONVOLVE = ("MatMul", "Gemm"), ("Conv",)
_BETWEEN = ("MaxPool", "Relu", "Reshape", "Transpose")  # stay in eight bits between such layers

ALL, PRODUCTS, INNER = "all", "products", "inner"


def scopes(model: bytes) -> tuple[str, ...]:
    """Which scopes of :func:`quantize` differ for this model; none: it has nothing to quantize."""
    graph = onnx.load_from_string(model).graph
    named: dict[tuple[str, ...], str] = {}
    for scope in (ALL, PRODUCTS, INNER):
        if chosen := _chosen(graph, scope):
            named.setdefault(tuple(chosen), scope)
    return tuple(named.values())


def quantize(model: bytes, records: NDArray[np.float32], scope: str = ALL) -> bytes:
    """Static quantization to eight bits (QDQ), weights per output channel.

    Args:
        model: an exported ONNX file.
        records: (N, *shape) float32 to calibrate with, the first 512 of them; N >= 1.
        scope: ``all``: convolutions and matrix products; ``products``: these alone; ``inner``: all
            but the first convolution.

    Raises:
        OperationError: ``cannot-quantize``: onnxruntime cannot, and says why.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            used = records[:CALIBRATION]
            self._parts = (used[i : i + _BATCH] for i in range(0, len(used), _BATCH))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            part = next(self._parts, None)
            return None if part is None else {INPUT: part}

    loaded = onnx.load_from_string(model)
    chosen = _chosen(loaded.graph, scope)
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            out = Path(folder) / "model.onnx"
            quantize_static(
                loaded,
                out,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                op_types_to_quantize=[*_MULTIPLY, *_CONVOLVE, *_BETWEEN],
                nodes_to_quantize=chosen,
                extra_options={"OpTypesToExcludeOutputQuantization": list(_MULTIPLY)},
            )
            result = onnx.load(out)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AssertionError) as error:
        raise OperationError(
            f"the model cannot be quantized: {type(error).__name__}: {error!s:.300}",
            hint="release it as it is",
            code="cannot-quantize",
        ) from error
    strip(result)
    onnx.checker.check_model(result, full_check=True)
    data: bytes = result.SerializeToString(deterministic=True)
    return data


def _chosen(graph: onnx.GraphProto, scope: str) -> list[str]:
    """Names of the nodes to quantize. What lies between layers follows the one before it: an
    eight-bit pooling after a float convolution would cost more than it saves."""
    convolutions = [i for i, node in enumerate(graph.node) if node.op_type in _CONVOLVE]
    floats = {ALL: 0, INNER: 1, PRODUCTS: len(convolutions)}[scope]
    left_out = convolutions[:floats]
    names: list[str] = []
    quantized: set[str] = set()  # tensors
    for i, node in enumerate(graph.node):
        layer = node.op_type in (*_MULTIPLY, *_CONVOLVE) and i not in left_out
        between = node.op_type in _BETWEEN and node.input[0] in quantized
        if layer or between:
            names.append(node.name)
            quantized.update(node.output)
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It prints its progress and warns through the root logger; nobody can act on either."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
