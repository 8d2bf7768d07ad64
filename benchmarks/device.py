"""One prediction at a time: the device's verified ONNX model beside the same model in torch eager.

The peer is what people do without us: keep the module and call it. Both use one thread and take the
same raw records.

Beside that: how long a device works on a hostile file before it refuses it, and what it costs that
the model lies sealed. Opening authenticates, so it stands in the place of a hash.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import hostile
from benchmarks.harness import Row, at_least, at_most, in_turn, main, plain
from client.device.identity import Identity
from common import onnx_format, weights
from common.canonical import digest
from common.data.schema import Schema
from common.errors import TrustError
from common.inference import KnownAnswers, Session, synthetic_records
from common.models.preprocess import ServingModel
from common.models.registry import build
from server.release.export import to_onnx

MODEL_BYTES = 4 * 2**20  # a million parameters in float32
CLASSES = tuple("0123456789")
DIGITS = Schema("image", (1, 8, 8), CLASSES, lower=0.0, upper=16.0)
FASHION = Schema("image", (1, 28, 28), CLASSES, lower=0.0, upper=255.0)


def measure(quick: bool) -> list[Row]:
    """p50 of single predictions, in turn, and their ratio."""
    torch.set_num_threads(1)
    calls = 200 if quick else 2000
    rows: list[Row] = []
    for name, schema, goal in (
        ("softmax", DIGITS, 1.2),
        ("cnn", FASHION, 3.0),
        ("scattering", FASHION, 1.5),
    ):
        serving = ServingModel(build(name, schema, seed=1), schema).eval()
        session = Session(to_onnx(serving, schema), schema)
        record = synthetic_records(schema, 1)
        tensor = torch.from_numpy(record)

        def eager(serving: ServingModel = serving, tensor: torch.Tensor = tensor) -> None:
            with torch.inference_mode():
                serving(tensor)

        def ours(session: Session = session, record: np.ndarray = record) -> None:
            session.predict(record)

        ours_us, eager_us = _p50(ours, eager, calls)
        rows += [
            plain(f"{name}: p50 of one prediction, device", ours_us, "us"),
            plain(f"{name}: p50 of one prediction, torch eager", eager_us, "us"),
            at_least(f"{name}: torch eager / device", eager_us / ours_us, "x", goal),
        ]
    return [*rows, _refusals(), *_opening(quick)]


def _opening(quick: bool) -> list[Row]:
    """A model of a million parameters opened, beside the same bytes hashed."""
    data = np.random.default_rng(1).bytes(MODEL_BYTES)
    what: dict[str, str | int] = {"name": "model", "version": 1, "digest": digest(data)}
    with tempfile.TemporaryDirectory() as folder:
        device = Identity.create(Path(folder) / "keys")
    sealed = device.seal(data, what)

    def open_() -> None:
        device.open(sealed, what)

    def hash_() -> None:
        digest(data)

    turns = in_turn({"open": open_, "hash": hash_}, 0.5 if quick else 5.0, least=5)
    return [
        plain("a sealed model of 4 MiB, opened", turns.median("open"), "ms"),
        at_most("a sealed model of 4 MiB, opened / hashed", turns.ratio("open", "hash"), "x", 1.0),
    ]


def _refusals() -> Row:
    """The slowest of all hostile files, each at its best of some; all have to be refused."""
    checks: dict[Callable[[bytes], object], dict[str, bytes]] = {
        weights.check: hostile.weights(),
        onnx_format.check: hostile.models(),
        lambda data: KnownAnswers.decode(data, DIGITS): hostile.archives(),
    }
    taken = [
        min(_refusal(check, data) for _ in range(3))
        for check, files in checks.items()
        for data in files.values()
    ]
    return at_most(f"slowest refusal of {len(taken)} hostile model files", max(taken), "s", 0.5)


def _refusal(check: Callable[[bytes], object], data: bytes) -> float:
    began = time.perf_counter()
    try:
        check(data)
    except TrustError:
        return time.perf_counter() - began
    raise AssertionError("a hostile file was accepted")


def _p50(one: Callable[[], None], other: Callable[[], None], calls: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for call in range(calls + 20):
        for work, taken in zip((one, other), times, strict=True):
            began = time.perf_counter_ns()
            work()
            if call >= 20:
                taken.append((time.perf_counter_ns() - began) / 1000)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main("device", measure)
