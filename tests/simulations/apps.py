"""A ClientApp that does what a message asks of it, for tests of the grid."""

from __future__ import annotations

import os
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
not_an_app = object()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with who was asked and how often; or fail in the way that ``do`` names."""
    what = message.content.config_records["ask"]["do"]
    if what == "raise":
        raise ValueError("a text that must not travel")
    if what == "leave":
        raise SystemExit(3)
    if what == "exit":
        os._exit(9)
    if what == "hang":
        time.sleep(3600)
    state = context.state.config_records.setdefault("state", ConfigRecord({"calls": 0}))
    state["calls"] = int(state["calls"]) + 1  # type: ignore[arg-type]
    answer = ConfigRecord(
        {
            "node": context.node_id,
            "partition": context.node_config["partition-id"],
            "of": context.node_config["num-partitions"],
            "calls": state["calls"],
            "process": os.getpid(),
            "config": len(context.run_config),
            "home": os.environ.get("PRIVET_TEST_HOME", ""),
        }
    )
    return Message(RecordDict({"answer": answer}), reply_to=message)
