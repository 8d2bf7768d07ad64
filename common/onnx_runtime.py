"""What is ONNX Runtime told, how is a model loaded, and what of that can be kept for the next time?

The rule: a model is the bytes that were handed over, and no path is ever opened. They hold what
:mod:`common.onnx_format` lists, or they are not loaded. What this runtime made of a model can be
kept (:func:`optimized`) and loaded in much less time, by whoever is sure that it is what was kept.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import onnxruntime

from common.errors import TrustError

_MODEL = "model"  # what an optimized graph calls the file that holds its weights
_FATAL_ONLY = 4  # onnxruntime's severity levels: 0 verbose … 4 fatal
_LEFT_OUT = ("ConstantFolding", "QDQPropagationTransformer")  # optimizers; why: :func:`options`
_EIGHT_BITS = b"QuantizeLinear"  # the operator that every model in eight bits has

_runtime_errors = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(kind for kind in _runtime_errors if isinstance(kind, type) and issubclass(kind, Exception)),
)

# All that models may hold in this process, weights and values in between, besides verified bytes
# that are read where they lie: a file of a few bytes can ask for any amount.
MAX_RUNTIME_BYTES = 2 * 2**30

onnxruntime.disable_telemetry_events()
onnxruntime.set_default_logger_severity(_FATAL_ONLY)
onnxruntime.create_and_register_allocator(
    onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    ),
    onnxruntime.OrtArenaCfg({"max_mem": MAX_RUNTIME_BYTES, "arena_extend_strategy": 0}),
)


def options() -> Any:
    """What the runtime is told for every model: one thread, silence, ONNX and nothing else.

    Constants are not folded: what they come to at loading is outside of what memory is bounded by,
    and an exporter has folded them already. Eight bits begin where the file says: the runtime would
    move them up through a pooling, which then takes ten times as long.
    """
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = _FATAL_ONLY
    # The other format that the runtime detects by itself is not the one that is checked here.
    chosen.add_session_config_entry("session.load_model_format", "ONNX")
    chosen.add_session_config_entry("session.use_env_allocators", "1")
    chosen.add_session_config_entry(
        "optimization.disable_specified_optimizers", ";".join(_LEFT_OUT)
    )
    return chosen


def load(model: bytes) -> Any:
    """Any ONNX file in the runtime, once it was seen to hold nothing but what models here need.

    Raises:
        TrustError: it holds something else, or cannot be loaded.
    """
    from common import onnx_format  # what was optimized before needs no walk

    onnx_format.check(model)
    return _session(model, options())


def optimized(model: bytes) -> tuple[bytes, int]:
    """What this runtime makes of a model on this processor, for :func:`load_optimized`.

    It is kept in memory alone, never in a file.

    Args:
        model: verified bytes of an ONNX file.

    Returns:
        An ONNX file without the tensors that ``model`` holds as they are; and where in ``model``
        the largest of them begins, which is read where it is if it lies at a multiple of its
        element's size in memory.

    Raises:
        TrustError: as :func:`load`.
        OSError: this system has no files in memory.
    """
    from common import onnx_format, onnx_slices

    onnx_format.check(model)
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "no files in memory")
    file = os.memfd_create("optimized", os.MFD_CLOEXEC)
    try:
        chosen = options()
        chosen.optimized_model_filepath = f"/proc/self/fd/{file}"
        chosen.add_session_config_entry("session.save_model_format", "ONNX")
        _session(model, chosen)
        graph = os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
    return onnx_slices.refer(graph, model, _MODEL)


def load_optimized(graph: bytes, weights: memoryview, *, ordered: bool) -> Any:
    """What :func:`optimized` gave, in the runtime.

    Args:
        weights: the verified bytes that ``graph`` refers to. They are used where they are, and so
            have to stay as they are.
        ordered: whether weights are copied into the order in which products of several records are
            fastest. One record alone is answered faster without, but for eight bits.

    Raises:
        TrustError: it cannot be loaded.
    """
    chosen = options()
    chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Reads them where they lie, but for what is not at a multiple of its element's size.
    direct = "session.use_external_initializer_file_buffers_directly"
    try:
        chosen.add_session_config_entry(direct, "1")
        if not ordered:
            chosen.add_session_config_entry("session.disable_prepacking", "1")
        chosen.add_external_initializers_from_files_in_memory([_MODEL], [weights], [len(weights)])
    except FAILURES as error:
        raise _not_loadable(error) from error
    return _session(graph, chosen)


def best_ordered(graph: bytes, weights: memoryview) -> bool:
    """Whether :func:`load_optimized` should order the weights for a record alone as well.

    In eight bits that is faster. Where most weights are in the graph (those of convolutions, which
    the runtime orders when it optimizes), there is little left to order, and much to hold twice.
    """
    return _EIGHT_BITS in graph or 2 * len(graph) > len(weights)


def not_usable(why: str) -> TrustError:
    """The refusal of a model file."""
    from common import onnx_format

    return onnx_format.not_usable(why)


def _session(model: bytes, chosen: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(model, chosen, providers=["CPUExecutionProvider"])
    except FAILURES as error:
        raise _not_loadable(error) from error


def _not_loadable(error: Exception) -> TrustError:
    return not_usable(f"the ONNX runtime cannot load it: {str(error)[:200]}")
