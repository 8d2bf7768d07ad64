"""A deployed federation on loopback for tests: a link, a coordinator and clients, each a process.

Whatever was started is ended by its own id when the context is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.home import Home
from client.serving import node_key_file
from common.canonical import digest
from common.seal import NodeKey
from server.home import ServerHome
from server.link import LinkHome
from server.registry import FileRegistry
from simulations.experiment import Experiment
from simulations.population import Run, prepare

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "digits.toml"
START_SECONDS = 60.0


@dataclass
class Network:
    """One link and the clients of one prepared run."""

    path: Path
    run: Run
    link: Path
    address: str = ""
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def made(cls, path: Path, *, rounds: int = 3, changes: Sequence[str] = ()) -> Iterator[Network]:
        """A prepared run whose clients are enrolled; nothing is started yet."""
        experiment = Experiment.read(EXAMPLE, rounds=rounds, overrides=changes)
        state = os.environ.get("PRIVET_STATE_HOME")
        os.environ["PRIVET_STATE_HOME"] = str(path / "state")
        try:
            run = prepare(experiment, path / "run")
        finally:
            if state is None:
                del os.environ["PRIVET_STATE_HOME"]
            else:
                os.environ["PRIVET_STATE_HOME"] = state
        network = cls(path, run, path / "link")
        network.link.mkdir()
        network.enrol(*network.clients)
        try:
            yield network
        finally:
            network.end()

    @property
    def clients(self) -> list[str]:
        return sorted(ServerHome.read(self.run.path).members)

    def home(self, client: str) -> Home:
        return Home.read(self.run.clients / client)

    def key(self, client: str) -> NodeKey:
        file = node_key_file(self.home(client))
        return NodeKey.load(file) if file.exists() else NodeKey.create(file)

    def enrol(self, *clients: str) -> None:
        """Make the registry hold these clients and no others."""
        members = {name: {"node_key": self.key(name).public.pem.decode()} for name in clients}
        FileRegistry(LinkHome(self.link).members).write(members)

    # -- processes -------------------------------------------------------------------------------

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Start ``privet`` with these words, under a name; its output is in a file of that name."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        log = self.path / f"{name}.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "privet", *command],
                cwd=self.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        self.processes[name] = process
        return process

    def start_link(self) -> None:
        """Start the link and wait until it listens."""
        process = self.start("link", "server", "start", str(self.link), "--format", "json")
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.log("link")
        self.address = json.loads(line)["data"]["address"]

    def start_client(self, name: str) -> None:
        home, authority = str(self.run.clients / name), str(self.link / "ca.pem")
        words = ("--home", home, "--server", self.address, "--ca", authority, "--quiet")
        self.start(name, "client", "start", *words)

    def start_clients(self) -> None:
        for name in self.clients:
            self.start_client(name)

    def start_run(self, how: str = "run") -> subprocess.Popen[str]:
        words = ["--link", str(self.link)] if how == "run" else []
        return self.start("run", "server", how, str(self.run.path), *words, "--format", "json")

    def finish(self, process: subprocess.Popen[str], seconds: float = 120) -> dict[str, Any]:
        """Wait for a command's end; its JSON."""
        out, _ = process.communicate(timeout=seconds)
        assert process.returncode == 0, f"{out}\n{self.log('run')}\n{self.log('link')}"
        data: dict[str, Any] = json.loads(out)["data"]
        return data

    def kill(self, name: str, sign: signal.Signals = signal.SIGKILL) -> None:
        """End one process, now."""
        process = self.processes.pop(name)
        process.send_signal(sign)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()

    def end(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    # -- what came of it -------------------------------------------------------------------------

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()[-4000:]

    def model(self) -> str:
        """SHA-256 of the last checkpoint's model."""
        files = sorted((self.run.path / "checkpoints").glob("round-*.safetensors"))
        return digest(files[-1].read_bytes())

    def memory(self, name: str) -> float:
        """Resident memory of a process, MiB."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    def copy(self, path: Path) -> Path:
        """The prepared run as it is, to compare with."""
        return Path(shutil.copytree(self.run.path, path))


def wait_until(what: Any, seconds: float = START_SECONDS) -> None:
    """Look until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.05)
