"""What does Flower's command ask of a link, and in which of its words is it answered?

The rules: of a request counts which run it means, and nothing else. A bundle that comes with it is
dropped unopened; an app of Flower Hub, a federation or a setting that could not be heeded is
refused instead of passed over. A Flower run is known by the directory that it is the transport of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, Status, SubStatus
from flwr.common.serde import user_config_from_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    StartRunRequest,
    StartRunResponse,
    StopRunRequest,
    StopRunResponse,
    StreamLogsRequest,
    StreamLogsResponse,
)
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.error import FlowerError
from flwr.superlink.servicer.control import control_handlers
from google.protobuf.message import DecodeError

from common.errors import InputError, OperationError
from server.link.superlink.transport import start
from server.thin_app import RUN

NOTE = "no code of the app is used: what is trained is the run's signed plan"
_ACCOUNT = AccountInfo(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME)


@dataclass(frozen=True)
class Transport:
    """A Flower run.

    Args:
        number: Flower's id.
        path: of the run's directory; None: it carries no run's rounds.
        finished: whether it is over.
        why: what was said when it ended.
    """

    number: int
    path: Path | None
    finished: bool
    why: str


class Control:
    """Flower's command over a SuperLink's state. Safe to call from several threads.

    Args:
        app: the SuperLink.

    Each method raises :class:`InputError` for a request that means nothing here.
    """

    def __init__(self, app: FastAPI) -> None:
        self._state = app.state.linkstate_factory.state()

    def open(self, path: Path) -> int:
        """A Flower run that waits for this directory's coordinator; its id."""
        try:
            return int(
                control_handlers.start_run(start(str(path)), _ACCOUNT, self._state, None).run_id
            )
        except FlowerError as error:
            raise OperationError(
                f"Flower makes no run: {error.message}", code="not-begun"
            ) from error

    def find(self, number: int) -> Transport:
        """The Flower run with this id."""
        for run in self._state.get_run_info(run_ids=[number]):
            path = str(run.override_config.get(RUN, ""))
            finished = run.status.status == Status.FINISHED
            return Transport(number, Path(path) if path else None, finished, run.status.details)
        raise InputError(f"there is no run {number} here", hint="see flwr list", code="no-such-run")

    def end(self, number: int, why: str) -> None:
        """End a Flower run that nobody is at work on; as failed if there is a reason."""
        for run in self._state.get_run_info(run_ids=[number]):
            how = SubStatus.FAILED if why else SubStatus.STOPPED
            self._state.finish_task(run.primary_task_id, how, why)

    def list(self, body: bytes) -> bytes:
        """The answer to a ``ListRunsRequest``."""
        request = _parse(ListRunsRequest, body)
        if request.HasField("run_id"):
            self.find(request.run_id)
        answer = control_handlers.list_runs(request, _ACCOUNT, self._state)
        return bytes(answer.SerializeToString())


def wanted(body: bytes) -> Path:
    """The directory that a ``StartRunRequest`` names.

    Raises:
        InputError: ``no-run-named``, ``not-here``: it asks for more than a run.
    """
    request = _parse(StartRunRequest, body)
    try:
        config = user_config_from_proto(request.override_config)
    except (TypeError, ValueError, AttributeError) as error:
        raise _malformed() from error
    path = config.pop(RUN, "")
    if config or request.app_spec or request.HasField("override_federation_config"):
        raise InputError(
            "only a run can be named: what is trained, and by whom, is in its signed plan",
            hint=f"leave out all but --run-config '{RUN}=\"DIR\"', and name a local app",
            code="not-here",
        )
    if request.federation not in ("", NOOP_FEDERATION_ID):
        raise InputError(
            "this link has one federation, which has no name",
            hint="leave out --federation",
            code="not-here",
        )
    if not isinstance(path, str) or not Path(path).is_absolute() or "\0" in path:
        raise InputError(
            "no run is named, or not by its full path",
            hint=f"pass --run-config '{RUN}=\"/full/path/of/the/run\"'",
            code="no-run-named",
        )
    return Path(path)


def stopping(body: bytes) -> int:
    """The id that a ``StopRunRequest`` names."""
    return int(_parse(StopRunRequest, body).run_id)


def following(body: bytes) -> tuple[int, int]:
    """The id that a ``StreamLogsRequest`` names, and how many lines its sender has."""
    request = _parse(StreamLogsRequest, body)
    after = request.after_timestamp
    return int(request.run_id), int(after) if 0 <= after < 2**53 else 0


def started(number: int) -> bytes:
    """The answer to a ``StartRunRequest``."""
    answer = StartRunResponse(run_id=number, federation=NOOP_FEDERATION_ID, note=NOTE)
    return bytes(answer.SerializeToString())


def stopped() -> bytes:
    """The answer to a ``StopRunRequest``."""
    return bytes(StopRunResponse(success=True).SerializeToString())


def lines(text: str, count: int) -> bytes:
    """A part of the answer to a ``StreamLogsRequest``: more lines, and how many that makes.

    Flower has a time where the count stands; to its command it is a place to go on from.
    """
    answer = StreamLogsResponse(log_output=text, latest_timestamp=float(count))
    return bytes(answer.SerializeToString())


def _parse(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise _malformed() from error


def _malformed() -> InputError:
    return InputError("that is no request of Flower's command", code="malformed")
