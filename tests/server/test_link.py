"""A link as a process of its own, with real TLS: attacked from outside, and changed while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.fleet import Fleet, NotAdmitted, Unreachable
from common.errors import InputError, TrustError
from common.seal import NodeKey
from server.certificates import Certificates
from server.link import Link, LinkHome, LinkSettings
from server.registry import FileRegistry
from tests.network import ROOT, wait_until

pytestmark = pytest.mark.slow
CLIENTS = ("one", "two")


@dataclass
class Started:
    """A link process and what a test needs to reach it."""

    home: LinkHome
    process: subprocess.Popen[str]
    host: str
    port: int
    inside: int
    keys: dict[str, NodeKey]

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.home.certificates.authority)

    def get(self, path: str, method: str = "GET", **options: object) -> httpx.Response:
        with httpx.Client(verify=self.trusting(), trust_env=False) as client:
            return client.request(method, f"https://{self.address}{path}", **options)  # type: ignore[arg-type]

    def fleet(self, name: str = "one") -> Fleet:
        return Fleet(
            self.address, self.keys[name], self.home.certificates.authority, threading.Event()
        )

    def enrol(self, *names: str) -> None:
        members = {name: {"node_key": self.keys[name].public.pem.decode()} for name in names}
        FileRegistry(self.home.members).write(members)

    def memory(self) -> float:
        """The most that it ever held, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024


@contextlib.contextmanager
def started(path: Path) -> Iterator[Started]:
    folder = path / "keys"
    folder.mkdir(mode=0o700)
    keys = {name: NodeKey.create(folder / name) for name in CLIENTS}
    home = LinkHome(path / "link")
    home.path.mkdir()
    words = ["server", "start", str(home.path), "--format", "json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = open(path / "log", "w")
    process = subprocess.Popen(
        [sys.executable, "-m", "privet", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        data = json.loads(process.stdout.readline())["data"]
        host, _, port = data["address"].rpartition(":")
        inside = int(data["inside"].rpartition(":")[2])
        link = Started(home, process, host, int(port), inside, keys)
        link.enrol(*CLIENTS)
        yield link
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            log.close()
    assert process.returncode == 0, (path / "log").read_text()[-2000:]


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with started(tmp_path_factory.mktemp("link")) as made:
        wait_until(lambda: _admitted(made, "one"))
        yield made


def _admitted(link: Started, name: str) -> bool:
    try:
        with link.fleet(name):
            return True
    except (NotAdmitted, Unreachable):
        return False


# -- what a first start makes --------------------------------------------------------------------


def test_private_keys_are_readable_by_their_owner_alone(link: Started) -> None:
    assert stat.S_IMODE(link.home.keys.stat().st_mode) == 0o700
    files = list(link.home.keys.iterdir())
    assert {file.name for file in files} == {"ca.key", "server.key", "executor.secret"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_certificate_of_another_authority_is_not_trusted(link: Started, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    other = Certificates(tmp_path, tmp_path)
    other.ensure(["127.0.0.1"])
    with pytest.raises(Unreachable):
        Fleet(link.address, link.keys["one"], other.authority, threading.Event()).__enter__()


def test_plaintext_is_refused_off_loopback_and_nothing_is_made(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "10.0.0.1", "example.org", "::"):
        with pytest.raises(InputError) as caught:
            Link(LinkHome(tmp_path / "link"), LinkSettings(host, plaintext=True))
        assert caught.value.code == "plaintext-off-loopback"
    assert not (tmp_path / "link").exists()


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    home = LinkHome(tmp_path)
    home.prepare(["127.0.0.1"])
    home.keys.chmod(0o750)
    with pytest.raises(TrustError) as caught:
        home.prepare(["127.0.0.1"])
    assert caught.value.code == "key-exposed"


# -- attacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/redoc", "/v1/control/list-runs", "/v1/runtime/get-nodes"]
)
def test_control_runtime_and_descriptions_are_not_there_from_outside(
    link: Started, path: str
) -> None:
    for method in ("GET", "POST"):
        assert link.get(path, method).status_code == 404


def test_descriptions_are_not_there_inside_either(link: Started) -> None:
    for path in ("/docs", "/openapi.json", "/v1/fleet/activate-node"):
        with httpx.Client(trust_env=False) as client:
            assert client.post(f"http://127.0.0.1:{link.inside}{path}").status_code == 404


def test_a_runs_task_cannot_be_taken_without_the_secret(link: Started) -> None:
    body = AcquireTaskRequest(supported_task_types=["flwr-serverapp"]).SerializeToString()
    headers = {"content-type": "application/protobuf"}
    assert link.get("/v1/runtime/acquire-task", "POST", content=body).status_code == 404
    with httpx.Client(trust_env=False) as client:
        url = f"http://127.0.0.1:{link.inside}/v1/runtime/acquire-task"
        taken = client.post(url, content=body, headers=headers)
        collected = client.post(f"http://127.0.0.1:{link.inside}/privet/v1/collect", content=b"")
    assert not taken.is_success
    assert taken.status_code in (400, 401, 415)
    assert collected.status_code == 401


def test_flowers_own_signature_alone_opens_nothing(link: Started) -> None:
    """What a stock SuperNode sends, or whoever recorded it, replays for another method, or later."""
    key = link.keys["one"]
    client = FleetHttpClient.from_server_address(
        link.address,
        False,
        str(link.home.certificates.authority),
        [NodeAuthHttpInterceptor(key.ec, key.ec.public_key())],
    )
    with client:
        with pytest.raises(httpx.HTTPStatusError) as activated:
            client.ActivateNode(
                ActivateNodeRequest(public_key=key.public.pem, heartbeat_interval=30)
            )
        with pytest.raises(httpx.HTTPStatusError) as pulled:
            client.PullMessages(PullMessagesRequest(node=Node(node_id=1)))
    assert (activated.value.response.status_code, pulled.value.response.status_code) == (401, 404)


def test_a_recorded_request_opens_nothing_again_not_even_on_another_route(link: Started) -> None:
    recorded: list[httpx.Request] = []
    with link.fleet() as fleet:
        bounded = fleet._client._client
        send = bounded.send

        def record(request: httpx.Request, **options: object) -> httpx.Response:
            recorded.append(request)
            return send(request, **options)

        bounded.send = record  # type: ignore[method-assign]
        fleet._once(
            fleet._post, ("/privet/v1/take", PullMessagesRequest(node=fleet._node).SerializeToString())
        )
        request = recorded[-1]
        for path in ("/privet/v1/take", "/v1/fleet/deactivate-node", "/v1/fleet/send-node-heartbeat"):
            answer = link.get(path, "POST", headers=dict(request.headers), content=request.content)
            assert answer.status_code == 401
        assert fleet.pull() is None  # the node itself goes on


def test_an_unknown_node_is_refused(link: Started, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    stranger = NodeKey.create(tmp_path / "key")
    with pytest.raises(NotAdmitted):
        Fleet(
            link.address, stranger, link.home.certificates.authority, threading.Event()
        ).__enter__()


def test_one_node_cannot_take_anothers_messages(link: Started) -> None:
    with link.fleet("one") as one, link.fleet("two") as two:
        one._node.node_id = two.node_id
        with pytest.raises(NotAdmitted):
            one.pull()


def test_an_older_tls_is_refused(link: Started) -> None:
    context = link.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((link.host, link.port), 5) as plain,
        pytest.raises(ssl.SSLError),
        context.wrap_socket(plain, server_hostname=link.host),
    ):
        pass
    with (
        socket.create_connection((link.host, link.port), 5) as plain,
        link.trusting().wrap_socket(plain, server_hostname=link.host) as secured,
    ):
        assert secured.version() == "TLSv1.3"


def test_a_body_of_400_megabytes_is_refused_before_it_is_read(link: Started) -> None:
    before = link.memory()
    for announced in (True, False):
        with (
            socket.create_connection((link.host, link.port), 5) as plain,
            link.trusting().wrap_socket(plain, server_hostname=link.host) as peer,
        ):
            length = f"content-length: {400 << 20}" if announced else "transfer-encoding: chunked"
            peer.sendall(f"POST /privet/v1/take HTTP/1.1\r\nhost: a\r\n{length}\r\n\r\n".encode())
            sent, block = 0, b"x" * (1 << 20)
            with contextlib.suppress(OSError):
                for _ in range(400):
                    peer.sendall(block)
                    sent += len(block)
    assert sent < 64 << 20
    assert link.memory() - before <= 64
    assert _admitted(link, "one")


def test_a_thousand_half_open_connections_keep_nobody_out(link: Started) -> None:
    before = link.memory()
    held: list[socket.socket] = []
    try:
        for number in range(1000):
            flood = socket.socket()
            flood.bind(("127.0.0.2", 0))
            flood.settimeout(5)
            with contextlib.suppress(OSError):
                flood.connect((link.host, link.port))
                if number % 2:
                    flood.send(b"\x16\x03\x01")  # a handshake that never goes on
            held.append(flood)
        began = time.monotonic()
        with link.fleet("one") as fleet:
            assert fleet.node_id
        assert time.monotonic() - began < 5
    finally:
        for flood in held:
            flood.close()
    assert link.memory() - before <= 64


def test_headers_that_trickle_in_have_a_deadline(link: Started) -> None:
    with (
        socket.create_connection((link.host, link.port), 5) as plain,
        link.trusting().wrap_socket(plain, server_hostname=link.host) as peer,
    ):
        peer.settimeout(1)
        began = time.monotonic()
        peer.sendall(b"POST /privet/v1/take HTTP/1.1\r\n")
        ended = False
        while not ended and time.monotonic() - began < 20:
            try:
                peer.sendall(b"x: y\r\n")
                ended = peer.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        assert time.monotonic() - began < 12


def test_headers_that_are_too_long_are_refused(link: Started) -> None:
    with contextlib.suppress(httpx.HTTPError):
        assert link.get("/health", headers={"x": "y" * 100_000}).status_code == 400
    assert link.get("/health").status_code == 200


# -- changes while it runs -----------------------------------------------------------------------


def test_a_node_that_is_revoked_is_cut_off_and_the_other_is_not(tmp_path: Path) -> None:
    with started(tmp_path) as link:
        wait_until(lambda: _admitted(link, "one") and _admitted(link, "two"))
        with link.fleet("one") as one, link.fleet("two") as two:
            link.enrol("two")
            began = time.monotonic()
            with pytest.raises((NotAdmitted, Unreachable)):
                while one.pull() is None:  # a held question ends with its connection
                    pass
            assert time.monotonic() - began < 5
            assert two.pull() is None
        assert not _admitted(link, "one")


def test_a_certificate_is_renewed_without_a_restart(tmp_path: Path) -> None:
    with started(tmp_path) as link:
        wait_until(lambda: _admitted(link, "one"))
        first = ssl.get_server_certificate((link.host, link.port))
        with link.fleet("one") as fleet:
            certificates = link.home.certificates
            fresh = Certificates(tmp_path / "fresh", tmp_path / "fresh")
            (tmp_path / "fresh").mkdir(mode=0o700)
            shutil.copy(certificates.authority, fresh.authority)
            shutil.copy(certificates.authority_key, fresh.authority_key)
            fresh.ensure(["127.0.0.1"])
            shutil.copy(fresh.server_key, certificates.server_key)
            shutil.copy(fresh.server, certificates.server)
            wait_until(lambda: ssl.get_server_certificate((link.host, link.port)) != first)
            assert fleet.pull() is None  # the connection that was there goes on
        assert _admitted(link, "one")
