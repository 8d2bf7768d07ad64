"""A deployed federation on this machine: what a round, a task and a restart cost, beside Flower.

Five clients, a link and a coordinator are processes of their own, over TLS and SQLite; a client has
forty records of two numbers, so there is nothing to train. Plain Flower is its SuperLink and five
SuperNodes as they come, without TLS, with an app that adds a number to a model of the same size.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, at_least, at_most, main, plain
from server.home import ServerHome
from server.status import rounds
from simulations.processes import Network, free_port, wait_until

NODES = 5
FLOWER_APP = """\
import json, os, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()

@client.train()
def train(message, context):
    arrays = message.content["arrays"]
    values = zip(arrays.keys(), arrays.to_numpy_ndarrays())
    out = ArrayRecord({name: Array(value + np.float32(0.01)) for name, value in values})
    metrics = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": out, "metrics": metrics}), reply_to=message)

@server.main()
def main(grid, context):
    wanted, rounds = int(os.environ["BENCH_NODES"]), int(os.environ["BENCH_ROUNDS"])
    while len(list(grid.get_node_ids())) < wanted:
        time.sleep(0.1)
    weight, bias = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    start = ArrayRecord({"weight": Array(weight), "bias": Array(bias)})
    began = time.perf_counter()
    FedAvg(fraction_evaluate=0.0, min_train_nodes=wanted, min_available_nodes=wanted).start(
        grid=grid, initial_arrays=start, num_rounds=rounds
    )
    with open(os.environ["BENCH_OUT"], "w") as file:
        json.dump((time.perf_counter() - began) / rounds, file)
"""
FLOWER_PROJECT = """\
[project]
name = "bench"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "bench_app:server"
clientapp = "bench_app:client"
[tool.flwr.app.config]
"""


def measure(quick: bool) -> list[Row]:
    """Seconds, medians over rounds or turns."""
    with tempfile.TemporaryDirectory() as folder:
        ours = _ours(Path(folder) / "ours", rounds=5 if quick else 20)
        flower = _flower(Path(folder) / "flower", rounds_=2 if quick else 3)
    return [
        at_most("a round with nothing to train, 5 nodes", ours["round"], "s", 1.0),
        plain("the same with plain Flower, without TLS", flower, "s"),
        at_least("plain Flower / ours", flower / ours["round"], "x", 5.0),
        at_most("from a message to the app's start, warm client", ours["task"], "s", 0.1),
        at_most("a client: killed, started, connected", ours["back"], "s", 10.0),
        at_most("a link: killed, started, a round done", ours["link"], "s", 30.0),
        plain("memory of the link", ours["memory"], "MiB"),
    ]


def _ours(path: Path, rounds: int) -> dict[str, float]:
    with Network.made(path, clients=NODES) as network:
        network.start_link()
        network.start_clients()
        run = network.create(rounds=rounds + 1)
        network.finish(network.start_run(run), 600)
        seconds = [float(line["seconds"]) for line in _done(run)[1:]]  # the first one warms up
        back = _back(network)
        return {
            "round": statistics.median(seconds),
            "task": _task_start(network),
            "back": back,
            "link": _link_back(network),
            "memory": network.memory("link"),
        }


def _done(run: Path) -> list[dict[str, Any]]:
    return rounds(ServerHome.read(run))


def _back(network: Network) -> float:
    name = network.names[0]
    network.kill(name)
    log = network.path / f"{name}.log"
    before = log.read_text().count("connected")
    began = time.monotonic()
    network.start_client(name)
    wait_until(lambda: log.read_text().count("connected") > before)
    return time.monotonic() - began


def _link_back(network: Network) -> float:
    """From a kill in the middle of a run to the next round that is done."""
    run = network.create("restarted", rounds=6)
    process = network.start_run(run)
    wait_until(lambda: len(_done(run)) >= 2, 120)
    network.kill("link")
    began, at = time.monotonic(), len(_done(run))
    network.start_link()
    wait_until(lambda: len(_done(run)) > at, 120)
    taken = time.monotonic() - began
    network.finish(process, 600)
    return taken


def _task_start(network: Network) -> float:
    """Between a message's last byte and the app, in a client's loop; the slowest of a run."""
    from client.link import node

    name, taken = network.names[0], list[float]()
    network.kill(name)
    os.environ["PRIVET_CLIENT_HOME"] = str(network.home(name).path)
    from client.app import app

    came = [0.0]

    class Timed:
        """A connection that says when a message was there."""

        def __init__(self) -> None:
            self.fleet = network.fleet(name, stop)

        def __getattr__(self, what: str) -> Any:
            return getattr(self.fleet, what)

        def __enter__(self) -> Timed:
            self.fleet.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.fleet.__exit__(*error)

        def pull(self) -> Any:
            message = self.fleet.pull()
            came[0] = time.monotonic()
            return message

    def timed(message: Any, context: Any) -> Any:
        taken.append(time.monotonic() - came[0])
        return app(message, context)

    stop = threading.Event()
    loop = threading.Thread(target=node.Node(timed, Timed, stop).run)
    loop.start()
    try:
        run = network.create("timed", rounds=3)
        network.finish(network.start_run(run), 600)
    finally:
        stop.set()
        loop.join(30)
    network.start_client(name)
    return max(taken)


def _flower(path: Path, rounds_: int) -> float:
    """Seconds a round of plain Flower, mean."""
    app = path / "app"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text(FLOWER_PROJECT)
    (app / "bench_app.py").write_text(FLOWER_APP)
    out, port = path / "seconds.json", free_port()
    home = path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "b"\n\n[superlink.b]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "BENCH_NODES": str(NODES),
        "BENCH_ROUNDS": str(rounds_),
        "BENCH_OUT": str(out),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with open(path / "log", "ab") as log:
            started.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    cwd=path,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    try:
        start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        for _ in range(NODES):
            words = ("--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
            start("flower-supernode", "--insecure", *words)
        wait_until(lambda: _run_flower(app, environment), 120)
        wait_until(out.exists, 300)
        return float(json.loads(out.read_text()))
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _run_flower(app: Path, environment: dict[str, str]) -> bool:
    done = subprocess.run(
        ["flwr", "run", str(app)], env=environment, capture_output=True, check=False, text=True
    )
    return done.returncode == 0


if __name__ == "__main__":
    main("deployment", measure)
