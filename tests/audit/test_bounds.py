"""Bounds against scipy, the papers' arithmetic and the values of ideal Gaussian scores."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from audit.canaries import bounds
from audit.canaries.bounds import Errors, Guesses
from audit.canaries.design import Design
from audit.canaries.judgement import guess, mistakes
from audit.canaries.special import (
    binomial_terms,
    binomial_upper,
    chi_square_quantile,
    chi_square_tails,
    normal_cdf,
    normal_quantile,
)
from common.privacy import reference
from common.privacy.events import Event


@pytest.mark.parametrize("dof", [1, 7, 500, 100_000, 1_000_000])
@pytest.mark.parametrize("p", [1e-7, 0.005, 0.3, 0.5, 0.995])
def test_chi_square_is_scipys(dof: int, p: float) -> None:
    x = float(stats.chi2.ppf(p, dof))
    assert chi_square_quantile(p, dof) == pytest.approx(x, rel=1e-9)
    lower, upper = chi_square_tails(x, dof)
    assert lower == pytest.approx(float(stats.chi2.cdf(x, dof)), rel=1e-7)
    assert upper == pytest.approx(float(stats.chi2.sf(x, dof)), rel=1e-7)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 10), (7, 450), (449, 450), (200, 400)])
def test_clopper_pearson_is_scipys(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n, alternative="less").proportion_ci(0.999).high
    assert binomial_upper(hits, n, 0.001) == pytest.approx(float(expected), rel=1e-9)


def test_clopper_pearson_of_all_hits_is_one() -> None:
    assert binomial_upper(5, 5, 0.01) == 1.0


def test_normal_and_binomial_keep_their_lower_tails() -> None:
    for z in (-30.0, -8.0, -1.0, 0.0, 3.0):
        assert normal_cdf(z) == pytest.approx(float(stats.norm.cdf(z)), rel=1e-12)
    assert normal_quantile(normal_cdf(-8.0)) == pytest.approx(-8.0)
    assert (normal_quantile(0.0), normal_quantile(1.0)) == (-37.0, 37.0)
    assert binomial_terms(200, 0.98) == pytest.approx(
        stats.binom.pmf(np.arange(201), 200, 0.98).tolist(), rel=1e-9
    )
    assert binomial_terms(3, 1.0) == [0, 0, 0, 1]


def test_without_delta_steinkes_p_value_is_a_binomial_tail() -> None:
    q = math.exp(1.0) / (1 + math.exp(1.0))
    for right in (50, 80, 95):
        expected = float(stats.binom.sf(right - 1, 100, q))
        assert bounds.steinke_p_value(Guesses(1000, 100, right), 1.0, 0.0) == pytest.approx(
            expected, rel=1e-9
        )


def test_steinkes_delta_term_is_the_papers_by_exact_arithmetic() -> None:
    """Theorem 5.2 in fractions: 4 guesses of 10 canaries, 3 right, e^epsilon = 3."""
    q, delta = Fraction(3, 4), Fraction(1, 100)
    terms = [math.comb(4, k) * q**k * (1 - q) ** (4 - k) for k in range(5)]
    beta = terms[3] + terms[4]
    alpha = max(sum(terms[3 - i : 3]) / i for i in (1, 2, 3))
    found = bounds.steinke_p_value(Guesses(10, 4, 3), math.log(3), 0.01)
    assert found == pytest.approx(float(beta + 2 * 10 * delta * alpha), rel=1e-12)


def test_a_bound_is_where_the_p_value_meets_the_level() -> None:
    guesses = Guesses(1000, 200, 160)
    epsilon = bounds.steinke(guesses, 1e-5, 0.025)
    assert bounds.steinke_p_value(guesses, epsilon, 1e-5) == pytest.approx(0.025, rel=1e-6)
    mu = bounds.f_dp_mu(guesses, 0.025)
    assert bounds.refutes_curve(guesses, mu - 1e-6, 0.025)
    assert not bounds.refutes_curve(guesses, mu + 1e-6, 0.025)


def test_guesses_no_better_than_chance_say_nothing() -> None:
    guesses = Guesses(1000, 200, 100)
    assert bounds.steinke(guesses, 1e-5, 0.05) == 0.0
    assert bounds.f_dp_mu(guesses, 0.05) == 0.0
    assert bounds.cp_gdp_mu([Errors(225, 450, 225, 450)], 0.05) == 0.0
    assert bounds.cp_gdp_mu([Errors(0, 0, 0, 0)], 0.05) == 0.0


def test_gaussian_epsilon_is_exact_for_full_batches() -> None:
    """50 full batches at sigma 4 are mu = sqrt(50) / 4; exact value 8.5958658."""
    assert bounds.gaussian_epsilon(math.sqrt(50) / 4, 1e-5) == pytest.approx(8.5958658, abs=1e-6)
    assert reference.pld_epsilon([Event(1.0, 4.0, 50)], 1e-5) == pytest.approx(
        bounds.gaussian_epsilon(math.sqrt(50) / 4, 1e-5), abs=1e-4
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 20.0, 60.0])
def test_mu_and_epsilon_are_inverse(epsilon: float) -> None:
    assert bounds.gaussian_epsilon(bounds.gaussian_mu(epsilon, 1e-5), 1e-5) == pytest.approx(
        epsilon, rel=1e-6
    )


@pytest.mark.parametrize("method", ["steinke", "f-dp", "cp-gdp"])
def test_more_right_guesses_and_laxer_levels_never_lower_a_bound(method: str) -> None:
    def bound(right: int, level: float) -> float:
        if method == "steinke":
            return bounds.steinke(Guesses(1000, 200, right), 1e-5, level)
        if method == "f-dp":
            return bounds.f_dp_mu(Guesses(1000, 200, right), level)
        wrong = 200 - right
        return bounds.cp_gdp_mu([Errors(wrong, 400, wrong, 400)], level)

    found = [bound(right, 0.025) for right in range(100, 201, 10)]
    assert found == sorted(found)
    assert found[-1] > found[0]
    assert bound(160, 0.1) >= bound(160, 0.025) >= bound(160, 1e-6)


def test_ceilings_are_the_notes_and_grow_with_guesses() -> None:
    """No more than log(r / log(1 / level)), less what delta takes."""
    for made in (100, 200, 400):
        perfect = Guesses(1000, made, 0).perfect()
        ceiling = bounds.steinke(perfect, 1e-5, 0.05)
        limit = -math.log(0.05 ** (-1 / made) - 1)  # 0.05 = q^r
        assert limit - 0.1 < ceiling <= limit + 1e-9


# Means over seeds of ideal scores N(0, 1) and N(mu, 1), m = 1000, 95 % for each method.
IDEAL = {1.0: (0.2, 0.3, 0.1), 4.0: (1.3, 2.0, 2.7), 8.0: (2.6, 4.2, 6.4)}


@pytest.mark.parametrize("epsilon", IDEAL)
def test_ideal_gaussian_scores_give_the_published_tightness(epsilon: float) -> None:
    mu, design = bounds.gaussian_mu(epsilon, 1e-5), Design()
    rows = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        coins = [bool(coin) for coin in generator.random(1000) < 0.5]
        scores = (generator.normal(size=1000) + mu * np.array(coins)).tolist()
        guesses, errors = guess(design, scores, coins), mistakes(design, scores, coins)
        rows.append(
            (
                bounds.steinke(guesses, 1e-5, 0.05),
                bounds.gaussian_epsilon(bounds.f_dp_mu(guesses, 0.05), 1e-5),
                bounds.gaussian_epsilon(bounds.cp_gdp_mu(errors, 0.05), 1e-5),
            )
        )
    assert np.max(rows) <= epsilon
    assert np.mean(rows, axis=0) == pytest.approx(IDEAL[epsilon], rel=0.25, abs=0.15)
