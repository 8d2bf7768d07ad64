"""What does coding an update save, and what does it cost in accuracy? One plan, four ways to send.

Ten clients hold a tenth of the training images each and train a small network on them; the server
takes the exact mean. Only ``[plan.compression]`` differs: nothing, fp16, int8, and the greatest 10
and 1 % of the values with error feedback. Once with the plan's noise (epsilon 8, each client its
own), once with the same plan and hardly any noise, which shows what the coding itself costs.
Sampling and noise are the same in all of them, so a difference is the coding's, and chance's.

The rule: the engine, the codec and the aggregation are those of a run; bytes are of the updates as
they travel, measured, not computed. The data is Fashion-MNIST where it is installed, else the
digits, a fifth of which is the test. Goals were set before anything was measured: the ratios that
the formats promise; nothing to speak of lost with 16 and 8 bits, as is reported for training
without noise (QSGD, arXiv 1610.02132); and, for a hundredth of the values with error feedback
(arXiv 1809.07599, 1901.09847), two points, which is our own guess for so few rounds. With noise no
goal is known to us for top-k, and none is set.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row, at_least, at_most, main, plain
from client.training.engine import Engine
from common.aggregation import FEDAVG
from common.coding import Codec
from common.compression import Compression
from common.data.records import Records
from common.data.schema import Schema
from common.data.source import Digits, FashionMnist, load
from common.errors import DataError, NetworkError
from common.models.networks import load_parameters, parameters_of
from common.models.preprocess import fixed_features
from common.models.registry import build
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream
from common.privacy.reference import calibrate
from common.wire import Arrays
from server.aggregation.rules import rule_for

MODEL, CLIENTS, ROUNDS, STEPS, RATE = "mlp", 10, 30, 10, 0.1
EPSILON, DELTA, CLIP = 8.0, 1e-5, 1.0
HARDLY_ANY = 1e-6  # noise multiplier
OPTIMIZER = Optimizer(learning_rate=0.5, momentum=0.5)
SEEDS = (1, 2)
WAYS: Mapping[str, Compression | None] = {
    "none": None,
    "fp16": Compression("fp16"),
    "int8": Compression("int8"),
    "top-k 10 %": Compression("top-k", 0.1),
    "top-k 1 %": Compression("top-k", 0.01),
}
RATIOS = {"fp16": 1.99, "int8": 3.95, "top-k 10 %": 4.95, "top-k 1 %": 49.0}
LOSSES = {"fp16": 0.1, "int8": 0.5, "top-k 1 %": 2.0}  # points, without noise
NOISED = {"fp16": 0.1, "int8": 0.5}

Part = tuple[Tensor, Tensor]


def measure(quick: bool) -> list[Row]:
    """Bytes, ratios and points lost; quickly, one seed, three rounds, and no goal for points."""
    torch.set_num_threads(1)
    schema, train, test = _data()
    rounds, seeds = (3, SEEDS[:1]) if quick else (ROUNDS, SEEDS)
    rows: list[Row] = []
    for kind, goals in (("without noise", LOSSES), (f"at epsilon {EPSILON:g}", NOISED)):
        privacy = mechanism(len(train[1]) // CLIENTS, rounds)
        if goals is LOSSES:
            privacy = replace(privacy, noise_multiplier=HARDLY_ANY)
        found = {
            name: [_run(schema, train, test, privacy, way, rounds, seed) for seed in seeds]
            for name, way in WAYS.items()
        }
        before = found["none"]
        if goals is LOSSES:
            rows += _weights({name: runs[0][1] for name, runs in found.items()})
        rows.append(plain(f"{kind}, none: accuracy", statistics.mean(a for a, _ in before), "%"))
        for name in list(WAYS)[1:]:
            pairs = zip(before, found[name], strict=True)
            lost = statistics.mean(one - other for (one, _), (other, _) in pairs)
            figure = f"{kind}, {name}: accuracy lost"
            goal = None if quick else goals.get(name)
            rows.append(
                plain(figure, lost, "points")
                if goal is None
                else at_most(figure, lost, "points", goal)
            )
    return rows


def _weights(sizes: Mapping[str, int]) -> list[Row]:
    """Bytes of a reply's update, and how many times less than those of none."""
    rows = [plain("none: update in a reply", sizes["none"], "bytes")]
    for name in list(WAYS)[1:]:
        rows.append(plain(f"{name}: update in a reply", sizes[name], "bytes"))
        ratio = sizes["none"] / sizes[name]
        rows.append(at_least(f"{name}: times less", ratio, "x", RATIOS[name]))
    return rows


def mechanism(records: int, rounds: int) -> Privacy:
    """The plan's privacy for clients of so many records; the noise follows from epsilon (PLD)."""
    return Privacy(
        trust="local",
        sampling_rate=RATE,
        noise_multiplier=calibrate(RATE, STEPS * rounds, EPSILON, DELTA),
        clipping_norm=CLIP,
        steps=STEPS,
        divisor=RATE * records,
        delta=DELTA,
    )


def _run(
    schema: Schema,
    train: Part,
    test: Part,
    privacy: Privacy,
    way: Compression | None,
    rounds: int,
    seed: int,
) -> tuple[float, int]:
    """Percent of test images that the last model gets right, and the bytes of an update."""
    network = build(MODEL, schema, seed=seed).network
    model = parameters_of(network)
    shapes = {name: value.shape for name, value in model.items()}
    engine = Engine(network, privacy, OPTIMIZER, rounds)
    rule = rule_for(FEDAVG, shapes)
    codec = Codec(way, shapes, OPTIMIZER.update_bound) if way else None
    generator = torch.Generator().manual_seed(seed)
    dealt = torch.randperm(len(train[1]), generator=generator).chunk(CLIENTS)
    kept: list[Arrays] = [{} for _ in dealt]
    size = sum(value.nbytes for value in model.values())
    for round_ in range(1, rounds + 1):
        rule.begin()
        for client, records in enumerate(dealt):
            stream = Stream.simulated(seed, client, round_)
            update = engine.round(model, train[0][records], train[1][records], stream, round_)
            if codec:
                data, kept[client] = codec.encode(update, kept[client])
                size, update = len(data), codec.decode(data)
            rule.add(f"{client:02d}", update)
        model = rule.next_model(round_, model)
    load_parameters(network, model)
    with torch.inference_mode():
        return 100 * float((network(test[0]).argmax(1) == test[1]).float().mean()), size


def _data() -> tuple[Schema, Part, Part]:
    """Schema, training and test set: Fashion-MNIST, or the digits where it is not installed."""
    classes = tuple("0123456789")
    schema = Schema("image", (1, 28, 28), classes, lower=0.0, upper=255.0)
    try:
        train, test = (load(FashionMnist(part), schema) for part in ("train", "test"))
    except (DataError, NetworkError) as error:
        print(f"digits, not Fashion-MNIST: {error}; {error.hint}", file=sys.stderr)
        schema = Schema("image", (1, 8, 8), classes, lower=0.0, upper=16.0)
        records = load(Digits(), schema)
        order = np.random.default_rng(1).permutation(len(records))
        test, train = (records.take(part) for part in np.split(order, [len(order) // 5]))
    model = build(MODEL, schema, seed=1)

    def part(records: Records) -> Part:
        features = fixed_features(model, schema, records.features)
        return torch.from_numpy(np.array(features)), torch.from_numpy(records.labels)

    return schema, part(train), part(test)


if __name__ == "__main__":
    main("compression", measure)
