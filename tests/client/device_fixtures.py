"""A small world for the device's tests: three keys, a repository, and a device beside it.

The model is one matrix and a softmax, made from a seed, so that two versions answer differently and
a test can compute what they should answer.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from client.device import log
from client.device.home import DeviceHome
from client.device.policy import DevicePolicy
from client.device.runtime import Predictor
from client.device.updater import update
from common.canonical import Json, decode, digest, encode
from common.data.schema import Column, Schema
from common.inference import KnownAnswers
from common.keys import SigningKey
from common.plan import Cohort, Optimizer, Plan, Privacy
from common.plan import Release as PlanRelease
from common.release import STATEMENT
from common.statement import INTOTO_TYPE, Envelope, privacy_statement
from server.release.release import Release, assemble, privacy_predicate, subjects
from server.release.repository import Repository
from server.release.roots import Roles

NOW = datetime(2030, 5, 17, 12, tzinfo=UTC)
DAY = timedelta(days=1)

COORDINATOR, APPROVER, RECOVERY, STRANGER = (
    SigningKey.from_seed(bytes([number]) * 32) for number in (1, 2, 3, 4)
)
ROLES = Roles(COORDINATOR.public, APPROVER.public, RECOVERY.public)

SCHEMA = Schema(
    kind="table",
    shape=(4,),
    classes=("no", "perhaps", "yes"),
    columns=(
        Column("age", 0.0, 120.0),
        Column("weight", 0.0, 250.0),
        Column("height", 0.5, 2.5),
        Column("pulse", 20.0, 240.0),
    ),
    target="answer",
)

PLAN = Plan(
    name="clinic",
    task="classification",
    model="linear",
    rounds=5,
    schema=SCHEMA,
    cohort=Cohort(clients=4, quorum=3, deadline=60.0),
    optimizer=Optimizer(learning_rate=0.1),
    privacy=Privacy("local", 0.01, 1.2, 1.0, 10, 32.0, 1e-5),
    release=PlanRelease("clinic-linear"),
)

RECORDS = np.array([[30, 70, 1.7, 60], [90, 55, 1.5, 90], [4, 16, 1.0, 120]], np.float32)  # (3, 4)


@dataclass(frozen=True)
class Linear:
    """softmax(x W + b) with W (4, 3) and b (3,) from a seed."""

    seed: int

    @property
    def weights(self) -> NDArray[np.float32]:
        return np.random.default_rng(self.seed).normal(0, 0.02, (4, 3)).astype(np.float32)

    @property
    def bias(self) -> NDArray[np.float32]:
        return np.random.default_rng(self.seed + 1).normal(0, 0.1, 3).astype(np.float32)

    def answer(self, records: NDArray[Any]) -> NDArray[np.float32]:
        """What the model should say, by numpy alone."""
        scores = records @ self.weights + self.bias  # (B, 3)
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        result: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
        return result

    def onnx(self) -> onnx.ModelProto:
        return linear_onnx(self.weights, self.bias)

    def safetensors(self) -> bytes:
        return safetensors({"bias": self.bias, "weight": self.weights})


def linear_onnx(
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    names: tuple[str, str] = ("input", "probabilities"),
    batch: str | int = "batch",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", [names[0], "weight", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], [names[1]], axis=1),
        ],
        "linear",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, weights.shape[0]])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [batch, weights.shape[1]])],
        [numpy_helper.from_array(weights, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def safetensors(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The format by hand, as its specification describes it."""
    header: Json = {}
    body = b""
    for name, tensor in tensors.items():
        data = tensor.astype("<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    return safetensors_of(json.dumps(header).encode(), body)


def safetensors_of(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@dataclass(frozen=True)
class Recipe:
    """What a test may want to be different about a release."""

    version: int = 1
    epsilon: float = 2.0
    simulated: bool = False
    plan: Plan = PLAN
    statement_signers: tuple[SigningKey, ...] = (COORDINATOR, APPROVER)
    predicate: Mapping[str, Any] = field(default_factory=dict)
    weights: bytes | None = None  # instead of sound ones, as a publisher who checks nothing would
    onnx_file: bytes | None = None

    @property
    def model(self) -> Linear:
        return Linear(seed=100 * self.version)

    def files(self) -> dict[str, bytes]:
        """A release as its publisher would assemble it."""
        model = self.model
        sound = {
            "model.safetensors": model.safetensors(),
            "model.onnx": model.onnx().SerializeToString(),
        }
        named = {"model.safetensors": self.weights, "model.onnx": self.onnx_file}
        hostile = {name: data for name, data in named.items() if data is not None}
        published = sound | hostile
        predicate = privacy_predicate(
            self.plan,
            version=self.version,
            event=self.plan.event(),
            epsilon=self.epsilon,
            epsilon_filter=self.epsilon * 1.1,
            accountants={"pld": self.epsilon, "rdp": self.epsilon * 1.2},
            noise=["simulated" if self.simulated else "cryptographic"],
            simulated=self.simulated,
            rounds=5,
            ledgers={"5e" * 16: ("ab" * 32, 12, 12)},
            clients=4,
        )
        honest, said = (
            Envelope.sign(
                INTOTO_TYPE,
                privacy_statement(
                    subjects(files["model.safetensors"], files["model.onnx"]),
                    {**predicate, **changes},
                ),
                self.statement_signers,
            ).encode()
            for files, changes in ((sound, {}), (published, self.predicate))
        )
        files = assemble(
            Release(
                name=self.plan.release.name,
                version=self.version,
                simulated=self.simulated,
                task=self.plan.task,
                schema=self.plan.schema,
                plan=self.plan.digest,
                weights=sound["model.safetensors"],
                model=sound["model.onnx"],
                answers=KnownAnswers.make(self.plan.schema, model.answer),
                statement=honest,
            )
        )
        # Whoever says something else has it in a release that fits it.
        return replaced(files, {**hostile, STATEMENT: said})


FIRST, SECOND = Recipe(version=1), Recipe(version=2)


def replaced(files: Mapping[str, bytes], changes: Mapping[str, bytes]) -> dict[str, bytes]:
    """A release with some of its files replaced, and ``release.json`` made to fit."""
    document = decode(files["release.json"])
    for name, data in changes.items():
        document["files"][name] = {"sha256": digest(data), "length": len(data)}
    return {**files, **changes, "release.json": encode(document)}


POLICY = DevicePolicy(
    greatest_epsilon=3.0,
    greatest_delta=1e-5,
    signers=(COORDINATOR.public.fingerprint, APPROVER.public.fingerprint),
    repository="../repository",
)


@dataclass
class World:
    """A repository and a device beside it."""

    path: Path
    repository: Repository
    home: DeviceHome

    @classmethod
    def make(cls, path: Path, policy: DevicePolicy = POLICY) -> World:
        repository = Repository.create(path / "repository", [COORDINATOR, APPROVER], ROLES, NOW)
        home = DeviceHome.init(path / "device", repository.root, policy)
        return cls(path, repository, home)

    @classmethod
    def updated(cls, path: Path) -> World:
        """A repository with version 1, and a device that has it."""
        made = cls.make(path)
        made.publish(FIRST)
        update(made.home, NOW)
        return made

    def publish(self, recipe: Recipe, now: datetime = NOW) -> int:
        return self.repository.publish(recipe.files(), [COORDINATOR, APPROVER], COORDINATOR, now)

    def device(self, name: str, **changes: Any) -> DeviceHome:
        """Another device of the same repository."""
        return DeviceHome.init(self.path / name, self.repository.root, replace(POLICY, **changes))


def answers(home: DeviceHome) -> NDArray[np.float32]:
    """Of the installed model, as at a start: (3, 3)."""
    return Predictor.load(home).probabilities(RECORDS)


def is_answer_of(recipe: Recipe, found: NDArray[np.float32]) -> bool:
    return np.allclose(found, recipe.model.answer(RECORDS), atol=1e-6)


def decisions(home: DeviceHome) -> list[Json]:
    """What the device decided, oldest first, once its log was found whole."""
    history = log.read(home.decisions, home.identity.key.public, home.floor)
    assert not history.wrong
    return list(history.lines)


def contents(folder: Path, *, without: tuple[str, ...] = ("decisions.jsonl",)) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes, but for those that may change."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and str(file.relative_to(folder)) not in without
    }


# Runs in a process of its own: imports once, then forks a child for each durable step, which dies
# at it. Prints how many steps there are. The child's work is ``work(number)``.
_KILLER = """
import importlib, os, sys
from pathlib import Path
module, function, *arguments = sys.argv[1:]
work = getattr(importlib.import_module(module), function)
number = 0
while True:
    number += 1
    child = os.fork()
    if child == 0:
        os.environ["PRIVET_TEST_KILL_AT_WRITE"] = str(number)
        work(number, *map(Path, arguments))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit("the child failed") if os.WEXITSTATUS(status) else print(number - 1)
        break
    if os.WTERMSIG(status) != 9:
        sys.exit(f"died of signal {os.WTERMSIG(status)}")
"""


def kill_at_every_write(module: str, function: str, *arguments: Path) -> int:
    """Run ``function(number, *arguments)``, killed at its ``number``-th durable step, for each one.

    Returns:
        How many steps there are: the run after the last of them was not killed.
    """
    result = subprocess.run(
        [sys.executable, "-c", _KILLER, module, function, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)
