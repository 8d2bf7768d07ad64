"""A link as a process of its own, over real TLS, attacked from outside and by its own clients."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.joining import Clock, join
from client.link.fleet import Fleet, NotAdmitted, Unreachable
from common.errors import TrustError
from common.nodekey import NodeKey
from common.parcel import TAKE
from server.federation.authority import Authority
from server.federation.invitations import Invitations
from server.link.gate import ROUTES
from server.link.place import Place
from server.link.waking import SECRET_HEADER
from simulations.processes import Network, wait_until
from tests.server.doorway import DAY
from tests.server.doorway import Door as Devices
from tests.server.test_link import admitted

pytestmark = pytest.mark.slow
MOST_MEMORY = 64  # MiB that an attack may cost
EARLIER = Clock(now=lambda: time.time() - DAY)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network.made(tmp_path_factory.mktemp("attacked"), clients=2) as network:
        network.start_link()
        wait_until(lambda: all(admitted(network, name) for name in network.names))
        yield network


@pytest.fixture(autouse=True)
def unharmed(network: Network) -> Iterator[None]:
    """Whatever is tried: the link's memory stays small, and an honest node is let in."""
    before = network.memory("link", "VmHWM")
    yield
    assert network.processes["link"].poll() is None, network.log("link")
    assert network.memory("link", "VmHWM") - before <= MOST_MEMORY
    assert admitted(network, network.names[0])


def trusting(network: Network) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=network.authority)


def ask(network: Network, path: str, method: str = "POST", **options: object) -> httpx.Response:
    with httpx.Client(verify=trusting(network), trust_env=False) as client:
        url = f"https://{network.federation.address}{path}"
        return client.request(method, url, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def connected(network: Network) -> Iterator[ssl.SSLSocket]:
    """A TLS connection that has said nothing yet."""
    address = network.federation.address
    with (
        socket.create_connection((address.host, address.port), 5) as plain,
        trusting(network).wrap_socket(plain, server_hostname=address.host) as peer,
    ):
        yield peer


# -- what is not there ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/docs", "/redoc", "/openapi.json", "/metrics", "/"),
        *("/v1/control/start-run", "/v1/control/list-runs", "/v1/control/stop-run"),
        *("/v1/control/register-node", "/v1/control/list-nodes"),
        *("/v1/runtime/acquire-task", "/v1/runtime/get-nodes", "/v1/runtime/push-app-messages"),
        *("/v1/fleet/register-node", "/v1/fleet/get-fab", "/v1/fleet/get-run"),
        *("/privet/v1/send", "/privet/v1/collect"),
    ],
)
def test_control_runtime_bundles_and_descriptions_are_not_there_from_outside(
    network: Network, path: str
) -> None:
    for method in ("GET", "POST"):
        answer = ask(network, path, method)
        assert (answer.status_code, answer.content) == (404, b"")


def test_descriptions_and_node_routes_are_not_there_inside_either(network: Network) -> None:
    inside = Place(network.federation).inside()
    with httpx.Client(trust_env=False) as client:
        for path in ("/docs", "/openapi.json", *sorted(ROUTES)):
            assert client.post(f"http://{inside}{path}").status_code == 404


def test_the_inner_interface_listens_on_the_loopback_address_alone(network: Network) -> None:
    port = int(Place(network.federation).inside().rpartition(":")[2])
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert [one for one in listening if one.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_a_runs_task_cannot_be_taken_without_the_secret(network: Network) -> None:
    body = AcquireTaskRequest(supported_task_types=["flwr-serverapp"]).SerializeToString()
    headers = {"content-type": "application/protobuf"}
    inside = Place(network.federation).inside()
    assert ask(network, "/v1/runtime/acquire-task", content=body).status_code == 404
    with httpx.Client(trust_env=False) as client:
        url = f"http://{inside}/v1/runtime/acquire-task"
        taken = client.post(url, content=body, headers=headers)
        collected = client.post(f"http://{inside}/privet/v1/collect", content=b"")
        sent = client.post(f"http://{inside}/privet/v1/send", content=b"")
        listed = client.post(f"http://{inside}/v1/control/list-runs")
        wrong = client.post(
            f"http://{inside}/v1/control/list-runs", headers={SECRET_HEADER: "0" * 64}
        )
    for answer in (taken, collected, sent, listed, wrong):
        assert answer.status_code == 401


# -- who is not who they say ---------------------------------------------------------------------


def test_an_older_tls_is_refused(network: Network) -> None:
    address, context = network.federation.address, trusting(network)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((address.host, address.port), 5) as plain,
        pytest.raises(ssl.SSLError),
        context.wrap_socket(plain, server_hostname=address.host),
    ):
        pass
    with connected(network) as peer:
        assert peer.version() == "TLSv1.3"


def test_plaintext_is_no_way_to_speak(network: Network) -> None:
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get(f"http://{network.federation.address}/health")


def test_a_client_does_not_speak_with_a_server_of_another_authority(
    network: Network, tmp_path: Path
) -> None:
    from common.keys import KeyDirectory

    foreign = Authority.create(KeyDirectory(tmp_path / "keys"), "foreign").certificate
    key = network.key(network.names[0])
    with pytest.raises(Unreachable):
        Fleet(network.federation.address, key, foreign, threading.Event()).__enter__()


def test_an_unknown_node_is_refused(network: Network) -> None:
    fleet = Fleet(
        network.federation.address, NodeKey.generate(), network.authority, threading.Event()
    )
    with pytest.raises(NotAdmitted):
        fleet.__enter__()


def test_one_client_cannot_take_anothers_messages(network: Network) -> None:
    one, two = network.names[:2]
    with network.fleet(one) as first, network.fleet(two) as second:
        first._node.node_id = second.node_id
        with pytest.raises(NotAdmitted):
            first.pull()


def test_flowers_own_signature_alone_opens_nothing(network: Network) -> None:
    """What a stock SuperNode sends; whoever recorded it could replay it elsewhere, and later."""
    key = network.key(network.names[0])
    client = FleetHttpClient.from_server_address(
        str(network.federation.address),
        False,
        None,
        [NodeAuthHttpInterceptor(key.ec, key.ec.public_key())],
    )
    client._client = httpx.Client(verify=trusting(network), trust_env=False)
    activate = ActivateNodeRequest(public_key=key.public.pem.encode(), heartbeat_interval=30)
    with client:
        with pytest.raises(httpx.HTTPStatusError) as activated:
            client.ActivateNode(activate)
        with pytest.raises(httpx.HTTPStatusError) as pulled:
            client.PullMessages(PullMessagesRequest(node=Node(node_id=1)))
    assert (activated.value.response.status_code, pulled.value.response.status_code) == (401, 404)


def record(network: Network, fleet: Fleet) -> httpx.Request:
    """A request as it went over the wire, by whoever could look into it."""
    recorded: list[httpx.Request] = []
    bounded = fleet._client._client
    send = bounded.send

    def recording(request: httpx.Request, **options: object) -> httpx.Response:
        recorded.append(request)
        return send(request, **options)

    bounded.send = recording  # type: ignore[method-assign]
    body = PullMessagesRequest(node=fleet._node).SerializeToString()
    fleet._once(fleet._post, (TAKE, body))
    return recorded[-1]


def replayed(network: Network, request: httpx.Request, path: str) -> int:
    answer = ask(network, path, headers=dict(request.headers), content=request.content)
    return answer.status_code


def test_a_recorded_request_opens_nothing_again_on_no_route(network: Network) -> None:
    with network.fleet(network.names[0]) as fleet:
        request = record(network, fleet)
        assert [replayed(network, request, path) for path in sorted(ROUTES)] == [401] * len(ROUTES)
        assert fleet.pull() is None  # the node itself goes on


def test_a_recorded_request_opens_nothing_after_a_restart(tmp_path: Path) -> None:
    with Network.made(tmp_path, clients=1) as network:
        network.start_link()
        wait_until(lambda: admitted(network, network.names[0]))
        with network.fleet(network.names[0]) as fleet:
            request = record(network, fleet)
            network.kill("link")
            network.start_link()
            assert replayed(network, request, TAKE) == 401
            assert fleet.pull() is None


# -- invitations ---------------------------------------------------------------------------------


def test_an_invitation_is_good_once_and_until_its_end(network: Network, tmp_path: Path) -> None:
    door = Devices(tmp_path, None, network.federation)  # type: ignore[arg-type]
    over = Invitations(network.federation).invite("late", 60, now=int(time.time()) - 120)
    invitation = Invitations(network.federation).invite("joined", DAY)
    home = join(invitation, door.site("joined"))
    assert home.client == "joined"
    with pytest.raises(TrustError) as reused:
        join(invitation, door.site("thief"))
    assert reused.value.code == "invitation-used"
    with pytest.raises(TrustError) as expired:
        # The device's clock, and what the token says of its end, are the attacker's own.
        join(replace(over, expires=over.expires + DAY), door.site("late"), EARLIER)
    assert expired.value.code == "invitation-expired"
    unknown = replace(over, seed=b"s" * 32, expires=over.expires + DAY)
    with pytest.raises(TrustError) as stranger:
        join(unknown, door.site("somebody"), EARLIER)
    assert stranger.value.code == "unknown-invitation"
    assert {"thief", "late", "somebody"}.isdisjoint(network.federation.registry.active())


# -- too much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [TAKE, "/v1/privet/join", "/v1/fleet/activate-node"])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_of_400_megabytes_is_refused_before_it_is_read(
    network: Network, path: str, announced: bool
) -> None:
    sent, block = 0, b"x" * (1 << 20)
    with contextlib.suppress(OSError), connected(network) as peer:
        length = f"content-length: {400 << 20}" if announced else "transfer-encoding: chunked"
        peer.sendall(f"POST {path} HTTP/1.1\r\nhost: a\r\n{length}\r\n\r\n".encode())
        for _ in range(400):
            peer.sendall(block if announced else b"%x\r\n%b\r\n" % (len(block), block))
            sent += len(block)
    assert sent < 64 << 20


def test_headers_that_trickle_in_have_a_deadline(network: Network) -> None:
    with connected(network) as peer:
        peer.settimeout(0.5)
        began, ended = time.monotonic(), False
        peer.sendall(b"POST /privet/v1/take HTTP/1.1\r\n")
        while not ended and time.monotonic() - began < 30:
            try:
                peer.sendall(b"x: y\r\n")
                ended = peer.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended


def test_headers_that_are_too_long_are_refused(network: Network) -> None:
    for size in (20_000, 100_000, 10_000_000):
        with contextlib.suppress(httpx.HTTPError):
            answer = ask(network, "/health", "GET", headers={"x": "y" * size})
            assert answer.status_code in (400, 431)
    assert ask(network, "/health", "GET").status_code == 200


@pytest.mark.parametrize("rubbish", [b"\x00" * 4096, b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 10_000])
def test_what_is_no_http_ends_its_connection_and_nothing_else(
    network: Network, rubbish: bytes
) -> None:
    with contextlib.suppress(OSError), connected(network) as peer:
        peer.sendall(rubbish)
        while peer.recv(4096):
            pass
