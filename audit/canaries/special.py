"""Normal, binomial and chi-square distributions, to the last bits, from the standard library.

The rule: whoever checks a record needs no numerical library. Tails keep their relative accuracy:
a p-value of 1e-12 is not 1 minus something.

Source: incomplete gamma: Numerical Recipes, section 6.2; binomial terms through ``lgamma``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_FARTHEST = 37.0  # standard deviations; beyond, a tail is below the least float


def normal_cdf(z: float) -> float:
    """P[N(0, 1) <= z], accurate in the lower tail too."""
    return math.erfc(-z / math.sqrt(2)) / 2


def normal_quantile(p: float) -> float:
    """The z with P[N(0, 1) <= z] = p; -37 and 37 for what no float tells from 0 and 1."""
    if p <= 0:
        return -_FARTHEST
    if p >= 1:
        return _FARTHEST
    return _NORMAL.inv_cdf(p)


@lru_cache(maxsize=64)
def _log_choose(n: int) -> tuple[float, ...]:
    top = math.lgamma(n + 1)
    return tuple(top - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1))


def binomial_terms(n: int, p: float) -> list[float]:
    """P[Bin(n, p) = k] for k = 0 … n."""
    if p <= 0 or p >= 1:
        return [float(k == (n if p >= 1 else 0)) for k in range(n + 1)]
    log_p, log_q = math.log(p), math.log1p(-p)
    return [math.exp(c + k * log_p + (n - k) * log_q) for k, c in enumerate(_log_choose(n))]


def fair_coins(heads: int, n: int) -> float:
    """The chance that ``n`` fair coins show a count at least as far from n / 2 as ``heads`` is.

    >>> fair_coins(0, 10) == 2 / 2**10
    True
    """
    fewer = min(heads, n - heads)
    return min(1.0, 2 * math.fsum(binomial_terms(n, 0.5)[: fewer + 1]))


def binomial_upper(hits: int, n: int, level: float) -> float:
    """The one-sided Clopper-Pearson bound: the largest p with P[Bin(n, p) <= hits] >= ``level``.

    Source: Clopper and Pearson 1934.

    >>> round(binomial_upper(0, 100, 0.05), 5)      # 1 - 0.05^(1/100)
    0.02951
    """
    if hits >= n:
        return 1.0
    choose = _log_choose(n)[: hits + 1]

    def at_most(p: float) -> float:
        log_p, log_q = math.log(p), math.log1p(-p)
        return math.fsum(math.exp(c + k * log_p + (n - k) * log_q) for k, c in enumerate(choose))

    return solve(lambda p: at_most(p) < level, hits / n, 1.0)


def chi_square_tails(x: float, dof: int) -> tuple[float, float]:
    """P[X <= x] and P[X >= x] of a chi-square variable, each with its own relative accuracy."""
    if x <= 0:
        return 0.0, 1.0
    a, half = dof / 2, x / 2
    log_front = a * math.log(half) - half - math.lgamma(a)
    if half < a + 1:
        lower = math.exp(log_front) * _series(a, half)
        return lower, 1 - lower
    upper = math.exp(log_front) * _fraction(a, half)
    return 1 - upper, upper


def chi_square_quantile(p: float, dof: int) -> float:
    """The x with P[X <= x] = ``p``, for 0 < p < 1."""
    upper = p > 0.5
    spread = 40 * math.sqrt(2 * dof) + 400

    def above(x: float) -> bool:
        lower_tail, upper_tail = chi_square_tails(x, dof)
        return upper_tail < 1 - p if upper else lower_tail > p

    return solve(above, max(0.0, dof - spread), dof + spread)


def solve(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``holds`` turns from False to True on [low, high], by halving."""
    for _ in range(80):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _series(a: float, x: float) -> float:
    term = total = 1 / a
    n = a
    while term > total * 1e-17:
        n += 1
        term *= x / n
        total += term
    return total


def _fraction(a: float, x: float) -> float:
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / (b or tiny)
    result = d
    for i in range(1, 10**6):
        step = -i * (i - a)
        b += 2
        d = step * d + b
        c = b + step / c
        d = 1 / (d or tiny)
        c = c or tiny
        change = d * c
        result *= change
        if abs(change - 1) < 1e-16:
            break
    return result
