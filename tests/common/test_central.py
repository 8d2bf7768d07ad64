"""Central trust in a plan: what must be agreed, what contradicts it, and what its noise costs."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace

import pytest

from common.central import Adaptive, Central
from common.config import Table
from common.errors import PlanError
from common.plan import Plan
from common.policy import Policy, public_terms
from common.privacy import accountant, reference
from common.privacy.events import Event
from common.privacy.filter import Budget
from tests.common.test_plan import TOML as LOCAL

TOML = (
    LOCAL.replace('"local"', '"central"')
    .replace("steps = 2\n", "")
    .replace("quorum = 5\n", "")
    .replace("[plan.release]", "[plan.central]\nlocal_steps = 3\n[plan.release]")
)
ADAPTIVE = TOML.replace(
    "[plan.release]", "[plan.central.adaptive]\ncount_noise = 5\ngreatest_norm = 4\n[plan.release]"
)


def read(text: str) -> Plan:
    return Plan.read(Table(tomllib.loads(text), source="plan.toml").table("plan"))


def test_a_plan_with_central_trust_protects_a_client_once_a_round() -> None:
    plan = read(TOML)
    assert plan.central == Central(local_steps=3, local_sampling_rate=1.0)
    assert (plan.privacy.unit, plan.privacy.steps) == ("client", 1)
    assert plan.event() == Event(0.5, 1.5, 5)  # a step for each of five rounds


@pytest.mark.parametrize("text", [TOML, ADAPTIVE])
def test_it_comes_back_from_its_json_with_the_same_digest(text: str) -> None:
    plan = read(text)
    assert Plan.decode(plan.encode()) == plan


def test_a_plan_without_central_trust_has_the_json_that_it_always_had() -> None:
    assert "central" not in read(LOCAL).json()


def test_what_the_plan_costs_is_what_another_accountant_says() -> None:
    plan = read(ADAPTIVE)
    ours = accountant.epsilon([plan.event()], plan.privacy.delta)
    assert ours == pytest.approx(reference.rdp_epsilon([plan.event()], 1e-5), rel=1e-9)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("clients = 10", "clients = 10\nquorum = 2", "quorum = 2 contradicts"),
        ("clients = 10", "clients = 10\nover_selection = 1", "over_selection contradicts"),
        *(
            (
                "learning_rate = 4.0",
                f'learning_rate = 4.0\naggregation = "{rule}"',
                "single updates",
            )
            for rule in ("norm-bounded",)
        ),
        ("divisor = 72", "divisor = 72\nsteps = 2", "steps = 2 contradicts"),
        ("[plan.central]\nlocal_steps = 3\n", "", "central"),
        ("local_steps = 3", "local_steps = 0", "local_steps"),
        ("[plan.central]", '[plan.personal]\nlayers = ["head"]\n[plan.central]', "not built"),
        ("local_steps = 3", "local_steps = 3\nlocal_sampling_rate = 0", "local_sampling_rate"),
        ("local_steps = 3", "local_steps = 3\nsteps = 3", "unknown key"),
        ('"central"', '"central"\nunit = "record"', "unit"),
    ],
)
def test_what_contradicts_central_trust_is_refused_by_name(old: str, new: str, names: str) -> None:
    with pytest.raises(PlanError, match=names):
        read(TOML.replace(old, new))


@pytest.mark.parametrize("rule", ["krum", "fedmedian", "trimmed-mean", "geometric-median"])
def test_a_rule_that_needs_several_replies_cannot_have_them(rule: str) -> None:
    with pytest.raises(PlanError, match="quorum"):
        read(TOML.replace("learning_rate = 4.0", f'learning_rate = 4.0\naggregation = "{rule}"'))


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "fedyogi"])
def test_a_server_optimizer_sees_the_noised_mean_alone_and_is_allowed(rule: str) -> None:
    plan = read(TOML.replace("learning_rate = 4.0", f'learning_rate = 4.0\naggregation = "{rule}"'))
    assert plan.optimizer.aggregation.name == rule


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("count_noise = 5", "count_noise = 0.75", "leaves the sum no noise"),
        ("greatest_norm = 4", "greatest_norm = 0.5", "is not from"),
        ("greatest_norm = 4", "greatest_norm = 4\nleast_norm = 2", "is not from"),
        ("count_noise = 5", "count_noise = 5\ntarget_quantile = 1", "target_quantile"),
    ],
)
def test_a_norm_that_cannot_adapt_is_refused(old: str, new: str, names: str) -> None:
    with pytest.raises(PlanError, match=names):
        read(ADAPTIVE.replace(old, new))


@pytest.mark.parametrize(("noise", "count"), [(1.0, 5.0), (4.0, 2.5), (0.6, 0.4)])
def test_sum_and_count_together_cost_what_the_plan_declares(noise: float, count: float) -> None:
    """One Gaussian vector: a client moves the sum by C and the count by 1/2, so in units of the
    noise it moves it by sqrt(1 / z_Delta^2 + 1 / (2 sigma_b)^2), which is to be 1 / z."""
    split = Adaptive(0.5, 0.2, count, 0.1, 10.0).sum_noise(noise)
    assert split > noise
    assert math.hypot(1 / split, 0.5 / count) == pytest.approx(1 / noise, rel=1e-12)


def test_the_norm_moves_by_the_papers_rule_and_stays_within_its_bounds() -> None:
    adaptive = Adaptive(0.5, 0.2, 5.0, 0.5, 4.0)
    assert adaptive.next_norm(1.0, 0.5) == 1.0
    assert adaptive.next_norm(1.0, 1.0) == pytest.approx(math.exp(-0.1))
    assert adaptive.next_norm(1.0, 0.0) == pytest.approx(math.exp(0.1))
    assert adaptive.next_norm(3.9, -1e300) == 4.0
    assert adaptive.next_norm(0.5, 1e300) == 0.5


# -- the owner's policy --------------------------------------------------------------------------

POLICY = Policy("patients", Budget(20.0, 1e-5, 4))


def test_an_owner_who_did_not_say_so_allows_no_central_plan() -> None:
    with pytest.raises(PlanError, match="only the coordinator's honesty protects") as caught:
        POLICY.check_terms(read(TOML))
    assert caught.value.code == "other-unit"


def test_an_owner_of_whole_clients_budget_allows_no_local_plan() -> None:
    trusting = replace(POLICY, unit="client")
    trusting.check_terms(read(TOML))
    with pytest.raises(PlanError) as caught:
        trusting.check_terms(read(LOCAL))
    assert caught.value.code == "other-unit"


def test_the_unit_is_in_what_is_signed_and_published_and_absent_where_it_always_was() -> None:
    trusting = replace(POLICY, unit="client")
    assert Policy.decode(trusting.encode()) == trusting
    assert public_terms(trusting)["unit"] == "client"
    assert "unit" not in POLICY.json() | public_terms(POLICY)
