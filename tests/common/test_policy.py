"""A policy only ever narrows: floors and budgets that no plan may undercut."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from datetime import date

import pytest

from common.canonical import encode
from common.config import Table
from common.data.schema import Column, Schema
from common.errors import BudgetError, PlanError
from common.plan import Cohort, Optimizer, Plan, Privacy, Release
from common.policy import Policy
from common.privacy.filter import Budget

PLAN = Plan(
    name="p",
    task="classification",
    model="softmax",
    rounds=5,
    schema=Schema("image", (1, 2, 2), ("0", "1")),
    cohort=Cohort(2, 1, 60.0),
    optimizer=Optimizer(1.0),
    privacy=Privacy("local", 1.0, 4.0, 1.0, 2, 10.0, 1e-5),
    release=Release("p"),
)
POLICY = Policy("patients", Budget(8.0, 1e-5, 4), approved_plans=(PLAN.digest,))


def read(text: str) -> Policy:
    return Policy.read(Table(tomllib.loads(text), source="policy.toml"))


def with_privacy(**changes) -> Plan:
    return replace(PLAN, privacy=replace(PLAN.privacy, **changes))


def test_a_policy_comes_back_from_its_json() -> None:
    policy = replace(
        POLICY, spare_rounds=3, least_noise_multiplier=0.5, greatest_sampling_rate=0.3,
        most_rounds=7, simulated=True, valid_from=date(2030, 1, 1), valid_until=date(2030, 1, 1),
        columns=("age",), version=9,
    )  # fmt: skip
    assert Policy.decode(policy.encode()) == policy
    assert policy.digest != POLICY.digest


def test_the_order_follows_from_the_budget_unless_the_owner_fixed_it() -> None:
    text = 'dataset = "d"\nbudget = 8.0\ndelta = 1e-5\n'
    assert read(text).budget == Budget(8.0, 1e-5, 4)
    assert read(text + "order = 9").budget == Budget(8.0, 1e-5, 9)


@pytest.mark.parametrize(
    "line",
    ["budget = 0", "budget = -1", "budget = inf", "budget = 1001", "delta = 0", "delta = 0.1"]
    + ["order = 1", "order = 513", "order = 2.5", "spare_rounds = -1", "most_rounds = 0"]
    + ["least_noise_multiplier = -0.1", "greatest_sampling_rate = 0", 'simulated = "yes"']
    + ["greatest_sampling_rate = 1.1", 'dataset = "a/b"', "simulted = true"]
    + ["valid_from = 2030", 'valid_until = "2030-02-30"', "valid_from = 2030-01-01T00:00:00Z"]
    + ['valid_until = "soon"', 'columns = "age"', 'columns = ["a", "a"]', "version = 2"]
    + ["approved_plans = []"],
)
def test_an_impossible_policy_is_refused(line: str) -> None:
    values = {"dataset": '"d"', "budget": "8.0", "delta": "1e-5"}
    key, _, value = line.partition(" = ")
    text = "\n".join(f"{k} = {v}" for k, v in {**values, key: value}.items())
    with pytest.raises(PlanError, match=rf"policy\.toml: .*{key}"):
        read(text)


def test_a_budget_of_next_to_nothing_is_legal_and_admits_nothing() -> None:
    policy = read('dataset = "d"\nbudget = 5e-324\ndelta = 1e-5')
    with pytest.raises(BudgetError):
        policy.check_budget(PLAN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"least_noise_multiplier": 4.1}, "noise_multiplier 4 is below the owner's least 4.1"),
        ({"greatest_sampling_rate": 0.9}, "sampling_rate 1 is over the owner's greatest 0.9"),
        ({"most_rounds": 4}, "5 rounds are over the owner's most 4"),
        ({"budget": Budget(8.0, 1e-6, 4)}, "delta 1e-05 is over the owner's 1e-06"),
    ],
)
def test_a_plan_below_a_floor_is_refused_with_both_values(changes, words: str) -> None:
    with pytest.raises(PlanError, match=re.escape(words)) as caught:
        replace(POLICY, **changes).check(PLAN)
    assert caught.value.code == "below-floor"


def test_floors_are_inclusive() -> None:
    replace(
        POLICY, least_noise_multiplier=4.0, greatest_sampling_rate=1.0, most_rounds=5
    ).check(PLAN)  # fmt: skip


def test_a_plan_and_its_spare_rounds_must_fit_a_fresh_budget() -> None:
    # 10 full-batch steps at sigma 4 and order 4 cost 10 * 4 / 32 = 1.25 and, by proposition 12 of
    # Canonne et al. 2020, log(3/4) - log(4e-5) / 3 = 3.0879 more.
    for budget, fits in ((4.338, True), (4.337, False)):
        policy = replace(POLICY, budget=Budget(budget, 1e-5, 4))
        if fits:
            policy.check_budget(PLAN)
        else:
            with pytest.raises(BudgetError, match=r"would use epsilon_filter 4\.338"):
                policy.check_budget(PLAN)
    # Two spare rounds are four steps more: 0.5.
    with pytest.raises(BudgetError, match=r"5 rounds and 2 spare would use epsilon_filter 4\.838"):
        replace(POLICY, budget=Budget(4.5, 1e-5, 4), spare_rounds=2).check_budget(PLAN)


def test_the_hint_names_a_budget_that_does_admit_the_plan() -> None:
    for sigma in (0.05, 0.2, 1.0, 4.0, 30.0):
        plan = with_privacy(noise_multiplier=sigma)
        with pytest.raises(BudgetError) as caught:
            replace(POLICY, budget=Budget(1e-3, 1e-5, 64)).check_budget(plan)
        epsilon, order = re.search(r"is ([\d.]+) with policy\.order = (\d+)", caught.value.hint).groups()  # type: ignore[union-attr]  # fmt: skip # noqa: E501
        replace(POLICY, budget=Budget(float(epsilon), 1e-5, int(order))).check_budget(plan)


@pytest.mark.parametrize("sigma", [1e-200, 1e-155, 1e-150, 1e-3])
def test_next_to_no_noise_fits_no_budget(sigma: float) -> None:
    plan = with_privacy(noise_multiplier=sigma, sampling_rate=0.5)
    with pytest.raises(BudgetError) as caught:
        replace(POLICY, budget=Budget(1000.0, 1e-5, 2)).check_budget(plan)
    assert caught.value.hint


def test_a_plan_of_very_many_rounds_is_refused_and_does_not_crash() -> None:
    plan = replace(with_privacy(steps=1000), rounds=10**6)
    with pytest.raises(BudgetError):
        replace(POLICY, spare_rounds=10**6).check_budget(plan)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", encode({**POLICY.json(), "schema_version": 1})]
    + [encode({**POLICY.json(), "x": 1}), POLICY.encode() + b"\n"],
)
def test_bytes_that_are_no_policy_are_refused(data: bytes) -> None:
    with pytest.raises(PlanError):
        Policy.decode(data)


# -- approved plans, period, columns -------------------------------------------------------------


def test_a_plan_that_is_not_on_the_list_is_refused_whatever_else_holds() -> None:
    for listed in ((), ("0" * 64,), (PLAN.digest.upper(),)):
        policy = replace(POLICY, approved_plans=listed)
        policy.check_terms(PLAN)
        with pytest.raises(PlanError) as caught:
            policy.check(PLAN)
        assert caught.value.code == "not-approved"
    POLICY.check(PLAN)


@pytest.mark.parametrize(
    ("now", "admitted"),
    [
        ("2029-12-31T23:59:59Z", False),
        ("2030-01-01T00:00:00Z", True),
        ("2030-06-30T23:59:59Z", True),
        ("2030-07-01T00:00:00Z", False),
        ("2031-03-01T00:00:00Z", False),
    ],
)
def test_a_period_begins_and_ends_with_a_whole_day(now: str, admitted: bool) -> None:
    policy = replace(POLICY, valid_from=date(2030, 1, 1), valid_until=date(2030, 6, 30))
    if admitted:
        policy.check(PLAN, now)
        return
    for check in (policy.check, policy.check_terms):
        with pytest.raises(PlanError) as caught:
            check(PLAN, now)
        assert caught.value.code == "outside-period"


def test_without_a_time_the_clock_counts() -> None:
    replace(POLICY, valid_from=date(2001, 1, 1), valid_until=date(9999, 12, 31)).check(PLAN)
    for closed in ({"valid_until": date(2001, 1, 1)}, {"valid_from": date(9999, 1, 1)}):
        with pytest.raises(PlanError):
            replace(POLICY, **closed).check(PLAN)


def test_a_new_period_does_not_refresh_a_budget() -> None:
    """The budget's methods know no time: what was spent in one year is spent in the next."""
    event = PLAN.privacy.event(PLAN.rounds)
    one, next_ = (replace(POLICY, valid_from=date(year, 1, 1)) for year in (2030, 2031))
    assert one.budget == next_.budget
    assert not next_.budget.admits([event] * 3, event)


@pytest.mark.parametrize(
    ("allowed", "admitted"),
    [
        (None, True),
        (("age", "weight", "sick"), True),
        (("age", "weight", "sick", "income"), True),
        (("age", "sick"), False),
        (("age", "weight"), False),  # the target is a column too
        ((), False),
    ],
)
def test_a_plan_reads_only_columns_that_the_owner_allows(allowed, admitted: bool) -> None:
    columns = (Column("age", 0.0, 120.0), Column("weight", 0.0, 300.0))
    schema = Schema("table", (2,), ("no", "yes"), columns, target="sick")
    plan = replace(PLAN, schema=schema)
    policy = replace(POLICY, columns=allowed, approved_plans=(plan.digest,))
    if admitted:
        policy.check(plan)
        return
    with pytest.raises(PlanError) as caught:
        policy.check(plan)
    assert caught.value.code == "other-columns"


def test_days_are_written_as_toml_has_them_or_as_text() -> None:
    text = 'dataset = "d"\nbudget = 8.0\ndelta = 1e-5\nvalid_from = {}\nvalid_until = "2030-12-31"'
    for day in ("2030-01-02", '"2030-01-02"'):
        policy = read(text.format(day))
        assert (policy.valid_from, policy.valid_until) == (date(2030, 1, 2), date(2030, 12, 31))
    with pytest.raises(PlanError, match="valid_until = 2030-12-31 is before valid_from"):
        read(text.format("2031-01-01"))


@pytest.mark.parametrize(
    "changes",
    [{"version": 0}, {"version": True}, {"version": "1"}, {"approved_plans": ["x"]}]
    + [{"approved_plans": [PLAN.digest] * 2}, {"approved_plans": PLAN.digest}]
    + [{"valid_from": "2030-1-1"}, {"valid_from": None}, {"columns": None}, {"spare_rounds": "0"}],
    ids=str,
)
def test_a_policy_with_an_odd_field_is_refused(changes) -> None:
    with pytest.raises(PlanError):
        Policy.decode(encode({**POLICY.json(), **changes}))
