"""How does a coordinator's process get a run on a link, and lose it in order?

The rules: a Flower run is transport: what is trained, and how far it is, is in the run directory,
so a new start means a new Flower run, under a bundle that holds no code. What an earlier one left
behind is stopped. Whatever a link answers has one of our names.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
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

from common.errors import NetworkError
from server.link.superlink.app import HEARTBEAT_SECONDS
from server.link.superlink.grid import LinkGrid, only_there, patient

THIN_APP = """\
[project]
name = "privet-run"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "privet"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
server-home = ""
"""
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


@contextlib.contextmanager
def run_on(address: str, secret: bytes, *, patience: float = 45.0) -> Iterator[LinkGrid]:
    """A new Flower run on a link, and its Grid; what an earlier one left behind is stopped.

    Flower's runs are transport: what is trained, and how far it is, is in the run directory.

    Args:
        address: ``host:port`` of the link's loopback interface.
        secret: the link's executor secret.
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
            for run in control.ListRuns(ListRunsRequest()).run_dict.values():
                if run.status.status != "finished":
                    control.StopRun(StopRunRequest(run_id=run.run_id))
            run_id = control.StartRun(StartRunRequest(fab=_thin_bundle())).run_id
        grid = LinkGrid(address, secret, _claim(address, secret, run_id, patience), patience)
        task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(grid, ended), daemon=True)
    heart.start()
    status = "failed"
    try:
        with _refused(address):
            yield grid
        status = "completed"
    finally:
        ended.set()
        heart.join(HEARTBEAT_SECONDS)
        grid._retry_invoker.max_tries = 1
        with contextlib.suppress(httpx.HTTPError, RunNotRunningException):
            grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status))
        grid.close()


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


def _thin_bundle() -> Fab:
    """A bundle without code: Flower wants one for a run; no node fetches it."""
    with tempfile.TemporaryDirectory(prefix="privet-") as folder:
        (Path(folder) / "pyproject.toml").write_text(THIN_APP)
        content = build_fab_from_disk(Path(folder))
    return Fab(content=content)
