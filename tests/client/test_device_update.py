"""What an update installs, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import contextlib
import http.server
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tuf.api.exceptions import DownloadError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from client.device import metadata
from client.device.home import DeviceHome
from client.device.rollback import roll_back
from client.device.runtime import Predictor
from client.device.transport import Bounded, DirectoryFetcher, UnsafePathError, WebFetcher
from client.device.updater import Outcome, update
from common.errors import EXIT_TRUST, InputError, NetworkError, OperationError, TrustError
from server.release.repository import Repository
from tests.client.device_attacks import forget, refused, rotate
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    DAY,
    FIRST,
    NOW,
    POLICY,
    RECORDS,
    RECOVERY,
    ROLES,
    SECOND,
    STRANGER,
    World,
    answers,
    contents,
    decisions,
)

NAME = "clinic-linear"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.updated(tmp_path)


# -- what works ------------------------------------------------------------------------------------


def test_first_contact_installs_the_release(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.publish(FIRST)
    assert update(world.home, NOW) == Outcome(True, NAME, 1)
    np.testing.assert_allclose(answers(world.home), FIRST.model.answer(RECORDS), atol=1e-6)


def test_nothing_new_changes_no_file(world: World) -> None:
    before = contents(world.home.path, without=())
    assert update(world.home, NOW) == Outcome(False, NAME, 1)
    assert contents(world.home.path, without=()) == before


def test_a_newer_release_takes_the_place_of_the_older(world: World) -> None:
    world.publish(SECOND)
    assert update(world.home, NOW) == Outcome(True, NAME, 2)
    np.testing.assert_allclose(answers(world.home), SECOND.model.answer(RECORDS), atol=1e-6)


def test_the_log_says_what_was_accepted_and_when(world: World) -> None:
    world.publish(SECOND)
    update(world.home, NOW + DAY)
    lines = decisions(world.home)
    assert [(line["decision"], line["version"], line["at"]) for line in lines] == [
        ("accepted", 1, "2030-05-17T12:00:00+00:00"),
        ("accepted", 2, "2030-05-18T12:00:00+00:00"),
    ]


def test_a_release_is_not_downloaded_again_when_the_repository_is_renewed(world: World) -> None:
    world.repository.renew(COORDINATOR, NOW + 6 * DAY)
    assert update(world.home, NOW + 12 * DAY) == Outcome(False, NAME, 1)


def test_a_damaged_slot_is_repaired_by_the_next_update(world: World) -> None:
    (world.home.slots / "a" / "model.onnx.sealed").write_bytes(b"damaged")
    with pytest.raises(TrustError, match="was changed since"):
        Predictor.load(world.home)
    assert update(world.home, NOW) == Outcome(True, NAME, 1)
    np.testing.assert_allclose(answers(world.home), FIRST.model.answer(RECORDS), atol=1e-6)


def test_a_damaged_pointer_is_repaired_by_the_next_update(world: World) -> None:
    world.home.current.write_bytes(b"{}")
    assert update(world.home, NOW) == Outcome(True, NAME, 1)
    np.testing.assert_allclose(answers(world.home), FIRST.model.answer(RECORDS), atol=1e-6)


def test_a_pointer_to_a_version_that_never_was_is_repaired_by_the_next_update(world: World) -> None:
    """It is not signed, so it does not count as something that the device accepted."""
    file = world.home.current
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":9'))
    assert update(world.home, NOW) == Outcome(True, NAME, 1)
    with pytest.raises(OperationError):
        roll_back(world.home, NOW)


def test_two_updates_at_once_are_not_allowed(world: World) -> None:
    with world.home.lock(), pytest.raises(OperationError, match="another process"):
        update(world.home, NOW)


def test_an_empty_or_absent_repository_is_a_matter_of_the_network(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    with pytest.raises(NetworkError, match=r"timestamp\.json"):
        update(world.home, NOW)
    shutil.rmtree(world.repository.path)
    with pytest.raises(NetworkError):
        update(world.home, NOW)
    assert not world.home.decisions.exists()


# -- every byte ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [80, pytest.param(1000, marks=pytest.mark.figures)])
def test_no_flipped_byte_of_any_published_file_is_accepted(world: World, flips: int) -> None:
    """``flips`` seeded positions, shared among all files of the release that the device lacks.

    Bit 5 of a metadata file is left alone: in a signature's hexadecimal digits it only changes the
    case of a letter, and that is the same signature. Roots that the device already has are not
    read, so they are flipped where they are read: at enrolment, below.
    """
    world.publish(SECOND)
    files = published(world.repository.path)
    expected, before = answers(world.home), contents(world.home.path)
    seen = contents(world.home.tuf)
    draw = random.Random(20300517)
    refusals = 0
    for number in range(flips):
        file = files[number % len(files)]
        whole = file.read_bytes()
        bits = (0, 1, 2, 3, 4, 6, 7) if file.parent.name == "metadata" else range(8)
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.choice(bits)
        file.write_bytes(flipped)
        with pytest.raises(TrustError) as caught:
            update(world.home, NOW)
        file.write_bytes(whole)
        refusals += caught.value.exit_code == EXIT_TRUST
        if file.parent.name == "targets":  # the metadata verified, and were kept
            forget(world.home, seen)
        assert contents(world.home.path) == before, file
    assert refusals == flips
    np.testing.assert_array_equal(answers(world.home), expected)
    assert update(world.home, NOW) == Outcome(True, NAME, 2)


def test_no_flipped_byte_of_a_root_is_enrolled(world: World, tmp_path: Path) -> None:
    """Two of two signatures are needed, so every bit that means something counts."""
    root = world.repository.root
    draw = random.Random(8)
    for _ in range(100):
        flipped = bytearray(root)
        flipped[draw.randrange(len(root))] ^= 1 << draw.choice((0, 1, 2, 3, 4, 6, 7))
        with pytest.raises(TrustError):
            DeviceHome.init(tmp_path / "other", bytes(flipped), POLICY)
        assert not (tmp_path / "other").exists()


def published(repository: Path) -> list[Path]:
    """The files of the current release: all targets are new in it, and the newest metadata."""
    version = Repository(repository).version
    names = {f"{version}.targets.json", f"{version}.snapshot.json", "timestamp.json"}
    metadata = [file for file in (repository / "metadata").iterdir() if file.name in names]
    targets = {
        file.get_prefixed_paths()[0]
        for file in Repository(repository)._current()[2].signed.targets.values()
    }
    files = metadata + [repository / "targets" / name for name in targets]
    assert len(files) == 3 + 6
    return sorted(files)


def test_a_flipped_byte_of_metadata_changes_no_file_at_all(world: World) -> None:
    world.publish(SECOND)
    file = world.repository.path / "metadata" / "2.snapshot.json"
    whole = file.read_bytes()
    before = contents(world.home.path)
    for position in range(0, len(whole), 25):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        refused(world.home)
        assert contents(world.home.path) == before
    file.write_bytes(whole)


# -- time and order --------------------------------------------------------------------------------


def test_the_clock_that_is_passed_in_is_the_one_that_is_believed(world: World) -> None:
    """A contract with TUF's client, whose clock cannot be set by its public interface."""
    assert update(world.home, NOW + 7 * DAY - timedelta(seconds=5)).version == 1
    with pytest.raises(TrustError, match="expired"):
        update(world.home, NOW + 7 * DAY + timedelta(seconds=5))


# -- signers ---------------------------------------------------------------------------------------


# -- a new root ------------------------------------------------------------------------------------


def test_a_new_root_that_two_of_three_sign_is_followed_and_kept(world: World) -> None:
    rotate(world, [RECOVERY, APPROVER])
    assert update(world.home, NOW) == Outcome(False, NAME, 1)
    assert "root_history/2.root.json" in contents(world.home.tuf)
    world.repository = Repository(world.repository.path)
    world.publish(SECOND)
    assert update(world.home, NOW) == Outcome(True, NAME, 2)


@pytest.mark.parametrize("signers", [[RECOVERY], [COORDINATOR, STRANGER], []])
def test_a_new_root_without_two_of_three_is_refused(world: World, signers) -> None:
    before = contents(world.home.path)
    rotate(world, signers)
    assert refused(world.home).code == "bad-signature"
    assert contents(world.home.path) == before


def test_a_new_root_is_kept_though_the_release_behind_it_is_refused(world: World) -> None:
    """Else thieves of the old keys could go on by keeping the repository broken."""
    rotate(world, [RECOVERY, APPROVER])
    (world.repository.path / "metadata" / "timestamp.json").write_bytes(b"{}")
    refused(world.home)
    assert "root_history/2.root.json" in contents(world.home.tuf)


# -- the owner's policy ----------------------------------------------------------------------------


def test_a_release_over_the_owners_epsilon_is_refused(world: World) -> None:
    world.publish(replace(SECOND, epsilon=3.01))
    error = refused(world.home)
    assert error.code == "policy"
    assert "3.01" in error.message
    assert "allows 3" in error.message
    assert decisions(world.home)[-1]["version"] == 2


def test_a_simulated_release_is_refused_unless_the_owner_allows_it(world: World) -> None:
    world.publish(replace(SECOND, simulated=True))
    assert refused(world.home).code == "simulated"
    assert update(world.device("lenient", accept_simulated=True), NOW).version == 2


def test_a_policy_made_stricter_stops_the_installed_model(world: World) -> None:
    strict = replace(POLICY, greatest_epsilon=1.0)
    (world.home.path / "policy.json").write_bytes(strict.encode())
    with pytest.raises(TrustError, match="epsilon 2"):
        Predictor.load(world.home)


# -- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "targets/../secret",
        "/etc/hostname",
        "../secret",
        "targets//x",
        "targets/.hidden",
        "a/..%2f\0",
    ],
)
def test_a_path_out_of_the_repository_is_refused(world: World, url: str) -> None:
    (world.repository.path.parent / "secret").write_bytes(b"secret")
    with pytest.raises(UnsafePathError):
        DirectoryFetcher(world.repository.path).download_bytes(url, 100)


@pytest.fixture
def web(world: World) -> Iterator[str]:
    """The repository, handed out by a plain file server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            if not self.path.endswith("/drip"):
                super().do_GET()
                return
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b".")
                time.sleep(0.05)

    handler = partial(Quiet, directory=str(world.repository.path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_release_arrives_over_http(world: World, web: str) -> None:
    world.publish(SECOND)
    home = world.device("remote", repository=web)
    assert update(home, NOW) == Outcome(True, NAME, 2)
    np.testing.assert_array_equal(answers(home), Predictor.load(home).probabilities(RECORDS))


def test_a_server_that_is_away_is_a_matter_of_the_network(world: World, monkeypatch) -> None:
    monkeypatch.setattr(metadata, "WebFetcher", lambda authority: Away())
    home = world.device("remote", repository="http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="did not answer"):
        update(home, NOW)
    assert not home.decisions.exists()


class Away(FetcherInterface):
    def _fetch(self, url: str) -> Iterator[bytes]:
        raise ConnectionError("nobody there")


def test_a_server_that_drips_is_given_up_on(web: str) -> None:
    start = time.monotonic()
    with pytest.raises(SlowRetrievalError):
        Bounded(WebFetcher(), 0.3).download_bytes(f"{web}/drip", 1000)
    assert time.monotonic() - start < 3


def test_a_server_that_drags_out_its_headers_is_given_up_on(world: World) -> None:
    """A byte every so often resets a socket's timeout each time; the deadline is for all of it."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while not stop.wait(0.02):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: drip(server.accept()[0]))
        thread.start()
        home = world.device("remote", repository=f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(NetworkError, match=r"not done in 0\.3 seconds"):
            update(home, NOW, deadline=0.3)
        assert time.monotonic() - start < 5
        stop.set()
        thread.join()
    assert not home.decisions.exists()


def test_many_files_share_one_deadline(world: World) -> None:
    """Each is quick enough by itself."""

    class Slow(DirectoryFetcher):
        def _fetch(self, url: str) -> Iterator[bytes]:
            time.sleep(0.15)
            return super()._fetch(url)

    world.publish(SECOND)
    with pytest.raises(NetworkError, match="not done in"):
        update(world.home, NOW, Slow(world.repository.path), deadline=0.5)
    assert Predictor.load(world.home).version == 1


def test_a_connection_that_breaks_is_a_download_error(web: str) -> None:
    class Broken:
        def read1(self, size: int) -> bytes:
            raise ConnectionResetError("gone")

        def close(self) -> None: ...

    with pytest.raises(DownloadError, match="broke"):
        list(WebFetcher()._chunks(Broken()))


# -- what a device needs ---------------------------------------------------------------------------


def test_the_device_imports_neither_torch_nor_flower() -> None:
    code = (
        "import sys\n"
        "from client.device import floor, home, identity, log, metadata, rollback, runtime\n"
        "from client.device import slots, status, transport, updater, verify\n"
        "heavy = {'torch', 'flwr', 'opacus', 'onnx', 'safetensors', 'server', 'audit', 'ray'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_roles_are_those_that_the_design_names(world: World) -> None:
    root = Repository(world.repository.path)._root
    shape = {role: (entry.threshold, len(entry.keyids)) for role, entry in root.roles.items()}
    assert shape == {"root": (2, 3), "targets": (2, 2), "snapshot": (1, 1), "timestamp": (1, 1)}
    assert ROLES.coordinator != ROLES.approver


# -- keys and enrolment ----------------------------------------------------------------------------


def test_keys_inside_of_the_device_directory_are_refused(world: World, tmp_path: Path) -> None:
    place = tmp_path / "new"
    with pytest.raises(InputError, match="would be wiped"):
        DeviceHome.init(place, world.repository.root, POLICY, place / "keys")
    assert not place.exists()


def test_a_device_whose_keys_are_gone_says_so(world: World) -> None:
    shutil.rmtree(world.home.identity.path)
    for work in (lambda home: update(home, NOW), Predictor.load):
        with pytest.raises(OperationError, match="no key at"):
            work(DeviceHome(world.home.path))


@pytest.mark.parametrize("how", ["lost", "unreadable"])
@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("policy.json", Predictor.load),
        ("policy.json", lambda home: update(home, NOW)),
        ("root.json", lambda home: update(home, NOW)),  # a start asks for nobody's keys
    ],
)
def test_a_file_of_enrolment_that_cannot_be_read_is_a_refusal_and_no_bug(
    world: World, name: str, work: Callable[[DeviceHome], object], how: str
) -> None:
    home = DeviceHome(world.home.path)
    (home.path / name).unlink()
    if how == "unreadable":
        (home.path / name).mkdir()
    with pytest.raises(TrustError, match=name) as caught:
        work(home)
    assert (caught.value.code, caught.value.exit_code) == ("damaged", 11)
    assert "enrol the device again" in caught.value.hint


def test_what_else_cannot_be_read_is_a_refusal_too(world: World) -> None:
    home = world.home
    (home.path / "authority.pem").write_bytes(b"\xff")
    with pytest.raises(TrustError, match="is not PEM"):
        _ = home.authority
    for file, code in (
        (home.identity.path / "floor.json", "floor-damaged"),
        (home.current, "damaged"),
    ):
        file.unlink()
        file.mkdir()
        with pytest.raises(TrustError) as caught:
            Predictor.load(home)
        assert caught.value.code == code
        file.rmdir()


def test_a_floor_that_was_changed_lets_nothing_in(world: World) -> None:
    """And is no reason to believe anything: not even the refusal can be chained to it."""
    world.publish(SECOND)
    file = world.home.identity.path / "floor.json"
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":0'))
    before = contents(world.path, without=())
    for work in (lambda home: update(home, NOW), Predictor.load):
        with pytest.raises(TrustError) as caught:
            work(world.home)
        assert caught.value.code == "floor-damaged"
    assert contents(world.path, without=()) == before
