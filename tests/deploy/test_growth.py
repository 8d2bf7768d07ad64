"""What grows with rounds, and by how much: the figures that the deployment guide quotes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from simulations.processes import Network
from tests.deploy.units import ROOT

CLIENTS, FIRST, SECOND = 3, 20, 60


def sizes(network: Network, run: Path) -> Counter[str]:
    """Bytes on disk by kind of file, summed up over what there is one of for each client."""
    found: Counter[str] = Counter()
    for kind, top, pattern in (
        ("events.jsonl", run, "events.jsonl"),
        ("metrics.jsonl", run, "metrics.jsonl"),
        ("rest of the run", run, "**/*"),
        ("link", network.federation.path, "link/*"),
        ("rest of the federation", network.federation.path, "*.*"),
        ("client's ledger", network.path / "clients", "*/custody/**/*"),
        ("client's home", network.path / "clients", "*/home/**/*"),
        ("client's keys", network.path / "clients", "*/keys/**/*"),
    ):
        found[kind] = sum(file.stat().st_size for file in top.glob(pattern) if file.is_file())
    found["rest of the run"] -= found["events.jsonl"] + found["metrics.jsonl"]
    return found


def quoted() -> dict[str, int]:
    """Bytes a round and client, by kind, as the guide's table has them."""
    guide = (ROOT / "docs" / "deployment.md").read_text()
    rows = re.findall(r"^\| ([\w.' ]+) \| ([0-9,]+) \|", guide, re.MULTILINE)
    return {kind: int(told.replace(",", "")) for kind, told in rows}


@pytest.mark.figures
def test_a_round_costs_as_many_bytes_as_the_guide_says(tmp_path: Path) -> None:
    measured: list[Counter[str]] = []
    with Network.made(tmp_path, clients=CLIENTS) as network:
        network.start_link()
        network.start_clients()
        for name, rounds in (("warm", 5), ("first", FIRST), ("second", SECOND)):
            before = sizes(network, tmp_path / name)
            run = network.create(name, rounds=rounds)
            network.finish(network.start_run(run), 600)
            after = sizes(network, run)
            for kind in after:  # what is a run's own starts from nothing; the rest goes on
                if kind not in ("events.jsonl", "metrics.jsonl", "rest of the run"):
                    after[kind] -= before[kind]
            measured.append(after)
    _, first, second = measured
    for kind in first:
        each = (second[kind] - first[kind]) / (SECOND - FIRST) / CLIENTS
        print(f"{kind:<24} {each:8.0f} bytes a round and client")
    for kind, told in quoted().items():
        each = (second[kind] - first[kind]) / (SECOND - FIRST) / CLIENTS
        assert each <= 1.1 * told + 20, kind
        assert each >= 0.9 * told - 20 or told == 0, kind  # a database may shrink
