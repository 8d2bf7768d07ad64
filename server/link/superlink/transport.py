"""What is a Flower run here? A way for messages, under a bundle that holds no code.

The rule: it names the directory of the run whose rounds it carries, if it carries any.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab

from server import thin_app


def start(path: str) -> StartRunRequest:
    """What starts the Flower run of a run's directory, or of none if that is empty."""
    config = user_config_to_proto({thin_app.RUN: path}) if path else {}
    return StartRunRequest(fab=thin_bundle(), override_config=config)


def thin_bundle() -> Fab:
    """Flower wants a bundle for a run; no node fetches it."""
    with tempfile.TemporaryDirectory(prefix="privet-") as folder:
        (Path(folder) / thin_app.PROJECT).write_text(thin_app.THIN_APP)
        return Fab(content=build_fab_from_disk(Path(folder)))
