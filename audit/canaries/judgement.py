"""What follows from what was fixed in advance and what was seen. Pure.

The rule: :func:`judge` is a function of design, claim, observation and coins alone, so that whoever
holds a record gets the same numbers. Two kinds of level are kept apart: *bounds* are stated at
95 %, and an *alarm* is raised only at a level at which a hundred thousand correct runs raise one.

The standard library alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from audit.canaries import bounds
from audit.canaries.bounds import Errors, Guesses
from audit.canaries.design import SCORES, Claim, Design, Observed
from audit.canaries.interval import (
    Interval,
    interval_json,
    sigma_interval,
    too_little_noise,
    too_much_influence,
)
from common.canonical import Json, number

# A Gaussian curve is held against the declared one at a few deltas; between them it may be off.
CURVE_SLACK = 1.01


@dataclass(frozen=True)
class Bound:
    """One lower bound on epsilon, by one method and one score.

    Args:
        method: of :data:`~audit.canaries.bounds.METHODS`.
        score: of :data:`SCORES`.
        epsilon: the bound; 0 says nothing.
        ceiling: what perfect guesses would have given.
        refutes: the claim itself is refuted, at the alarm level.
    """

    method: str
    score: str
    epsilon: float
    ceiling: float
    refutes: bool

    def json(self) -> Json:
        return {
            **asdict(self),
            "epsilon": number(self.epsilon),
            "ceiling": number(self.ceiling),
        }


@dataclass(frozen=True)
class Judgement:
    """What follows. ``wrong`` names each clause of the declaration that is refuted."""

    right: dict[str, int]
    bounds: tuple[Bound, ...]
    sigma: Interval
    noise_p_value: float
    influence_p_value: float
    wrong: tuple[str, ...]

    def best(self, method: str) -> Bound:
        """A method's largest bound: valid, since the level was divided by the number of scores."""
        found = (bound for bound in self.bounds if bound.method == method)
        return max(found, key=lambda bound: bound.epsilon)

    def json(self) -> Json:
        return {
            "right": self.right,
            "bounds": [bound.json() for bound in self.bounds],
            "sigma": interval_json(self.sigma),
            "noise_p_value": number(self.noise_p_value),
            "influence_p_value": number(self.influence_p_value),
            "wrong": list(self.wrong),
        }


def judge(design: Design, claim: Claim, observed: Observed, coins: Sequence[bool]) -> Judgement:
    """Score guesses that were fixed before the coins were known.

    Args:
        coins: for each canary, whether it was among the records.
    """
    right: dict[str, int] = {}
    found: list[Bound] = []
    for name in SCORES:
        guesses = guess(design, observed.scores[name], coins)
        errors = mistakes(design, observed.scores[name], coins)
        right[name] = guesses.right
        found += _bounds(design, claim, name, guesses, errors)
    held_out = [square for square, coin in zip(observed.squares, coins, strict=True) if not coin]
    squares, values = observed.spare_squares, observed.spare_values
    squares, values = squares + sum(held_out), values + len(held_out) * claim.event.steps
    total = sum(x for x, coin in zip(observed.sums, coins, strict=True) if coin)
    noise = too_little_noise(squares, values, claim.event.noise_multiplier)
    influence = too_much_influence(total, sum(coins), claim.event)
    wrong = [f"{bound.method} by {bound.score}" for bound in found if bound.refutes]
    wrong += ["noise"] * (noise <= design.alarm_level)
    wrong += ["influence"] * (influence <= design.alarm_level)
    return Judgement(
        right,
        tuple(found),
        sigma_interval(squares, values, design.interval),
        noise,
        influence,
        tuple(wrong),
    )


def guess(design: Design, scores: Sequence[float], coins: Sequence[bool]) -> Guesses:
    """The highest scores are guessed "in", the lowest "out"; equal ones in the canaries' order."""
    order = sorted(range(design.canaries), key=lambda i: (-scores[i], i))
    half = design.guesses // 2
    right = sum(coins[i] for i in order[:half]) + sum(not coins[i] for i in order[-half:])
    return Guesses(design.canaries, design.guesses, right)


def mistakes(design: Design, scores: Sequence[float], coins: Sequence[bool]) -> list[Errors]:
    """Error rates of the counted canaries at thresholds that the calibration canaries gave."""
    pooled = sorted(scores[: design.calibration])
    counted = list(zip(scores, coins, strict=True))[design.calibration :]
    included = sum(coin for _, coin in counted)
    result = []
    for rank in design.ranks:
        threshold = pooled[int(rank * len(pooled))]
        false_alarms = sum(score > threshold and not coin for score, coin in counted)
        misses = sum(score <= threshold and coin for score, coin in counted)
        result.append(Errors(false_alarms, len(counted) - included, misses, included))
    return result


def _bounds(
    design: Design, claim: Claim, score: str, guesses: Guesses, errors: Sequence[Errors]
) -> list[Bound]:
    level, alarm, delta = design.level, design.alarm_level, claim.delta
    best_errors = [error.perfect() for error in errors]

    def of_curve(mu: float) -> float:
        return bounds.gaussian_epsilon(mu, delta)

    limit = claim.mu * CURVE_SLACK
    return [
        Bound(
            "steinke",
            score,
            bounds.steinke(guesses, delta, level),
            bounds.steinke(guesses.perfect(), delta, level),
            bounds.steinke_p_value(guesses, claim.epsilon, delta) <= alarm,
        ),
        Bound(
            "f-dp",
            score,
            of_curve(bounds.f_dp_mu(guesses, level)),
            of_curve(bounds.f_dp_mu(guesses.perfect(), level)),
            bounds.refutes_curve(guesses, limit, alarm),
        ),
        Bound(
            "cp-gdp",
            score,
            of_curve(bounds.cp_gdp_mu(errors, level)),
            of_curve(bounds.cp_gdp_mu(best_errors, level)),
            bounds.cp_gdp_mu(errors, alarm) > limit,
        ),
    ]
