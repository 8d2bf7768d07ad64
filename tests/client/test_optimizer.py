"""Local steps do what the papers and torch.optim do, from the start of each round, and no more."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim import lr_scheduler

from client.training.optimizer import LocalSteps, learning_rate
from common.optimizer import METHODS, SCHEDULES, Optimizer

P, STEPS, ROUNDS = 7, 5, 4
ALL = STEPS * ROUNDS
EXACT = {"rtol": 1e-12, "atol": 1e-12}
START = np.random.default_rng(1).normal(size=P)
GRADIENTS = np.random.default_rng(2).normal(size=(ALL, P)) * np.geomspace(1e-3, 1e3, P)

Vector = NDArray[np.float64]
SGD = Optimizer(0.25, momentum=0.9)
ADAM = Optimizer(0.25, method="adam")
EVERYTHING = [
    replace(optimizer, averaging=averaging, proximal=proximal, schedule=schedule, **rest)
    for optimizer in (SGD, ADAM)
    for averaging in (0.0, 0.7)
    for proximal in (0.0, 0.3)
    for schedule, rest in (("constant", {}), ("cosine", {"warmup": 0.3}))
]


def local(optimizer: Optimizer, steps: int = STEPS, rounds: int = ROUNDS) -> LocalSteps:
    return LocalSteps(optimizer, P, steps=steps, rounds=rounds)


def run(steps: LocalSteps, gradients: Vector, round_: int = 1, start: Vector = START) -> Vector:
    """The iterates of one round: (len(gradients), P)."""
    steps.begin(start, round_)
    iterates = []
    for gradient in gradients:
        steps.step(gradient)
        iterates.append(steps.weights.copy())
    return np.array(iterates)


def torchs(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> Vector:
    """The iterates of an optimizer of torch on the same gradients: (ALL, P)."""
    weights = torch.from_numpy(START.copy()).requires_grad_()
    optimizer = make([weights])
    iterates = []
    for gradient in GRADIENTS:
        weights.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        iterates.append(weights.detach().numpy().copy())
    return np.array(iterates)


# -- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_sgd_is_torchs_sgd_step_by_step(momentum: float) -> None:
    ours = run(local(replace(SGD, momentum=momentum)), GRADIENTS)
    theirs = torchs(lambda p: torch.optim.SGD(p, lr=0.25, momentum=momentum))
    np.testing.assert_allclose(ours, theirs, **EXACT)


@pytest.mark.parametrize(
    ("beta1", "beta2", "epsilon"), [(0.9, 0.999, 1e-8), (0.0, 0.5, 1e-3), (0.5, 0.0, 1.0)]
)
def test_adam_is_torchs_adam_step_by_step(beta1: float, beta2: float, epsilon: float) -> None:
    ours = run(local(replace(ADAM, beta1=beta1, beta2=beta2, epsilon=epsilon)), GRADIENTS)
    theirs = torchs(lambda p: torch.optim.Adam(p, lr=0.25, betas=(beta1, beta2), eps=epsilon))
    np.testing.assert_allclose(ours, theirs, **EXACT)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_sgd_gives_the_bits_of_the_plain_formula(momentum: float) -> None:
    weights, velocity = START.copy(), np.zeros(P)
    for gradient in GRADIENTS:
        velocity = momentum * velocity + gradient / 72
        weights -= 0.025 * velocity
    ours = run(local(Optimizer(0.025, momentum=momentum)), GRADIENTS / 72)
    assert np.array_equal(ours[-1], weights)


def test_adams_first_step_is_the_learning_rate_against_the_sign_of_the_gradient() -> None:
    ours = run(local(ADAM), GRADIENTS[:1])
    np.testing.assert_allclose(ours[0], START - 0.25 * np.sign(GRADIENTS[0]), rtol=0, atol=1e-4)


def test_adam_stands_still_where_every_gradient_is_zero() -> None:
    assert np.array_equal(run(local(ADAM), np.zeros((3, P)))[-1], START)


# -- schedules -------------------------------------------------------------------------------------


def rates(optimizer: Optimizer, steps: int = ALL) -> list[float]:
    return [learning_rate(optimizer, step, steps) for step in range(steps)]


def torchs_rates(*schedulers: Callable[[Any], Any], warm: int) -> list[float]:
    """The learning rates of torch's schedulers, one after the other."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    made = [make(optimizer) for make in schedulers]
    scheduler = lr_scheduler.SequentialLR(optimizer, made, milestones=[warm][: len(made) - 1])
    result = []
    for _ in range(ALL):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


@pytest.mark.parametrize("warm", [0, 1, 6])
@pytest.mark.parametrize("final", [0.0, 0.01, 0.25])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_are_those_of_torch(schedule: str, final: float, warm: int) -> None:
    falling = {
        "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, final / 0.25, ALL - warm),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, ALL - warm, final),
    }[schedule]
    rising = [lambda o: lr_scheduler.LinearLR(o, 1 / (warm + 1), 1.0, warm)] if warm else []
    optimizer = Optimizer(0.25, schedule=schedule, final_learning_rate=final, warmup=warm / ALL)
    expected = torchs_rates(*rising, falling, warm=warm)
    np.testing.assert_allclose(rates(optimizer), expected, **EXACT)


def test_the_step_schedule_is_torchs_multi_step() -> None:
    optimizer = Optimizer(0.25, schedule="step", stages=3, final_learning_rate=0.0025)
    expected = torchs_rates(  # of 20 steps, thirds begin at 6.7 and 13.3
        lambda o: lr_scheduler.MultiStepLR(o, [7, 14], gamma=0.1), warm=0
    )
    np.testing.assert_allclose(rates(optimizer), expected, **EXACT)


def test_the_step_schedule_begins_after_the_warm_up() -> None:
    optimizer = Optimizer(1.0, schedule="step", stages=2, final_learning_rate=0.5, warmup=0.25)
    np.testing.assert_allclose(rates(optimizer, 8), [1 / 3, 2 / 3, 1, 1, 1, 0.5, 0.5, 0.5])


def test_a_constant_rate_is_exactly_the_plans() -> None:
    assert rates(Optimizer(0.1)) == [0.1] * ALL


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_no_step_of_any_schedule_is_wasted_or_over_the_greatest_rate(
    schedule: str, warmup: float, steps: int
) -> None:
    final = 1e-3 if schedule == "step" else 0.0
    optimizer = Optimizer(0.25, schedule=schedule, warmup=warmup, final_learning_rate=final)
    assert all(0 < rate <= 0.25 for rate in rates(optimizer, steps))


def test_the_schedule_runs_over_the_whole_plan_and_stays_at_its_end() -> None:
    optimizer = Optimizer(1.0, schedule="cosine", warmup=0.2)
    steps, ones = local(optimizer), np.ones((STEPS, P))
    moved = np.concatenate(
        [
            -np.diff(run(steps, ones, round_, np.zeros(P))[:, 0], prepend=0.0)
            for round_ in (*range(1, ROUNDS + 1), ROUNDS + 1, ROUNDS + 9)
        ]
    )
    falling = [(1 + math.cos(math.pi * k / 16)) / 2 for k in range(16)]
    expected = [0.2, 0.4, 0.6, 0.8, *falling, *[falling[-1]] * 2 * STEPS]
    np.testing.assert_allclose(moved, expected, **EXACT)


# -- averaging and the proximal term ---------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decay", [1e-3, 0.5, 0.999, 1 - 2**-53])
def test_the_average_weighs_each_iterate_by_the_decay_to_its_age(method: str, decay: float) -> None:
    steps = local(Optimizer(0.25, method=method, averaging=decay))
    iterates = run(steps, GRADIENTS[:STEPS])
    weights = np.array([decay ** (STEPS - 1 - k) for k in range(STEPS)])
    expected = weights @ iterates / weights.sum()
    np.testing.assert_allclose(steps.result(), expected, **EXACT)


def test_the_average_is_the_bias_corrected_moving_average() -> None:
    steps = local(replace(SGD, averaging=0.9))
    average = np.zeros(P)
    for iterate in run(steps, GRADIENTS):
        average = 0.9 * average + 0.1 * iterate
    np.testing.assert_allclose(steps.result(), average / (1 - 0.9**ALL), **EXACT)


def test_averaging_does_not_change_where_gradients_are_taken() -> None:
    averaged, plain = (run(local(replace(SGD, averaging=d)), GRADIENTS) for d in (0.9, 0.0))
    assert np.array_equal(averaged, plain)


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_one_step_is_its_own_average_and_none_is_the_start(averaging: float) -> None:
    steps = local(replace(SGD, averaging=averaging))
    steps.begin(START, 1)
    assert np.array_equal(steps.result(), START)
    steps.step(GRADIENTS[0])
    np.testing.assert_allclose(steps.result(), steps.weights, **EXACT)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Optimizer(0.05, momentum=0.5), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5)),
        (Optimizer(0.05, method="adam"), lambda p: torch.optim.Adam(p, lr=0.05)),
    ],
    ids=METHODS,
)
def test_fedprox_is_the_method_on_the_loss_with_a_quadratic_added(ours, theirs) -> None:
    generator = np.random.default_rng(3)
    matrix = torch.from_numpy(generator.normal(size=(9, P)))
    target = torch.from_numpy(generator.normal(size=9))
    begin = torch.from_numpy(START)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return ((matrix @ weights - target) ** 2).mean()

    weights = begin.clone().requires_grad_()
    optimizer = theirs([weights])
    steps = local(replace(ours, proximal=0.3))
    steps.begin(START, 1)
    for _ in range(STEPS):
        point = torch.from_numpy(steps.weights.copy()).requires_grad_()
        steps.step(torch.autograd.grad(loss(point), point)[0].numpy())
        optimizer.zero_grad()
        (loss(weights) + 0.3 / 2 * ((weights - begin) ** 2).sum()).backward()
        optimizer.step()
        np.testing.assert_allclose(steps.weights, weights.detach().numpy(), **EXACT)


# -- what a round keeps and touches ----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", EVERYTHING, ids=str)
def test_nothing_of_a_round_is_left_in_the_next(optimizer: Optimizer) -> None:
    used, fresh = local(optimizer), local(optimizer)
    run(used, GRADIENTS[:STEPS], round_=3, start=9 * START)
    used.step(np.full(P, 1e6))  # and where it was cut off does not matter
    one, other = (run(steps, GRADIENTS[STEPS:], round_=2) for steps in (used, fresh))
    assert np.array_equal(one, other)
    assert np.array_equal(used.result(), fresh.result())


@pytest.mark.parametrize("optimizer", EVERYTHING, ids=str)
def test_what_is_given_stays_as_it_was(optimizer: Optimizer) -> None:
    start, gradient = START.copy(), GRADIENTS[0].copy()
    start.setflags(write=False)
    gradient.setflags(write=False)
    steps = local(optimizer)
    steps.begin(start, 1)
    steps.step(gradient)
    assert not np.shares_memory(steps.weights, start)
    assert np.array_equal(gradient, GRADIENTS[0])


@pytest.mark.parametrize("optimizer", EVERYTHING, ids=str)
def test_a_round_may_begin_with_the_result_of_the_one_before(optimizer: Optimizer) -> None:
    steps, copying = local(optimizer), local(optimizer)
    for each in (steps, copying):
        run(each, GRADIENTS[:STEPS])
    one = run(steps, GRADIENTS[STEPS:], 2, steps.result())
    other = run(copying, GRADIENTS[STEPS:], 2, copying.result().copy())
    assert np.array_equal(one, other)


@pytest.mark.parametrize("optimizer", EVERYTHING, ids=str)
def test_rounds_after_the_first_take_no_new_memory(optimizer: Optimizer) -> None:
    size = 10**5
    steps = LocalSteps(optimizer, size, steps=STEPS, rounds=ROUNDS)
    start, gradient = np.ones(size), np.ones(size)
    tracemalloc.start()
    try:
        steps.begin(start, 1)
        steps.step(gradient)
        steps.result()
        assert tracemalloc.get_traced_memory()[1] < start.nbytes / 10
    finally:
        tracemalloc.stop()


def test_a_schedule_or_method_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="sine"):
        learning_rate(Optimizer(1.0, schedule="sine"), 0, 1)
    with pytest.raises(KeyError, match="sgdd"):
        local(Optimizer(1.0, method="sgdd"))
