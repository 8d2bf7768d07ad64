"""How much accuracy do two liars of ten cost, with each aggregation rule? Fashion-MNIST, no noise.

Ten clients hold 6,000 training images each, dealt at random, and train a small network in plain
SGD, an epoch a round: no clipping, no noise, and not the private engine, so that what is lost is
lost to the liars and to the rule. Two clients flip the sign of their update, or send ten times it,
or train on flipped labels (class c becomes 9 - c). Points lost are against the mean of ten honest
clients of the same seed, on the 10,000 official test images.

The rule: a rule is told that two may lie, and nothing was tuned by the test images. With updates
under local noise, robust rules have less to go by: these figures are not about that.
"""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from benchmarks.harness import Row, at_most, main, plain
from common.aggregation import Aggregation
from common.data.schema import Schema
from common.data.source import FashionMnist, load
from common.errors import DataError
from common.models.networks import load_parameters, parameters_of
from common.models.registry import build
from common.wire import Arrays
from server.aggregation.rules import rule_for

SCHEMA = Schema("image", (1, 28, 28), tuple("0123456789"), lower=0.0, upper=255.0)
MODEL = "mlp"
CLIENTS, LIARS = 10, 2
ROUNDS, BATCH, RATE = 10, 50, 0.1
SEEDS = (1, 2, 3)
MEAN = Aggregation("fedavg")
ROBUST = (
    Aggregation("fedmedian"),
    Aggregation("trimmed-mean", trim=LIARS / CLIENTS),
    Aggregation("krum", malicious=LIARS),
    Aggregation("multi-krum", malicious=LIARS, selected=CLIENTS - LIARS - 2),
    Aggregation("geometric-median"),
    Aggregation("norm-bounded", norm_bound=1.0),
)
Lie = Callable[[Arrays], Arrays]
LIES: dict[str, Lie | None] = {
    "sign flipped": lambda update: {name: -value for name, value in update.items()},
    "times ten": lambda update: {name: 10 * value for name, value in update.items()},
    "labels flipped": None,  # the liar's data lie, and its update is what they give
}


def measure(quick: bool) -> list[Row]:
    """Points lost for each rule and each lie; quickly, one seed, two rounds and a tenth."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # what Flower's app sets
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    try:
        train, test = _images("train", quick), _images("test", False)
    except DataError as error:
        print(f"left out: Fashion-MNIST: {error}; {error.hint}", file=sys.stderr)
        return []
    seeds = SEEDS[:1] if quick else SEEDS
    rounds = 2 if quick else ROUNDS

    def points(rule: Aggregation, lie: str | None) -> list[float]:
        return [_accuracy(train, test, rule, lie, rounds, seed) for seed in seeds]

    clean = points(MEAN, None)
    rows = [plain("nobody lies, fedavg: accuracy", statistics.mean(clean), "%")]
    worst: dict[str, float] = {}
    for rule in (MEAN, *ROBUST):
        if rule is not MEAN:
            lost = _lost(clean, points(rule, None))
            rows.append(plain(f"nobody lies, {rule.name}: lost", lost, "points"))
        for lie in LIES:
            lost = _lost(clean, points(rule, lie))
            rows.append(plain(f"{lie}, {rule.name}: lost", lost, "points"))
            worst[rule.name] = max(worst.get(rule.name, -100.0), lost)
    best = min((rule.name for rule in ROBUST), key=lambda name: worst[name])
    figure = f"{best}: lost to the worst of the three lies"
    if quick:
        return [*rows, plain(f"{figure}, quick", worst[best], "points")]
    return [*rows, at_most(figure, worst[best], "points", 3.0)]


def _lost(clean: list[float], attacked: list[float]) -> float:
    return statistics.mean(before - after for before, after in zip(clean, attacked, strict=True))


def _accuracy(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    aggregation: Aggregation,
    lie: str | None,
    rounds: int,
    seed: int,
) -> float:
    """Percent of test images that the last model gets right."""
    built = build(MODEL, SCHEMA, seed=seed)
    network = nn.Sequential(built.features, built.network)
    model = parameters_of(built.network)
    rule = rule_for(aggregation, {name: value.shape for name, value in model.items()})
    generator = torch.Generator().manual_seed(seed)
    dealt = torch.randperm(len(train[1]), generator=generator).chunk(CLIENTS)
    for round_ in range(1, rounds + 1):
        rule.begin()
        for client, indexes in enumerate(dealt):
            lies = lie is not None and client < LIARS
            labels = train[1][indexes]
            if lies and LIES[str(lie)] is None:
                labels = 9 - labels
            load_parameters(built.network, model)
            _epoch(network, train[0][indexes], labels, generator)
            after = parameters_of(built.network)
            update = {name: after[name] - model[name] for name in model}
            change = LIES[str(lie)] if lies else None
            rule.add(f"{client:02d}", change(update) if change else update)
        model = rule.next_model(round_, model)
    load_parameters(built.network, model)
    with torch.inference_mode():
        return 100 * float((network(test[0]).argmax(1) == test[1]).float().mean())


def _epoch(
    network: nn.Module, features: Tensor, labels: Tensor, generator: torch.Generator
) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    for batch in torch.randperm(len(labels), generator=generator).chunk(len(labels) // BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(features[batch]), labels[batch])
        torch.autograd.backward(loss)
        optimizer.step()


def _images(part: str, quick: bool) -> tuple[Tensor, Tensor]:
    """Pixels from 0 to 1 and classes; the first tenth if quick."""
    records = load(FashionMnist(part), SCHEMA)
    count = len(records) // 10 if quick else len(records)
    features = np.array(records.features[:count] / 255, np.float32)
    return torch.from_numpy(features), torch.from_numpy(records.labels[:count])


if __name__ == "__main__":
    main("byzantine", measure)
