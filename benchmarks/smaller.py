"""What making a model smaller wins and loses: eight bits, fewer channels, both, another network.

A convolutional network of a million parameters is trained on Fashion-MNIST, without privacy, since
that is not what is measured here; every variant is compared with it as a release would, on the half
of the test images that no step worked with. Torch's time beside it is in ``benchmarks.device``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from benchmarks.harness import Row, at_least, at_most, main, plain
from common.data.schema import Schema
from common.data.source import FashionMnist, load
from common.lineage import PUBLIC, Comparison
from common.models.model import Model
from common.models.preprocess import Preprocess, ServingModel
from common.models.registry import build
from server.release.export import to_onnx
from server.release.smaller.compare import compare
from server.release.smaller.data import Tuning
from server.release.smaller.fit import Effort
from server.release.smaller.quantize import quantize, scopes
from server.release.smaller.students import distill, prune

CLASSES = tuple("0123456789")
SCHEMA = Schema("image", (1, 28, 28), CLASSES, lower=0.0, upper=255.0)


def measure(quick: bool) -> list[Row]:
    """Each variant beside the trained network."""
    torch.set_num_threads(1)
    test = load(FashionMnist("test"), SCHEMA)
    tuning = Tuning(PUBLIC, "Fashion-MNIST, test images", test.features, test.labels)
    model = _trained(100 if quick else 1500)
    exported = _exported(model)
    calls, effort = (100, Effort(1)) if quick else (1000, Effort(15))
    size = sum(parameter.numel() for parameter in model.network.parameters())

    def beside(other: bytes) -> Comparison:
        return compare(exported, other, SCHEMA, tuning, calls=calls)

    variants = {scope: quantize(exported, tuning.part, scope) for scope in scopes(exported)}
    eight = {scope: beside(data) for scope, data in variants.items()}
    best = max(eight, key=lambda scope: _faster(eight[scope]))
    thinner = _exported(prune(model, SCHEMA, tuning.part, 0.25, effort))
    thin = _exported(prune(model, SCHEMA, tuning.part, 0.5, effort))
    student = distill(build("cnn", SCHEMA, seed=1), model, SCHEMA, tuning.part, effort)
    chosen = beside(variants[best])  # once more: it was the best of several
    rows = [
        plain("parameters of the trained network", size, ""),
        plain("its accuracy", 100 * (chosen.accuracy or (0, 0))[0], "%"),
        *_eight_bits(chosen),
        *(
            plain(f"eight bits, {scope}: times faster", _faster(found), "x")
            for scope, found in eight.items()
        ),
    ]
    for name, data in (
        ("three quarters of the channels", thinner),
        (f"and those in eight bits, {best}", quantize(thinner, tuning.part, best)),
        ("half of the channels", thin),
        ("distilled into cnn", _exported(student)),
    ):
        found = beside(data)
        rows += [
            plain(f"{name}: size of the trained one's", _size(found), ""),
            plain(f"{name}: agreement", 100 * found.agreement, "%"),
            plain(f"{name}: points lost", 100 * found.lost, ""),
            plain(f"{name}: times faster", _faster(found), "x"),
        ]
    return rows


def _eight_bits(found: Comparison) -> list[Row]:
    return [
        at_most("eight bits: size of the trained one's", _size(found), "", 0.27),
        at_least("eight bits: agreement", 100 * found.agreement, "%", 98.5),
        plain("eight bits: points lost", 100 * found.lost, ""),
        plain("eight bits: largest logit drift", found.drift, ""),
        at_least("eight bits: times faster", _faster(found), "x", 2.0),
    ]


def _exported(model: Model) -> bytes:
    return to_onnx(ServingModel(model, SCHEMA), SCHEMA)


def _size(found: Comparison) -> float:
    return found.sizes[1] / found.sizes[0]


def _faster(found: Comparison) -> float:
    return found.microseconds[0] / found.microseconds[1]


def _trained(steps: int) -> Model:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(3136, 312), nn.ReLU(), nn.Linear(312, 10),
    )  # fmt: skip
    train = load(FashionMnist("train"), SCHEMA)
    features = Preprocess(SCHEMA)(torch.from_numpy(train.features))
    labels = torch.from_numpy(train.labels)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        part = torch.randint(len(features), (64,), generator=generator)
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(features[part]), labels[part])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Model(nn.Identity(), network.eval())


if __name__ == "__main__":
    main("smaller", measure)
