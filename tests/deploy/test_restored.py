"""A server that lost its disk goes on from its backup, as the deployment guide has it."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from server.home import ServerHome
from server.status import rounds
from simulations.processes import Network, wait_until


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_backup_without_the_links_files_and_nobodys_ledger_goes_back(
    tmp_path: Path,
) -> None:
    with Network.made(tmp_path, clients=2) as network:
        run = network.create(rounds=8)
        kept = [network.federation.path, network.federation.keys, run]
        network.start_link()
        network.start_clients()
        process = network.start_run(run)
        wait_until(lambda: len(rounds(ServerHome.read(run))) >= 1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        at = len(rounds(ServerHome.read(run)))
        assert at < 8
        for place in kept:
            shutil.copytree(
                place, tmp_path / "backup" / place.name, ignore=shutil.ignore_patterns("link")
            )

        network.start_run(run, "resume")
        wait_until(lambda: len(rounds(ServerHome.read(run))) > at)
        network.kill("run")
        network.kill("link")
        for place in kept:
            shutil.rmtree(place)
            shutil.copytree(tmp_path / "backup" / place.name, place)
        network.start_link()
        data = network.finish(network.start_run(run, "resume"))

        assert (data["state"], data["rounds"]["done"]) == ("ended", 8)
        # Clients answer no round twice: those that the backup had forgotten change nothing.
        assert set(data["replies"]["dropped"]) == {"refused-stale-round"}
        assert data["rounds"]["changed"] in (6, 7)  # the one after the backup; one more under way
        assert data["suspended"] == []
        for name in network.names:  # what was spent before the disk was lost is spent
            home = network.home(name)
            intents = [
                entry
                for entry in home.read_ledger().chain(home.federation)
                if entry.kind.value == "intent"
            ]
            assert len(intents) == 8
