"""One prediction at a time: the device's verified ONNX model beside the same model in torch eager.

The peer is what people do without us: keep the module and call it. Both use one thread and take the
same raw records. What we add to ONNX Runtime alone, what a start takes and how large an install is
stand beside it; so do how long a device works on a hostile file before it refuses it, and what it
costs that the model lies sealed: opening authenticates, so it stands in the place of a hash. The
install is what is here of everything that ``privet[device]`` requires, file by file, as if nothing
else were installed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks import hostile
from benchmarks.harness import Row, at_least, at_most, in_blocks, in_turn, main, plain
from client.device import slots
from client.device.home import DeviceHome
from client.device.identity import Identity
from client.device.measure import start
from client.device.release import Candidate, Claims
from client.device.runtime import Predictor, installed
from common import onnx_format, weights
from common.canonical import digest
from common.data.schema import Schema
from common.errors import TrustError
from common.inference import INPUT, OUTPUT, KnownAnswers, Session, synthetic_records
from common.models.preprocess import ServingModel
from common.models.registry import build
from common.onnx_runtime import options
from common.release import MODEL
from deploy.check_wheels import needed
from privet.running import simulate
from server.release.export import to_onnx
from server.release.smaller.quantize import CALIBRATION, quantize, scopes

MODEL_BYTES = 4 * 2**20  # a million parameters in float32
CLASSES = tuple("0123456789")
DIGITS = Schema("image", (1, 8, 8), CLASSES, lower=0.0, upper=16.0)
FASHION = Schema("image", (1, 28, 28), CLASSES, lower=0.0, upper=255.0)
EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.toml"


def measure(quick: bool) -> list[Row]:
    """Single predictions in turn, medians, and their ratios; then a start, and an install."""
    torch.set_num_threads(1)
    seconds = 1.0 if quick else 5.0
    rows: list[Row] = []
    for name, model, schema, goal, added in (
        ("softmax", "softmax", DIGITS, 1.2, None),
        ("cnn (26k)", "cnn", FASHION, 7.0, 15.0),
        ("medium (1M), fp32", "medium", FASHION, None, None),
        ("medium (1M), int8", "medium", FASHION, 5.0, None),
        ("scattering", "scattering", FASHION, 1.5, None),
    ):
        bindings = {"medium": "benchmarks.device:medium"}
        serving = ServingModel(build(model, schema, seed=1, bindings=bindings), schema).eval()
        exported = to_onnx(serving, schema)
        if name.endswith("int8"):
            exported = _fastest_eight_bits(exported, schema)
        rows += _beside_eager(name, serving, exported, schema, goal, added, seconds)
    return [
        *rows,
        *_start(2 if quick else 9),
        *_load(quick),
        _install(),
        _refusals(),
        *_opening(quick),
    ]


def medium(_schema: Schema) -> nn.Module:
    """The medium CNN of the notes: 1,025,866 parameters for 28 x 28 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 320),
        nn.ReLU(),
        nn.Linear(320, 10),
    )


def _fastest_eight_bits(model: bytes, schema: Schema) -> bytes:
    """In the scope that answers soonest here, as ``privet release shrink`` chooses."""
    records = synthetic_records(schema, CALIBRATION)
    found = [quantize(model, records, scope) for scope in scopes(model)]
    sessions = [Session.optimized(data, schema) for data in found]
    works = {str(i): partial(one.predict, records[:1]) for i, one in enumerate(sessions)}
    turns = in_blocks(works, 0.5, least=20)
    return found[int(min(works, key=turns.median))]


def _beside_eager(
    name: str,
    serving: ServingModel,
    model: bytes,
    schema: Schema,
    goal: float | None,
    added: float | None,
    seconds: float,
) -> list[Row]:
    """Through our API, by ONNX Runtime alone and in eager torch, in turn."""
    session = Session.optimized(model, schema)
    predictor, bare = _predictor_of(session), session.runtime(1)
    record = synthetic_records(schema, 1)
    works: dict[str, Callable[[], object]] = {
        "api": lambda: predictor.probabilities(record),
        "bare": lambda: bare([OUTPUT], {INPUT: record}, None),
        "eager": _eager(serving, torch.from_numpy(record)),
    }
    turns = in_blocks(works, seconds, least=50)
    pairs = zip(turns.taken["api"], turns.taken["bare"], strict=True)
    ours = 1000 * statistics.median(api - alone for api, alone in pairs)
    ratio = f"{name}: torch eager / device"
    faster = turns.ratio("eager", "api")
    device, eager = (1000 * turns.median(one) for one in ("api", "eager"))
    adds = f"{name}: what our API adds to ONNX Runtime"
    return [
        plain(f"{name}: p50 of one prediction, device", device, "us"),
        plain(f"{name}: p50 of one prediction, torch eager", eager, "us"),
        plain(ratio, faster, "x") if goal is None else at_least(ratio, faster, "x", goal),
        plain(adds, ours, "us") if added is None else at_most(adds, ours, "us", added),
    ]


def _predictor_of(session: Session) -> Predictor:
    claims = Claims("measured", 1, True, True, session.schema, 1.0, 1e-5, "record")
    return Predictor(Candidate(claims, {}, {}, frozenset(), session))


def _eager(serving: ServingModel, record: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            serving(record)

    return call


def _start(count: int) -> list[Row]:
    """A process that may import neither torch nor Flower, to its first answer; and its memory.

    Its modules are compiled, as pip leaves those that it installs.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        simulate(EXAMPLE, out=run, seed=1, rounds=1, overrides=['plan.model="cnn"'])
        compiled = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        compiled.pop("PYTHONDONTWRITEBYTECODE", None)
        imports = [sys.executable, "-c", "import numpy, onnxruntime"]
        found, bare = [], []
        for _ in range(1 + count):  # the first one compiles them
            found.append(start(run / "device", 256, compiled))
            began = time.perf_counter()
            subprocess.run(imports, check=True, env=compiled)
            bare.append(time.perf_counter() - began)
    seconds, peak = (
        statistics.median(one[k] for one in found[1:]) for k in ("seconds", "peak_bytes")
    )
    return [
        at_most("cold start: process, imports, verification, one answer", seconds, "s", 0.25),
        plain(
            "a process that imports numpy and onnxruntime alone", statistics.median(bare[1:]), "s"
        ),
        plain("peak memory of a start, with a batch of 256", peak / 2**20, "MiB"),
    ]


def wide(_schema: Schema) -> nn.Module:
    """994,570 parameters for 8 x 8 pixels: loading it takes a device nothing but memory."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 960),
        nn.ReLU(),
        nn.Linear(960, 960),
        nn.ReLU(),
        nn.Linear(960, 10),
    )


def _load(quick: bool) -> list[Row]:
    """What is installed, verified and loaded, beside the same ONNX file loaded as it is."""
    overrides = ['plan.model="wide"', 'data.models.wide="benchmarks.device:wide"']
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        simulate(EXAMPLE, out=run, seed=1, rounds=1, overrides=overrides)
        home = run / "device"
        file = Path(folder) / "model.onnx"
        file.write_bytes(slots.load(DeviceHome(home))[1][MODEL])

        def ours() -> None:
            installed(DeviceHome(home))

        def batches() -> None:
            installed(DeviceHome(home)).session.expect_batches()

        def bare() -> None:
            onnxruntime.InferenceSession(file, options(), providers=["CPUExecutionProvider"])

        peaks = [start(home, records)["peak_bytes"] / 2**20 for records in (1, 256)]
        works = {"ours": ours, "batches": batches, "bare": bare}
        turns = in_turn(works, 1.5 if quick else 15.0, least=5)
    what = "an installed model of a million parameters"
    return [
        plain(f"{what}, verified and loaded", turns.median("ours"), "ms"),
        plain("the same ONNX file, loaded as it is", turns.median("bare"), "ms"),
        at_most(f"{what}: loaded / bare", turns.ratio("ours", "bare"), "x", 1.3),
        plain(f"{what}: loaded, its weights ordered / bare", turns.ratio("batches", "bare"), "x"),
        plain(f"{what}: peak memory, one record at a time", peaks[0], "MiB"),
        plain(f"{what}: peak memory, with a batch of 256", peaks[1], "MiB"),
    ]


def _install() -> Row:
    names = {"privet", *needed(["device"], "x86_64")}
    files = [file.locate() for name in names for file in distribution(name).files or ()]
    size = sum(Path(str(file)).stat().st_size for file in files if Path(str(file)).is_file())
    what = f"installed files of privet[device], {len(names)} packages"
    return at_most(what, size / 1e6, "MB", 220)


def _opening(quick: bool) -> list[Row]:
    """A model of a million parameters opened, beside the same bytes in a file that is hashed."""
    data = np.random.default_rng(1).bytes(MODEL_BYTES)
    what: dict[str, str | int] = {"name": "model", "version": 1, "digest": digest(data)}
    with tempfile.TemporaryDirectory() as folder:
        device = Identity.create(Path(folder) / "keys")
        file = Path(folder) / "sealed"
        file.write_bytes(device.seal(data, what))
        plain_file = Path(folder) / "plain"
        plain_file.write_bytes(data)

        def open_() -> None:
            device.open(file, what, most=MODEL_BYTES)

        def hash_() -> None:
            digest(plain_file.read_bytes())

        turns = in_turn({"open": open_, "hash": hash_}, 0.5 if quick else 5.0, least=5)
    return [
        plain("a sealed model of 4 MiB, opened", turns.median("open"), "ms"),
        at_most(
            "a sealed model of 4 MiB, opened / read and hashed",
            turns.ratio("open", "hash"),
            "x",
            1.0,
        ),
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


if __name__ == "__main__":
    main("device", measure)
