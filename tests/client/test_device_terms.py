"""What an owner decided since an update counts at the next start, whatever was prepared then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.updater import update
from common.errors import TrustError
from common.keys import PublicKey
from tests.client.device_fixtures import (
    FIRST,
    NOW,
    POLICY,
    STRANGER,
    World,
    answers,
    is_answer_of,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.updated(tmp_path)


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"least_version": 2}, "too-old"),
        ({"greatest_epsilon": 1.9}, "policy"),
        ({"greatest_delta": 1e-6}, "policy"),
        ({"signers": (STRANGER.public.fingerprint,), "threshold": 1}, "bad-signature"),
    ],
)
def test_a_policy_that_became_stricter_refuses_what_was_prepared(
    world: World, terms: dict[str, object], code: str
) -> None:
    world.home.set_policy(replace(POLICY, **terms))
    with pytest.raises(TrustError) as caught:
        Predictor.load(world.home)
    assert caught.value.code == code
    assert not update(world.home, NOW).installed  # nor is it made ready, or a reason to fail


def test_a_simulated_release_that_was_prepared_is_refused_once_its_owner_wants_none(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path, replace(POLICY, accept_simulated=True))
    world.publish(replace(FIRST, predicate={"noise": ["cryptographic", "simulated"]}))
    update(world.home, NOW)
    assert is_answer_of(FIRST, answers(world.home))
    world.home.set_policy(POLICY)
    with pytest.raises(TrustError) as caught:
        Predictor.load(world.home)
    assert caught.value.code == "simulated"


def test_who_has_signed_is_known_and_counts_as_far_as_the_policy_of_now_names_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is left to find it out anew: those who signed did so before."""
    (world.home.path / "root.json").write_bytes(b"{}")
    for kept in (world.home.tuf / "root_history").glob("*.json"):
        kept.unlink()
    monkeypatch.setattr(PublicKey, "verify", lambda *_: False)
    home = DeviceHome(world.home.path)
    assert is_answer_of(FIRST, answers(home))
    home.set_policy(replace(POLICY, threshold=1, signers=POLICY.signers[:1]))
    assert is_answer_of(FIRST, answers(home))
    home.set_policy(replace(POLICY, signers=(POLICY.signers[0], STRANGER.public.fingerprint)))
    with pytest.raises(TrustError) as caught:
        Predictor.load(home)
    assert caught.value.code == "bad-signature"


def test_one_of_two_signers_that_are_named_now_is_one_signature(world: World) -> None:
    policy = replace(POLICY, signers=(*POLICY.signers[:1], STRANGER.public.fingerprint))
    world.home.set_policy(policy)
    with pytest.raises(TrustError) as caught:
        Predictor.load(world.home)
    assert caught.value.code == "bad-signature"
    world.home.set_policy(replace(policy, threshold=1))
    assert is_answer_of(FIRST, answers(world.home))
