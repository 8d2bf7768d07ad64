"""Joining is killed at every durable write on the device, and the same command ends it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.joining import join
from client.requesting import accept, request
from client.site import node_key, read_enrolment
from common.enrolment import SignedJoin
from server.federation.doorkeeper import admit_request, approve_request
from tests.server.doorway import Door, door_in
from tests.world import killed_at


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with door_in(tmp_path) as door:
        yield door


# Every so manieth write, from the first on, or every one.
STRIDES = [3, pytest.param(1, marks=pytest.mark.figures)]


@pytest.mark.slow
@pytest.mark.parametrize("stride", STRIDES)
def test_killed_at_any_write_the_same_command_joins_with_the_same_keys(
    door: Door, stride: int
) -> None:
    door.serve()
    step, enrolled, tried = 1, 0, 0
    while True:
        name = f"clinic-{step}"
        invitation, site = door.invite(name), door.site(name)
        if not killed_at(step, lambda: join(invitation, site)):  # noqa: B023  (done at once)
            break
        line = door.federation.registry.active().get(name)
        enrolled += line is not None
        home = join(invitation, site)
        entry = door.federation.registry.active()[name]
        assert line in (None, entry)  # whoever was enrolled is the one that comes back
        assert home.read_ledger().identity(home.federation).key.public.text() == entry.ledger_key
        assert node_key(home).exists()
        assert read_enrolment(home).enrolled == entry.enrolled
        step, tried = step + stride, tried + 1
    assert step > 20  # keys, owner, policy, ledger, mark, enrolment, home
    assert 0 < enrolled < tried
    assert len(door.federation.registry.active()) == tried + 1


@pytest.mark.slow
@pytest.mark.parametrize("stride", STRIDES)
def test_killed_at_any_write_a_request_and_its_answer_can_be_repeated(
    door: Door, stride: int
) -> None:
    federation = door.federation
    about = federation.about().sign(federation.signing_key())
    fingerprint = federation.signing_key().public.fingerprint
    step = 1
    while True:
        name = f"clinic-{step}"
        site = door.site(name)
        first = killed_at(step, lambda: request(site, name, about, fingerprint))  # noqa: B023
        _, signed = request(site, name, about, fingerprint)
        join_ = admit_request(federation, SignedJoin.decode(signed))
        answer = approve_request(federation, join_)
        assert approve_request(federation, join_) == answer
        second = killed_at(step, lambda: accept(site.home, answer))  # noqa: B023
        home = accept(site.home, answer)
        assert read_enrolment(home).pseudonym == join_.pseudonym
        assert accept(site.home, answer).client == name
        shutil.rmtree(door.folder / "devices" / name)
        if not first and not second:
            break
        step += stride
    assert step > 15
