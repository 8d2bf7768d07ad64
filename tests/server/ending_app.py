"""A ClientApp of fake clients, of which the second ends badly in its round."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from common.wire import Closing, Hello, RollCall, RoundRequest
from tests.server.federation import NAMES
from tests.world import COORDINATOR, FakeClient, leaves

app = ClientApp()
clients: dict[str, FakeClient] = {}


def _client(context: Context) -> FakeClient:
    name = NAMES[int(context.node_config["partition-id"])]
    return clients.setdefault(name, FakeClient(name, leaves(1)))


@app.query()
def identify(message: Message, context: Context) -> Message:
    envelope = message.content.config_records["roll-call"]["envelope"]
    nonce = RollCall.verify(envelope, COORDINATOR.public).nonce  # type: ignore[arg-type]
    client = _client(context)
    hello = Hello(client.name, nonce).sign(client.key)
    return Message(RecordDict({"hello": ConfigRecord({"envelope": hello})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    client = _client(context)
    if client.name == NAMES[1]:
        _end(os.environ["PRIVET_TEST_END"])
    envelope = message.content.config_records["request"]["envelope"]
    request = RoundRequest.verify(envelope, COORDINATOR.public)  # type: ignore[arg-type]
    update, receipt = client.answer(request)
    arrays = ArrayRecord({name: Array(value) for name, value in update.items()})
    content = RecordDict({"update": arrays, "receipt": ConfigRecord({"envelope": receipt})})
    return Message(content, reply_to=message)


@app.query("close")
def close(message: Message, context: Context) -> Message:
    envelope = message.content.config_records["closing"]["envelope"]
    closing = Closing.verify(envelope, COORDINATOR.public)  # type: ignore[arg-type]
    closed = _client(context).close(closing)
    return Message(RecordDict({"closed": ConfigRecord({"envelope": closed})}), reply_to=message)


def _end(how: str) -> None:
    if how == "exit":
        os._exit(9)
    if how == "slow":
        (Path(os.environ["PRIVET_TEST_MARKS"]) / str(os.getpid())).touch()
    time.sleep(3600)
