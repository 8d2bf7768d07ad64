"""How large must epsilon at least be, given how well canaries were found? Three lower bounds.

The rule: a bound comes with its level and with its *ceiling*, the value that the same method gives
when every guess is right: below its ceiling a bound says something, and a value near zero never
shows privacy, only that this attack found nothing. What was chosen (how many guesses, which
thresholds, how many scores share the level) was chosen before anything was scored.

Three methods, from the fewest assumptions to the most:

* ``steinke``: no assumption on the implementation; tests (epsilon, delta) itself.
* ``f-dp``: no assumption on the implementation; tests a whole Gaussian trade-off curve.
* ``cp-gdp``: the canaries' scores are independent of each other, which they are if the engine does
  what is declared; that is enough to refute the declaration, and not enough for any other claim.

Epsilon is for add-or-remove-one adjacency throughout. The standard library alone.

Sources: Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), theorem 5.2; Mahloujifar, Melis,
Chaudhuri 2024 (arXiv 2410.22235), algorithm 2; Clopper and Pearson 1934 with Dong, Roth, Su 2019
(arXiv 1905.02383), corollary 2.13; Nasr et al. 2023 (arXiv 2302.07956).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from audit.canaries.special import (
    binomial_terms,
    binomial_upper,
    normal_cdf,
    normal_quantile,
    solve,
)

METHODS = ("steinke", "f-dp", "cp-gdp")
LARGEST_MU = 40.0
LARGEST_EPSILON = 100.0


@dataclass(frozen=True)
class Guesses:
    """How many canaries were guessed, and how many of the guesses were right.

    Args:
        canaries: m, each included by a fair coin of its own.
        made: r <= m, fixed in advance; half of them "in", half "out".
        right: v <= r.
    """

    canaries: int
    made: int
    right: int

    def perfect(self) -> Guesses:
        """The same with every guess right: what gives a method's ceiling."""
        return Guesses(self.canaries, self.made, self.made)


@dataclass(frozen=True)
class Errors:
    """An attack's mistakes at one threshold fixed in advance.

    Args:
        false_alarms: held-out canaries above the threshold, of ``held_out``.
        misses: included canaries not above it, of ``included``.
    """

    false_alarms: int
    held_out: int
    misses: int
    included: int

    def perfect(self) -> Errors:
        return Errors(0, self.held_out, 0, self.included)


# -- (epsilon, delta) ---------------------------------------------------------------------------


def steinke_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """The chance of so many right guesses, at most, if the mechanism is (epsilon, delta)-DP.

    Args:
        epsilon: >= 0.
        delta: in [0, 1).

    >>> round(steinke_p_value(Guesses(100, 10, 10), 0.0, 0.0), 6)     # 2^-10
    0.000977
    """
    made, right = guesses.made, guesses.right
    terms = binomial_terms(made, 1 / (1 + math.exp(-epsilon)))
    beta = math.fsum(terms[right:])
    alpha, below = 0.0, 0.0
    for i in range(1, right + 1):
        below += terms[right - i]
        alpha = max(alpha, below / i)
    return min(1.0, beta + 2 * guesses.canaries * delta * alpha)


def steinke(guesses: Guesses, delta: float, level: float) -> float:
    """The largest epsilon that so many right guesses refute: the true one is not below it.

    Wrong with a chance of at most ``level`` (in (0, 1)); 0 where nothing is refuted.
    """
    if steinke_p_value(guesses, 0.0, delta) > level:
        return 0.0
    return solve(lambda e: steinke_p_value(guesses, e, delta) > level, 0.0, LARGEST_EPSILON)


# -- Gaussian trade-off curves ------------------------------------------------------------------


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) of mu-GDP, mu > 0 (arXiv 1905.02383, corollary 2.13)."""
    return normal_cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * normal_cdf(
        -epsilon / mu - mu / 2
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """epsilon(delta) of mu-GDP, mu >= 0, and 0 < delta < 1.

    >>> round(gaussian_epsilon(50**0.5 / 4, 1e-5), 4)      # 50 full batches at sigma 4
    8.5959
    """
    if mu <= 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = mu * mu / 2 + mu * (-normal_quantile(delta) + 1)  # Gaussian tail alone is below delta
    if high > 600:  # where e^epsilon leaves a float's comfort; no bound here gets there
        return high
    return solve(lambda e: gaussian_delta(e, mu) <= delta, 0.0, high)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose curve passes through (epsilon, delta): the inverse of the above."""
    return solve(lambda mu: gaussian_epsilon(mu, delta) >= epsilon, 0.0, LARGEST_MU)


def refutes_curve(guesses: Guesses, mu: float, level: float) -> bool:
    """Whether so many right guesses have a chance of at most ``level`` if the engine is mu-GDP."""
    canaries, made, right = guesses.canaries, guesses.made, guesses.right
    correct, wrong = level * right / canaries, level * (made - right) / canaries
    for i in range(right - 1, -1, -1):
        before = wrong
        wrong = max(wrong, normal_cdf(normal_quantile(correct) - mu))
        if wrong == before:
            break
        correct = min(1.0, correct + i / (made - i) * (wrong - before))
    return correct + wrong > made / canaries


def f_dp_mu(guesses: Guesses, level: float) -> float:
    """The largest mu that is refuted: the engine is not mu-GDP for any smaller one."""
    if not refutes_curve(guesses, 0.0, level):
        return 0.0
    return solve(lambda mu: not refutes_curve(guesses, mu, level), 0.0, LARGEST_MU)


def cp_gdp_mu(errors: Sequence[Errors], level: float) -> float:
    """The same from error rates at thresholds fixed in advance, for independent scores.

    The level is divided by twice the number of thresholds: each has two rates.
    """
    each = level / (2 * len(errors))
    best = 0.0
    for error in errors:
        if not error.held_out or not error.included:
            continue
        false_alarm = binomial_upper(error.false_alarms, error.held_out, each)
        miss = binomial_upper(error.misses, error.included, each)
        best = max(best, normal_quantile(1 - false_alarm) - normal_quantile(miss))
    return best
