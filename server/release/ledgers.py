"""What do the clients' own ledgers say of this federation? Asked of them, checked, and kept.

The rules: a ledger counts only whole and signed, under the key that was enrolled, and only if it
goes on from the last head that its client signed in this run. What has come is kept with the run,
so nobody is asked twice, and a client that is away can be asked another day.

    RUN/ledgers/PSEUDONYM.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.serverapp import Grid

from common import durable
from common.bundle import MAX_FILE_BYTES, read_ledger
from common.errors import NetworkError, TrustError
from common.keys import SigningKey
from common.ledger import Entry, Head
from common.wire import LedgerCall
from server.aggregation.validate import Rejected
from server.events import public_code
from server.heads import Heads, seen_of
from server.home import Member, ServerHome
from server.messages import ledger_calls, read_ledger_lines
from server.nodes import Nodes

LEDGERS = "ledgers"


def kept(home: ServerHome, heads: Heads) -> dict[str, list[Entry]]:
    """By client, the ledgers that are here and whole.

    Args:
        heads: of the run's last checkpoint.

    Raises:
        TrustError: one that is here was altered.
    """
    federation = home.signing_key().public.fingerprint
    found = {}
    for name, member in sorted(home.members.items()):
        file = _file(home, member)
        if file.exists():
            found[name] = _checked(member, federation, heads, file.read_bytes())
    return found


def missing(home: ServerHome, heads: Heads) -> list[str]:
    """Whose ledger a release needs, and is not here: of all that ever answered in this run."""
    return sorted(set(heads) - set(kept(home, heads)))


def collect(home: ServerHome, grid: Grid, heads: Heads) -> dict[str, str]:
    """Ask whoever is missing and there for its ledger.

    Returns:
        By client, why its ledger did not count, or that it was ``silent``.

    Raises:
        NetworkError: ``too-few-clients``: nobody of those who are missing is there.
    """
    wanted, key = set(missing(home, heads)), home.signing_key()
    if not wanted:
        return {}
    nodes = Nodes(home, grid, key)
    nodes.gather(lambda: wanted <= set(nodes.present))
    there = {name: node for name, node in nodes.present.items() if name in wanted}
    if not there:
        raise NetworkError(
            f"none of {', '.join(sorted(wanted))} is there",
            hint="start them, and try again: each is asked once",
            code="too-few-clients",
        )
    failed = dict.fromkeys(wanted, "silent")
    for name, lines in _answers(home, nodes, there, key, failed):
        member = home.members[name]
        try:
            _checked(member, key.public.fingerprint, heads, lines)
        except TrustError as error:
            failed[name] = error.code
            continue
        with durable.disk_errors(home.path):
            _file(home, member).parent.mkdir(exist_ok=True)
        durable.replace(_file(home, member), lines)
        del failed[name]
    return failed


def _answers(
    home: ServerHome,
    nodes: Nodes,
    there: Mapping[str, int],
    key: SigningKey,
    failed: dict[str, str],
) -> list[tuple[str, bytes]]:
    calls = [(node, LedgerCall(name, home.run).sign(key)) for name, node in there.items()]
    by_node = {node: name for name, node in there.items()}
    found = []
    messages = ledger_calls(calls, "ledger", ttl=nodes.patience)
    for message in nodes.exchange(messages, home.plan.rounds):
        name = by_node.pop(message.metadata.src_node_id, None)
        if name is None:
            continue
        try:
            found.append((name, read_ledger_lines(message, MAX_FILE_BYTES)))
        except Rejected as error:
            failed[name] = public_code(error.code)
    return found


def _checked(member: Member, federation: str, heads: Heads, lines: bytes) -> list[Entry]:
    """A ledger's entries, which must begin with all that its client has signed in this run."""
    entries = read_ledger(member.pseudonym, lines, member.key)
    seen = seen_of(member, federation, heads)
    start = Head.of(federation, member.pseudonym, entries[: seen.entries])
    if any(entry.federation != federation for entry in entries) or start != seen:
        raise TrustError(
            f"{member.name}'s ledger is not the one whose head it signed",
            hint="it was rolled back or rewritten: nothing that it took part in can be released",
            code="ledger-forked",
        )
    return entries


def _file(home: ServerHome, member: Member) -> Path:
    return home.path / LEDGERS / f"{member.pseudonym}.jsonl"
