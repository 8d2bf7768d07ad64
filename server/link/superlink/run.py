"""How does a coordinator's process get a run on a link, and lose it in order?

The rules: a Flower run is transport: what is trained, and how far it is, is in the run directory,
so a new start means a new Flower run, under a bundle that holds no code. One that Flower's command
asked for and that waits for this very directory is taken; what an earlier one left behind is
stopped. Whatever a link answers has one of our names.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from common.errors import NetworkError, PrivetError
from common.parcel import HEARTBEAT_SECONDS
from server.link.superlink.grid import LinkGrid, only_there, patient
from server.link.superlink.transport import start
from server.stopping import Stopped
from server.thin_app import RUN

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


@contextlib.contextmanager
def run_on(
    address: str, secret: bytes, *, run: Path | None = None, patience: float = 45.0
) -> Iterator[LinkGrid]:
    """A Flower run on a link, and its Grid; what an earlier one left behind is stopped.

    Flower's runs are transport: what is trained, and how far it is, is in the run directory.

    Args:
        address: ``host:port`` of the link's loopback interface.
        secret: the link's executor secret.
        run: the directory whose rounds it is for; Flower's command sees and stops it by that.
        patience: seconds that the link may be away for, such as for a restart. Flower forgets a
            task of whom it heard nothing for a minute.

    Raises:
        NetworkError: the link does not answer, or refuses; the run can be resumed.
    """
    with _refused(address):
        with ControlHttpClient.from_server_address(
            address, True, None, [], retry_invoker=patient(patience)
        ) as control:
            only_there(control, secret)
            run_id = _one(control, str(run.resolve()) if run else "")
        grid = LinkGrid(address, secret, _claim(address, secret, run_id, patience), patience)
        task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(grid, ended), daemon=True)
    heart.start()
    status, why = SubStatus.FAILED, ""
    try:
        with _refused(address):
            yield grid
        status = SubStatus.COMPLETED
    except PrivetError as error:
        status = SubStatus.STOPPED if isinstance(error, Stopped) else status
        why = error.message
        raise
    finally:
        ended.set()
        heart.join(HEARTBEAT_SECONDS)
        grid._retry_invoker.max_tries = 1
        with contextlib.suppress(httpx.HTTPError, RunNotRunningException):
            output = PushTaskOutputRequest(sub_status=status, details=why)
            grid._runtime_client.PushTaskOutput(output)
        grid.close()


def _one(control: ControlHttpClient, path: str) -> int:
    """The Flower run that waits for this directory, or a new one; all others are stopped."""
    found = 0
    for run in control.ListRuns(ListRunsRequest()).run_dict.values():
        if run.status.status == Status.FINISHED:
            continue
        waits = run.status.status == Status.PENDING and run.override_config[RUN].string == path
        if path and waits and not found:
            found = run.run_id
        else:
            control.StopRun(StopRunRequest(run_id=run.run_id))
    return found or int(control.StartRun(start(path)).run_id)


def _claim(address: str, secret: bytes, run_id: int, patience: float) -> str:
    """The token of a run's task."""
    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
    ]
    client = RuntimeHttpClient.from_server_address(
        address, True, None, interceptors, retry_invoker=patient(patience)
    )
    with client:
        only_there(client, secret)
        while True:
            answer = client.AcquireTask(
                AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            )
            if not answer.token:
                raise NetworkError(
                    "the link gave another process this run's task",
                    hint="one coordinator at a time; then resume the run",
                    code="task-taken",
                )
            if answer.task.run_id == run_id:
                return str(answer.token)


def _beat(grid: LinkGrid, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(httpx.HTTPError, RunNotRunningException):
            grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


@contextlib.contextmanager
def _refused(address: str) -> Iterator[None]:
    try:
        yield
    except RunNotRunningException as error:
        raise _lost(address, "it has ended this run") from error
    except httpx.HTTPStatusError as error:
        raise _lost(address, f"it answered {error.response.status_code}") from error
    except httpx.HTTPError as error:
        raise _lost(address, f"{type(error).__name__}") from error


def _lost(address: str, why: str) -> NetworkError:
    return NetworkError(
        f"the link at {address} cannot be used: {why}",
        hint="see that `privet server start` runs; then `privet server resume` goes on",
        code="link-lost",
    )
