"""Do personal layers help clients whose classes differ? One plan, with and without them.

Clients hold classes in uneven shares, each class dealt by its own Dirichlet(alpha) draw (Hsu et al.
2019, arXiv 1909.06335), and keep a quarter of their records aside. A small network is trained once
by all for all, and once with its last layer personal (FedPer, arXiv 1912.00818). What is compared
is the mean over clients of the accuracy on their own records that were kept aside: that client's
own head on the shared layers, against the one model for everybody.

The rule: the engine, the split and the aggregation are those of a run, noise included; the same
seed deals the same records, samples and noise. Fashion-MNIST where it is installed, its first
12,000 training images, else the digits. The goal, set before measuring, is any gain of five points
at alpha 0.1 without noise; elsewhere none is set.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row, at_least, main, plain
from client.training.engine import Engine
from common.aggregation import FEDAVG
from common.data.binding import Binding
from common.data.records import Records
from common.data.schema import Schema
from common.data.source import Digits, FashionMnist, load
from common.errors import DataError, NetworkError
from common.models.networks import load_parameters, parameters_of
from common.models.preprocess import fixed_features
from common.models.registry import build
from common.personal import Personal, shared, whole
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream
from common.privacy.reference import calibrate
from common.wire import Arrays
from server.aggregation.rules import rule_for
from simulations.population import deal

MODEL, HEAD = "mlp", Personal(("output",))
CLIENTS, ROUNDS, STEPS, RATE = 10, 15, 10, 0.1
DELTA, CLIP = 1e-5, 1.0
OPTIMIZER = Optimizer(learning_rate=0.5, momentum=0.5)
SEEDS = (1, 2)

Part = tuple[Tensor, Tensor]


def measure(quick: bool) -> list[Row]:
    """Accuracy on own records kept aside; quickly, the digits, one seed and one alpha."""
    torch.set_num_threads(1)
    schema, records = digits() if quick else _fashion()
    rows: list[Row] = []
    for alpha in (0.1,) if quick else (0.1, 0.5, 100.0):
        for epsilon in (None, 8.0):
            pairs = [
                compare(schema, records, alpha, epsilon, s) for s in SEEDS[: 1 if quick else 2]
            ]
            one, own = (statistics.mean(values) for values in zip(*pairs, strict=True))
            figure = f"alpha {alpha:g}, " + (f"epsilon {epsilon:g}" if epsilon else "no noise")
            rows += [
                plain(f"{figure}: one model", one, "%"),
                plain(f"{figure}: own heads", own, "%"),
            ]
            row = f"{figure}: gained"
            goal = alpha == 0.1 and epsilon is None
            rows.append(
                at_least(row, own - one, "points", 5.0) if goal else plain(row, own - one, "points")
            )
    return rows


def compare(
    schema: Schema, records: Records, alpha: float, epsilon: float | None, seed: int
) -> tuple[float, float]:
    """Percent right on own records kept aside, mean over clients: one model, own heads."""
    binding = Binding(source="digits", clients=CLIENTS, partition="dirichlet", alpha=alpha)
    numbered = replace(records, places=np.arange(len(records)))
    model = build(MODEL, schema, seed=0)
    features = torch.from_numpy(np.array(fixed_features(model, schema, records.features)))
    labels = torch.from_numpy(records.labels)
    held: list[tuple[Part, Part]] = []
    for rows in deal(numbered, binding, seed).values():
        mixed = np.random.default_rng(seed).permutation(rows)
        aside, kept = np.split(mixed, [len(mixed) // 4])
        if len(aside):
            held.append(((features[kept], labels[kept]), (features[aside], labels[aside])))
    privacy = Privacy(
        trust="local",
        sampling_rate=RATE,
        noise_multiplier=calibrate(RATE, STEPS * ROUNDS, epsilon, DELTA) if epsilon else 1e-6,
        clipping_norm=CLIP,
        steps=STEPS,
        divisor=RATE * len(records) / CLIENTS,
        delta=DELTA,
    )
    return _train(schema, held, privacy, None, seed), _train(schema, held, privacy, HEAD, seed)


def _train(
    schema: Schema,
    held: list[tuple[Part, Part]],
    privacy: Privacy,
    personal: Personal | None,
    seed: int,
) -> float:
    network = build(MODEL, schema, seed=0).network
    initial = parameters_of(network)
    engine = Engine(network, privacy, OPTIMIZER, ROUNDS)
    together = shared(personal, initial)
    own: list[Arrays] = [{} for _ in held]
    rule = rule_for(FEDAVG, {name: value.shape for name, value in together.items()})
    for round_ in range(1, ROUNDS + 1):
        rule.begin()
        for client, ((features, labels), _) in enumerate(held):
            start = whole(personal, initial, together) | own[client]
            stream = Stream.simulated(seed, client, round_)
            update = engine.round(start, features, labels, stream, round_)
            leaves = shared(personal, update)
            own[client] = {n: start[n] + update[n] for n in update if n not in leaves}
            rule.add(f"{client:02d}", leaves)
        together = rule.next_model(round_, together)
    right = []
    for client, (_, (features, labels)) in enumerate(held):
        load_parameters(network, whole(personal, initial, together) | own[client])
        with torch.inference_mode():
            right.append(float((network(features).argmax(1) == labels).float().mean()))
    return 100 * statistics.mean(right)


def digits() -> tuple[Schema, Records]:
    schema = Schema("image", (1, 8, 8), tuple("0123456789"), lower=0.0, upper=16.0)
    return schema, load(Digits(), schema)


def _fashion() -> tuple[Schema, Records]:
    schema = Schema("image", (1, 28, 28), tuple("0123456789"), lower=0.0, upper=255.0)
    try:
        return schema, load(FashionMnist("train"), schema).take(np.arange(12_000))
    except (DataError, NetworkError) as error:
        print(f"digits, not Fashion-MNIST: {error}; {error.hint}", file=sys.stderr)
        return digits()


if __name__ == "__main__":
    main("personal", measure)
