"""How does the coordinator speak with its clients over a link? Flower's Grid, on loopback.

The rules: nothing waits for one node, and a link that is being restarted is waited for, for a
while. What comes from a node is hostile bytes: how large it becomes is added up before it is built.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import httpx
from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE, TASK_TOKEN_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.run import Run, RunNotRunningException
from flwr.superlink.grid import HttpGrid

from common.parcel import HEARTBEAT_SECONDS, MOST_PARTS, batches, check_size, pack, unpack
from server.link.superlink.parcels import BATCH
from server.link.waking import COLLECT, LIMIT_HEADER, LINK_HEADER, SECRET_HEADER, SEND

log = logging.getLogger("privet.link")
logging.getLogger("flwr").setLevel(logging.WARNING)  # its import makes it debug

_MOST_SENT = 10_000
_SMALL = 16 * 1024  # bytes of a part that is sent without asking whether it is there already
_TRIES = 3
_OVERHEAD = 1024 * 1024  # bytes that records and headers may take beside the values


class LinkGrid(HttpGrid):
    """Flower's Grid over loopback, that waits for nobody.

    Flower's own waits up to two hours for objects that a node announced and did not send, and ends
    the process when its task is gone. Here a reply is given once it is there in full; one that is
    larger than asked for, or never whole, is an error in its node's stead.

    A link that was killed may have taken a message as delivered that nobody got. So whatever is
    unanswered when a link comes back, or is unknown to it, is sent again; a client answers a
    request that it has answered with the same bytes, at no cost, and a second answer counts as a
    duplicate.

    Args:
        address: the link's loopback address.
        secret: the link's executor secret.
        token: of the run's task.
        patience: seconds to wait for a link that is being restarted.
    """

    def __init__(self, address: str, secret: bytes, token: str, patience: float) -> None:
        self._secret = secret
        super().__init__(address, insecure=True, token=token)
        self._retry_invoker = patient(patience)
        self._sent: dict[str, Message] = {}  # not answered yet, by the id that it is asked for by
        self._again: dict[str, str] = {}  # what was sent again: its id now, and its id then
        self._link, self._restarted = "", False
        self._heard = self._quiet = 0.0  # monotonic seconds
        self.limit = 1 << 30  # bytes that a reply may have

    def _connect(self) -> None:
        super()._connect()
        only_there(self._client, self._secret, self._look_at)

    def _look_at(self, response: httpx.Response) -> None:
        link, now = response.headers.get(LINK_HEADER, ""), time.monotonic()
        if self._link not in ("", link):
            self._restarted = True
            if now - self._heard > HEARTBEAT_SECONDS / 2:
                # Nodes that it took for gone are heard by then.
                self._quiet = now + HEARTBEAT_SECONDS
        self._link, self._heard = link, now

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send; the id of each, or an empty text for one that cannot be delivered."""
        sent = list(messages)
        names = self._push(sent)
        self._sent = dict(list(self._sent.items())[-_MOST_SENT:])
        self._sent |= {name: m for name, m in zip(names, sent, strict=True) if name}
        return names

    def _push(self, messages: list[Message]) -> list[str]:
        """Announce messages, and send the parts that the link has not got."""
        if not messages:
            return []
        parts: dict[str, Any] = {}
        with no_object_id_recompute():
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                parts |= get_all_nested_objects(message)
            head = PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(m)) for m in messages],
                message_object_trees=[get_object_tree(message) for message in messages],
            ).SerializeToString()
            small = {name: data for name in parts if len(data := parts[name].deflate()) < _SMALL}
            answer = self._post(SEND, pack([head, *small.values()]))
            missing = PushAppMessagesResponse.FromString(answer)
            names = list(missing.message_ids)
            for _ in range(_TRIES):
                left = [parts[name].deflate() for name in missing.objects_to_push]
                if not left:
                    break
                for batch in batches(left, BATCH):
                    answer = self._post(SEND, pack([head, *batch]))
                missing = PushAppMessagesResponse.FromString(answer)
        return names

    def _post(self, path: str, body: bytes, **headers: str) -> bytes:
        """One request of ours to the link, again while it is being restarted."""
        client = self._runtime_client._client

        def send() -> httpx.Response:
            url = f"http://{self._addr}{path}"
            headers[TASK_TOKEN_HEADER] = self._token
            response = client.post(url, content=body, headers=headers)
            response.raise_for_status()
            return response

        return bytes(self._retry_invoker.invoke(send).content)

    def _send_again(self, wanted: set[str]) -> bool:
        """What is asked for and has not come: once more, as a message of its own; if any was."""
        sent = False
        for name in wanted:
            if name not in self._sent:
                continue
            old = self._sent[name]
            left = old.metadata.created_at + old.metadata.ttl - time.time()
            if left <= 0:
                continue
            message = Message(
                old.content,
                dst_node_id=old.metadata.dst_node_id,
                message_type=old.metadata.message_type,
                ttl=left,
                group_id=old.metadata.group_id,
            )
            for new in self._push([message]):
                if new:
                    self._again[new] = name
                    sent = True
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are there, whole."""
        wanted = set(message_ids)
        if time.monotonic() < self._quiet:
            return []
        self._again = {new: old for new, old in self._again.items() if old in wanted}
        names = [*wanted, *self._again]
        if not names:
            return []
        request = PullAppMessagesRequest(message_ids=names).SerializeToString()
        limit = self.limit + _OVERHEAD
        answer = self._post(COLLECT, request, **{LIMIT_HEADER: str(limit)})
        found = [self._read(unpack(reply, MOST_PARTS + 1)) for reply in unpack(answer, MOST_PARTS)]
        replies = [message for message in found if not self._is_lost(message)]
        if self._restarted:
            self._restarted = False
            here = {message.metadata.reply_to_message_id for message in replies}
            self._send_again(wanted - here)
        return replies

    def _is_lost(self, message: Message) -> bool:
        """Give a reply the id that it is asked for by; True for word that there will be none.

        The SuperLink says so of what it does not know: if that is still worth an answer, it is sent
        again instead.
        """
        asked = message.metadata.reply_to_message_id
        name = self._again.pop(asked, asked)
        message.metadata.__dict__["_reply_to_message_id"] = name
        if not message.has_error() or message.error.code != ErrorCode.MESSAGE_UNAVAILABLE:
            self._sent.pop(name, None)
            return False
        if message.metadata.src_node_id != SUPERLINK_NODE_ID or name in self._again.values():
            return message.metadata.src_node_id == SUPERLINK_NODE_ID
        return self._send_again({name})

    def _read(self, parts: list[bytes]) -> Message:
        """A reply from its proto and its parts; an error in its place if it cannot be read."""
        (proto,) = PullAppMessagesResponse.FromString(parts[0]).messages_list
        name = proto.metadata.message_id
        contents = {get_object_id(part): part for part in parts[1:]}
        try:
            check_size(parts[1:], self.limit + _OVERHEAD)
            message = cast(Message, inflate_object_from_contents(name, contents))
            if not isinstance(message, Message):
                raise TypeError("that is no message")
            told, said = proto.metadata, message.metadata
            if (told.src_node_id, told.reply_to_message_id) != (
                said.src_node_id,
                said.reply_to_message_id,
            ):
                raise ValueError("it contradicts its own envelope")
            message.metadata.__dict__["_message_id"] = name
        except Exception as error:  # noqa: BLE001  (hostile bytes, in code that is not ours)
            log.warning("a reply could not be read: %s", type(error).__name__)
            return self._unreadable(proto)
        return message

    @property
    def _run_id(self) -> int:
        return int(cast(Run, self._run).run_id)

    def _unreadable(self, proto: Any) -> Message:
        metadata = Metadata(
            run_id=self._run_id,
            message_id="",
            src_node_id=proto.metadata.src_node_id,
            dst_node_id=self.node.node_id,
            message_type=SYSTEM_MESSAGE_TYPE,
            group_id="",
            ttl=0,
            reply_to_message_id=proto.metadata.reply_to_message_id,
            created_at=time.time(),
        )
        return make_message(
            metadata=metadata, error=Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="unreadable")
        )


def patient(seconds: float) -> RetryInvoker:
    """Tries again while a link is being restarted; anything that it answers counts."""

    def gives_up(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            if error.response.status_code == httpx.codes.FORBIDDEN:
                raise RunNotRunningException
            return error.response.status_code not in (502, 503, 504)
        return False

    def waits() -> Iterator[float]:
        while True:
            yield 0.25

    return RetryInvoker(
        wait_gen_factory=cast(Callable[[], Any], waits),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=seconds,
        should_giveup=gives_up,
        jitter=None,
    )


def only_there(
    client: Any, secret: bytes, look_at: Callable[[httpx.Response], None] = lambda _: None
) -> None:
    """Talk to the loopback address and to nobody else, whatever the environment's proxies say."""
    client._client.close()
    client._client = httpx.Client(
        timeout=30.0,
        follow_redirects=False,
        trust_env=False,
        headers={SECRET_HEADER: secret.hex()},
        event_hooks={"response": [look_at]},
    )
