"""Two hundred clients on loopback, spoken for by a few processes, and five real ones.

Every client of the crowd has a home, keys, a ledger and records of its own, and answers with the
client's own code; only the process is shared. In each round three in ten of them drop out: they
take the message, and are not heard of again until the next. A round ends once enough answered.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, at_least, at_most, main, plain
from server.home import ServerHome
from server.status import rounds
from simulations.processes import Network

REAL, DROPPED = 5, 0.3
PROCESSES = 4
DEADLINE = 180.0


def measure(quick: bool) -> list[Row]:
    """Rounds that ended, and what the link needed."""
    crowd, planned = (20, 3) if quick else (200, 10)
    with tempfile.TemporaryDirectory() as folder:
        enrolled, ended, seconds, most, coordinator = _run(Path(folder), crowd, planned)
    valid = [line["valid"] for line in ended]
    return [
        at_least(f"rounds that ended with {crowd} + {REAL} clients", len(ended), "", planned),
        at_least("valid replies of the smallest round", min(valid, default=0), "", _wanted(crowd)),
        plain("a round, mean", seconds / max(1, len(ended)), "s"),
        at_most("longest round over its deadline", _over(ended), "s", 1.0),
        at_most("memory of the link, most", most, "MiB", 1024),
        at_most("memory of the coordinator, most", coordinator, "MiB", 1024),
        plain("clients enrolled", enrolled, ""),
    ]


def _wanted(crowd: int) -> int:
    """Replies that a round waits for: what is left when three in ten of the crowd drop out."""
    return int(0.6 * crowd) + REAL


def _over(ended: list[dict[str, Any]]) -> float:
    return max(0.0, *(float(line["seconds"]) - DEADLINE for line in ended))


def _run(
    path: Path, crowd: int, planned: int
) -> tuple[int, list[dict[str, Any]], float, float, float]:
    with Network.made(path, clients=REAL + crowd) as network:
        run = network.create(
            rounds=planned,
            deadline=DEADLINE,
            after=_wanted(crowd),
        )
        network.start_link()
        for name in network.names[:REAL]:
            network.start_client(name)
        players = [
            multiprocessing.get_context("spawn").Process(
                target=_play, args=(str(path), network.names[REAL + k :: PROCESSES], k)
            )
            for k in range(PROCESSES)
        ]
        for player in players:
            player.start()
        began, most, coordinator = time.monotonic(), 0.0, 0.0
        process = network.start_run(run)
        while process.poll() is None:
            time.sleep(1)
            most = max(most, network.memory("link", "VmHWM"))
            if process.poll() is None:
                coordinator = max(coordinator, network.memory("run", "VmHWM"))
        seconds = time.monotonic() - began
        for player in players:
            player.terminate()
            player.join(30)
        out = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise SystemExit(f"the run failed: {out}\n{network.log('run')}")
        enrolled = len(json.loads(out)["data"]["clients"])
        return enrolled, rounds(ServerHome.read(run)), seconds, most, coordinator


def _play(path: str, names: list[str], seed: int) -> None:
    """Speak for some clients, a thread each, until the process is ended."""
    from flwr.app import Context, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from client.app import app
    from client.home import Home
    from client.link.fleet import Fleet, RunEnded, Unreadable
    from client.site import node_key, read_enrolment
    from common.errors import NetworkError
    from common.invitation import Address
    from common.nodekey import NodeKey

    os.environ["OMP_NUM_THREADS"] = "1"
    homes = Path(path) / f"crowd-{seed}"  # as the client's code wants many: side by side
    homes.mkdir()
    for name in names:
        (homes / name).symlink_to(Path(path) / "clients" / name / "home")
    order = sorted(names)
    os.environ["PRIVET_CLIENT_HOME"] = str(homes)
    one = threading.Lock()  # Flower knows one task a process
    stop = threading.Event()

    def alone(read: Callable[..., Any]) -> Callable[..., Any]:
        """Reading makes a message in the name of the one task that Flower knows in a process."""

        def work(*words: Any) -> Any:
            with one:
                return read(*words)

        return work

    def speak(name: str) -> None:
        home = Home.read(Path(path) / "clients" / name / "home")
        enrolment = read_enrolment(home)
        key = NodeKey.decode(node_key(home).read_bytes())
        draw = random.Random(f"{seed}/{name}")
        while True:
            try:
                with Fleet(
                    Address.parse(enrolment.address), key, enrolment.authority, stop
                ) as fleet:
                    fleet._read = alone(fleet._read)  # type: ignore[method-assign]
                    while True:
                        try:
                            message = fleet.pull()
                        except (Unreadable, RunEnded):
                            continue
                        if message is None:
                            continue
                        if message.metadata.message_type == "train" and draw.random() < DROPPED:
                            continue
                        with one:
                            TaskIdentity.run_id = message.metadata.run_id
                            TaskIdentity.node_id = fleet.node_id
                            context = Context(
                                run_id=message.metadata.run_id,
                                node_id=fleet.node_id,
                                node_config={"partition-id": order.index(name)},
                                state=RecordDict(),
                                run_config={},
                            )
                            reply = app(message, context)
                        try:
                            fleet.push(reply)
                        except RunEnded:
                            continue
            except NetworkError:
                time.sleep(draw.uniform(0.5, 2.0))

    threads = [threading.Thread(target=speak, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main("crowd", measure)
