"""What flwr does not promise and a node uses: if an upgrade breaks it, this says what."""

from __future__ import annotations

import inspect

from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesResponse
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.nodekey import NodeKey
from common.parcel import HEARTBEAT_SECONDS


def test_flowers_client_is_still_built_and_called_as_we_do() -> None:
    parameters = list(inspect.signature(ProtobufClient.from_server_address).parameters)
    assert parameters[:4] == ["server_address", "insecure", "root_certificates", "interceptors"]
    client = FleetHttpClient.from_server_address("127.0.0.1:1", True, None, [])
    assert client._base_url == "http://127.0.0.1:1"
    assert callable(client._send)
    client.close()
    for name in ("ActivateNode", "DeactivateNode", "SendNodeHeartbeat"):
        assert hasattr(FleetHttpClient, name)
    assert list(inspect.signature(NodeAuthHttpInterceptor).parameters) == [
        "private_key",
        "public_key",
    ]


def test_its_messages_still_have_the_fields_that_we_fill() -> None:
    assert PullMessagesRequest(message_ids=["a"]).message_ids == ["a"]
    assert PushMessagesResponse(objects_to_push=["a"], session_id="s").objects_to_push == ["a"]


def test_the_shortest_heartbeat_is_still_ours() -> None:
    from flwr.common.constant import HEARTBEAT_MIN_INTERVAL

    assert HEARTBEAT_SECONDS == HEARTBEAT_MIN_INTERVAL


def test_flower_still_writes_and_reads_a_nodes_key_as_we_do() -> None:
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes

    key = NodeKey.generate()
    pem = key.public.pem.encode()
    assert public_key_to_bytes(key.ec.public_key()) == pem
    assert bytes_to_public_key(pem) == key.ec.public_key()
