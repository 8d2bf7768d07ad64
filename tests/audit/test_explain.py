"""The plain-language page: its numbers against formulas of papers, and what it must not promise."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.explain import WIDTH, Explanation, explain
from audit.meaning import CURVE, Meaning, curve, in_group
from audit.verify import Verdict, check
from common.privacy.events import Event

from .bundle_fixtures import PLAN, PRIVACY, SIGMA, World, exact_epsilon, trust_in

NORMAL = NormalDist()


def verdict(world: World | None = None, *, trusted: bool = True, clients: int = 2) -> Verdict:
    world = world or World()
    bundle = world.bundle([world.history() for _ in range(clients)])
    return check(bundle, trust_in(bundle) if trusted else None, signatures=2)


@pytest.fixture(scope="module")
def page() -> Explanation:
    return explain(verdict())


# -- the numbers -----------------------------------------------------------------------------------


def test_the_attackers_numbers_are_those_of_the_two_bounds() -> None:
    # epsilon = 1, delta = 0, a = 1 %: e * 0.01, against 1 - 0.99 / e = 0.64; and e / (1 + e).
    weak = Meaning.of(1.0, 0.0)
    assert weak.true_positive_rate == pytest.approx(0.0271828183, abs=1e-10)
    assert weak.posterior == pytest.approx(0.7310585786, abs=1e-10)
    # epsilon = 6: e^6 = 403.43 passes 1, so 1 - 0.98999 / 403.4287935 = 0.99754606 is the least.
    strong = Meaning.of(6.0, 1e-5)
    assert strong.true_positive_rate == pytest.approx(1 - 0.98999 / 403.4287935, abs=1e-10)
    assert strong.posterior == pytest.approx((403.4287935 + 1e-5) / 404.4287935, abs=1e-10)
    # epsilon = ln 2, delta = 0.1, a = 0.3: 2 * 0.3 + 0.1 = 0.7, 1 - (1 - 0.3 - 0.1) / 2 = 0.7.
    both = Meaning.of(math.log(2), 0.1, 0.3)
    assert both.true_positive_rate == pytest.approx(0.7)
    assert both.posterior == pytest.approx(2.1 / 3)


def test_no_privacy_at_all_means_that_the_attacker_always_wins_and_zero_that_it_guesses() -> None:
    assert Meaning.of(1e6, 0.0).true_positive_rate == 1
    assert Meaning.of(1e6, 0.0).posterior == 1
    assert Meaning.of(0.0, 0.0).true_positive_rate == pytest.approx(0.01)
    assert Meaning.of(0.0, 0.0).posterior == 0.5
    assert (Meaning.of(1e6, 0.0).found, Meaning.of(1e6, 0.0).right) == (100, 100)
    assert (Meaning.of(0.0, 0.0).found, Meaning.of(0.0, 0.0).right) == (1, 50)


def test_people_are_counted_up_and_never_down() -> None:
    # e * 0.01 = 2.718 %, e / (1 + e) = 73.1 %.
    assert (Meaning.of(1.0, 0.0).found, Meaning.of(1.0, 0.0).right) == (3, 74)


@pytest.mark.parametrize(
    ("epsilon", "words"),
    [
        (0.1, "hardly better than guessing"),  # 1.1 % found, 52.5 % right
        (1.5, "a real limit"),  # 4.5 % found, but 81.8 % right: not "hardly better"
        (3.0, "a real limit"),  # 20 %
        (4.0, "not a strong one"),  # e^4 * 0.01 = 54.6 %
        (6.0, "rules out little"),  # 99.8 %
    ],
)
def test_no_number_is_talked_up(epsilon: float, words: str) -> None:
    assert words in Meaning.of(epsilon, 0.0).words


@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 4), (4.0, 50), (10.0, 100), (20.0, 1)])
def test_the_curve_never_promises_more_than_the_best_attack_on_a_gaussian_takes(
    sigma: float, steps: int
) -> None:
    # Dong, Roth and Su 2022, section 2.3: the most powerful test of N(0, 1) against N(mu, 1).
    mu = math.sqrt(steps) / sigma
    best = 1 - NORMAL.cdf(NORMAL.inv_cdf(0.99) - mu)
    bound = Meaning.least(curve(Event(1.0, sigma, steps)))
    assert best <= bound.true_positive_rate
    # Even odds: half of one and the total variation distance, 2 cdf(mu / 2) - 1.
    assert NORMAL.cdf(mu / 2) <= bound.posterior
    # And it is worth having: the stated pair alone allows 99.9 % at sigma 4 and 50 steps.
    alone = Meaning.of(exact_gaussian(sigma, steps), 1e-5)
    assert bound.true_positive_rate < alone.true_positive_rate or mu < 0.1


def exact_gaussian(sigma: float, steps: int) -> float:
    """Balle and Wang 2018, theorem 8, for any sigma: only steps / sigma^2 matters."""
    return exact_epsilon(steps * (SIGMA / sigma) ** 2)


@given(st.floats(0.0, 3.0), st.floats(1e-9, 1e-2))
def test_a_group_of_two_is_the_triangle_of_two_steps(epsilon: float, delta: float) -> None:
    # P <= e^eps (e^eps R + delta) + delta, written out.
    [(twice, more)] = in_group([(epsilon, delta)], 2)
    assert twice == pytest.approx(2 * epsilon)
    assert more == pytest.approx(min(1.0, delta * (1 + math.exp(epsilon))))
    assert in_group([(epsilon, delta)], 1) == [(epsilon, delta)]


@pytest.mark.parametrize("size", [2, 10])
def test_the_group_bound_covers_a_gaussian_moved_that_many_times_as_far(size: int) -> None:
    sigma, steps = 40.0, 4
    mu = size * math.sqrt(steps) / sigma
    bound = Meaning.least(in_group(curve(Event(1.0, sigma, steps)), size))
    assert 1 - NORMAL.cdf(NORMAL.inv_cdf(0.99) - mu) <= bound.true_positive_rate
    assert NORMAL.cdf(mu / 2) <= bound.posterior


def test_whoever_is_in_the_data_more_often_is_protected_less(page: Explanation) -> None:
    plain, *more = page.cases
    assert plain.meaning == page.meaning
    assert [case.who for case in page.cases] == [
        "one record",
        "2 records at one client",
        "10 records at one client",
        "one record at each of 2 clients",
    ]
    for case in more:
        assert case.meaning.true_positive_rate > plain.meaning.true_positive_rate
        assert case.meaning.posterior > plain.meaning.posterior


def test_a_person_at_every_client_is_counted_over_all_of_them() -> None:
    cases = explain(verdict(clients=3)).cases
    assert cases[-1].who == "one record at each of 3 clients"
    # Full batches: three times the steps are a Gaussian moved sqrt(3) times as far.
    mu = math.sqrt(3 * PLAN.event().steps) / PRIVACY.noise_multiplier
    assert NORMAL.cdf(mu / 2) <= cases[-1].meaning.posterior


def test_a_headline_that_is_too_low_lowers_none_of_the_bounds(page: Explanation) -> None:
    lying = verdict()
    lying = replace(lying, claims={**lying.claims, "epsilon": "0.001"})
    assert explain(lying).meaning == page.meaning
    assert explain(lying).cases == page.cases


def test_the_curve_is_pinned() -> None:
    assert CURVE[0] == 1e-10
    assert CURVE[-1] == 0.5
    assert list(CURVE) == sorted(set(CURVE))
    assert len(CURVE) == 30


# -- the page --------------------------------------------------------------------------------------


def test_the_page_is_one_page_and_says_what_is_asked_of_it(page: Explanation) -> None:
    text = page.text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert 40 < len(lines) < 90
    words = " ".join(text.split())
    assert f"finds at most {page.meaning.found}. A blind guess finds 1" in words
    assert f"right about at most {page.meaning.right}. A blind guess is right about 50" in words
    assert "without any privacy it could be all 100" in words
    assert "delta 1e-5, for each record, add-or-remove-one" in words
    assert "one in 100,000" in words
    assert "That a site takes part" in words
    assert "2 rounds planned, 2 charged" in words
    assert "the schema, with 2 classes" in words
    assert "When messages are sent" in words
    assert "other federations" in words
    for source in ("0811.2501", "1311.0776", "1905.02383"):
        assert source in words


def test_the_headline_is_rounded_up(page: Explanation) -> None:
    shown = page.text().split("epsilon ")[1].split(" ")[0]
    assert page.epsilon <= float(shown) < page.epsilon + 0.01


def test_a_bundle_that_nobody_vouched_for_says_so_first() -> None:
    words = " ".join(explain(verdict(trusted=False)).text().split())
    assert words.index("Nobody vouched for the keys") < words.index("epsilon")
    assert "Nobody vouched" not in explain(verdict()).text()


def test_repeatable_noise_says_that_it_protects_nobody() -> None:
    genuine = verdict()
    first, *rest = genuine.clients
    repeatable = replace(genuine, clients=[replace(first, noise=("simulated",)), *rest])
    words = " ".join(explain(repeatable).text().split())
    assert "protects nobody" in words
    assert explain(repeatable).json()["protects_nobody"] is True
    assert "protects nobody" not in explain(genuine).text()


def test_the_json_has_the_numbers_and_the_words(page: Explanation) -> None:
    data = json.loads(json.dumps(page.json()))
    assert data["whole_curve"]["found_of_100"] == page.meaning.found
    assert data["stated_pair_alone"]["true_positive_rate"] == page.stated.true_positive_rate
    assert data["cases"][0]["who"] == "one record"
    assert data["unit"] == "record"
    assert data["no_privacy"] == {"found_of_100": 100, "right_of_100": 100}
    assert [section["heading"] for section in data["sections"]] == [h for h, _ in page.sections]


def test_the_same_bundle_gives_the_same_words(page: Explanation) -> None:
    assert explain(verdict()).text() == page.text()


def test_explaining_needs_nothing_but_the_verifying_half() -> None:
    code = (
        "import sys, audit.explain\n"
        "heavy = {'numpy', 'torch', 'flwr', 'dp_accounting', 'scipy', 'jinja2', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
