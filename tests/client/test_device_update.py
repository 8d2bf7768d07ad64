"""What an update installs, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import http.server
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError, SlowRetrievalError
from tuf.api.metadata import Metadata
from tuf.ngclient import FetcherInterface

from client.device import log, updater
from client.device.home import DeviceHome
from client.device.runtime import Predictor
from client.device.updater import DirectoryFetcher, Outcome, WebFetcher, update
from common.errors import EXIT_TRUST, NetworkError, OperationError, TrustError
from common.keys import SigningKey
from server.release.repository import Repository, Roles
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    DAY,
    NOW,
    POLICY,
    RECORDS,
    RECOVERY,
    ROLES,
    STRANGER,
    Recipe,
    World,
    contents,
)

NAME = "clinic-linear"
FIRST, SECOND = Recipe(version=1), Recipe(version=2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A repository with version 1, and a device that has it."""
    made = World.make(tmp_path)
    made.publish(FIRST)
    update(made.home, NOW)
    return made


def answers(home: DeviceHome) -> np.ndarray:
    return Predictor.load(home).probabilities(RECORDS)


def refused(home: DeviceHome, now=NOW, fetcher: FetcherInterface | None = None) -> TrustError:
    """The refusal of an update, after asserting what every refusal must leave as it was.

    TUF's metadata may be newer afterwards, because they verified; nothing else may differ.
    """
    before = contents(home.path)
    with pytest.raises(TrustError) as caught:
        update(home, now, fetcher)
    assert caught.value.exit_code == EXIT_TRUST
    assert caught.value.hint
    changed = {name for name, data in contents(home.path).items() if before.get(name) != data}
    assert all(name.startswith("tuf/") for name in changed)
    assert before.keys() <= contents(home.path).keys()
    assert log.read(home.decisions)[-1]["decision"] == "refused"
    assert log.read(home.decisions)[-1]["code"] == caught.value.code
    return caught.value


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
    lines = log.read(world.home.decisions)
    assert [(line["decision"], line["version"], line["at"]) for line in lines] == [
        ("accepted", 1, "2030-05-17T12:00:00+00:00"),
        ("accepted", 2, "2030-05-18T12:00:00+00:00"),
    ]


def test_a_release_is_not_downloaded_again_when_the_repository_is_renewed(world: World) -> None:
    world.repository.renew(COORDINATOR, NOW + 6 * DAY)
    assert update(world.home, NOW + 12 * DAY) == Outcome(False, NAME, 1)


def test_a_damaged_slot_is_repaired_by_the_next_update(world: World) -> None:
    (world.home.slots / "a" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(TrustError, match="was changed since"):
        Predictor.load(world.home)
    assert update(world.home, NOW) == Outcome(True, NAME, 1)
    np.testing.assert_allclose(answers(world.home), FIRST.model.answer(RECORDS), atol=1e-6)


def test_a_damaged_pointer_is_repaired_by_the_next_update(world: World) -> None:
    world.home.current.write_bytes(b"{}")
    assert update(world.home, NOW) == Outcome(True, NAME, 1)
    np.testing.assert_allclose(answers(world.home), FIRST.model.answer(RECORDS), atol=1e-6)


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


@pytest.mark.parametrize("flips", [200, pytest.param(1000, marks=pytest.mark.figures)])
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


def forget(home: DeviceHome, seen: dict[str, bytes]) -> None:
    """Give a device back the TUF metadata that it had, for the next attack to start afresh."""
    for name, data in seen.items():
        (home.tuf / name).write_bytes(data)


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


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "release.json"])
def test_a_truncated_target_is_refused(world: World, name: str) -> None:
    world.publish(SECOND)
    file = target_of(world, name)
    file.write_bytes(file.read_bytes()[:-1])
    assert refused(world.home).code == "wrong-digest"


def test_a_target_with_bytes_to_spare_is_refused(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    file.write_bytes(file.read_bytes() + b"\0")
    assert refused(world.home).code == "wrong-length"


def test_an_endless_target_is_cut_off_at_its_signed_length(world: World) -> None:
    world.publish(SECOND)
    endless = Endless(world.repository.path, "model.safetensors")
    assert refused(world.home, fetcher=endless).code == "wrong-length"
    assert endless.served < 10**6


def test_an_endless_timestamp_is_cut_off(world: World) -> None:
    endless = Endless(world.repository.path, "timestamp.json")
    assert refused(world.home, fetcher=endless).code == "wrong-length"
    assert endless.served < 10**6


class Endless(DirectoryFetcher):
    """A server that never stops sending one of its files."""

    def __init__(self, root: Path, name: str) -> None:
        super().__init__(root)
        self.name = name
        self.served = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._endless() if url.endswith(self.name) else super()._fetch(url)

    def _endless(self) -> Iterator[bytes]:
        while True:
            self.served += 4096
            yield b" " * 4096


def target_of(world: World, name: str) -> Path:
    """The file of the *current* release behind a target's name."""
    targets = world.repository._current()[2].signed.targets
    return world.repository.path / "targets" / targets[name].get_prefixed_paths()[0]


# -- time and order --------------------------------------------------------------------------------


def test_an_older_repository_is_refused_by_a_device_that_saw_the_newer(
    world: World, tmp_path: Path
) -> None:
    shutil.copytree(world.repository.path, tmp_path / "old")
    world.publish(SECOND)
    update(world.home, NOW)
    expected = answers(world.home)
    swap(world, tmp_path / "old")
    assert refused(world.home).code == "rollback"
    np.testing.assert_array_equal(answers(world.home), expected)


def test_an_older_release_is_refused_even_in_newer_metadata(world: World) -> None:
    """Both signers can be wrong together about TUF's version, not about the release's."""
    world.publish(SECOND)
    update(world.home, NOW)
    world.publish(FIRST)
    assert refused(world.home).code == "rollback"


def test_an_older_release_is_refused_though_the_pointer_is_gone(world: World) -> None:
    world.publish(SECOND)
    update(world.home, NOW)
    world.publish(FIRST)
    world.home.current.unlink()
    assert refused(world.home).code == "rollback"


def test_two_releases_under_one_version_are_refused(world: World) -> None:
    world.publish(replace(FIRST, epsilon=1.5))
    assert refused(world.home).code == "equivocation"


def test_an_expired_timestamp_is_refused(world: World) -> None:
    assert refused(world.home, now=NOW + 8 * DAY).code == "expired"


def test_an_expired_newer_release_is_refused_and_nothing_kept_of_it(world: World) -> None:
    world.publish(SECOND)
    before = contents(world.home.path)
    assert refused(world.home, now=NOW + 8 * DAY).code == "expired"
    assert contents(world.home.path) == before


def test_the_clock_that_is_passed_in_is_the_one_that_is_believed(world: World) -> None:
    """A contract with TUF's client, whose clock cannot be set by its public interface."""
    assert update(world.home, NOW + 7 * DAY - timedelta(seconds=5)).version == 1
    with pytest.raises(TrustError, match="expired"):
        update(world.home, NOW + 7 * DAY + timedelta(seconds=5))


def test_a_clock_that_is_set_back_does_not_make_an_expired_release_fresh(world: World) -> None:
    update(world.home, NOW + 6 * DAY)  # leaves the time it saw
    world.repository.publish(
        SECOND.files(), [COORDINATOR, APPROVER], COORDINATOR, NOW - 2 * DAY
    )  # its timestamp expires at NOW + 5 days
    assert refused(world.home, now=NOW - 100 * DAY).code == "expired"


def test_metadata_of_one_release_with_targets_of_another_are_refused(
    world: World, tmp_path: Path
) -> None:
    """Mix and match: version 2's timestamp over version 1's snapshot and targets."""
    old = (world.repository.path / "metadata" / "1.snapshot.json").read_bytes()
    world.publish(SECOND)
    (world.repository.path / "metadata" / "2.snapshot.json").write_bytes(old)
    refused(world.home)


def test_a_file_of_one_release_inside_another_is_refused(world: World) -> None:
    old = target_of(world, "model.onnx").read_bytes()
    world.publish(SECOND)
    target_of(world, "model.onnx").write_bytes(old)
    refused(world.home)


def test_a_genuine_release_mixed_from_two_is_refused(world: World) -> None:
    """Both parties sign, as TUF targets, the model of one release and the statement of another."""
    files = SECOND.files() | {
        "statement.dsse.json": Recipe(version=3).files()["statement.dsse.json"]
    }
    world.repository.publish(files, [COORDINATOR, APPROVER], COORDINATOR, NOW)
    assert refused(world.home).code == "wrong-digest"


def swap(world: World, other: Path) -> None:
    """Put another directory in the repository's place."""
    shutil.rmtree(world.repository.path)
    shutil.copytree(other, world.repository.path)


# -- signers ---------------------------------------------------------------------------------------


def test_another_partys_repository_is_refused(world: World, tmp_path: Path) -> None:
    stranger = Repository.create(
        tmp_path / "other",
        [STRANGER, RECOVERY],
        Roles(STRANGER.public, APPROVER.public, RECOVERY.public),
        NOW,
    )
    for _ in range(2):
        stranger.publish(SECOND.files(), [STRANGER, APPROVER], STRANGER, NOW)
    swap(world, tmp_path / "other")
    assert refused(world.home).code == "bad-signature"


def test_one_of_two_target_signatures_is_refused(world: World) -> None:
    """The approver's signature is cut out, and the online key signs what is left."""
    repository = world.repository
    draft = repository.sign(repository.draft(SECOND.files(), NOW), COORDINATOR)
    force(world, draft)
    assert refused(world.home).code == "bad-signature"


def test_one_signature_twice_is_not_two(world: World) -> None:
    repository = world.repository
    draft = repository.sign(repository.draft(SECOND.files(), NOW), COORDINATOR)
    entry = draft[draft.index(b'{"keyid"') : draft.index(b"}", draft.index(b'{"keyid"')) + 1]
    force(world, draft.replace(entry, entry + b"," + entry))
    refused(world.home)


def force(world: World, targets: bytes, files: dict[str, bytes] | None = None) -> None:
    """Publish targets metadata that the publisher's own check would refuse."""
    metadata = world.repository.path / "metadata"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.release.repository._require", lambda root, metadata: None)
        try:
            world.repository.commit(files or SECOND.files(), targets, COORDINATOR, NOW)
        except TrustError:  # not even readable: put it there by hand
            world.publish(SECOND)
            (metadata / f"{world.repository.version}.targets.json").write_bytes(targets)


def test_a_statement_with_one_signature_is_refused(world: World) -> None:
    world.publish(replace(SECOND, statement_signers=(COORDINATOR,)))
    assert refused(world.home).code == "bad-signature"


def test_a_target_name_that_leads_elsewhere_is_never_followed(world: World, tmp_path: Path) -> None:
    """Both parties sign ../../model.onnx: the device asks for the names of its own alone."""
    renamed = {n: d for n, d in SECOND.files().items() if n != "model.onnx"}
    targets = {**renamed, "../../model.onnx": b"evil"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.release.repository.NAME", AnyName())
        evil = world.repository.draft(targets, NOW)
    for key in (COORDINATOR, APPROVER):
        evil = world.repository.sign(evil, key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "_write", quiet_write(Repository._write))
        world.repository.commit(targets, evil, COORDINATOR, NOW)
    assert refused(world.home).code == "incomplete-release"
    assert not (world.home.path.parent / "model.onnx").exists()


class AnyName:
    """Stands for the pattern of plain names, and lets all of them pass."""

    def fullmatch(self, name: str) -> bool:
        return True


def quiet_write(write):
    def only_metadata(self: Repository, folder: str, name: str, data: bytes) -> None:
        if "/" not in name:
            write(self, folder, name, data)

    return only_metadata


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


def rotate(world: World, signers: list[SigningKey]) -> None:
    """Write root version 2, which is version 1 for a day longer."""
    metadata = Metadata.from_bytes(world.repository.root)
    metadata.signed.version = 2
    metadata.signed.expires += DAY
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(CryptoSigner(signer.ed25519), append=True)
    (world.repository.path / "metadata" / "2.root.json").write_bytes(metadata.to_bytes())


# -- the owner's policy ----------------------------------------------------------------------------


def test_a_release_over_the_owners_epsilon_is_refused(world: World) -> None:
    world.publish(replace(SECOND, epsilon=3.01))
    error = refused(world.home)
    assert error.code == "policy"
    assert "3.01" in error.message
    assert "allows 3" in error.message
    assert log.read(world.home.decisions)[-1]["version"] == 2


def test_a_simulated_release_is_refused_unless_the_owner_allows_it(world: World) -> None:
    world.publish(replace(SECOND, simulated=True))
    assert refused(world.home).code == "simulated"
    assert update(world.device("lenient", accept_simulated=True), NOW).version == 2


def test_another_model_is_refused(world: World) -> None:
    plan = replace(SECOND.plan, release=replace(SECOND.plan.release, name="other-model"))
    world.publish(replace(SECOND, plan=plan))
    assert refused(world.home).code == "other-model"


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
    with pytest.raises(updater.UnsafePathError):
        DirectoryFetcher(world.repository.path).download_bytes(url, 100)


def test_a_symbolic_link_in_a_repository_is_refused(world: World, tmp_path: Path) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    moved = tmp_path / "moved"
    file.rename(moved)
    file.symlink_to(moved)
    refused(world.home)


def test_a_linked_folder_in_a_repository_is_refused(world: World, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (world.repository.path / "metadata").rename(moved)
    (world.repository.path / "metadata").symlink_to(moved)
    refused(world.home)


def test_a_named_pipe_in_a_repository_does_not_hold_the_device(world: World) -> None:
    world.publish(SECOND)
    file = target_of(world, "model.onnx")
    file.unlink()
    os.mkfifo(file)
    refused(world.home)


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
    monkeypatch.setattr(updater, "WebFetcher", lambda: Away())
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
        WebFetcher(deadline=0.3).download_bytes(f"{web}/drip", 1000)
    assert time.monotonic() - start < 3


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
        "from client.device import home, log, runtime, slots, updater, verify\n"
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
