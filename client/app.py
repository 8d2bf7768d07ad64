"""The Flower ClientApp: message, guard, training, receipt, reply, and nothing else.

The rule: nothing that a server sends chooses code, paths or data. The run configuration is ignored;
the client's directory comes from the environment of whoever started this process. Errors leave as a
code, never as text, because text may quote the data.
"""

from __future__ import annotations

import logging
import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from collections.abc import Callable

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.home import locate
from client.rounds import Client, open_client
from client.training.memory import keep_freed_memory
from common.errors import PrivetError
from common.wire import from_npy

log = logging.getLogger("privet.client")

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Answer a signed roll call with a signed hello."""

    def work(client: Client) -> RecordDict:
        hello = client.answer_roll_call(_envelope(message, "roll-call"))
        return RecordDict({"hello": ConfigRecord({"envelope": hello})})

    return _reply(message, context, work)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a signed round request with an update and a signed receipt."""

    def work(client: Client) -> RecordDict:
        record = message.content.array_records["arrays"]
        arrays = {name: from_npy(array.data) for name, array in record.items()}
        answer = client.answer(_envelope(message, "request"), arrays)
        receipt = ConfigRecord({"envelope": answer.receipt})
        if isinstance(answer.update, bytes):
            coded = ConfigRecord({"coded": answer.update})
            return RecordDict({"update": coded, "receipt": receipt})
        update = ArrayRecord({name: Array(value) for name, value in answer.update.items()})
        return RecordDict({"update": update, "receipt": receipt})

    return _reply(message, context, work)


@app.query("close")
def close(message: Message, context: Context) -> Message:
    """Store the coordinator's last countersignature of this client's ledger."""

    def work(client: Client) -> RecordDict:
        closed = client.answer_closing(_envelope(message, "closing"))
        return RecordDict({"closed": ConfigRecord({"envelope": closed})})

    return _reply(message, context, work)


@app.query("ledger")
def ledger(message: Message, context: Context) -> Message:
    """Hand out what a release publishes of this client's ledger."""

    def work(client: Client) -> RecordDict:
        lines = client.answer_ledger_call(_envelope(message, "ledger-call"))
        return RecordDict({"ledger": ConfigRecord({"lines": lines})})

    return _reply(message, context, work)


def _envelope(message: Message, name: str) -> bytes:
    value = message.content.config_records[name]["envelope"]
    if not isinstance(value, bytes):
        raise TypeError("an envelope is bytes")
    return value


def _reply(message: Message, context: Context, work: Callable[[Client], RecordDict]) -> Message:
    # One thread a process: two processes of one thread beat one of two for small clients, and the
    # order of additions, so the bits of an update, does not depend on the machine's load.
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        partition = context.node_config.get("partition-id")
        path = locate(partition if isinstance(partition, int) else None)
        content = work(open_client(path))
    except PrivetError as error:
        log.warning("refused: %s (%s)", error, error.code)
        content = _refusal(error.code)
    except Exception:
        log.exception("could not serve a message")
        content = _refusal("failed")
    return Message(content, reply_to=message)


def _refusal(code: str) -> RecordDict:
    return RecordDict({"refusal": ConfigRecord({"code": code})})
