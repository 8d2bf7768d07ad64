"""A plan with central trust over the federation in memory, and what its run must come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from common.central import Adaptive, Central
from common.ledger import Entry
from common.plan import Cohort
from common.privacy.noise import Stream
from common.wire import Arrays
from server.central.books import open_books
from server.central.bounded import BoundedSum
from server.central.release import noised
from tests.server.federation import (
    World,
)
from tests.world import PLAN as LOCAL
from tests.world import SHAPES, FakeClient, model

PLAN = replace(
    LOCAL,
    cohort=Cohort(clients=3, quorum=1, deadline=5.0),
    privacy=replace(
        LOCAL.privacy, trust="central", steps=1, sampling_rate=1.0, noise_multiplier=2.0
    ),
    central=Central(local_steps=1, local_sampling_rate=1.0),
)
ADAPTIVE = replace(PLAN, central=Central(1, 1.0, Adaptive(0.5, 0.2, 1.5, 0.1, 4.0)))


def chain(world: World) -> tuple[Entry, ...]:
    return open_books(world.home).chain()


def kinds(world: World) -> list[str]:
    return [entry.kind.value for entry in chain(world)]


def by_arithmetic(world: World, who: Callable[[int], tuple[str, ...]]) -> Arrays:
    """The model that these clients' updates give, round by round, with the run's own noise."""
    plan, result, norm = world.home.plan, model(), world.home.plan.privacy.clipping_norm
    for round_ in range(1, plan.rounds + 1):
        total = BoundedSum(SHAPES)
        total.begin(norm)
        for name in who(round_):
            total.add(name, FakeClient(name).update(round_))
        stream = Stream.simulated(world.home.seed or 0, plan.digest, "coordinator", round_)
        released = noised(total, plan, stream)
        # The exact mean of one vector: itself, on a grid of 2^-36.
        mean = {n: np.rint(v.astype(np.float64) * 2**36) / 2**36 for n, v in released.mean.items()}
        result = {n: (v + mean[n]).astype(np.float32) for n, v in result.items()}
        norm = released.norm
    return result
