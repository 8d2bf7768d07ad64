"""Who is enrolled: bound for good, neighbours untouched, read again when it changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.enrolment import Join
from common.errors import InputError, TrustError
from common.keys import SigningKey
from common.nodekey import NodeKey
from server.federation.registry import Registry
from tests.world import killed_at

NODE_KEYS = [NodeKey.generate().public.pem for _ in range(6)]
TIME, LATER = "2026-11-21T12:00:00Z", "2026-11-22T12:00:00Z"


def join(number: int, name: str = "") -> Join:
    """What client ``number`` asks for, its proofs checked."""
    return Join(
        name=name or f"clinic-{number}",
        federation="a" * 64,
        authority="b" * 64,
        invitation=f"{number:032x}",
        challenge="0" * 80,
        pseudonym=f"{number:032x}",
        ledger_key=SigningKey.from_seed(bytes([number]) * 32).public.text(),
        node_key=NODE_KEYS[number],
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry.jsonl")
    for number in (1, 2, 3):
        registry.enrol(join(number), TIME)
    return registry


def lines(registry: Registry) -> list[bytes]:
    return registry.path.read_bytes().splitlines()


def test_adding_and_revoking_one_leaves_the_others_byte_for_byte(registry: Registry) -> None:
    before = lines(registry)
    registry.enrol(join(4), TIME)
    added = lines(registry)
    assert added[:3] == before[:3]
    assert len(added) == len(before) + 1
    registry.revoke("clinic-2", LATER)
    revoked = lines(registry)
    assert [a == b for a, b in zip(revoked, added, strict=True)] == [True, False, True, True, False]
    assert set(registry.active()) == {"clinic-1", "clinic-3", "clinic-4"}
    assert registry.entries()[1].revoked == LATER


def test_another_process_sees_what_changed_without_a_restart(registry: Registry) -> None:
    other = Registry(registry.path)
    assert len(other.members()) == 3
    member = other.members()["clinic-2"]
    assert other.counts(member)
    registry.revoke("clinic-2")
    assert not other.counts(member)
    assert NODE_KEYS[2].encode() not in other.node_keys()
    assert other.node_keys()[NODE_KEYS[1].encode()] == "clinic-1"


def test_the_same_request_again_changes_nothing(registry: Registry) -> None:
    before = registry.path.read_bytes()
    assert registry.enrol(join(1), LATER).enrolled == TIME
    assert registry.path.read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (join(4, "clinic-1"), "name-taken"),
        (replace(join(4), invitation=join(1).invitation), "invitation-used"),
        (replace(join(4), ledger_key=join(1).ledger_key), "key-known"),
        (replace(join(4), node_key=join(1).node_key), "key-known"),
        (replace(join(4), pseudonym=join(1).pseudonym), "key-known"),
        (replace(join(1), node_key=NODE_KEYS[5]), "invitation-used"),
    ],
)
def test_what_is_bound_to_one_client_is_never_bound_to_another(
    registry: Registry, asked: Join, code: str
) -> None:
    before = registry.path.read_bytes()
    with pytest.raises(TrustError) as caught:
        registry.enrol(asked)
    assert caught.value.code == code
    assert registry.path.read_bytes() == before


def test_a_revoked_key_never_comes_back_and_its_name_may_with_new_ones(registry: Registry) -> None:
    registry.revoke("clinic-1", LATER)
    for asked, code in ((join(1), "revoked"), (replace(join(1), invitation="f" * 32), "key-known")):
        with pytest.raises(TrustError) as caught:
            registry.enrol(asked)
        assert caught.value.code == code
    registry.enrol(join(4, "clinic-1"))
    assert registry.active()["clinic-1"].node_key == NODE_KEYS[4]
    with pytest.raises(InputError) as missing:
        registry.revoke("nobody")
    assert missing.value.code == "not-enrolled"


def test_every_altered_byte_and_every_cut_is_noticed(registry: Registry) -> None:
    data = registry.path.read_bytes()
    for place in range(0, len(data), 7):
        registry.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(TrustError) as caught:
            Registry(registry.path).entries()
        assert caught.value.code == "registry-damaged"
    for end in range(1, len(data), 31):
        registry.path.write_bytes(data[:end])
        with pytest.raises(TrustError):
            Registry(registry.path).entries()


def test_a_registry_that_disappears_while_it_is_used_is_not_an_empty_one(
    registry: Registry,
) -> None:
    registry.path.unlink()
    with pytest.raises(TrustError):
        registry.active()


def test_killed_at_any_write_a_change_is_whole_or_was_never_begun(registry: Registry) -> None:
    before, step = registry.path.read_bytes(), 1
    while killed_at(step, lambda: Registry(registry.path).revoke("clinic-2", LATER)):
        after = registry.path.read_bytes()
        if after != before:
            assert not Registry(registry.path).entries()[1].active
            registry.path.write_bytes(before)
        step += 1
    assert step == 4  # three durable steps, and the fourth never came
    assert not Registry(registry.path).entries()[1].active
