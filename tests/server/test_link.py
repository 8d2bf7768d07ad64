"""A link as a process of its own: what its first start makes, and what may change while it runs."""

from __future__ import annotations

import json
import signal
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.link.fleet import NotAdmitted, Unreachable
from common.errors import InputError, TrustError
from common.invitation import Address
from common.keys import KeyDirectory
from server.federation.authority import TLS, Authority
from server.federation.directory import APPROVER, Federation
from server.link.place import EXECUTOR, Place
from server.link.service import Link
from simulations.processes import Network, free_port, wait_until
from tests.privet.test_cli import call

pytestmark = pytest.mark.slow


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with Network.made(tmp_path, clients=2) as network:
        network.start_link()
        wait_until(lambda: all(admitted(network, name) for name in network.names))
        yield network


def admitted(network: Network, name: str) -> bool:
    try:
        with network.fleet(name):
            return True
    except (NotAdmitted, Unreachable):
        return False


def certificate(network: Network) -> str:
    address = network.federation.address
    return ssl.get_server_certificate((address.host, address.port))


# -- a first start -------------------------------------------------------------------------------


def test_a_first_start_founds_the_federation_with_keys_that_nobody_else_can_read(
    tmp_path: Path,
) -> None:
    address = Address("127.0.0.1", free_port())
    with Network.made(tmp_path / "other", clients=0) as network:
        words = ("start", str(tmp_path / "fed"), "--address", str(address), "--format", "json")
        process = network.start("link", "server", *words)
        assert process.stdout is not None
        data = json.loads(process.stdout.readline())["data"]
        federation = Federation.read(tmp_path / "fed")
        assert data["authority"] == federation.authority().fingerprint
        assert data["inside"].startswith("127.0.0.1:")
        keys = list(federation.keys.iterdir())
        assert {file.name for file in keys} >= {"coordinator", "authority.pem", TLS, EXECUTOR}
        assert {stat.S_IMODE(file.stat().st_mode) for file in keys} == {0o600}
        for folder in (federation.keys, federation.path, Place(federation).path):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert network.kill("link", signal.SIGTERM) == 0


def test_keys_that_others_can_read_or_that_lie_together_start_nothing(tmp_path: Path) -> None:
    address = Address("127.0.0.1", free_port())
    federation = Federation.create(tmp_path / "fed", tmp_path / "keys", address)
    federation.keys.chmod(0o750)
    with pytest.raises(TrustError) as caught:
        Link(federation).run()
    assert caught.value.code == "key-exposed"
    federation.keys.chmod(0o700)
    KeyDirectory(federation.keys).create(APPROVER)
    with pytest.raises(TrustError) as caught:
        Link(federation).run()
    assert caught.value.code == "keys-together"
    assert not Place(federation).path.exists()


def test_a_command_that_finds_no_link_or_a_second_one_says_so(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, data = call(capsys, "server", "start", network.federation.path)
    assert (code, data["code"]) == (1, "busy")
    code, data = call(capsys, "server", "start", tmp_path / "nothing")
    assert (code, data["code"]) == (4, "no-federation")
    other = Federation.create(tmp_path / "fed", tmp_path / "k", Address("127.0.0.1", free_port()))
    with pytest.raises(InputError) as caught:
        Place(other).inside()
    assert caught.value.code == "no-link"


# -- changes while it runs -----------------------------------------------------------------------


def test_a_node_that_is_revoked_is_cut_off_and_the_other_is_not(network: Network) -> None:
    one, two = network.names
    with network.fleet(one) as first, network.fleet(two) as second:
        network.federation.registry.revoke(one)
        began = time.monotonic()
        with pytest.raises((NotAdmitted, Unreachable)):
            pull_until_it_ends(first)  # a held question ends with its connection
        assert time.monotonic() - began < 5
        assert second.pull() is None
    assert not admitted(network, one)


def pull_until_it_ends(fleet: object) -> None:
    while fleet.pull() is None:  # type: ignore[attr-defined]
        pass


def test_a_client_that_enrols_while_it_runs_is_let_in(network: Network) -> None:
    network.enrol("newcomer")
    wait_until(lambda: admitted(network, "newcomer"))


def test_a_certificate_is_renewed_without_a_restart_and_no_connection_is_lost(
    network: Network,
) -> None:
    before = certificate(network)
    with network.fleet(network.names[0]) as fleet:
        network.federation.authority().issue(network.federation.names)
        wait_until(lambda: certificate(network) != before)
        assert fleet.pull() is None
    assert admitted(network, network.names[1])


def test_a_certificate_of_another_authority_is_not_shown_and_the_old_one_stays(
    network: Network, tmp_path: Path
) -> None:
    before = certificate(network)
    good = KeyDirectory(network.federation.keys).read(TLS)
    keys = KeyDirectory(tmp_path / "foreign")
    Authority.create(keys, "foreign").issue(network.federation.names)
    KeyDirectory(network.federation.keys).store(TLS, keys.read(TLS), again=True)
    wait_until(lambda: "not taken up" in network.log("link"))
    assert certificate(network) == before
    KeyDirectory(network.federation.keys).store(TLS, good, again=True)
    assert admitted(network, network.names[0])


def test_a_damaged_registry_lets_nobody_in_and_a_mended_one_everybody(network: Network) -> None:
    registry = network.federation.registry.path
    whole = registry.read_bytes()
    registry.write_bytes(whole[:-10])
    wait_until(lambda: "nobody can be let in" in network.log("link"))
    assert not admitted(network, network.names[0])
    registry.write_bytes(whole)
    wait_until(lambda: all(admitted(network, name) for name in network.names))
    assert network.log("link").count("nobody can be let in") == 1  # said once, not each second


def test_a_link_that_was_killed_goes_on_where_it_was(network: Network) -> None:
    with network.fleet(network.names[0]) as fleet:
        before, inside = fleet.node_id, Place(network.federation).inside()
        network.kill("link")
        network.start_link()
        assert fleet.pull() is None  # the same connection object: it found its way back
        assert Place(network.federation).inside() == inside
    with network.fleet(network.names[0]) as fleet:
        assert fleet.node_id == before
