"""A federation over the network, all of it on this machine: server, five clinics, approver, device.

The rule: nothing is called but the `privet` command, as each party would on its own machine; every
line that it types is shown. Each server and client is a process of its own, over TLS on loopback.
The patients are made up; keys, noise and signatures are real. In the end everything that was
started is stopped, whatever happened.

    python examples/network.py DIRECTORY [--format json]
"""

from __future__ import annotations

import contextlib
import csv
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_clinics import COLUMNS, patient

HERE = Path(__file__).resolve().parent
CLINICS = ("north", "south", "east", "west", "centre")
ROWS = 600
SITE = """\
[data]
source = "csv"
path = "records.csv"

[policy]                        # what this clinic's data protection officer allows
dataset = "{name}-2026"
budget = 2.5
delta = 1e-5
order = 9
spare_rounds = 1
"""


class Demo:
    """One directory for each party, and what was started."""

    def __init__(self, path: Path, quiet: bool) -> None:
        self.path, self.quiet = path, quiet
        self.started: list[subprocess.Popen[str]] = []

    def folder(self, name: str) -> Path:
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return self.path / name

    def privet(self, where: str, *words: object) -> dict[str, Any]:
        """One command of one party, in its directory; its result."""
        shown = " ".join(str(word) for word in words)
        self.say(f"{where:>12} $ privet {shown if len(shown) < 150 else shown[:147] + '...'}")
        done = subprocess.run(
            [sys.executable, "-m", "privet", *map(str, words), "--format", "json"],
            cwd=self.folder(where),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{shown}\n{done.stdout}{done.stderr}")
        data: dict[str, Any] = json.loads(done.stdout)["data"]
        return data

    def start(self, where: str, *command: str) -> subprocess.Popen[str]:
        """A process that stays until the end; what it says is in its party's directory."""
        if command[:3] == (sys.executable, "-m", "privet"):
            self.say(f"{where:>12} $ privet {' '.join(command[3:])} &")
        with open(self.folder(where) / "log", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder(where),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """End everything, the last first, and wait for it."""
        for process in reversed(self.started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.started):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def run(demo: Demo) -> dict[str, Any]:
    """Everybody's part, in order; what came of it."""
    began = time.monotonic()
    port, python = free_port(), (sys.executable, "-m", "privet")

    # Three parties make their keys, and the coordinator opens its one door.
    approver = demo.privet("approver", "approver", "init", "keys")
    third = demo.privet("recovery", "approver", "init", "keys")
    federation = ("--federation", "federation")
    demo.privet("server", "server", "init", "federation", "--address", f"127.0.0.1:{port}")
    demo.privet("server", "server", "approver", approver["approver"], *federation)
    link = demo.start("server", *python, "server", "start", "federation", "--format", "json")
    assert link.stdout is not None
    link.stdout.readline()  # it listens

    # Each clinic enrols with one token: its keys are made there, and stay there.
    for number, name in enumerate(CLINICS):
        table(demo.folder(name) / "records.csv", number)
        (demo.folder(name) / "site.toml").write_text(SITE.format(name=name))
        token = demo.privet("server", "server", "invite", name, *federation)["token"]
        demo.privet(name, "client", "join", token, "--home", "home", "--data", "site.toml")

    # The coordinator signs a plan; each clinic's owner reads it, and agrees.
    table(demo.folder("server") / "public.csv", len(CLINICS))
    shutil.copy(HERE / "network.toml", demo.folder("server"))
    made = demo.privet("server", "server", "create", "run", "network.toml", *federation)
    for name in CLINICS:
        shutil.copy(demo.path / "server" / made["signed_plan"], demo.folder(name))
        words = ("client", "approve", "plan.dsse.json", "--home", "home")
        demo.privet(name, *words, "--owner-keys", "home.owner", "--yes")
        demo.start(name, *python, "client", "start", "--home", "home")

    # They train. Nobody's records leave; every round is charged before it is answered.
    state = demo.privet("server", "server", "run", "run")
    demo.privet("server", "server", "collect", "run")

    # Two parties publish: the approver computes every epsilon anew from the clinics' ledgers.
    words = ("--approver", approver["public_key"], "--recovery", third["public_key"])
    demo.privet("server", "server", "propose", "run", "--out", "proposal", *words)
    about = demo.privet("server", "server", "about", *federation)
    proposal = demo.path / "server" / "proposal"
    words = ("--keys", "keys", "--coordinator", about["federation"], "--out", "approval")
    words = (*words, "--recovery", third["approver"])
    approval = demo.privet("approver", "approver", "approve", proposal, *words)
    given = demo.path / "approver" / "approval"
    published = demo.privet("server", "release", "publish", "run", "proposal", given)

    # A device gets root and fingerprints by another way, the model from the server, and runs it.
    repository = demo.path / "server" / published["repository"]
    trust = demo.path / "server" / published["trust"]
    demo.privet(
        "device", "device", "init", "device",
        "--root", repository / "metadata" / "1.root.json",
        "--trust", trust,
        "--repository", f"https://127.0.0.1:{port}/repository",
        "--authority", about["authority"],
        "--greatest-epsilon", "2.5",
    )  # fmt: skip
    installed = demo.privet("device", "device", "update", "device")
    shutil.copy(demo.path / "server" / "public.csv", demo.folder("device") / "new.csv")
    predicted = demo.privet("device", "device", "predict", "device", "new.csv")
    bundle = demo.path / "server" / published["bundle"]
    verified = demo.privet("auditor", "audit", "verify", bundle, "--trust", trust)
    return {
        "clients": len(CLINICS),
        "rounds": state["rounds"]["done"],
        "valid_replies": state["replies"]["valid"],
        "accuracy": state["accuracy"],
        "epsilon": approval["epsilon"],
        "release": installed["version"],
        "predictions": len(predicted["predictions"]),
        "verified": bool(verified),
        "seconds": round(time.monotonic() - began, 1),
    }


def table(file: Path, number: int) -> None:
    """A clinic's records: made up, its own for each number."""
    draw = random.Random(2026 + number)  # noqa: S311  (made-up patients need no secrecy)
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS[1:])
        writer.writerows(patient(draw)[1:] for _ in range(ROWS))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def demo_in(path: Path, quiet: bool) -> Iterator[Demo]:
    demo = Demo(path, quiet)
    try:
        yield demo
    finally:
        demo.stop()


def main() -> None:
    """Run it in the directory that the command line names, which must be empty."""
    arguments = [word for word in sys.argv[1:] if word not in ("--format", "json")]
    as_json = "json" in sys.argv
    path = Path(arguments[0] if arguments else "runs/network").absolute()
    if path.exists() and any(path.iterdir()):
        raise SystemExit(f"{path} is in use: name another directory, or remove it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with demo_in(path, as_json) as demo:
        result = run(demo)
    if as_json:
        print(json.dumps(result))
        return
    print(
        f"\n{result['rounds']} rounds, {result['valid_replies']} valid replies of "
        f"{result['clients']} clinics: {100 * result['accuracy']:.1f} % right on public records, "
        f"epsilon {result['epsilon']:.2f}\n"
        f"the device runs release {result['release']}, and answered {result['predictions']} "
        f"records; {result['seconds']:g} s in all, in {path}"
    )


if __name__ == "__main__":
    main()
