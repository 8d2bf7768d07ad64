"""A ledger that is rolled back between two runs is seen, and a revoked client is gone at once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from common.canonical import decode, encode
from common.enrolment import Join
from common.errors import TrustError
from common.nodekey import NodeKey
from server.federation.lasting import HEADS
from server.federation.registry import REGISTRY, Registry
from server.home import ServerHome
from tests.server.federation import NAMES, World
from tests.world import FakeClient, flower_identity, killed_at, leaves


@pytest.fixture(autouse=True)
def _flower() -> None:
    flower_identity()


def join(client: FakeClient) -> Join:
    return Join(
        name=client.name,
        federation="a" * 64,
        authority="b" * 64,
        invitation="",
        challenge="0" * 64,
        pseudonym=client.pseudonym,
        ledger_key=client.key.public.text(),
        node_key=NodeKey.generate().public.pem,
    )


def world_of(path: Path, run: str) -> World:
    """A run of its own, of one federation, with every client's ledger as long as it was."""
    world = World.make(path / run)
    federation = path / "federation"
    federation.mkdir(exist_ok=True)
    if not (federation / REGISTRY).exists():
        for node in world.grid.nodes.values():
            Registry(federation / REGISTRY).enrol(join(node.client))
    shutil.rmtree(world.home.path)
    replace(world.home, federation=federation).create()
    return replace(world, home=ServerHome.read(world.home.path))


def test_the_next_run_goes_on_from_where_the_last_one_saw_each_ledger(tmp_path: Path) -> None:
    first = world_of(tmp_path, "first")
    first.run()
    ends = {name: len(first.node(name).client.leaves) for name in NAMES}
    second = world_of(tmp_path, "second")
    for name in NAMES:
        second.node(name).client.leaves = leaves(ends[name])
    second.run()
    asked = {node.client.name: node.seen[0].entries for node in second.grid.nodes.values()}
    assert asked == ends
    assert {report.valid for report in second.reports} == {3}


def test_a_ledger_that_was_rolled_back_between_two_runs_is_refused(tmp_path: Path) -> None:
    first = world_of(tmp_path, "first")
    first.run()
    second = world_of(tmp_path, "second")
    for name in NAMES[1:]:
        second.node(name).client.leaves = list(first.node(name).client.leaves)
    second.run()  # the first client comes with the ledger that it had before the first run
    assert second.reports[0].dropped == {NAMES[0]: "ledger-rolled-back"}


def test_whatever_is_killed_when_a_run_first_starts_it_asks_with_the_same_heads(
    tmp_path: Path,
) -> None:
    world_of(tmp_path, "first").run()
    known = (tmp_path / "federation" / HEADS).read_bytes()
    second = world_of(tmp_path, "second")
    for node in second.grid.nodes.values():
        node.client.leaves = leaves(20)
    assert killed_at(8, second.run)
    (tmp_path / "federation" / HEADS).unlink()  # another run may have changed it meanwhile
    second.run()
    asked = {node.seen[0].entries for node in second.grid.nodes.values()}
    assert asked == {decode(known)["heads"][FakeClient(NAMES[0]).pseudonym]["entries"]}


def test_a_head_that_its_client_did_not_sign_starts_no_run(tmp_path: Path) -> None:
    world_of(tmp_path, "first").run()
    file = tmp_path / "federation" / HEADS
    document = decode(file.read_bytes())
    document["heads"][FakeClient(NAMES[1]).pseudonym]["entries"] -= 1
    file.write_bytes(encode(document))
    with pytest.raises(TrustError) as caught:
        world_of(tmp_path, "second").run()
    assert caught.value.code == "bad-heads"


def test_a_client_that_is_revoked_in_a_round_does_not_count_in_it_or_later(tmp_path: Path) -> None:
    world = world_of(tmp_path, "first")

    def revoke_once() -> None:
        if any(node.seen for node in world.grid.nodes.values()):
            world.grid.on_push = lambda: None
            Registry(tmp_path / "federation" / REGISTRY).revoke(NAMES[0])

    world.grid.on_push = revoke_once
    world.run()
    codes = [report.dropped.get(NAMES[0], "") for report in world.reports]
    assert "revoked" not in codes[0]
    assert all(NAMES[0] not in report.dropped for report in world.reports[2:])
    assert [report.asked for report in world.reports] == [3, 3, 2]
    assert codes[1] == "revoked"
    assert not world.home.counts(NAMES[0])
    assert world.home.counts(NAMES[1])
