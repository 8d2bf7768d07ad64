"""A link and a coordinator's grid against a client with a key: hostile replies, large honest ones.

The link is a process of its own, over real TLS; the coordinator's grid and the clients' connections
are in this one, so a test decides every byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
)
from flwr.supercore.task_identity import TaskIdentity

from client.link.fleet import Fleet, RunEnded
from common.parcel import GIVE, MOST_PARTS, pack
from common.seal import SEAL_HEADER, Sealer
from server.link.place import Place
from server.link.superlink.grid import LinkGrid
from server.link.superlink.run import run_on
from simulations.processes import Network, wait_until
from tests.server.test_link import admitted
from tests.server.test_link_attacks import connected

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network.made(tmp_path_factory.mktemp("hostile"), clients=2) as network:
        network.start_link()
        wait_until(lambda: all(admitted(network, name) for name in network.names))
        yield network


@pytest.fixture
def grid(network: Network) -> Iterator[LinkGrid]:
    place = Place(network.federation)
    with run_on(place.inside(), place.secret()) as grid:
        grid.limit = 64 << 20
        yield grid


@contextlib.contextmanager
def both(network: Network) -> Iterator[tuple[Fleet, Fleet]]:
    """The attacker's connection, and an honest client's."""
    with network.fleet(network.names[0]) as bad, network.fleet(network.names[1]) as good:
        yield bad, good


def ask(grid: LinkGrid, fleet: Fleet, content: RecordDict | None = None) -> tuple[str, Message]:
    """Send one message to a node; its id, and what the node got."""
    content = content or RecordDict({"config": ConfigRecord({"round": 1})})
    # Flower knows one task a process, and this one plays both sides.
    TaskIdentity.run_id, TaskIdentity.node_id = grid._run_id, SUPERLINK_NODE_ID
    message = Message(content, dst_node_id=fleet.node_id, message_type="train", ttl=120.0)
    (name,) = grid.push_messages([message])
    return name, taken(fleet)


def taken(fleet: Fleet) -> Message:
    found: list[Message] = []
    wait_until(lambda: (got := fleet.pull()) is not None and not found.append(got))
    return found[0]


def answers(grid: LinkGrid, name: str, seconds: float = 20) -> list[Message]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := list(grid.pull_messages([name])):
            return found
        time.sleep(0.05)
    return []


def answered(grid: LinkGrid, fleet: Fleet) -> None:
    """An honest question and answer still work."""
    name, message = ask(grid, fleet)
    fleet.push(Message(RecordDict({"ok": ConfigRecord({"yes": 1})}), reply_to=message))
    (reply,) = answers(grid, name)
    assert reply.content.config_records["ok"]["yes"] == 1


# -- bytes of the attacker's own making ----------------------------------------------------------


def thing(kind: str, children: list[bytes], body: bytes) -> bytes:
    """An object, as Flower writes it."""
    made = type(kind, (), {"children": {name_of(child): None for child in children}})()
    return add_header_to_object_body(body, made)


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree(data: bytes, *children: ObjectTree) -> ObjectTree:
    return ObjectTree(object_id=name_of(data), children=children)


def give(
    fleet: Fleet, message: Message, record: bytes, inner: ObjectTree, parts: list[bytes]
) -> int:
    """Send a reply whose content is this record; the status of the answer."""
    reply = Message(RecordDict({}), reply_to=message)
    body = reply.deflate().partition(b"\0")[2]
    root = thing("Message", [record], body)
    reply.metadata.__dict__["_message_id"] = name_of(root)
    head = PushMessagesRequest(
        node=fleet._node,
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[tree(root, inner)],
        clientapp_runtime_list=[float("nan")],
    ).SerializeToString()
    return give_raw(fleet, pack([head, *parts, root]))


def give_raw(fleet: Fleet, body: bytes) -> int:
    try:
        fleet._post((GIVE, body))
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def bomb(times: int) -> tuple[bytes, ObjectTree, list[bytes]]:
    """A megabyte that becomes as many as one likes."""
    chunk = thing("ArrayChunk", [], bytes(1_000_000))
    fields = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray"}
    indices = {"arraychunk_ids": [0] * times}
    array = thing("Array", [chunk], json.dumps({**fields, **indices}).encode())
    arrays = thing("ArrayRecord", [array], json.dumps({"a": name_of(array)}).encode())
    record = thing("RecordDict", [arrays], json.dumps({"update": name_of(arrays)}).encode())
    inner = tree(record, tree(arrays, tree(array, tree(chunk))))
    return record, inner, [chunk, array, arrays, record]


def rubbish() -> tuple[bytes, ObjectTree, list[bytes]]:
    """A record that is nothing of its kind."""
    config = thing("ConfigRecord", [], b"\xff\xff\xff\xff")
    record = thing("RecordDict", [config], json.dumps({"c": name_of(config)}).encode())
    return record, tree(record, tree(config)), [config, record]


# -- honest, and large ---------------------------------------------------------------------------


def test_a_reply_in_many_requests_arrives_whole_while_the_coordinator_asks_for_it(
    network: Network, grid: LinkGrid
) -> None:
    update = np.random.default_rng(1).standard_normal(6_000_000).astype(np.float32)  # 24 MB
    with both(network) as (_, good):
        name, message = ask(grid, good)
        content = RecordDict({"update": ArrayRecord({"weight": Array(update)})})
        found: list[Message] = []
        asking = threading.Thread(target=lambda: found.extend(answers(grid, name, 60)))
        asking.start()
        good.push(Message(content, reply_to=message))
        asking.join()
        (reply,) = found
        came = reply.content.array_records["update"]["weight"].numpy()
        assert np.array_equal(came, update)
        answered(grid, good)


def test_a_message_in_many_parts_reaches_a_node_whole(network: Network, grid: LinkGrid) -> None:
    model = np.random.default_rng(2).standard_normal(6_000_000).astype(np.float32)
    with both(network) as (_, good):
        content = RecordDict({"model": ArrayRecord({"weight": Array(model)})})
        _, message = ask(grid, good, content)
        assert np.array_equal(message.content.array_records["model"]["weight"].numpy(), model)


# -- hostile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [rubbish, lambda: bomb(3000)], ids=["rubbish", "bomb"])
def test_a_reply_that_cannot_be_read_is_an_error_and_costs_its_sender_alone(
    network: Network, grid: LinkGrid, made: Any
) -> None:
    with both(network) as (bad, good):
        name, message = ask(grid, bad)
        record, inner, parts = made()
        before = memory()
        assert give(bad, message, record, inner, parts) == 200
        (reply,) = answers(grid, name)
        assert reply.has_error()
        assert memory() - before < 64
        answered(grid, good)


def test_a_message_that_becomes_too_large_is_not_read_by_a_client(
    network: Network, grid: LinkGrid
) -> None:
    from client.link.fleet import Unreadable

    fleet = network.fleet(network.names[0])
    record, inner, parts = bomb(3000)
    del record, inner
    before = memory()
    with pytest.raises(Unreadable):
        fleet._read(_proto(), parts)
    assert memory() - before < 64
    with pytest.raises(Unreadable):
        fleet._read(_proto(), rubbish()[2])


def _proto() -> Any:
    from flwr.proto.message_pb2 import Message as Proto

    return Proto()


def test_a_tree_that_is_too_large_is_refused_at_once(network: Network, grid: LinkGrid) -> None:
    with both(network) as (bad, good):
        _, message = ask(grid, bad)
        leaves = [ObjectTree(object_id=f"{number:064x}") for number in range(30 * MOST_PARTS)]
        record = thing("RecordDict", [], b"{}")
        inner = ObjectTree(object_id=name_of(record), children=leaves)
        began = time.monotonic()
        assert give(bad, message, record, inner, [record]) == 413
        answered(grid, good)
        assert time.monotonic() - began < 10


def test_nobody_can_say_what_anothers_parts_are_made_of(network: Network, grid: LinkGrid) -> None:
    model = RecordDict({"model": ArrayRecord({"weight": Array(np.zeros(4, np.float32))})})
    known = [
        part
        for part in get_all_nested_objects(model["model"]).values()
        if type(part).__name__ == "ArrayChunk"
    ]
    with both(network) as (bad, good):
        _, message = ask(grid, bad)
        record = thing("RecordDict", [], b"{}")
        ghost = ObjectTree(object_id="0" * 64)
        poisoned = [ObjectTree(object_id=part.object_id, children=[ghost]) for part in known]
        inner = ObjectTree(object_id=name_of(record), children=poisoned)
        parts = [record, *(part.deflate() for part in known)]
        assert give(bad, message, record, inner, parts) == 400
        _, message = ask(grid, good, model)  # the coordinator's model, of those very parts
        weight = message.content.array_records["model"]["weight"].numpy()
        assert weight.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_reply_to_what_was_not_asked_of_this_node_is_not_taken(
    network: Network, grid: LinkGrid
) -> None:
    with both(network) as (bad, good):
        name, message = ask(grid, good)
        record, inner, parts = rubbish()
        message.metadata.__dict__["_dst_node_id"] = bad.node_id  # it pretends to be its own
        assert give(bad, message, record, inner, parts) == 403
        message.metadata.__dict__["_message_id"] = "f" * 64  # and one that was never sent
        assert give(bad, message, record, inner, parts) == 403
        assert not list(grid.pull_messages([name]))


@pytest.mark.parametrize("body", [b"", b"\x00", pack([b"\xff" * 50]), pack([b""] * 2000)])
def test_what_is_no_parcel_is_refused(network: Network, body: bytes) -> None:
    with network.fleet(network.names[0]) as bad:
        assert give_raw(bad, body) in (400, 403, 413)


def test_a_reply_of_honest_parts_is_taken_once(network: Network, grid: LinkGrid) -> None:
    with both(network) as (_, good):
        name, message = ask(grid, good)
        reply = Message(RecordDict({"ok": ConfigRecord({"yes": 1})}), reply_to=message)
        good.push(reply)
        assert len(answers(grid, name)) == 1
        with pytest.raises(RunEnded):  # it was taken, and is not wanted twice
            good.push(reply)


def test_a_reply_that_did_not_reach_the_coordinator_is_given_again(
    network: Network, grid: LinkGrid
) -> None:
    with both(network) as (_, good):
        name, message = ask(grid, good)
        good.push(Message(RecordDict({"ok": ConfigRecord({"yes": 1})}), reply_to=message))
        names = [
            reply.metadata.message_id
            for _ in range(2)  # it asks for it once more: it has not got it
            for reply in answers(grid, name)
        ]
        assert len(names) == 2
        assert len(set(names)) == 1
        answered(grid, good)  # what it does not ask for any more, it has
        assert [reply.has_error() for reply in answers(grid, name)] == [True]


def test_many_slow_bodies_of_one_key_are_read_one_at_a_time(network: Network) -> None:
    before = network.memory("link", "VmHWM")
    name, size = network.names[0], 8 << 20
    with network.fleet(name) as fleet, contextlib.ExitStack() as stack:
        assert fleet.pull() is None  # it has learnt the link's epoch
        sealer: Sealer = fleet._client._interceptors[1]._sealer
        body = bytes(size)
        for _ in range(12):
            peer = stack.enter_context(connected(network))
            peer.settimeout(0.5)
            lines = [
                f"POST {GIVE} HTTP/1.1",
                "host: a",
                f"content-length: {size}",
                f"{SEAL_HEADER}: {sealer.seal('POST', GIVE, body)}",
                f"flwr-public-key: {key_header(network, name)}",
            ]
            peer.sendall("\r\n".join([*lines, "", ""]).encode())
            with contextlib.suppress(OSError):
                peer.sendall(body[:-1])  # all but the last byte
        assert network.memory("link", "VmHWM") - before <= 64


def key_header(network: Network, name: str) -> str:
    import base64

    return base64.b64encode(network.key(name).public.pem.encode()).decode()


def memory() -> float:
    """The most that this process ever had, MiB."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
