"""How does a run stand? Read from its directory, while a server is at work there or not.

The rules: nothing is changed by looking. What is told are names, counts and codes; of budgets only
what receipts state: how many entries each client's ledger had when it was last seen, each round's
intent and disclosure among them. What a data set has left is between its owner and its own ledger.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from common.canonical import Json
from server import events
from server.checkpoint import CheckpointStore
from server.home import ServerHome

NEW, RUNNING, ENDED = "new", "under-way", "ended"


def status(home: ServerHome) -> Json:
    """All that an operator is told about a run, as JSON values.

    Raises:
        TrustError: its checkpoints are damaged or belong to another run.
    """
    store = CheckpointStore(home.checkpoints, home.run, home.plan.digest)
    checkpoint, under_way = store.peek(), store.under_way()
    done = checkpoint.round if checkpoint else 0
    metrics = _until(home, done)
    log = events.read(home.events)
    asked_now = under_way[1] if under_way and under_way[0] == done + 1 else ()
    why = checkpoint.ended if checkpoint else ""
    return {
        "run": home.run,
        "plan": {"name": home.plan.name, "digest": home.plan.digest, "rounds": home.plan.rounds},
        "state": ENDED if why else RUNNING if under_way else NEW,
        "ended": why,
        "stop_requested": home.stop.exists(),
        "rounds": {
            "done": done,
            "changed": checkpoint.changed if checkpoint else 0,
            "planned": home.plan.rounds,
            "asked_now": list(asked_now),
        },
        "replies": _replies(metrics),
        "rates": _rates(metrics),
        "traffic": traffic(metrics),
        "accuracy": metrics[-1]["accuracy"] if metrics else None,
        "clients": _clients(home, checkpoint.heads if checkpoint else {}, log, done),
        "suspended": suspended(home),
        "spent": sorted(checkpoint.spent) if checkpoint else [],
        "server_starts": sum(event["event"] == "server-started" for event in log),
    }


def suspended(home: ServerHome) -> list[Json]:
    """Who is not asked, since which round, and why; and whether that was lifted since."""
    checkpoint = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
    lifts = home.read_lifts()
    return [
        {
            "client": client,
            "round": suspension.round,
            "codes": list(suspension.codes),
            "lifted": lifts.get(client) == suspension.round,
        }
        for client, suspension in sorted(
            checkpoint.standing.suspended.items() if checkpoint else ()
        )
    ]


def rounds(home: ServerHome) -> list[dict[str, Any]]:
    """The rounds that are over, as :class:`server.record.RoundReport` has them, in order."""
    checkpoint = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
    return _until(home, checkpoint.round if checkpoint else 0)


def ended(home: ServerHome) -> str:
    """Why there are no more rounds; empty while there are."""
    checkpoint = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
    return checkpoint.ended if checkpoint else ""


def round_line(line: Mapping[str, Any], planned: int) -> str:
    """One of :func:`rounds` in words."""
    changed = "changed the model" if line["changed"] else f"no change: {line['unchanged']}"
    right = line.get("accuracy")
    accuracy = "" if right is None else f", {100 * right:.2f} % right"
    return (
        f"round {line['round']} of {planned}: {line['valid']} of {line['asked']} valid, "
        f"{changed}{accuracy}, {line['seconds']:g} s"
    )


def _until(home: ServerHome, done: int) -> list[dict[str, Any]]:
    """A line may be there before its round's checkpoint is."""
    return [line for line in _metrics(home) if line["round"] <= done]


def _metrics(home: ServerHome) -> list[dict[str, Any]]:
    """Whole lines; the last may be in the middle of being written."""
    if not home.metrics.exists():
        return []
    lines = home.metrics.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _replies(metrics: list[dict[str, Any]]) -> Json:
    dropped = Counter(
        events.public_code(code) for line in metrics for code in line["dropped"].values()
    )
    return {
        "asked": sum(line["asked"] for line in metrics),
        "valid": sum(line["valid"] for line in metrics),
        "dropped": dict(sorted(dropped.items())),
        "late": sum(line.get("late", 0) for line in metrics),
        "duplicates": sum(line.get("duplicates", 0) for line in metrics),
    }


def _rates(metrics: list[dict[str, Any]]) -> Json:
    """Rounds an hour of waiting and computing, and shares of what was asked; None before any."""
    seconds = sum(line["seconds"] for line in metrics)
    asked = sum(line["asked"] for line in metrics)
    return {
        "rounds_per_hour": round(3600 * len(metrics) / seconds, 3) if seconds else None,
        "seconds_per_round": round(seconds / len(metrics), 3) if metrics else None,
        "valid_share": (
            round(sum(line["valid"] for line in metrics) / asked, 4) if asked else None
        ),
    }


def traffic(metrics: Sequence[Mapping[str, Any]]) -> Json:
    """What valid updates weighed: bytes in all and a reply, and how many times less than plain.

    Lines of earlier versions do not say; what no line says is None.
    """
    told = [line for line in metrics if line.get("update_bytes")]
    came = sum(line["update_bytes"] for line in told)
    plain = sum(line["uncompressed_bytes"] for line in told)
    replies = sum(line["valid"] for line in told)
    return {
        "update_bytes": came,
        "uncompressed_bytes": plain,
        "bytes_per_reply": round(came / replies, 1) if replies else None,
        "uncompressed_per_reply": round(plain / replies, 1) if replies else None,
        "ratio": round(plain / came, 3) if came else None,
    }


def _clients(
    home: ServerHome, heads: Mapping[str, Json], log: list[dict[str, Any]], done: int
) -> dict[str, Json]:
    """By name: rounds asked and valid, codes of the others, the last node, and the ledger's length.

    A round that a crash repeated was logged twice; its last record counts.
    """
    replies = {
        (event["round"], event["client"]): event
        for event in log
        if event["event"] == "reply" and event["round"] <= done
    }
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    nodes: dict[str, str] = {}
    for (_, client), event in replies.items():
        codes[client][event["code"]] += 1
        nodes[client] = event["node"]
    return {
        name: {
            "asked": codes[name].total(),
            "valid": codes[name]["valid"],
            "dropped": {code: n for code, n in sorted(codes[name].items()) if code != "valid"},
            "node": nodes.get(name),
            "ledger_entries": heads[name]["entries"] if name in heads else 0,
        }
        for name in sorted(home.members)
    }
