"""The doorway is small, strict and limited; a proof serves once, here, for what it was made."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from client.site import Keys, make_keys
from common.canonical import decode, encode
from common.enrolment import CHALLENGE_PATH, JOIN_PATH, MAX_BYTES, PATHS, About, Enrolment
from common.errors import TrustError
from common.invitation import Invitation
from common.keys import SigningKey
from common.nodekey import NodeKey
from server.federation.doorkeeper import CHALLENGE_SECONDS, Doorkeeper
from server.federation.doorway import Doorway, Rate
from tests.server.doorway import ROOMY, Door, door_in
from tests.world import killed_at

FIELDS = ("name", "federation", "authority", "invitation", "challenge", "pseudonym")


class Time:
    def __init__(self) -> None:
        self.seconds = 2e9

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with door_in(tmp_path) as door:
        yield door


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def keeper(door: Door, clock: Time) -> Doorkeeper:
    return Doorkeeper(door.federation, clock)


def keys_of(door: Door, name: str = "clinic-a") -> Keys:
    federation = door.federation.signing_key().public.fingerprint
    return make_keys(door.site(name), f"answers.{name}", name, federation)


def asked(door: Door, keeper: Doorkeeper, invited: Invitation, keys: Keys, **changes: str) -> bytes:
    """An honest request, unless something is changed before it is signed."""
    answer = decode(keeper.challenge(encode({"invitation": invited.id})))
    join = keys.join(
        invited.name,
        invited.federation,
        invited.authority,
        invitation=invited.id,
        challenge=answer["challenge"],
    )
    return replace(join, **changes).sign(keys.identity.key, keys.node, invited.key)


def code_of(door: Door, keeper: Doorkeeper, body: bytes) -> str:
    """The code of a refusal, after which nobody is enrolled."""
    before = door.registry()
    with pytest.raises(TrustError) as caught:
        keeper.join(body)
    assert door.registry() == before
    return caught.value.code


# -- proofs --------------------------------------------------------------------------------------


def test_an_honest_request_is_answered_with_what_was_asked(
    door: Door, keeper: Doorkeeper, clock: Time
) -> None:
    invitation, keys = door.invite(now=int(clock())), keys_of(door)
    signed = keeper.join(asked(door, keeper, invitation, keys))
    enrolment = Enrolment.verify(signed, door.federation.signing_key().public)
    assert enrolment.ledger_key == keys.identity.key.public.text()
    assert enrolment.node_key == keys.node.public.pem
    with pytest.raises(TrustError):
        Enrolment.verify(signed, SigningKey.generate().public)


def test_a_proof_for_other_names_servers_or_challenges_is_refused(
    door: Door, keeper: Doorkeeper, clock: Time
) -> None:
    invitation, keys = door.invite(now=int(clock())), keys_of(door)
    for changes, code in (
        ({"name": "clinic-b"}, "wrong-name"),
        ({"federation": "5" * 64}, "wrong-federation"),
        ({"authority": "5" * 64}, "wrong-federation"),
        ({"challenge": "0" * 80}, "stale-challenge"),
        ({"challenge": "f" * 80}, "stale-challenge"),
        ({"invitation": ""}, "bad-signature"),
    ):
        outer = decode(asked(door, keeper, invitation, keys, **changes))
        outer["invitation"] = invitation.id
        assert code_of(door, keeper, encode(outer)) == code


def test_a_challenge_is_for_minutes_one_invitation_and_one_process(
    door: Door, keeper: Doorkeeper, clock: Time
) -> None:
    invitation, keys = door.invite(now=int(clock())), keys_of(door)
    body = asked(door, keeper, invitation, keys)
    assert code_of(door, Doorkeeper(door.federation, clock), body) == "stale-challenge"
    clock.seconds += CHALLENGE_SECONDS + 1
    assert code_of(door, keeper, body) == "stale-challenge"
    other = door.invite("clinic-b", now=int(clock()))
    answer = decode(keeper.challenge(encode({"invitation": other.id})))
    body = asked(door, keeper, invitation, keys, challenge=answer["challenge"])
    assert code_of(door, keeper, body) == "stale-challenge"


def test_every_key_that_is_bound_has_to_have_signed(
    door: Door, keeper: Doorkeeper, clock: Time
) -> None:
    invitation, keys = door.invite(now=int(clock())), keys_of(door)
    stranger, node = SigningKey.generate(), NodeKey.generate()
    for changed in (
        replace(keys, node=node),  # signs, but another key is asked for
        replace(keys, identity=replace(keys.identity, key=stranger)),
    ):
        answer = decode(keeper.challenge(encode({"invitation": invitation.id})))
        join = keys.join(
            "clinic-a",
            invitation.federation,
            invitation.authority,
            invitation=invitation.id,
            challenge=answer["challenge"],
        )
        body = join.sign(changed.identity.key, changed.node, invitation.key)
        assert code_of(door, keeper, body) == "bad-signature"
        without = join.sign(keys.identity.key, keys.node, None)
        assert code_of(door, keeper, without) == "bad-signature"
        of_another = join.sign(keys.identity.key, keys.node, stranger)
        assert code_of(door, keeper, of_another) == "bad-signature"


def test_a_thousand_altered_requests_enrol_nobody_and_cost_a_code_each(
    door: Door, keeper: Doorkeeper, clock: Time
) -> None:
    invitation, keys = door.invite(now=int(clock())), keys_of(door)
    body, chance = asked(door, keeper, invitation, keys), random.Random(6)
    for _ in range(1000):
        altered = bytearray(body)
        for _ in range(chance.choice((1, 2, 8))):
            altered[chance.randrange(len(altered))] ^= 1 << chance.randrange(8)
        if bytes(altered) != body:
            code_of(door, keeper, bytes(altered))
    assert door.registry() == b""
    keeper.join(body)


def test_only_the_coordinator_that_was_meant_can_say_who_it_is(keeper: Doorkeeper) -> None:
    with pytest.raises(TrustError) as caught:
        About.verify(keeper.about(), "0" * 64)
    assert caught.value.code == "wrong-coordinator"


def test_killed_at_any_write_an_enrolment_is_whole_or_the_invitation_still_good(
    door: Door, keeper: Doorkeeper, clock: Time
) -> None:
    invitation, keys = door.invite(now=int(clock())), keys_of(door)
    other = door.invite("clinic-b", now=int(clock()))
    body, step = asked(door, keeper, invitation, keys), 1
    registry = door.federation.registry.path
    while killed_at(step, partial(keeper.join, body)):
        assert set(door.federation.registry.active()) <= {"clinic-a"}
        Enrolment.verify(keeper.join(body), door.federation.signing_key().public)
        registry.unlink()
        door.federation.__dict__.pop("registry")  # it would miss the file
        step += 1
    assert step == 4
    keeper.join(asked(door, keeper, other, keys_of(door, "clinic-b")))
    assert set(door.federation.registry.active()) == {"clinic-a", "clinic-b"}


# -- the application -----------------------------------------------------------------------------


def send(app: Doorway, method: str, path: str, *parts: bytes, **scope: Any) -> tuple[int, Any]:
    """One request to the application; status and the code or document that came back."""
    messages = [
        {"type": "http.request", "body": part, "more_body": place + 1 < len(parts)}
        for place, part in enumerate(parts or (b"",))
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def reply(message: Any) -> None:
        sent.append(message)

    asked = {"type": "http", "method": method, "path": path, "headers": [], "client": ("peer", 1)}
    asyncio.run(app({**asked, **scope}, receive, reply))
    assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(sent[1]["body"])
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_only_three_paths_exist_each_with_one_method(keeper: Doorkeeper) -> None:
    app = Doorway(keeper, ROOMY)
    assert send(app, "GET", PATHS[0])[0] == 200
    for method, path, status in (
        ("POST", PATHS[0], 405),
        ("GET", JOIN_PATH, 405),
        ("GET", "/", 404),
        ("GET", "/v1/privet", 404),
        ("POST", JOIN_PATH + "/", 404),
        ("GET", "/docs", 404),
    ):
        assert send(app, method, path)[0] == status
    assert send(app, "GET", PATHS[0], query_string=b"a=1")[0] == 404


def test_a_body_over_16_kib_is_refused_before_it_is_read_or_while_it_comes(
    keeper: Doorkeeper,
) -> None:
    app = Doorway(keeper, ROOMY)
    large = [(b"content-length", b"%d" % (MAX_BYTES + 1))]
    assert send(app, "POST", JOIN_PATH, headers=large) == (413, {"error": "too-large"})
    assert send(app, "POST", JOIN_PATH, headers=[(b"content-length", b"-1")])[0] == 413
    parts = [b"x" * 1024] * 1000  # whoever does not say how much comes is stopped on the way
    assert send(app, "POST", JOIN_PATH, *parts)[0] == 413
    assert send(app, "POST", CHALLENGE_PATH, b"[" * 5000) == (400, {"error": "malformed"})


def test_a_peer_that_asks_too_often_is_refused_and_others_are_not(keeper: Doorkeeper) -> None:
    clock = Time()
    app = Doorway(keeper, Rate(burst=3, each_second=1.0, all_burst=5, all_each_second=1.0), clock)

    def ask(peer: str) -> int:
        return send(app, "GET", PATHS[0], client=(peer, 1))[0]

    assert [ask("a") for _ in range(4)] == [200, 200, 200, 429]
    assert [ask("b") for _ in range(3)] == [200, 200, 429]  # five by all together
    clock.seconds += 1
    assert [ask("a"), ask("a")] == [200, 429]


def test_the_memory_of_peers_is_bounded(keeper: Doorkeeper) -> None:
    app = Doorway(keeper, ROOMY)
    for number in range(5000):
        app._may(f"{number}")
    assert len(app._peers) == 4096


def test_a_machine_in_trouble_says_so_without_a_word_of_why(
    door: Door, keeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.errors import OperationError

    def full(_: bytes) -> bytes:
        raise OperationError("the disk at /secret/place is full")

    monkeypatch.setattr(keeper, "join", full)
    answer = send(Doorway(keeper, ROOMY), "POST", JOIN_PATH, b"{}")
    assert answer == (503, {"error": "not-now"})
