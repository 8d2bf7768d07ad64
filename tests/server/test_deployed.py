"""A federation of processes on loopback: it trains, under attack too, and by its own code alone."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab
from flwr.proto.fab_pb2 import Fab

from server.app import coordinate
from server.home import ServerHome
from server.link.place import Place
from server.link.superlink import run as link_run
from server.link.superlink import transport
from server.status import rounds, status
from simulations.processes import Network, wait_until
from tests.privet.test_cli import call

pytestmark = [
    pytest.mark.slow,
    # Flower's own, where a test starts a Flower run in this process.
    pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
DEADLINE = 20.0
FLOOD = 1000


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network.made(tmp_path_factory.mktemp("deployed"), clients=3) as network:
        network.start_link()
        network.start_clients()
        yield network


def done(run: Path) -> list[dict[str, object]]:
    return rounds(ServerHome.read(run))


def test_clients_and_coordinator_in_processes_of_their_own_train_a_run(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    run = network.create("honest", rounds=3)
    data = network.finish(network.start_run(run))
    assert (data["state"], data["rounds"]["done"], data["replies"]["valid"]) == ("ended", 3, 9)
    assert data["replies"]["dropped"] == {}
    for name in network.names:
        chain = network.home(name).read_ledger().chain(network.home(name).federation)
        assert sum(entry.kind.value == "disclosure" for entry in chain) == 3
    # Going on with what has ended changes nothing.
    assert call(capsys, "server", "resume", run)[1]["state"] == "ended"
    code, watched = call(capsys, "server", "watch", run)
    assert (code, watched["rounds"]["done"]) == (0, 3)


def test_a_detached_run_is_watched_stopped_and_resumed(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    run = network.create("detached", rounds=8)
    code, data = call(capsys, "server", "run", run, "--detach")
    assert code == 0
    try:
        wait_until(lambda: len(done(run)) >= 2)
        assert call(capsys, "server", "stop", run)[0] == 0
        code, watched = call(capsys, "server", "watch", run)
        assert code == 0
        assert 2 <= watched["rounds"]["done"] < 8
        assert watched["state"] != "ended"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(data["process"], 15)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(data["process"], 0)
    assert "stopped after round" in (run / "server.log").read_text()
    assert network.finish(network.start_run(run, "resume"))["rounds"]["done"] == 8


def test_a_second_run_in_a_federation_waits_its_turn_and_the_first_goes_on(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = network.create("first", rounds=4), network.create("second", rounds=1)
    process = network.start_run(first)
    wait_until(lambda: len(done(first)) >= 1)
    code, data = call(capsys, "server", "run", second)
    assert (code, data["code"]) == (4, "link-in-use")
    assert network.finish(process)["rounds"]["done"] == 4
    assert network.finish(network.start_run(second))["rounds"]["done"] == 1


def test_what_cannot_begin_says_so_before_it_is_left(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    run = network.create("begun", rounds=1)
    network.finish(network.start_run(run))
    for way in ((), ("--detach",)):
        assert call(capsys, "server", "run", run, *way)[1]["code"] == "begun-already"
    new = network.create("not-begun", rounds=1)
    for way in ((), ("--detach",)):
        assert call(capsys, "server", "resume", new, *way)[1]["code"] == "nothing-to-resume"
    assert not (new / "server.log").exists()


def test_an_honest_round_ends_in_time_while_a_thousand_connections_are_half_open(
    network: Network,
) -> None:
    run = network.create("flooded", rounds=5, deadline=DEADLINE)
    address, before = network.federation.address, network.memory("link", "VmHWM")
    hello = client_hello()
    held: list[socket.socket] = []

    def another(number: int) -> socket.socket:
        """Silent, or with a handshake that begins, or with one that is never gone on with."""
        flood = socket.socket()
        flood.bind((f"127.0.0.{2 + number % 40}", 0))
        flood.settimeout(1)
        with contextlib.suppress(OSError):
            flood.connect((address.host, address.port))
            flood.send((b"", hello[:100], hello)[number % 3])
        return flood

    try:
        held += [another(number) for number in range(FLOOD)]
        process = network.start_run(run)
        while process.poll() is None:  # whatever is dropped comes again
            for number in range(FLOOD):
                held[number].close()
                held[number] = another(number)
                time.sleep(0.002)
                if process.poll() is not None:
                    break
        data = network.finish(process)
    finally:
        for flood in held:
            flood.close()
    assert (data["replies"]["valid"], data["replies"]["dropped"]) == (15, {})
    assert all(float(str(line["seconds"])) <= DEADLINE for line in done(run))
    assert network.memory("link", "VmHWM") - before <= 64


def client_hello() -> bytes:
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    talk = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    return out.read()


MARKER = "PRIVET_TEST_MARKER"
EVIL = f"""\
import os
open(os.environ["{MARKER}"], "w").write("code of a bundle ran")
from flwr.clientapp import ClientApp
app = ClientApp()
"""
BUNDLE = """\
[project]
name = "evil"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "{package}.app:app"
clientapp = "{package}.app:app"

[tool.flwr.app.config]
clip = 1000000.0
client-home = "/"
"""


def bundle(folder: Path, package: str) -> bytes:
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(EVIL)
    (folder / package / "app.py").write_text(EVIL)
    (folder / "pyproject.toml").write_text(BUNDLE.format(package=package))
    return bytes(build_fab_from_disk(folder))


@pytest.mark.parametrize("package", ["evil", "client"])
def test_no_bundle_is_ever_unpacked_not_even_one_that_holds_a_package_of_our_name(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bundle(tmp_path / "bundle", package)
    # The bundle is what it should be: whoever installs it and imports its app runs its code.
    marker = tmp_path / "marker"
    monkeypatch.setenv(MARKER, str(marker))
    where = install_from_fab(content, tmp_path / "stock", skip_prompt=True)
    subprocess.run([sys.executable, "-c", f"import {package}.app"], cwd=where, check=True)
    assert marker.exists()
    marker.unlink()

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))  # where Flower would unpack it
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(transport, "thin_bundle", lambda: Fab(content=content))
    with Network.made(tmp_path / "network", clients=1) as network:
        network.start_link()
        network.start_clients()
        run = network.create(rounds=2)
        place = Place(network.federation)
        with link_run.run_on(place.inside(), place.secret()) as opened:
            coordinate(opened, run)
        assert status(ServerHome.read(run))["replies"]["valid"] == 2
        assert not marker.exists()
        assert not (tmp_path / "flwr").exists() or not list((tmp_path / "flwr").rglob("*.py"))
        assert not list((tmp_path / "tmp").rglob("*.py"))
        assert not list((tmp_path / "network" / "clients").rglob("*.py"))
        # Another run of the honest coordinator ends as if the bundle had never been.
        assert network.processes["clinic-0"].poll() is None


def test_a_client_that_is_revoked_in_the_middle_of_a_run_counts_no_more(tmp_path: Path) -> None:
    with Network.made(tmp_path, clients=3) as network:
        network.start_link()
        network.start_clients()
        run = network.create(rounds=10, quorum=2)
        process = network.start_run(run)
        wait_until(lambda: len(done(run)) >= 2)
        network.federation.registry.revoke("clinic-1")
        at = len(done(run))
        network.finish(process)
        later = [line for line in done(run) if int(str(line["round"])) > at + 2]
        assert later
        assert all(line["valid"] == 2 for line in later)
        ledger = network.home("clinic-1").read_ledger().chain(network.home("clinic-1").federation)
        assert sum(entry.kind.value == "intent" for entry in ledger) <= at + 2
