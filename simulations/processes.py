"""What does a deployed federation do? All of it on loopback: a link, a coordinator, clients.

The rules: each of them is a process of its own, started with the ``privet`` command, over TLS; what
was started is ended by its own id in the end. Clients are enrolled by files, which takes no
process. Nobody's data, and seeded noise and draws, so that two federations end in the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.approval import approve
from client.custody import Custody
from client.home import Home
from client.link.fleet import Fleet
from client.requesting import accept, request
from client.site import Site, node_key, read_enrolment
from common.canonical import digest
from common.data.binding import Binding
from common.enrolment import SignedJoin
from common.invitation import Address
from common.keys import KeyDirectory
from common.nodekey import NodeKey
from common.policy import Policy
from common.privacy.filter import Budget
from server.federation.directory import Federation
from server.federation.doorkeeper import admit_request, approve_request
from server.federation.founding import PLAN_ENVELOPE, create_run

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
SEED = 5
# Spare rounds are for runs of one plan again and again: they end in the same bits.
TERMS = Policy(dataset="answers", budget=Budget.of(20.0, 1e-5), spare_rounds=400, simulated=True)
PLAN = """\
[plan]
name = "answers"
model = "softmax"
rounds = {rounds}

[plan.schema]
kind = "table"
classes = ["no", "yes"]
target = "answer"
columns = [
  {{name = "height", lower = -1.0, upper = 1.0}},
  {{name = "weight", lower = -1.0, upper = 1.0}},
]

[plan.cohort]
clients = {clients}
quorum = {quorum}
over_selection = {over_selection}
deadline = {deadline}

[plan.optimizer]
learning_rate = 0.5

[plan.privacy]
trust = "local"
noise_multiplier = 8.0
delta = 1e-5
clipping_norm = 1.0
sampling_rate = 0.5
steps = 2
divisor = 4

[plan.release]
name = "answers"
"""


@dataclass
class Network:
    """A federation, its clients' homes, and what was started of it.

    ``imports`` are directories that processes find modules in before they find ours.
    """

    path: Path
    federation: Federation
    names: list[str]
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def made(cls, path: Path, clients: int = 5) -> Iterator[Network]:
        """A federation with so many clients; nothing is started."""
        address = Address("127.0.0.1", free_port())
        federation = Federation.create(path / "federation", path / "federation.keys", address)
        network = cls(path, federation, [])
        for number in range(clients):
            network.enrol(f"clinic-{number}")
        try:
            yield network
        finally:
            network.end()

    # -- who is in it ----------------------------------------------------------------------------

    def enrol(self, name: str) -> Home:
        """A device with data of its own, enrolled by two files."""
        folder = self.path / "clients" / name
        folder.mkdir(parents=True)
        (folder / "data.csv").write_text("\n".join(["height,weight,answer", *rows(name), ""]))
        site = Site(
            home=folder / "home",
            keys=folder / "keys",
            custody=Custody(folder / "custody"),
            binding=Binding(source="csv", path=str(folder / "data.csv")),
            owner_keys=folder / "owner",
            terms=replace(TERMS, dataset=f"answers.{name}"),
        )
        here, key = self.federation, self.federation.signing_key()
        _, signed = request(site, name, here.about().sign(key), key.public.fingerprint)
        join = admit_request(here, SignedJoin.decode(signed))
        home = accept(site.home, approve_request(here, join))
        (home.path / "client.json").unlink()
        seeded = replace(home, seed=SEED)
        seeded.create()
        self.names.append(name)
        return seeded

    def home(self, name: str) -> Home:
        return Home.read(self.path / "clients" / name / "home")

    def key(self, name: str) -> NodeKey:
        return NodeKey.decode(node_key(self.home(name)).read_bytes())

    @property
    def authority(self) -> str:
        return self.federation.authority().certificate

    def fleet(self, name: str, stop: Any = None) -> Fleet:
        """A connection as this client's node makes it, not yet entered."""
        enrolment = read_enrolment(self.home(name))
        ending = stop or threading.Event()
        return Fleet(self.federation.address, self.key(name), enrolment.authority, ending)

    def create(
        self,
        name: str = "run",
        *,
        rounds: int = 3,
        deadline: float = 30,
        quorum: int = 0,
        after: int = 0,
    ) -> Path:
        """A run whose plan every owner has approved, and that asks everybody in each round.

        Args:
            quorum: everybody, unless it is given.
            after: how many valid replies end a round; everybody's, unless it is given.
        """
        file, run = self.path / f"{name}.toml", self.path / name
        everybody = len(self.federation.registry.active())
        wanted = after or everybody
        plan = PLAN.format(
            rounds=rounds,
            clients=wanted,
            over_selection=everybody - wanted,
            deadline=deadline,
            quorum=quorum or wanted,
        )
        file.write_text(plan)
        replace(create_run(self.federation, run, file), seed=SEED).create()
        envelope = (run / PLAN_ENVELOPE).read_bytes()
        for client in self.federation.registry.active():
            owner = KeyDirectory(self.path / "clients" / client / "owner").load("owner")
            approve(self.home(client), envelope, owner)
        return run

    # -- processes -------------------------------------------------------------------------------

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Start ``privet`` with these words, under a name; its output is in a file of that name."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*self.imports, str(ROOT)]),
            "OMP_NUM_THREADS": "1",
        }
        with open(self.path / f"{name}.log", "ab") as output:
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
        where = str(self.federation.path)
        process = self.start("link", "server", "start", where, "--format", "json")
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.log("link")
        assert json.loads(line)["data"]["address"] == str(self.federation.address)

    def start_client(self, name: str) -> None:
        self.start(name, "client", "start", "--home", str(self.home(name).path))

    def start_clients(self) -> None:
        for name in self.names:
            self.start_client(name)

    def start_run(self, run: Path, how: str = "run") -> subprocess.Popen[str]:
        return self.start("run", "server", how, str(run), "--format", "json")

    def finish(self, process: subprocess.Popen[str], seconds: float = 120) -> dict[str, Any]:
        """Wait for a run's end; its JSON."""
        out, _ = process.communicate(timeout=seconds)
        assert process.returncode == 0, f"{out}\n{self.log('run')}\n{self.log('link')}"
        data: dict[str, Any] = json.loads(out)["data"]
        return data

    def kill(self, name: str, sign: signal.Signals = signal.SIGKILL) -> int:
        """End one process, now; its exit code."""
        process = self.processes.pop(name)
        process.send_signal(sign)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    def end(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    # -- what came of it -------------------------------------------------------------------------

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()[-4000:]

    def memory(self, name: str, what: str = "VmRSS") -> float:
        """Resident memory of a process, MiB; ``VmHWM``: the most that it ever had."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(what)]
        return int(line.split()[1]) / 1024


def model_of(run: Path) -> str:
    """SHA-256 of a run's last model."""
    files = sorted((run / "checkpoints").glob("round-*.safetensors"))
    return digest(files[-1].read_bytes())


def rows(name: str, count: int = 40) -> list[str]:
    """A client's records: yes where height is above weight; its own for each name."""
    generator = np.random.default_rng(int(digest(name.encode())[:8], 16))
    points = generator.uniform(-1, 1, (count, 2)).round(3)
    return [f"{height},{weight},{'yes' if height > weight else 'no'}" for height, weight in points]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: Any, seconds: float = START_SECONDS) -> None:
    """Look until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.05)
