"""With central trust a federation keeps one ledger of its own, whichever run spends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.approval import approve
from client.home import Home
from client.joining import join
from common.keys import KeyDirectory
from server.central.books import open_books
from server.home import ServerHome
from tests.privet.test_cli import call
from tests.privet.test_founding import PLAN, Out, play
from tests.server.doorway import Door, door_in
from tests.world import POLICY

CENTRAL = (
    PLAN.replace('"local"', '"central"')
    .replace("steps = 2\n", "")
    .replace("quorum = 2\n", "")
    .replace("[plan.release]", "[plan.central]\nlocal_steps = 2\n\n[plan.release]")
)
OPERATOR = """
[policy]
dataset = "coordinator"
unit = "client"
budget = {budget}
delta = 1e-5
"""


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    with door_in(tmp_path) as door:
        monkeypatch.setenv("PRIVET_FEDERATION", str(door.federation.path))
        door.serve()
        yield door


def enrol(door: Door) -> Path:
    """Two clients that trust the coordinator; the directory of their homes."""
    clients = door.folder / "clients"
    for name in ("clinic-a", "clinic-b"):
        terms = replace(POLICY, unit="client", dataset=f"answers.{name}", approved_plans=())
        site = door.site(name, home=clients / name, terms=terms)
        join(door.invite(name), site)
    return clients


def test_two_runs_add_up_in_the_coordinators_one_ledger(
    door: Door, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = enrol(door)

    def run(name: str, rounds: int) -> ServerHome:
        file = tmp_path / f"{name}.toml"
        text = CENTRAL.replace("rounds = 2", f"rounds = {rounds}")
        file.write_text(text + OPERATOR.format(budget=8.0))
        code, data = call(capsys, "server", "create", tmp_path / name, file)
        assert code == 0
        for client in data["clients"]:
            owner = KeyDirectory(door.folder / "devices" / client / "owner").load("owner")
            approve(Home.read(clients / client), Path(data["signed_plan"]).read_bytes(), owner)
        return play(tmp_path / name, clients, 2, monkeypatch)

    first = run("first", 2)
    books = open_books(first)
    assert [e.kind.value for e in books.chain()] == ["approval"] + ["intent", "disclosure"] * 2
    second = run("second", 1)
    assert second.ledger is not None
    assert first.ledger is not None
    assert second.ledger.resolve() == first.ledger.resolve()
    chain = open_books(second).chain()
    assert [e.kind.value for e in chain[5:]] == ["approval", "intent", "disclosure"]
    assert [e.body["run"] for e in chain if "run" in e.body] == [first.run, first.run, second.run]
    # Rényi costs of one mechanism add up: three rounds cost half as much again as two.
    cost = [float(entry.body["spent"]["cost"]) for entry in (chain[4], chain[-1])]
    assert cost[1] == pytest.approx(1.5 * cost[0])


def test_an_operator_who_allows_nothing_or_too_little_makes_no_run(
    door: Door, tmp_path: Path, capsys: Out
) -> None:
    enrol(door)
    file = tmp_path / "plan.toml"
    for policy, code in (
        ("", "no-operator-policy"),
        (OPERATOR.format(budget=0.05), "budget-exhausted"),
        (OPERATOR.format(budget=8.0).replace('unit = "client"\n', ""), "other-unit"),
    ):
        file.write_text(CENTRAL + policy)
        assert call(capsys, "server", "create", tmp_path / "run", file)[1]["code"] == code
        assert not (tmp_path / "run").exists()
        assert not (door.federation.path / "ledger.jsonl").exists()
