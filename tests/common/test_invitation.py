"""A token has one spelling, and no mistake in copying it goes unnoticed."""

from __future__ import annotations

import base64
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.invitation import PREFIX, Address, Invitation, is_host
from common.keys import SigningKey

INVITATION = Invitation(
    name="clinic-a",
    address=Address("server.example", 8443),
    authority="ab" * 32,
    federation="cd" * 32,
    expires=2_000_000_000,
    seed=bytes(range(32)),
)


def test_a_token_comes_back_to_the_same_invitation_and_shows_no_secret_when_printed() -> None:
    token = INVITATION.token()
    assert Invitation.read(f"  {token}\n") == INVITATION
    assert token.startswith(PREFIX)
    assert len(token) == 8 + -(-(8 + 3 * 32 + 1 + 8 + 19 + 4) * 4 // 3)
    assert "seed" not in repr(INVITATION)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")  # safe in a URL


def test_its_id_is_of_the_public_key_so_the_server_needs_no_secret() -> None:
    from common.invitation import invitation_id

    public = SigningKey.from_seed(INVITATION.seed).public
    assert INVITATION.id == invitation_id(public)
    assert len(INVITATION.id) == 32


def mutations(count: int, seed: int) -> list[str]:
    """Tokens with a few characters replaced, dropped, doubled, swapped or cut off."""
    chance, token = random.Random(seed), INVITATION.token()
    letters = string.ascii_letters + string.digits + "-_=.+/ \u00e9"
    result = []
    for _ in range(count):
        text = list(token)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            place = chance.randrange(len(text))
            kind = chance.randrange(5)
            if kind == 0:
                text[place] = chance.choice(letters)
            elif kind == 1:
                del text[place]
            elif kind == 2:
                text.insert(place, text[place])
            elif kind == 3 and place:
                text[place - 1], text[place] = text[place], text[place - 1]
            else:
                text = text[: max(1, place)]
        result.append("".join(text))
    return result


def test_of_2000_altered_tokens_none_is_read_as_an_invitation() -> None:
    altered = [text for text in mutations(2000, 19) if text.strip() != INVITATION.token()]
    assert len(altered) > 1900
    for text in altered:
        with pytest.raises(InputError) as caught:
            Invitation.read(text)
        assert caught.value.code == "bad-token"
        assert caught.value.hint


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=300), st.binary(max_size=200).map(lambda b: _coded(b))))
def test_anything_else_is_an_input_error_and_nothing_worse(text: str) -> None:
    with pytest.raises(InputError):
        Invitation.read(text)


def _coded(body: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")


@pytest.mark.parametrize(
    "host", ["localhost", "server.example", "192.0.2.7", "2001:db8::7", "a-b.c"]
)
def test_addresses_come_back(host: str) -> None:
    assert Address.parse(str(Address(host, 443))) == Address(host, 443)
    assert is_host(host)


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a", "a:0", "a:65536", "a:01", "A.example:1", "a b:1", "1.2.3.4.5:1", "300.1.1.1:1",
     "2001:db8::7:443", "[::1:1", "-a:1", "a..b:1", "a:1/x", "user@host:1", "[fe80::1%eth0]:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Address.parse(text)
