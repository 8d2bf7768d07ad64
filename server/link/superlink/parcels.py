"""How does a whole message pass the SuperLink in one request?

The rules: Flower moves a message as a tree of objects, each in a request of its own: about twenty
for a model of two arrays, and each costs more than what it carries. Here the same state is reached
by the same handlers, once per message. A node gets its own messages and no others, and gives
replies in its own name: who it is, is what its seal says. A message stays its node's until the node
says that it has it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from fastapi import FastAPI
from flwr.common.constant import HEARTBEAT_MAX_INTERVAL, HEARTBEAT_MIN_INTERVAL
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
)
from flwr.supercore.inflatable.inflatable_object import get_object_id, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from common.errors import TrustError
from common.parcel import MOST_PARTS, pack
from server.link.superlink.beats import Beats
from server.link.superlink.coming import Coming
from server.link.superlink.handlers import flower, open_parcel, parse
from server.link.waking import Barred

log = logging.getLogger("privet.link")

P = ParamSpec("P")
R = TypeVar("R")
BATCH = 16 * 1024 * 1024  # bytes that the coordinator collects at once, or one reply


@dataclass(frozen=True)
class Taken:
    """A message on its way to a node: what Flower says of it, and the names of its parts."""

    head: bytes
    run: int
    name: str
    parts: tuple[str, ...]
    until: float  # seconds since the epoch


@dataclass
class _Reply:
    """A reply that the coordinator was promised, and that may not be whole yet."""

    proto: Any
    tree: ObjectTree
    size: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)
    given: bool = False


def _at_once(method: Callable[Concatenate[Parcels, P], R]) -> Callable[Concatenate[Parcels, P], R]:
    """All that a request does is one transaction of the database, not one for each step."""

    @functools.wraps(method)
    def work(self: Parcels, /, *arguments: P.args, **named: P.kwargs) -> R:
        with self.state.session():
            return method(self, *arguments, **named)

    return work


class Parcels:
    """Whole messages, over a SuperLink's state. Safe to call from several threads where the state's
    sessions take turns (``one_after_another``).

    Args:
        app: the SuperLink.

    ``state`` is Flower's, ``beats`` are its nodes' heartbeats.
    """

    def __init__(self, app: FastAPI) -> None:
        self.state = app.state.linkstate_factory.state()
        self.beats = Beats(self.state)
        self._given: dict[bytes, Taken] = {}
        self._coming: dict[bytes, Coming] = {}
        self._replies: dict[int, dict[str, _Reply]] = {}

    # -- nodes -----------------------------------------------------------------------------------

    @_at_once
    def take(self, key: bytes, body: bytes) -> Taken | None:
        """A node's next message, if there is one; the last one again, unless the node has it.

        Args:
            key: the node's public key.
            body: a ``PullMessagesRequest`` whose ``message_ids`` are what it has got.
        """
        request = parse(PullMessagesRequest, body)
        self._check_node(key, request.node.node_id)
        last = self._given.get(key)
        if last is not None:
            there = self.state.get_object(last.run, last.name) is not None  # or its run is over
            if there and last.name not in request.message_ids and time.time() < last.until:
                return last
            self.state.object_store.delete(last.name)
            del self._given[key]
        answer = fleet_handlers.pull_messages(request, self.state, self.state.object_store)
        if not answer.messages_list:
            return None
        metadata = answer.messages_list[0].metadata
        names = [part.object_id for part in iterate_object_tree(answer.message_object_trees[0])]
        taken = Taken(
            head=answer.SerializeToString(),
            run=metadata.run_id,
            name=metadata.message_id,
            parts=tuple(dict.fromkeys(names)),
            until=metadata.created_at + metadata.ttl,
        )
        self._given[key] = taken
        return taken

    @_at_once
    def parts(self, taken: Taken, names: Sequence[str]) -> list[bytes | None]:
        """A message's next parts, as far as they are there, and at most one beyond :data:`BATCH`.

        Returns:
            None in the last place: that part, and so the message, never will be.
        """
        found: list[bytes | None] = []
        size = 0
        for name in names:
            content: bytes | None = self.state.get_object(taken.run, name)
            if content == b"":
                break
            found.append(content)
            if content is None or (size := size + len(content)) > BATCH:
                break
        return found

    @_at_once
    def give(self, key: bytes, body: bytes) -> bytes:
        """Take parts of a node's reply; which are still missing.

        Flower hears of a reply once it is here, whole: what it is told of an object stays, so
        nothing is believed that does not come with its bytes. Until then it is in a file.

        Args:
            body: a parcel: a ``PushMessagesRequest``, and parts of what it announces.
        """
        parts = open_parcel(body)
        request = parse(PushMessagesRequest, parts[0])
        self._check_node(key, request.node.node_id)
        tree = self._announced(request)
        coming = self._coming.get(key)
        if coming is None or coming.head != parts[0]:
            self._drop(key)
            coming = self._coming[key] = Coming(parts[0])
        try:
            for data in parts[1:]:
                coming.take(data, tree)
        except TrustError as error:
            self._drop(key)
            raise Barred(413 if error.code == "too-large" else 400) from error
        except OSError as error:  # a full disk: all of it is to come once more
            self._drop(key)
            raise Barred(503) from error
        missing = [name for name in tree if name not in coming.places]
        if not missing:
            self._finish(request, coming)
            self._drop(key)
        return bytes(PushMessagesResponse(objects_to_push=missing).SerializeToString())

    def _announced(self, request: Any) -> dict[str, tuple[str, ...]]:
        """What a reply consists of: by name its parts' children, if it answers what was asked."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Barred(400)
        metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        if (metadata.src_node_id, metadata.message_id) != (
            request.node.node_id,
            tree.object_id,
        ):
            raise Barred(400)
        asked = self.state.get_valid_message_ins(metadata.reply_to_message_id)
        if asked is None:
            raise Barred(403)  # nobody wants it, or not any more
        told = (request.node.node_id, metadata.run_id)
        if (asked["dst_node_id"] % 2**64, asked["run_id"] % 2**64) != told:  # stored with a sign
            raise Barred(403)
        found: dict[str, tuple[str, ...]] = {}
        for number, part in enumerate(iterate_object_tree(tree)):
            if number >= MOST_PARTS:
                raise Barred(413)
            found[part.object_id] = tuple(child.object_id for child in part.children)
        return found

    def _finish(self, request: Any, coming: Coming) -> None:
        """Give a whole reply to Flower."""
        del request.clientapp_runtime_list[:]  # a node's word, and nobody's business
        request.clientapp_runtime_list.append(0.0)
        answer = flower(fleet_handlers.push_messages, request, self.state)
        run = request.messages_list[0].metadata.run_id
        for name in answer.objects_to_push:
            self.state.store_object(run, answer.session_id, name, coming.part(name))

    def _drop(self, key: bytes) -> None:
        coming = self._coming.pop(key, None)
        if coming is not None:
            coming.file.close()

    @_at_once
    def activate(self, key: bytes, body: bytes) -> bytes:
        """Let a node in, also one that Flower takes for active still: whoever has its key is it.

        Flower would refuse a node that was killed and restarted until its heartbeats were missed.
        """
        request = parse(ActivateNodeRequest, body)
        node = self.state.get_node_id_by_public_key(key)
        if request.public_key != key or node is None:
            raise Barred(401)
        self.state.deactivate_node(node)
        answer = flower(fleet_handlers.activate_node, request, self.state)
        self.beats.know(key, answer.node_id)
        return bytes(answer.SerializeToString())

    def hear(self, key: bytes, body: bytes) -> bytes:
        """A node is still there; waits for nobody. Empty: it is not known yet, ask :meth:`beat`."""
        request = parse(SendNodeHeartbeatRequest, body)
        if not HEARTBEAT_MIN_INTERVAL <= request.heartbeat_interval <= HEARTBEAT_MAX_INTERVAL:
            raise Barred(400)
        if not self.beats.hear(key, request.node.node_id, request.heartbeat_interval):
            return b""
        return bytes(SendNodeHeartbeatResponse(success=True).SerializeToString())

    @_at_once
    def beat(self, key: bytes, body: bytes) -> bytes:
        """A node is still there, of which Flower is asked whether it is."""
        node = parse(SendNodeHeartbeatRequest, body).node.node_id
        self._check_node(key, node)
        self.beats.know(key, node)
        return self.hear(key, body)

    @_at_once
    def deactivate(self, key: bytes, body: bytes) -> bytes:
        """A node says that it goes."""
        request = parse(DeactivateNodeRequest, body)
        self._check_node(key, request.node_id)
        self.beats.forget(key)
        answer = flower(fleet_handlers.deactivate_node, request, self.state)
        return bytes(answer.SerializeToString())

    def forget(self, keys: set[bytes]) -> None:
        """Drop what is kept for other nodes than these."""
        self.beats.keep_only(keys)
        for key in set(self._coming) - keys:
            self._drop(key)
        for key in set(self._given) - keys:
            self._given.pop(key, None)

    def _check_node(self, key: bytes, node: int) -> None:
        if self.state.get_node_id_by_public_key(key) != node:
            raise Barred(401)

    # -- the coordinator -------------------------------------------------------------------------

    @_at_once
    def send(self, token: str, body: bytes) -> bytes:
        """Take messages and parts of what they announce; which parts are still missing.

        Args:
            token: of the run's task.
            body: a parcel: a ``PushAppMessagesRequest``, and parts.
        """
        task = self._task(token)
        parts = open_parcel(body)
        request = parse(PushAppMessagesRequest, parts[0])
        answer = flower(runtime_handlers.push_messages, request, self.state, task)
        return self._store(answer, task.run_id, parts[1:])

    @_at_once
    def collect(self, token: str, body: bytes, limit: int) -> bytes:
        """Replies that are there in full: for each its proto and its parts.

        Args:
            token: of the run's task.
            body: a ``PullAppMessagesRequest``.
            limit: bytes that a reply may have; of a larger one only the proto is given.
        """
        task = self._task(token)
        request = parse(PullAppMessagesRequest, body)
        waiting = self._replies.setdefault(task.run_id, {})
        self._forget_received(waiting, set(request.message_ids))
        # What was given out once is unknown to the SuperLink from then on.
        known = {reply.proto.metadata.reply_to_message_id for reply in waiting.values()}
        names = [name for name in request.message_ids if name not in known]
        if names:
            ask = PullAppMessagesRequest(message_ids=names)
            answer = flower(runtime_handlers.pull_messages, ask, self.state, task)
            pairs = zip(answer.messages_list, answer.message_object_trees, strict=True)
            for proto, tree in pairs:
                waiting[proto.metadata.message_id] = _Reply(proto, tree)
        return self._whole(task.run_id, waiting, limit)

    def _whole(self, run: int, waiting: dict[str, _Reply], limit: int) -> bytes:
        """Those that are whole, as long as they fit; each a parcel of its own."""
        result: list[bytes] = []
        size = 0
        for reply in waiting.values():
            if size and size + reply.size > BATCH:
                break
            if not self._complete(run, reply, limit):
                continue
            proto = PullAppMessagesResponse(messages_list=[reply.proto]).SerializeToString()
            result.append(pack([proto, *reply.parts.values()]))
            size += len(result[-1])
            reply.given = True
        return pack(result)

    def _forget_received(self, waiting: dict[str, _Reply], asked: set[str]) -> None:
        """What the coordinator was given, and does not ask for any more, it has."""
        for name, reply in list(waiting.items()):
            if reply.given and reply.proto.metadata.reply_to_message_id not in asked:
                del waiting[name]
                self.state.object_store.delete(name)

    def _complete(self, run: int, reply: _Reply, limit: int) -> bool:
        """Fetch what is there of a reply; whether that is all, or more than is wanted."""
        for number, part in enumerate(iterate_object_tree(reply.tree)):
            if part.object_id in reply.parts:
                continue
            content = self.state.get_object(run, part.object_id)
            if content == b"":
                return False
            if content is None or reply.size + len(content) > limit or number >= MOST_PARTS:
                reply.parts = {}
                return True
            reply.parts[part.object_id] = content
            reply.size += len(content)
        return True

    def _task(self, token: str) -> Any:
        task = self.state.get_task_by_token(token) if token else None
        if task is None:
            raise Barred(401)
        self._replies = {run: kept for run, kept in self._replies.items() if run == task.run_id}
        return task

    def _store(self, answer: Any, run: int, parts: list[bytes]) -> bytes:
        wanted = dict.fromkeys(answer.objects_to_push)
        for part in parts:
            name = get_object_id(part)
            if name not in wanted:
                continue
            try:
                validate_object_content(part)
            except ValueError as error:
                raise Barred(400) from error
            if self.state.store_object(run, answer.session_id, name, part):
                del wanted[name]
        del answer.objects_to_push[:]
        answer.objects_to_push.extend(wanted)
        return bytes(answer.SerializeToString())
