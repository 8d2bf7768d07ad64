"""A deployed run ends in the same bits, whichever of its processes is killed, and whenever."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.home import ServerHome
from server.status import rounds
from simulations.processes import Network, model_of, wait_until

pytestmark = pytest.mark.slow
ROUNDS = 6


def done(run: Path) -> int:
    return len(rounds(ServerHome.read(run)))


def begun(run: Path) -> bool:
    return (run / "checkpoints" / "pending.json").exists()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network.made(tmp_path_factory.mktemp("killed")) as network:
        network.start_link()
        network.start_clients()
        yield network


@pytest.fixture(scope="module")
def expected(network: Network) -> str:
    """The model that the run ends in if nobody is killed."""
    run = network.create("undisturbed", rounds=ROUNDS)
    assert network.finish(network.start_run(run))["replies"]["valid"] == 5 * ROUNDS
    return model_of(run)


def killed_at_random(network: Network, name: str, generator: random.Random) -> Path:
    """A run whose coordinator is killed a few times, link included, and resumed each time."""
    run = network.create(name, rounds=ROUNDS)
    process = network.start_run(run)
    for _ in range(generator.randint(1, 3)):
        wait_until(lambda: begun(run))
        at = done(run) + generator.choice((0, 1, 2))
        wait_until(lambda at=at: done(run) >= min(at, ROUNDS))  # type: ignore[misc]
        time.sleep(generator.uniform(0, 1))  # anywhere in a round
        if process.poll() is not None:
            break
        network.kill("run")
        if generator.random() < 0.5:
            network.kill("link")
            network.start_link()
        process = network.start_run(run, "resume")
    network.finish(process)
    return run


@pytest.mark.parametrize("seed", [1])
def test_a_server_that_is_killed_at_random_ends_in_the_same_bits(
    network: Network, expected: str, seed: int
) -> None:
    run = killed_at_random(network, f"killed-{seed}", random.Random(seed))
    assert (done(run), model_of(run)) == (ROUNDS, expected)


@pytest.mark.figures
def test_twenty_servers_that_are_killed_at_random_end_in_the_same_bits(
    network: Network, expected: str
) -> None:
    ended = 0
    for seed in range(100, 120):
        run = killed_at_random(network, f"killed-{seed}", random.Random(seed))
        ended += (done(run), model_of(run)) == (ROUNDS, expected)
    print(f"{ended} of 20 killed runs ended in the bits of the undisturbed one")
    assert ended == 20


def test_a_link_that_is_killed_in_the_middle_costs_no_round(
    network: Network, expected: str
) -> None:
    run = network.create("link-killed", rounds=ROUNDS)
    process = network.start_run(run)
    for at in (1, 3):
        wait_until(lambda at=at: done(run) >= at)  # type: ignore[misc]
        network.kill("link")
        network.start_link()
    data = network.finish(process)
    assert (data["replies"]["valid"], model_of(run)) == (5 * ROUNDS, expected)


def test_clients_that_are_killed_and_started_again_are_back_and_answer_the_same(
    network: Network, expected: str
) -> None:
    run = network.create("clients-killed", rounds=ROUNDS)
    process = network.start_run(run)
    for at, name in ((1, "clinic-1"), (2, "clinic-3")):
        wait_until(lambda at=at: done(run) >= at)  # type: ignore[misc]
        network.kill(name)
        network.start_client(name)
    data = network.finish(process)
    assert (data["replies"]["valid"], model_of(run)) == (5 * ROUNDS, expected)


def test_sigterm_ends_each_process_in_order(tmp_path: Path) -> None:
    with Network.made(tmp_path, clients=1) as network:
        network.start_link()
        network.start_clients()
        run = network.create(rounds=50)
        process = network.start_run(run)
        wait_until(lambda: done(run) >= 1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode not in (0, -signal.SIGTERM)  # it says that it was stopped
        assert 1 <= done(run) < 50
        ledger = network.home("clinic-0").read_ledger()  # whole, and its last entry signed
        assert (
            ledger.chain(network.home("clinic-0").federation)[-1].kind.value == "countersignature"
        )
        assert network.kill("clinic-0", signal.SIGTERM) == 0
        assert network.kill("link", signal.SIGTERM) == 0
