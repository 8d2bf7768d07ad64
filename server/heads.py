"""How far had each client's ledger come when it was last seen? Kept, countersigned, handed back.

The rules: a head counts only if it continues the one that was last seen. What the coordinator
countersigns it hands back with its next request, and after the last round with a closing, so a
client that forgets or rewrites its history is contradicted by its own coordinator, and a
coordinator cannot claim a round that the client never signed.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Message

from common.canonical import Json
from common.errors import TrustError
from common.keys import SigningKey
from common.ledger import Head, SignedHead, merkle
from common.ledger.head import CLIENT, COORDINATOR
from common.wire import Closed, Closing, Receipt
from server.aggregation.validate import Rejected, check_head
from server.home import Member, ServerHome
from server.messages import closings, read_closed
from server.nodes import Nodes

Heads = Mapping[str, Json]  # client's name to entries, root and the client's signature


def head_json(document: Receipt | Closed) -> Json:
    """What is kept of a client's head: enough to countersign it, and to show it to an auditor."""
    return {
        "entries": document.entries,
        "root": document.root,
        "signature": document.signature,
    }


def seen_of(member: Member, federation: str, heads: Heads) -> Head:
    """A client's ledger as it was last seen; empty before its first receipt."""
    last = heads.get(member.name, {"entries": 0, "root": merkle.EMPTY.hex()})
    return Head(federation, member.pseudonym, last["entries"], last["root"])


def note_of(member: Member, key: SigningKey, heads: Heads) -> SignedHead | None:
    """The head that a client and the coordinator both vouch for; None before its first receipt."""
    if member.name not in heads:
        return None
    head = seen_of(member, key.public.fingerprint, heads)
    note = SignedHead.of(head).with_signature(CLIENT, member.key, heads[member.name]["signature"])
    return note.with_signature(COORDINATOR, key.public, head.sign(key))


def close(
    home: ServerHome, key: SigningKey, nodes: Nodes, present: Mapping[str, int], heads: Heads
) -> dict[str, Json]:
    """Hand each client that is there the countersignature of its last head; the new heads.

    A client that does not answer costs nothing: its ledger's end is then vouched for up to its last
    receipt.
    """
    federation = key.public.fingerprint
    asked = {
        name: seen_of(home.members[name], federation, heads)
        for name in sorted(set(heads) & set(present))
    }
    envelopes = [(present[name], _closing(home, name, seen, key)) for name, seen in asked.items()]
    by_node = {present[name]: name for name in asked}
    result = dict(heads)
    messages = closings(envelopes, "closing", ttl=nodes.patience)
    for message in nodes.exchange(messages, home.plan.rounds):
        name = by_node.pop(message.metadata.src_node_id, None)
        if name is None:
            continue  # a duplicate, or nobody who was asked
        try:
            result[name] = _accept(home, message, name, asked[name])
        except Rejected as error:
            nodes.codes[error.code] += 1
    return result


def _closing(home: ServerHome, client: str, seen: Head, key: SigningKey) -> bytes:
    closing = Closing(
        client=client,
        run=home.run,
        entries=seen.entries,
        root=seen.root,
        signature=seen.sign(key),
    )
    return closing.sign(key)


def _accept(home: ServerHome, message: Message, client: str, seen: Head) -> Json:
    key, envelope = home.members[client].key, read_closed(message)
    try:
        closed = Closed.verify(envelope, key)
    except TrustError as error:
        raise Rejected(str(error), code="bad-receipt") from error
    if (closed.client, closed.run) != (client, home.run):
        raise Rejected("it closes another run", code="wrong-request")
    check_head(closed, seen, key)
    return head_json(closed)
