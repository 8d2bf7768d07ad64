"""How does a node speak with a SuperLink? The one place here that knows Flower's private parts.

The rules: everything that flwr 1.41 does not promise is imported here, and
``tests/client/test_fleet_contract.py`` says which of it an upgrade broke. A node connects to one
address, trusts one authority, follows no redirection and no proxy, and reads no more of an answer
than it allows for. Bundles and run configurations are never asked for: there is no code here that
could fetch one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
import time
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError

from common.errors import NetworkError, TrustError
from common.invitation import Address
from common.nodekey import NodeKey
from common.parcel import (
    GIVE,
    HEARTBEAT_SECONDS,
    MOST_BYTES,
    MOST_PARTS,
    TAKE,
    batches,
    check_size,
    pack,
    unpack,
)
from common.seal import AFTER_HEADER, EPOCH_HEADER, SEAL_HEADER, Sealer

logging.getLogger("flwr").setLevel(logging.WARNING)  # its import makes it debug

PATIENCE_SECONDS = 60.0  # that a server which went away in the middle is waited for
RETRY_SECONDS = 0.3
MAX_ANSWER = MOST_BYTES + 1024 * 1024  # bytes of an answer
_BATCH = 6 * 1024 * 1024  # bytes a request: less than the link's limit
_TRIES = 3


class Unreachable(NetworkError):
    """The server does not answer, or has gone; trying again is right."""

    code = "unreachable"


class NotAdmitted(NetworkError):
    """The server does not know this node's key, or takes it for one that is there already."""

    code = "not-admitted"


class Unreadable(Exception):
    """A message that cannot be read; ``metadata`` names it."""


class Fleet:
    """A node's connection to a SuperLink, from activation on; use it as a context manager.

    Args:
        address: the server's.
        key: the node's.
        authority: certificate of the only authority that is trusted, PEM.
        stop: set when nothing is to be waited for any more.

    A server that goes away in the middle is asked again, so a message that was half received or an
    answer that was half sent survives its restart.

    Raises:
        Unreachable, NotAdmitted: as they say.
    """

    def __init__(
        self, address: Address, key: NodeKey, authority: str, stop: threading.Event
    ) -> None:
        self._client = FleetHttpClient.from_server_address(
            str(address),
            False,
            None,
            [NodeAuthHttpInterceptor(key.ec, key.ec.public_key()), _Seals(Sealer(key))],
        )
        self._client._client.close()
        self._client._client = _Bounded(
            verify=_context(authority), timeout=30.0, follow_redirects=False, trust_env=False
        )
        self._key, self._stop = key, stop
        self._node = NodeProto()
        self._got: list[str] = []  # what the server need not keep any more
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Fleet:
        try:
            answer = self._once(
                self._client.ActivateNode,
                ActivateNodeRequest(
                    public_key=self._key.public.pem.encode(), heartbeat_interval=HEARTBEAT_SECONDS
                ),
            )
        except BaseException:
            self._client.close()
            raise
        self._node = NodeProto(node_id=answer.node_id)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._stop.is_set():  # otherwise it comes back at once, and is no less there
            with contextlib.suppress(NetworkError, RunEnded):
                self._once(
                    self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id)
                )
        self._client.close()
        self._beating.join(HEARTBEAT_SECONDS)

    @property
    def node_id(self) -> int:
        return int(self._node.node_id)

    def pull(self) -> Message | None:
        """The next message, if there is one; the link may wait with its answer until there is.

        Raises:
            Unreadable: there was one, and it is nothing that can be read; it is gone.
        """
        request = PullMessagesRequest(node=self._node, message_ids=self._got)
        body = self._call(self._post, (TAKE, request.SerializeToString()))
        self._got = []
        if not body:
            return None
        try:
            parts = unpack(body, MOST_PARTS + 1)
            (proto,) = PullMessagesResponse.FromString(parts[0]).messages_list
        except (TrustError, DecodeError, ValueError, IndexError) as error:
            raise Unreachable("the server sends what is no message") from error
        self._got = [proto.metadata.message_id]
        return self._read(proto, parts[1:])

    def _read(self, proto: Any, parts: list[bytes]) -> Message:
        run, name = proto.metadata.run_id, proto.metadata.message_id
        # A message is made in the name of a task; Flower knows one per process.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, self.node_id, 0
        try:
            check_size(parts, MOST_BYTES)
            contents = {get_object_id(part): part for part in parts}
            message = inflate_object_from_contents(name, contents)
            if not isinstance(message, Message) or not message.has_content():
                raise ValueError("that is no message with content")
            if message.metadata.run_id != run or message.metadata.dst_node_id != self.node_id:
                raise ValueError("a message for somebody else")
            message.metadata.__dict__["_message_id"] = name
        except Exception as error:  # hostile bytes, in code that is not ours
            raise Unreadable(type(error).__name__) from error
        return message

    def push(self, reply: Message) -> None:
        """Send a reply.

        Raises:
            RunEnded: nobody wants it any more.
        """
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            head = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],  # how long training takes is nobody's business
            ).SerializeToString()
            parts = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        wanted = set(parts)
        for _ in range(_TRIES):
            for batch in batches([parts[name] for name in parts if name in wanted], _BATCH):
                body = self._call(self._post, (GIVE, pack([head, *batch])))
            try:
                answer = PushMessagesResponse.FromString(body)
            except DecodeError as error:
                raise Unreachable("the server answers what is no answer") from error
            wanted = set(answer.objects_to_push)
            if not wanted:
                return
        raise Unreachable("the server does not take a reply")

    def _post(self, what: tuple[str, bytes]) -> bytes:
        """One request of ours, with the same headers as Flower's have."""
        path, body = what
        request = self._client._client.build_request(
            "POST", f"{self._client._base_url}{path}", content=body
        )
        context = ProtobufRequestContext(rpc_method=path, message=NodeProto(), request=request)
        response = self._client._send(context)
        response.raise_for_status()
        return response.content

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
        while not self._ended.wait(HEARTBEAT_SECONDS / 2):
            with contextlib.suppress(NetworkError, RunEnded, RuntimeError):
                self._once(self._client.SendNodeHeartbeat, request)

    def _call(self, method: Any, request: Any) -> Any:
        """One request, again while the server is away."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._once(method, request)
            except Unreachable:
                if time.monotonic() > until or self._stop.wait(RETRY_SECONDS):
                    raise

    @staticmethod
    def _once(method: Any, request: Any) -> Any:
        """One request; every way it can fail has one of our names."""
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status == httpx.codes.FORBIDDEN:
                raise RunEnded from error
            if status in (401, 404, 409, 412):
                raise NotAdmitted(
                    f"the server does not let this node in ({status})",
                    hint="it may have been revoked, or take this node for one still there",
                ) from error
            raise Unreachable(f"the server answered {status}") from error
        except (httpx.HTTPError, ssl.SSLError, OSError, ValueError, DecodeError) as error:
            raise Unreachable(f"the server cannot be reached: {type(error).__name__}") from error


class RunEnded(Exception):
    """The run that this belongs to is over: Flower takes nothing more for it."""


class _Seals:
    """Seals each request; once more, if the server says that it was started anew."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        request = context.request
        body, path = request.content, request.url.raw_path.decode("ascii")
        for _ in range(2):
            request.headers[SEAL_HEADER] = self._sealer.seal("POST", path, body)
            response = call_next(context)
            epoch = response.headers.get(EPOCH_HEADER)
            if response.status_code != 401 or epoch is None:
                break
            # Started anew, or other requests overtook this one: either way another seal is due.
            if not self._sealer.learn(epoch, response.headers.get(AFTER_HEADER, "")):
                break
        return response


class _Bounded(httpx.Client):
    """Reads no more of an answer than it allows for."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        request.headers["accept-encoding"] = "identity"
        response = super().send(request, **{**options, "stream": True})
        data = bytearray()
        began = time.monotonic()
        try:
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > MAX_ANSWER or time.monotonic() - began > 120:
                    raise httpx.ReadError("an answer without an end", request=request)
        finally:
            response.close()
        headers = {
            name: value
            for name, value in response.headers.items()
            if name not in ("content-encoding", "transfer-encoding", "content-length")
        }
        return httpx.Response(
            response.status_code, headers=headers, content=bytes(data), request=request
        )


def _context(authority: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority)
    return context
