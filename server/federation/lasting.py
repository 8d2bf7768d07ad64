"""How far had a client's ledger come when any run of this federation last saw it?

The rules: what a run saw last outlives it, in the federation's directory, by pseudonym and with the
client's own signature. A run takes these heads once, at its first start, and keeps them with
itself: what it asks for a second time after a kill is then the same to the bit. Heads only grow; of
two runs that saw the same client, the longer ledger is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, Json, decode, encode
from common.errors import TrustError
from common.ledger import Head
from server.home import Member, ServerHome

SCHEMA_VERSION = 1
HEADS = "heads.json"  # in a federation's directory, and in a run's

Heads = Mapping[str, Json]


def starting_heads(home: ServerHome, federation: str) -> dict[str, Json]:
    """By client, the heads that a run goes on from; empty for a simulated one.

    Args:
        federation: fingerprint of the coordinator's key.

    Raises:
        TrustError: ``bad-heads``: a file is damaged, or holds what a client did not sign.
        OperationError: the disk refused.
    """
    if home.federation is None:
        return {}
    file = home.path / HEADS
    if not file.exists():
        _write(file, read_heads(home.federation / HEADS))
    last = read_heads(file)
    heads = {name: last[m.pseudonym] for name, m in home.members.items() if m.pseudonym in last}
    for name, head in heads.items():
        _check(file, home.members[name], federation, head)
    return heads


def keep_heads(home: ServerHome, heads: Heads) -> None:
    """Remember these heads for the runs to come, where they are longer than what is known."""
    if home.federation is None or not heads:
        return
    with durable.in_turn(home.federation):
        file = home.federation / HEADS
        last = read_heads(file)
        new = {
            home.members[name].pseudonym: head
            for name, head in heads.items()
            if head["entries"] > last.get(home.members[name].pseudonym, {"entries": 0})["entries"]
        }
        if new:
            _write(file, {**last, **new})


def _check(file: Path, member: Member, federation: str, head: Json) -> None:
    try:
        signed = Head(federation, member.pseudonym, head["entries"], head["root"])
        if signed.signed_by(member.key, head["signature"]):
            return
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise TrustError(
        f"{file}: {member.name} did not sign its head",
        hint="restore the file; without it a ledger that was rolled back between runs is not seen",
        code="bad-heads",
    )


def _write(file: Path, heads: Heads) -> None:
    document = {"schema_version": SCHEMA_VERSION, "heads": dict(heads)}
    durable.replace(file, encode(document), mode=0o600)


def read_heads(file: Path) -> dict[str, Json]:
    """What such a file holds, by pseudonym, signatures unchecked; nothing if there is none."""
    try:
        document = decode(file.read_bytes())
        heads = document["heads"]
        if document["schema_version"] != SCHEMA_VERSION or not isinstance(heads, dict):
            raise ValueError("of another version")
        if not all(type(head["entries"]) is int for head in heads.values()):
            raise ValueError("a head without a length")
    except FileNotFoundError:
        return {}
    except (CanonicalError, KeyError, TypeError, ValueError) as error:
        raise TrustError(
            f"{file} is damaged: {error}",
            hint="restore the file; without it a ledger that was rolled back between runs is not "
            "seen",
            code="bad-heads",
        ) from error
    return heads
