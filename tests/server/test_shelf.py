"""What is published can be read through the public door, by anybody, and nothing beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.device.home import DeviceHome
from client.device.policy import DevicePolicy
from client.device.updater import update
from common.bundle import Trust
from common.errors import NetworkError
from common.keys import KeyDirectory
from privet.cli import run
from server.federation.authority import Authority
from server.link.gate import Bucket
from server.link.shelf import Shelf, ShelfLimits
from server.release.repository import Repository
from server.release.roots import Roles
from simulations.processes import Network, wait_until
from tests.client.device_fixtures import APPROVER, RECOVERY, Recipe

NOW = datetime.now(UTC)
HEX = "ab" * 32


# -- in memory -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something like a repository, and a secret beside it."""
    for name in ("metadata", "targets", "metadata/1.root.json.d"):
        (tmp_path / "repository" / name).mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    for name, data in {
        "metadata/timestamp.json": b"t",
        "metadata/12.snapshot.json": b"",
        f"targets/{HEX}.model.onnx": b"x" * 200_000,
        "metadata/.timestamp.json.a.tmp": b"half",
        "metadata/notes.txt": b"notes",
        "targets/model.onnx": b"x",
    }.items():
        (tmp_path / "repository" / name).write_bytes(data)
    return tmp_path / "repository"


def get(
    shelf: Shelf, path: str, *, method: str = "GET", query: bytes = b"", peer: str = "10.0.0.1"
) -> tuple[int, bytes]:
    """Status and body of one request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody who reads is listened to")

    scope = {"type": "http", "method": method, "path": path, "query_string": query,
             "client": (peer, 1)}  # fmt: skip
    asyncio.run(shelf(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    headers = dict(sent[0]["headers"])
    assert headers[b"content-length"] == b"%d" % len(body)
    assert headers[b"connection"] == b"close"
    return sent[0]["status"], body


def test_files_of_a_repository_are_there_whole(folder: Path) -> None:
    shelf = Shelf(folder, Bucket)
    assert get(shelf, "/repository/metadata/timestamp.json") == (200, b"t")
    assert get(shelf, "/repository/metadata/12.snapshot.json") == (200, b"")
    assert get(shelf, f"/repository/targets/{HEX}.model.onnx") == (200, b"x" * 200_000)


@pytest.mark.parametrize(
    "path",
    [
        *("/repository", "/repository/", "/repository/metadata", "/repository/metadata/"),
        *("/repository/targets/", "/repository/targets/model.onnx", "/repository//metadata/1"),
        *("/repository/metadata/notes.txt", "/repository/metadata/.timestamp.json.a.tmp"),
        *("/repository/../secret", "/repository/metadata/../../secret", "/repository/secret"),
        *("/repository/metadata/%2e%2e/secret", "/repository/metadata/timestamp.json/"),
        *("/repository/metadata/timestamp.json\n", "/repository/metadata/01.root.json"),
        *("/repository/metadata/9.root.json", "/repository/metadata/1.root.json.d"),
        *(f"/repository/targets/{HEX}.../secret", f"/repository/targets/{HEX}.a/b"),
        *(f"/repository/targets/{HEX.upper()}.model.onnx", f"/repository/targets/{HEX}.\0"),
        *(f"/repository/targets/{HEX}.{'a' * 65}", f"/repository/targets/{HEX}.ä"),
        "/repository/metadata/٣.root.json",
    ],
)
def test_nothing_else_is_there(folder: Path, path: str) -> None:
    assert get(Shelf(folder, Bucket), path) == (404, b"")


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_a_file_is_read_and_nothing_else(folder: Path, method: str) -> None:
    shelf = Shelf(folder, Bucket)
    assert get(shelf, "/repository/metadata/timestamp.json", method=method) == (404, b"")
    assert get(shelf, "/repository/metadata/timestamp.json", query=b"a=1") == (404, b"")


def test_no_link_pipe_or_oversized_file_is_handed_out(folder: Path) -> None:
    shelf = Shelf(folder, Bucket, ShelfLimits(metadata=10, target=100_000))
    (folder / "metadata" / "2.root.json").symlink_to(folder.parent / "secret")
    os.mkfifo(folder / "metadata" / "3.root.json")
    (folder / "metadata" / "4.root.json").write_bytes(b"x" * 11)
    (folder / "metadata" / "5.root.json").write_bytes(b"x" * 10)
    for number, status in {2: 404, 3: 404, 4: 404, 5: 200}.items():
        assert get(shelf, f"/repository/metadata/{number}.root.json")[0] == status
    assert get(shelf, f"/repository/targets/{HEX}.model.onnx") == (404, b"")
    (folder / "metadata").rename(folder / "elsewhere")
    (folder / "metadata").symlink_to(folder / "elsewhere")
    assert get(shelf, "/repository/metadata/timestamp.json") == (404, b"")
    assert get(Shelf(folder / "nothing", Bucket), "/repository/metadata/timestamp.json")[0] == 404


def test_an_address_that_asks_too_often_waits_and_another_does_not(folder: Path) -> None:
    shelf = Shelf(folder, Bucket, ShelfLimits(rate=1e-9, burst=3))
    path = "/repository/metadata/timestamp.json"
    assert [get(shelf, path)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert get(shelf, path, peer="10.0.0.2")[0] == 200


def test_few_files_are_on_their_way_at_once_and_a_slow_reader_is_given_up_on(folder: Path) -> None:
    limits = ShelfLimits(at_once=2, at_once_a_peer=1, seconds=0.2, each_second=10**9)
    shelf, path = Shelf(folder, Bucket, limits), f"/repository/targets/{HEX}.model.onnx"
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b""}

    async def ask(peer: str) -> int:
        status = 0

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            if status == 200 and message["type"] == "http.response.body":
                await asyncio.Event().wait()  # a reader that takes nothing

        try:
            await shelf({**scope, "client": (peer, 1)}, None, send)
        except TimeoutError:
            return -status
        return status

    async def crowd() -> list[int]:
        return await asyncio.gather(*map(ask, ["a", "a", "b", "c"]))

    assert asyncio.run(crowd()) == [-200, 503, -200, 503]
    assert get(shelf, "/repository/metadata/timestamp.json", peer="a")[0] == 200


# -- a link --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A federation whose last release's timestamp has little life left, and its link."""
    with Network.made(tmp_path_factory.mktemp("shelf"), clients=0) as network:
        here = network.federation
        key = here.signing_key()
        roles = Roles(key.public, APPROVER.public, RECOVERY.public)
        repository = Repository.create(here.repository, [key, APPROVER], roles, NOW)
        files = Recipe(statement_signers=(key, APPROVER)).files()
        repository.publish(files, [key, APPROVER], key, NOW - timedelta(days=6))
        network.start_link()
        yield network


def policy(network: Network, **changes: Any) -> DevicePolicy:
    signers = (network.federation.signing_key().public.fingerprint, APPROVER.public.fingerprint)
    where = f"https://{network.federation.address}/repository"
    return DevicePolicy(3.0, 1e-5, signers, where, **changes)


@pytest.mark.slow
def test_a_link_renews_the_timestamp_when_less_than_half_of_it_is_left(network: Network) -> None:
    repository = Repository(network.federation.repository)
    ends = {one.role: one.expires for one in repository.signed()}["timestamp"]
    assert ends - NOW > timedelta(days=6)  # a day was left before it started
    assert "the repository's timestamp was renewed" in network.log("link")


@pytest.mark.slow
def test_a_device_updates_from_the_coordinators_address_with_the_federations_authority(
    network: Network, tmp_path: Path
) -> None:
    root = Repository(network.federation.repository).root
    home = DeviceHome.init(
        tmp_path / "d", root, policy(network), authority=network.authority.encode()
    )
    assert update(home, NOW).version == 1
    other = Authority.create(KeyDirectory(tmp_path / "keys"), "other").certificate.encode()
    for number, wrong in enumerate((None, other)):
        home = DeviceHome.init(tmp_path / f"{number}", root, policy(network), authority=wrong)
        with pytest.raises(NetworkError, match="certificate"):
            update(home, NOW)


@pytest.mark.slow
def test_a_device_is_told_the_authoritys_fingerprint_or_given_its_certificate(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = tmp_path / "trust.json"
    signers = dict(zip(("coordinator", "approver"), policy(network).signers, strict=True))
    Trust(signers, {}).write(trust)
    root = network.federation.repository / "metadata" / "1.root.json"
    certificate = tmp_path / "authority.pem"
    certificate.write_text(network.authority)
    fingerprint = network.federation.authority().fingerprint
    for name, given, code in [
        ("one", fingerprint, 0),
        ("two", str(certificate), 0),
        ("three", "0" * 64, 11),
        ("four", str(root), 11),
        ("five", "nothing", 4),
    ]:
        words = ["device", "init", str(tmp_path / name), "--root", str(root), "--trust", str(trust),
                 "--repository", policy(network).repository, "--greatest-epsilon", "3",
                 "--authority", given]  # fmt: skip
        assert run(words) == code, capsys.readouterr().err
        assert (tmp_path / name).exists() is (code == 0)
        if code == 0:
            assert run(["device", "update", str(tmp_path / name)]) == 0


@pytest.mark.slow
def test_the_public_door_shows_what_is_published_and_nothing_beside_it(network: Network) -> None:
    address = network.federation.address
    context = ssl.create_default_context(cadata=network.authority)
    with httpx.Client(verify=context, trust_env=False) as client:
        url = f"https://{address}/repository/metadata/timestamp.json"
        held = (network.federation.repository / "metadata" / "timestamp.json").read_bytes()
        assert client.get(url).content == held
        assert client.post(url).status_code == 404
        model = Recipe().model.onnx().SerializeToString()
    for path, expected in [
        (b"/repository/", 404),
        (b"/repository/../federation.json", 404),
        (b"/repository/metadata/../../federation.json", 404),
        (b"/repository/metadata/%2e%2e/%2e%2e/federation.json", 404),
        (b"/repository/metadata/..%2f..%2fregistry.jsonl", 404),
        (b"/repository/%2e%2e/link/state.db", 404),
        (b"/repository/metadata/timestamp.json?x=1", 404),
        (
            b"/repository/targets/" + hashlib.sha256(model).hexdigest().encode() + b".model.onnx",
            200,
        ),
    ]:
        with (
            socket.create_connection((address.host, address.port), 5) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as peer,
        ):
            peer.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while chunk := peer.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 %d" % expected), path
        _, _, body = answer.partition(b"\r\n\r\n")
        assert body == (model if expected == 200 else b"")


@pytest.mark.slow
def test_a_repository_that_is_damaged_is_said_and_keeps_no_client_away(tmp_path: Path) -> None:
    with Network.made(tmp_path, clients=1) as network:
        folder = network.federation.repository / "metadata"
        folder.mkdir(parents=True)
        (folder / "1.root.json").write_bytes(b"{}")
        network.start_link()
        wait_until(lambda: "what is published cannot be renewed" in network.log("link"))
        with network.fleet(network.names[0]) as fleet:
            assert fleet.pull() is None
