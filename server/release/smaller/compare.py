"""Is a smaller model as good as the one that it was made from, and what does it win?

The rule: both run as a device runs them, from their bytes, on records that neither was tuned on,
some of them alone and the rest together; nothing of a file runs before it was looked through. A
logit's drift is looked at beside the classes, because classes that agree can hide confidence that
does not. Latency is that of one record, as a device answers it after an update, measured in turn,
call by call, so that a slow spell of the machine slows both.
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from common.data.schema import Schema
from common.errors import OperationError, TrustError
from common.inference import INPUT, OUTPUT, Session
from common.lineage import Comparison
from common.onnx_runtime import load
from server.release.smaller.data import Tuning

CALLS = 300
_BATCH = 500
_WARM = 20
_ALONE = 10  # records
_SAME = 1e-3  # probability: kernels differ in the last bits by how many records there are


@dataclass(frozen=True)
class Rule:
    """When a smaller model wins over its parent.

    Args:
        most_loss: accuracy that it may lose, in [0, 1].
        least_agreement: share of records whose class stays, in [0, 1].
        gain: how much smaller or faster it has to be in one of the two, a share in (0, 1).
        worse: how much worse it may be in the other, a share >= 0.
    """

    most_loss: float = 0.01
    least_agreement: float = 0.985
    gain: float = 0.1
    worse: float = 0.1

    def against(self, found: Comparison) -> str:
        """Why the child does not win; empty if it does."""
        if found.agreement < self.least_agreement:
            return (
                f"it agrees on {100 * found.agreement:.2f} % of records, under "
                f"{100 * self.least_agreement:g} %"
            )
        if found.accuracy is not None and found.lost > self.most_loss:
            return f"it loses {100 * found.lost:.2f} points, over {100 * self.most_loss:g}"
        size, time_ = (child / parent for parent, child in (found.sizes, found.microseconds))
        if min(size, time_) > 1 - self.gain:
            return f"neither its size ({size:.2f}) nor its time ({time_:.2f}) is much less"
        if max(size, time_) > 1 + self.worse:
            return f"its size is {size:.2f} and its time {time_:.2f} of its parent's"
        return ""


def compare(
    parent: bytes, child: bytes, schema: Schema, tuning: Tuning, *, calls: int = CALLS
) -> Comparison:
    """Run both over the records that were kept for it.

    Args:
        parent, child: ONNX files.
        calls: single predictions to time, of each.

    Raises:
        TrustError: one of them is nothing that a device would load.
    """
    records, answers = tuning.rest, tuning.answers
    sessions = Session.optimized(parent, schema), Session.optimized(child, schema)
    classes = [_classes(session, records) for session in sessions]
    logits = [_centred(_logits(model, records)) for model in (parent, child)]  # (N, classes)
    before, after = _latency(*sessions, records[:1], calls)
    return Comparison(
        agreement=float((classes[0] == classes[1]).mean()),
        drift=float(np.abs(logits[0] - logits[1]).max()),
        accuracy=None
        if answers is None
        else (float((classes[0] == answers).mean()), float((classes[1] == answers).mean())),
        sizes=(len(parent), len(child)),
        microseconds=(before, after),
        machine=processor(),
    )


def processor() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next((name for name in names if name), "") or platform.machine() or "unknown"


def _classes(session: Session, records: NDArray[np.float32]) -> NDArray[np.int64]:
    """The likeliest class of each record: (N,).

    Raises:
        TrustError: a record has another answer when it is asked alone.
    """
    parts = [records[start : start + _BATCH] for start in range(0, len(records), _BATCH)]
    together = np.concatenate([session.predict(part) for part in parts])
    alone = np.concatenate([session.predict(records[i : i + 1]) for i in range(_ALONE)])
    if not np.allclose(alone, together[:_ALONE], rtol=0, atol=_SAME):
        raise TrustError(
            "the model gives a record another answer when it is asked alone", code="bad-model"
        )
    classes: NDArray[np.int64] = together.argmax(axis=1)
    return classes


def _logits(data: bytes, records: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model's last layer, a softmax, is given: (N, classes)."""
    model = onnx.load_from_string(data)
    last = next((node for node in model.graph.node if OUTPUT in node.output), None)
    if last is None or last.op_type != "Softmax" or _axis(last) not in (-1, 1):
        raise OperationError(
            "the model does not end with a softmax of its classes: its logits cannot be compared",
            code="no-logits",
        )
    name = last.input[0]
    model.graph.node.remove(last)
    model.graph.output[0].name = name
    session = load(model.SerializeToString())
    parts = (records[start : start + _BATCH] for start in range(0, len(records), _BATCH))
    return np.concatenate([session.run([name], {INPUT: part})[0] for part in parts])


def _axis(softmax: onnx.NodeProto) -> int:
    return next((int(one.i) for one in softmax.attribute if one.name == "axis"), -1)


def _centred(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Less each record's mean: a softmax gives the same for logits that differ by a constant."""
    values = logits.astype(np.float64)
    centred: NDArray[np.float64] = values - values.mean(axis=1, keepdims=True)
    return centred


def _latency(
    one: Session, other: Session, record: NDArray[np.float32], calls: int
) -> tuple[float, float]:
    taken: tuple[list[int], list[int]] = ([], [])
    for call in range(calls + _WARM):
        for session, times in zip((one, other), taken, strict=True):
            began = time.perf_counter_ns()
            session.predict(record)
            if call >= _WARM:
                times.append(time.perf_counter_ns() - began)
    return statistics.median(taken[0]) / 1000, statistics.median(taken[1]) / 1000
