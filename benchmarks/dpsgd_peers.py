"""Ten steps, or a client's whole epoch, as each of them is done: by us, plainly, and by Opacus.

The rule: each function prepares everything that its users keep between steps (between rounds, for
an epoch), and returns the work that they then repeat. Nobody is timed on something that they would
not do, and nobody is spared something that they would.

Flower's example is ``examples/opacus`` of github.com/adap/flower, ``opacus_fl/client_app.py`` at
09ed383 and ``opacus_fl/task.py`` at 0d598e3, both with their fixed settings. Each fit makes a
network, loads the server's weights into it, makes an SGD with learning rate 0.001 and momentum 0.9,
``PrivacyEngine(secure_mode=False)``, ``make_private``, one pass over the loader with zero_grad,
cross-entropy, backward and step, ``get_epsilon``, and the weights as arrays. Left out: its progress
bar and its ``print``, and its own reading of pictures, for which there is a ``TensorDataset``.
Another network and 600 records in batches of 64 are ours; noise 1.0, clip 1.0 and delta 1e-5, its.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.dpsgd_models import Subject
from client.training.engine import Engine
from common.plan import Optimizer, Privacy
from common.privacy.noise import Stream
from common.wire import Arrays

STEPS = 10  # in one timed call, and in an epoch
BATCH = 64
RECORDS = 600  # of one client
RATE = 0.1  # what Opacus makes of 600 records in batches of 64: one in so many batches
LEARNING_RATE = 0.01
NCHW = torch.contiguous_format
CHANNELS_LAST = torch.channels_last

Work = Callable[[], None]


# -- ours ----------------------------------------------------------------------------------------


def privacy(rate: float, *, draws: int = 1) -> Privacy:
    """The mechanism of every measured round: sigma 1, clip 1, ten steps."""
    return Privacy(
        trust="local",
        sampling_rate=rate,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        steps=STEPS,
        divisor=BATCH,
        delta=1e-5,
        noise_draws=draws,
    )


def parameters(network: nn.Module) -> Arrays:
    """The server's model, as the engine takes it."""
    return {
        name: value.detach().numpy().astype(np.float32)
        for name, value in network.named_parameters()
    }


def our_steps(subject: Subject, *, draws: int = 1) -> Work:
    """One round of ten steps on 64 records, at a rate of one: every step has them all."""
    return _our_round(subject, BATCH, privacy(1.0, draws=draws))


def our_epoch(subject: Subject) -> Work:
    """One round on a client's records: the engine is kept, as a client's process keeps it."""
    return _our_round(subject, RECORDS, privacy(RATE))


def _our_round(subject: Subject, records: int, mechanism: Privacy) -> Work:
    network = subject.network()
    start = parameters(network)
    features, labels = subject.records(records)
    engine = Engine(network, mechanism, Optimizer(LEARNING_RATE))

    def work() -> None:
        engine.round(start, features, labels, Stream.cryptographic())

    return work


# -- plain SGD -----------------------------------------------------------------------------------


def plain_steps(subject: Subject, layout: torch.memory_format = NCHW) -> Work:
    """Ten steps of SGD as everybody writes them."""
    network = _laid_out(subject, layout)
    features, labels = subject.records(BATCH)
    features = features.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)

    def work() -> None:
        for _ in range(STEPS):
            _step(network, optimizer, nn.functional.cross_entropy, features, labels)

    return work


def plain_epoch(subject: Subject, layout: torch.memory_format = NCHW) -> Work:
    """Weights in, one pass over a loader's ten batches, weights out; no privacy."""
    start = _state(subject.network())
    loader = _loader(subject, RECORDS)

    def work() -> None:
        network = _laid_out(subject, layout)
        _set_state(network, start)
        optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
        for features, labels in loader:
            images = features.contiguous(memory_format=layout)
            _step(network, optimizer, nn.functional.cross_entropy, images, labels)
        _state(network)

    return work


# -- Opacus --------------------------------------------------------------------------------------


def opacus_steps(subject: Subject, mode: str = "hooks") -> Work:
    """Ten full steps, noise included, of Opacus' module and optimizer; made private once."""
    network = subject.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    module, private, criterion, _ = _private(
        PrivacyEngine(), network, optimizer, _loader(subject, BATCH), mode
    )
    features, labels = subject.records(BATCH)

    def work() -> None:
        for _ in range(STEPS):
            _step(module, private, criterion, features, labels)

    return work


def opacus_epoch(subject: Subject, mode: str = "hooks", *, epsilon: bool = False) -> Work:
    """One fit of Flower's example; without ``epsilon``, all of it but ``get_epsilon``."""
    start = _state(subject.network())
    loader = _loader(subject, RECORDS)

    def work() -> None:
        network = subject.network()
        _set_state(network, start)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
        engine = PrivacyEngine(secure_mode=False)
        module, private, criterion, batches = _private(engine, network, optimizer, loader, mode)
        module.train()
        for features, labels in batches:
            _step(module, private, criterion, features, labels)
        if epsilon:
            engine.get_epsilon(delta=1e-5)
        _state(module)

    return work


def _private(
    engine: Any, network: nn.Module, optimizer: Any, loader: Any, mode: str
) -> tuple[Any, Any, Any, Any]:
    """Module, optimizer, loss and loader; Opacus wraps the loss in its ghost mode alone."""
    made = engine.make_private(
        module=network,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=mode,
    )
    if len(made) == 3:
        module, private, batches = made
        return module, private, nn.CrossEntropyLoss(), batches
    return made  # type: ignore[no-any-return]


# -- pieces --------------------------------------------------------------------------------------


def _step(network: Any, optimizer: Any, loss: Any, features: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    loss(network(features), labels).backward()
    optimizer.step()


def _laid_out(subject: Subject, layout: torch.memory_format) -> nn.Module:
    network: Any = subject.network()  # torch's own types know no memory_format here
    return network.to(memory_format=layout)  # type: ignore[no-any-return]


def _loader(subject: Subject, records: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*subject.records(records)), batch_size=BATCH, shuffle=True)


def _state(network: nn.Module) -> list[Any]:
    return [value.numpy() for value in network.state_dict().values()]


def _set_state(network: nn.Module, values: list[Any]) -> None:
    pairs: Iterator[tuple[str, Any]] = zip(network.state_dict(), values, strict=True)
    network.load_state_dict({name: torch.tensor(value) for name, value in pairs})
