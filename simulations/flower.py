"""The same apps under ``flwr run`` with Ray: for clusters; nothing depends on our Grid.

The rules: Flower gets a home of its own and a port of its own, so a user's Flower is not touched;
it installs nothing, sends no telemetry and asks for no updates; and every process that was started
is ended, by its id, however the run ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from client.home import HOME_VARIABLE
from common.errors import OperationError
from server import thin_app
from simulations.population import Run

START_SECONDS = 60
STOP_SECONDS = 10
POLL_SECONDS = 0.2

Progress = Callable[[str, int, int], None]


def run_with_flower(
    run: Run,
    nodes: int,
    rounds: int,
    *,
    app: Path | None = None,
    progress: Progress = lambda *_: None,
) -> None:
    """Run a prepared run's rounds under ``flwr run``; returns when its last checkpoint is there.

    Args:
        run: the prepared run.
        nodes: how many virtual nodes; one for each client.
        rounds: of the plan, for the progress bar.
        app: the Flower App's directory; by default one that names the installed packages.
        progress: called as (what, done, of).

    Raises:
        OperationError: Flower or Ray is missing, did not start, or the run failed; the hint names
            the log.
    """
    if shutil.which("ray", path=_path()) is None:
        raise OperationError(
            "the Flower backend needs Ray, which is not installed",
            hint="pip install 'privet[simulation,ray]', or use the in-process backend",
            code="not-installed",
        )
    home = Path(tempfile.mkdtemp(prefix="privet-flower-"))
    port = _free_port()
    environment = _environment(home, run)
    log = run.path / "flower.log"
    try:
        _configure(home, port, nodes)
        with open(log, "wb") as output, _superlink(port, home, environment, output):
            _wait_until_up(port, log)
            if app is None:
                app = home / "app"
                thin_app.write(app)
            name = _start(app, run, environment, log)
            _follow(name, run, rounds, environment, log, progress)
    finally:
        _end_all(home)
        shutil.rmtree(home, ignore_errors=True)
    log.unlink()


# -- starting ------------------------------------------------------------------------------------


def _environment(home: Path, run: Run) -> dict[str, str]:
    """Ours, with Flower at home in ``home``, quiet, and the clients' directory for the nodes."""
    return {
        **os.environ,
        "PATH": _path(),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        HOME_VARIABLE: str(run.clients.absolute()),
    }


def _path() -> str:
    """Where this Python's own commands are, before all others."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _configure(home: Path, port: int, nodes: int) -> None:
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "privet"\n\n[superlink.privet]\naddress = "127.0.0.1:{port}"\n'
        f"insecure = true\noptions.num-supernodes = {nodes}\n"
    )


@contextlib.contextmanager
def _superlink(
    port: int, home: Path, environment: dict[str, str], output: object
) -> Iterator[None]:
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--database", str(home / "state.db")]
    command += ["--disable-runtime-dependency-installation"]
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(POLL_SECONDS)
    raise _failed("Flower's SuperLink did not start", log)


# -- running -------------------------------------------------------------------------------------


def _flwr(arguments: list[str], environment: dict[str, str], log: Path) -> dict[str, object]:
    """Run one ``flwr`` command and read its JSON."""
    result = subprocess.run(
        ["flwr", *arguments, "--format", "json"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    try:
        document: dict[str, object] = json.loads(result.stdout)
    except ValueError as error:
        with open(log, "a") as output:
            output.write(result.stdout + result.stderr)
        raise _failed(f"`flwr {arguments[0]}` did not answer", log) from error
    if not document.get("success", False):
        with open(log, "a") as output:
            output.write(result.stdout + result.stderr)
        raise _failed(f"`flwr {arguments[0]}` failed", log)
    return document


def _start(app: Path, run: Run, environment: dict[str, str], log: Path) -> str:
    path = json.dumps(str(run.path.absolute()))  # a TOML text is quoted like a JSON one
    arguments = ["run", str(app), "--run-config", f"{thin_app.RUN}={path}"]
    return str(_flwr(arguments, environment, log)["run-id"])


def _follow(
    name: str, run: Run, rounds: int, environment: dict[str, str], log: Path, progress: Progress
) -> None:
    """Wait for the end of the run; its metrics say how far it is."""
    metrics = run.path / "metrics.jsonl"
    while True:
        time.sleep(1)
        if metrics.exists():
            progress("training: rounds", len(metrics.read_bytes().splitlines()), rounds)
        listed = _flwr(["ls", "--run-id", name], environment, log)["runs"]
        assert isinstance(listed, list)
        status = str(listed[0]["status"])
        if status == "finished:completed":
            return
        if status.startswith("finished"):
            raise _failed(f"the Flower run ended as {status}", log)


def _failed(message: str, log: Path) -> OperationError:
    return OperationError(message, hint=f"{log} says more", code="flower-failed")


# -- ending --------------------------------------------------------------------------------------


def _end_all(home: Path) -> None:
    """End every process that still lives in this Flower home, such as Ray's."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        processes = _processes_in(home)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, sign)
        deadline = time.monotonic() + STOP_SECONDS
        while _processes_in(home) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _processes_in(home: Path) -> list[int]:
    """Ids of our own processes that were started with this FLWR_HOME."""
    marker = f"FLWR_HOME={home}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [process for process in found if process != os.getpid()]
