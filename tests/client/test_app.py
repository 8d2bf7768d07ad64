"""The ClientApp: messages in, answers or codes out; no text from an exception ever leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app as app_module
from client.app import app
from client.home import Home
from client.rounds import Client
from common.errors import OperationError, PrivetError
from common.ledger import Kind
from common.wire import Arrays, Hello, Receipt, RollCall, digest_arrays, from_npy
from tests.world import (
    COORDINATOR,
    RUN,
    STRANGER,
    Snapshot,
    ask,
    identity,
    make_home,
    model,
)

SECRET = "a value that was taken from somebody's data"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Home:
    caplog.set_level(logging.CRITICAL, "privet.client")
    home = make_home(tmp_path)
    monkeypatch.setenv("PRIVET_CLIENT_HOME", str(home.path))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # as Flower does
    return home


def send(content: RecordDict, kind: str = "train", **config: Any) -> Message:
    context = Context(
        run_id=1,
        node_id=100,
        node_config={"partition-id": 0, **config},
        state=RecordDict(),
        run_config={"seed": 1, "simulated": True, "client-home": "elsewhere"},
    )
    reply = app(Message(content, dst_node_id=100, message_type=kind), context)
    assert isinstance(reply, Message)
    return reply


def request(envelope: object = None, arrays: Arrays | None = None) -> RecordDict:
    arrays = model() if arrays is None else arrays
    data = ask(1, arrays).sign(COORDINATOR) if envelope is None else envelope
    return RecordDict(
        {
            "request": ConfigRecord({"envelope": data}),  # type: ignore[dict-item]
            "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
        }
    )


def code(reply: Message) -> str:
    """The code of a refusal, which is all that there is in it."""
    assert not reply.has_error()
    assert list(reply.content) == ["refusal"]
    record = reply.content.config_records["refusal"]
    assert set(record) == {"code"}
    return str(record["code"])


def test_a_request_is_answered_with_an_update_and_a_receipt_and_nothing_else(home: Home) -> None:
    reply = send(request())
    assert set(reply.content) == {"update", "receipt"}
    assert set(reply.content.config_records["receipt"]) == {"envelope"}
    assert not reply.content.metric_records
    update = {
        name: from_npy(array.data) for name, array in reply.content.array_records["update"].items()
    }
    envelope = reply.content.config_records["receipt"]["envelope"]
    assert isinstance(envelope, bytes)
    receipt = Receipt.verify(envelope, identity(home).key.public)
    assert receipt.update == digest_arrays(update)


def test_a_roll_call_is_answered_with_a_hello_and_nothing_else(home: Home) -> None:
    call = RollCall(RUN, "ab" * 16)
    content = RecordDict({"roll-call": ConfigRecord({"envelope": call.sign(COORDINATOR)})})
    reply = send(content, "query")
    assert set(reply.content) == {"hello"}
    envelope = reply.content.config_records["hello"]["envelope"]
    assert isinstance(envelope, bytes)
    assert Hello.verify(envelope, identity(home).key.public) == Hello("clinic-a", call.nonce)
    forged = RecordDict({"roll-call": ConfigRecord({"envelope": call.sign(STRANGER)})})
    assert code(send(forged, "query")) == "bad-signature"


def test_a_run_configuration_changes_nothing(home: Home) -> None:
    """``send`` passes a seed and a directory along: no key of it is looked at."""
    (before,) = home.open_ledger().chain(home.federation)
    send(request())
    intent = home.open_ledger().chain(home.federation)[1]
    assert intent.prev == before.digest
    assert intent.kind is Kind.INTENT
    source = Path(app_module.__file__).read_text()
    assert "run_config" not in source


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda: request(ask(1, model()).sign(STRANGER)), "bad-signature"),
        (lambda: request(b"junk"), "malformed"),
        (lambda: request(ask(9).sign(COORDINATOR)), "stale-round"),
        (lambda: request(ask(plan="a" * 64).sign(COORDINATOR)), "not-approved"),
        (lambda: request(ask().sign(COORDINATOR), model(1.0)), "wrong-model"),
        (lambda: request("a text where bytes should be"), "failed"),
        (lambda: request(3), "failed"),
        (RecordDict, "failed"),
    ],
    ids=["forged", "junk", "round", "plan", "model", "text", "number", "empty"],
)
def test_a_request_that_is_not_served_leaves_a_code_and_no_trace(
    home: Home, content: Callable[[], RecordDict], expected: str
) -> None:
    send(RecordDict({"roll-call": ConfigRecord({"envelope": b""})}), "query")  # opens the client
    before = Snapshot.of(home.path.parent.parent)
    assert code(send(content())) == expected
    assert Snapshot.of(home.path.parent.parent) == before


def test_an_array_that_lies_about_its_size_is_malformed(home: Home) -> None:
    content = request()
    array = content.array_records["arrays"]["bias"]
    huge = array.data.replace(b"(2,)", b"(2147483648,)")
    content.array_records["arrays"]["bias"] = Array(
        dtype="float32", shape=(2,), stype="numpy.ndarray", data=huge
    )
    assert code(send(content)) == "malformed"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(SECRET), "failed"),
        (KeyError(SECRET), "failed"),
        (MemoryError(SECRET), "failed"),
        (PrivetError(SECRET, hint=SECRET), "failed"),
        (OperationError(SECRET, hint=SECRET, code="disk-full"), "disk-full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_text_of_an_exception_never_leaves(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def fails(self: Client, envelope: bytes, arrays: Arrays) -> Any:
        raise error

    monkeypatch.setattr(Client, "answer", fails)
    reply = send(request())
    assert code(reply) == expected
    assert SECRET not in str(reply.content) + str(reply.metadata)


def test_a_process_without_a_client_answers_with_a_code(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRIVET_CLIENT_HOME", str(tmp_path / "nowhere"))
    assert code(send(request())) == "no-client-home"
    monkeypatch.delenv("PRIVET_CLIENT_HOME")
    assert code(send(request())) == "no-client-home"


def test_a_partition_that_is_no_number_does_not_choose_a_path(home: Home) -> None:
    reply = send(request(), **{"partition-id": "../../elsewhere"})
    assert set(reply.content) == {"update", "receipt"}


def test_an_update_is_finite_float32_of_the_models_shapes(home: Home) -> None:
    reply = send(request())
    for name, array in reply.content.array_records["update"].items():
        value = array.numpy()
        assert value.dtype == np.float32
        assert value.shape == model()[name].shape
        assert np.isfinite(value).all()
