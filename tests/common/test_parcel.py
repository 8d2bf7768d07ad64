"""What travels in one body is as long as it says, and becomes as large as is allowed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from common.canonical import digest
from common.errors import TrustError
from common.parcel import Part, batches, check_size, pack, unpack


def thing(kind: str, children: list[bytes], body: bytes) -> bytes:
    names = ",".join(digest(child) for child in children)
    return f"{kind} {names} {len(body)}".encode() + b"\0" + body


def array(chunk: bytes, indices: object) -> bytes:
    return thing("Array", [chunk], json.dumps({"arraychunk_ids": indices}).encode())


def test_parts_come_back_and_nothing_else_is_a_parcel() -> None:
    parts = [b"", b"ab", bytes(300)]
    assert unpack(pack(parts), 3) == parts
    for body, most in ((pack(parts), 2), (pack(parts)[:-1], 3), (b"\0\0\0", 3), (b"\xff" * 4, 3)):
        with pytest.raises(TrustError):
            unpack(body, most)
    assert list(batches([b"aaa", b"bbb", b"c"], 8)) == [[b"aaa"], [b"bbb", b"c"]]


def test_an_objects_head_is_read_as_flower_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 5)
    content = RecordDict(
        {
            "config": ConfigRecord({"round": 1}),
            "model": ArrayRecord({"weight": Array(np.zeros(3, np.float32))}),
        }
    )
    message = Message(content, dst_node_id=1, message_type="train")
    for name, made in get_all_nested_objects(message).items():
        part = Part.read(made.deflate())
        assert (part.name, part.kind) == (name, type(made).__name__)
        assert list(part.children) == list((made.children or {}).keys())


@pytest.mark.parametrize("data", [b"", b"Array", b"Array 0\0", b"Array  5\0abc", b"\xff \xff 0\0"])
def test_what_has_no_head_is_no_object(data: bytes) -> None:
    with pytest.raises(TrustError):
        Part.read(data)


def test_a_chunk_counts_as_often_as_an_array_names_it() -> None:
    chunk = thing("ArrayChunk", [], bytes(1000))
    once, often = array(chunk, [0]), array(chunk, [0] * 50)
    own = len(Part.read(once).body)
    check_size([chunk, once], 1000 + own)
    with pytest.raises(TrustError):
        check_size([chunk, once], 1000 + own - 1)
    own = len(Part.read(often).body)
    check_size([chunk, often], 50_000 + own)
    with pytest.raises(TrustError) as caught:
        check_size([chunk, often, *[chunk] * 100], 50_000 + own - 1)
    assert caught.value.code == "too-large"


@pytest.mark.parametrize("indices", [[1], [-1], [0.5], ["0"], [True], None, {"0": 0}])
def test_an_array_of_chunks_that_it_does_not_have_is_none(indices: object) -> None:
    chunk = thing("ArrayChunk", [], b"a")
    with pytest.raises(TrustError):
        check_size([chunk, array(chunk, indices)], 10_000)
