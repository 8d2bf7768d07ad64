"""What a running service notices of its device's directory, and what it makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.device.runtime import Predictor, installed
from client.device.serving import lookout
from client.device.serving.lookout import Lookout, Verdict, stamp
from client.device.updater import update
from tests.client.device_fixtures import (
    COORDINATOR,
    DAY,
    NOW,
    POLICY,
    STRANGER,
    Recipe,
    World,
)

STRICT = replace(POLICY, greatest_epsilon=1.0)


class Watched:
    """A device with version 1 in use, and how often something was refused."""

    def __init__(self, path: Path) -> None:
        self.world = World.make(path)
        self.refused = 0
        self.install(1)
        self.policy = self.world.home.path / "policy.json"
        home = self.world.home
        self.lookout = Lookout(home, stamp(home), installed(home), self._count)

    def _count(self) -> None:
        self.refused += 1

    def install(self, version: int, epsilon: float = 2.0) -> None:
        self.world.publish(Recipe(version=version, epsilon=epsilon))
        update(self.world.home, NOW + version * DAY)

    def look(self, times: int = 1) -> Verdict | int:
        """What the last of so many looks found: the version where a model takes over."""
        for _ in range(times):
            found = self.lookout.look()
        return found.version if isinstance(found, Predictor) else found


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_new_release_takes_over_once(watched: Watched) -> None:
    assert watched.look(3) is Verdict.SAME
    watched.install(2)
    assert watched.look() == 2
    assert watched.look(3) is Verdict.SAME
    assert watched.refused == 0


@pytest.mark.parametrize(
    "policy",
    [
        STRICT,
        replace(POLICY, least_version=2),
        replace(POLICY, signers=(COORDINATOR.public.fingerprint, STRANGER.public.fingerprint)),
    ],
    ids=["epsilon", "the oldest version", "other signers"],
)
def test_a_policy_that_became_stricter_withdraws_the_model_in_use(
    watched: Watched, policy: Any
) -> None:
    watched.world.home.set_policy(policy)
    assert watched.look() is Verdict.WITHDRAWN
    assert watched.look(5) is Verdict.SAME
    watched.world.home.set_policy(POLICY)
    assert watched.look() == 1


def test_what_the_new_policy_allows_answers_in_the_place_of_what_it_does_not(
    watched: Watched,
) -> None:
    watched.install(2, epsilon=0.5)
    watched.world.home.set_policy(STRICT)
    assert [watched.look(), watched.look()] == [Verdict.WITHDRAWN, 2]


def test_a_damaged_directory_neither_withdraws_a_model_nor_keeps_one(watched: Watched) -> None:
    (watched.world.home.slots / "a" / "model.onnx.sealed").write_bytes(b"damaged")
    watched.policy.write_bytes(replace(POLICY, greatest_epsilon=2.5).encode())
    assert watched.look(5) is Verdict.SAME
    assert watched.refused == 1
    watched.policy.write_bytes(STRICT.encode())
    assert watched.look() is Verdict.WITHDRAWN


def test_an_edit_of_the_policy_that_takes_a_while_stops_nothing(watched: Watched) -> None:
    for half in (None, b"{", b"[]"):
        if half is None:
            watched.policy.unlink()
        else:
            watched.policy.write_bytes(half)
        assert watched.look() is Verdict.SAME
    watched.policy.write_bytes(POLICY.encode())
    assert watched.look() is Verdict.SAME
    watched.install(2)
    assert watched.look() == 2


def test_whatever_goes_wrong_is_counted_once_and_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second version is there all the time; only the machine had no memory for a while."""
    tried = []

    def fails(home: Any) -> Any:
        tried.append(home)
        raise MemoryError

    watched.install(2)
    with monkeypatch.context() as patch:
        patch.setattr(lookout, "installed", fails)
        assert watched.look(10) is Verdict.SAME
    assert (len(tried), watched.refused) == (4, 1)  # at looks 1, 2, 4 and 8
    assert watched.look(5) is Verdict.SAME
    assert watched.look() == 2  # at look 16
