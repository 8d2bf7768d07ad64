"""What whoever stands between a device and its repository, or holds some of its keys, can do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, MetaFile
from tuf.ngclient import FetcherInterface

from client.device.home import DeviceHome
from client.device.policy import DevicePolicy
from client.device.transport import DirectoryFetcher
from client.device.updater import update
from common.errors import EXIT_TRUST, TrustError
from common.keys import SigningKey
from server.release.repository import Repository
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    DAY,
    NOW,
    POLICY,
    Recipe,
    World,
    contents,
    decisions,
)


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
    assert decisions(home)[-1]["decision"] == "refused"
    assert decisions(home)[-1]["code"] == caught.value.code
    return caught.value


def forget(home: DeviceHome, seen: dict[str, bytes]) -> None:
    """Give a device back the TUF metadata that it had, for the next attack to start afresh."""
    for name, data in seen.items():
        (home.tuf / name).write_bytes(data)


def wipe(world: World, policy: DevicePolicy = POLICY, *, keys: bool = False) -> None:
    """Delete the device's directory (and its keys), and enrol it again with the first root."""
    root = (world.repository.path / "metadata" / "1.root.json").read_bytes()
    place = world.home.identity.path
    shutil.rmtree(world.home.path)
    if keys:
        shutil.rmtree(place)
    world.home = DeviceHome.init(world.home.path, root, policy)


def target_of(world: World, name: str) -> Path:
    """The file of the *current* release behind a target's name."""
    targets = world.repository._current()[2].signed.targets
    return world.repository.path / "targets" / targets[name].get_prefixed_paths()[0]


def swap(world: World, other: Path) -> None:
    """Put another directory in the repository's place."""
    shutil.rmtree(world.repository.path)
    shutil.copytree(other, world.repository.path)


def keep(world: World) -> Path:
    """A copy of the repository as it is now, for :func:`swap`."""
    return Path(shutil.copytree(world.repository.path, world.path / "kept"))


@contextmanager
def unchecked() -> Iterator[None]:
    """Let a repository publish what its own check of signatures would refuse."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("published", "repository"):
            patch.setattr(f"server.release.{module}.require", lambda root, metadata: None)
        yield


def force(world: World, targets: bytes, recipe: Recipe) -> None:
    """Publish targets metadata as they are, however unreadable, under sound online metadata."""
    world.publish(recipe)
    folder, version = world.repository.path / "metadata", world.repository.version
    (folder / f"{version}.targets.json").write_bytes(targets)
    for name, inner in ((f"{version}.snapshot.json", targets), ("timestamp.json", None)):
        metadata = Metadata.from_bytes((folder / name).read_bytes())
        if inner is not None:
            metadata.signed.meta["targets.json"] = MetaFile.from_data(version, inner, ["sha256"])
        else:
            snapshot = (folder / f"{version}.snapshot.json").read_bytes()
            metadata.signed.snapshot_meta = MetaFile.from_data(version, snapshot, ["sha256"])
        metadata.signatures.clear()
        metadata.sign(CryptoSigner(COORDINATOR.ed25519))
        (folder / name).write_bytes(metadata.to_bytes())


def rotate(world: World, signers: list[SigningKey], coordinator: SigningKey = COORDINATOR) -> None:
    """Write root version 2: version 1 for a day longer, perhaps with another coordinator's key."""
    metadata = Metadata.from_bytes(world.repository.root)
    root = metadata.signed
    root.version = 2
    root.expires += DAY
    if coordinator is not COORDINATOR:
        (old,) = root.roles["timestamp"].keyids
        for role in ("root", "targets", "snapshot", "timestamp"):
            root.revoke_key(old, role)
            root.add_key(SSlibKey.from_crypto(coordinator.ed25519.public_key()), role)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(CryptoSigner(signer.ed25519), append=True)
    (world.repository.path / "metadata" / "2.root.json").write_bytes(metadata.to_bytes())
    if len(signers) > 1:
        with unchecked():
            world.repository = Repository(world.repository.path)


def publish_as(world: World, recipe: Recipe, coordinator: SigningKey) -> None:
    """Publish with another coordinator's key than what is published was signed with."""
    with unchecked():
        world.repository.publish(recipe.files(), [coordinator, APPROVER], coordinator, NOW)


def other_timestamp(world: World) -> None:
    """Sign another timestamp under the version that is published."""
    file = world.repository.path / "metadata" / "timestamp.json"
    metadata = Metadata.from_bytes(file.read_bytes())
    metadata.signed.expires -= DAY
    metadata.signatures.clear()
    metadata.sign(CryptoSigner(COORDINATOR.ed25519))
    file.write_bytes(metadata.to_bytes())


class AnyName:
    """Stands for the pattern of plain names, and lets all of them pass."""

    def fullmatch(self, name: str) -> bool:
        return True


def quiet_write(write):
    def only_metadata(self: Repository, folder: str, name: str, data: bytes) -> None:
        if "/" not in name:
            write(self, folder, name, data)

    return only_metadata


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
