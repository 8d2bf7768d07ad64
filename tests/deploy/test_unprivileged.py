"""What the units and images start needs no privilege: a round of real processes, confined as there.

Each process has nobody's account (where the tests run as root), the umask, system call filter and
address families of its unit, no new privileges, a home and a working directory that it cannot
write to, and may write to the federation's, its clients' and its run's directories alone.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.home import ServerHome
from server.status import rounds
from simulations.processes import Network, wait_until
from tests.deploy.confinement import (
    NOBODY,
    TEMPORARY,
    can_deny_execution,
    can_filter,
    can_mount,
    confined,
)
from tests.deploy.units import ROOT, read

UNITS = ROOT / "deploy" / "systemd"
LINK, RUN, CLIENT = (UNITS / f"privet-{name}.service" for name in ("link", "run@", "client@"))
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "HOME": "/",
}
CLOSED = "accounts without rights cannot read this interpreter or this checkout"
PROBE = """\
import ctypes, os, socket, sys
def refused(what, *words):
    try:
        what(*words)
    except OSError as error:
        return error.errno
    return 0
libc = ctypes.CDLL(None, use_errno=True)
def mount():
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
print(os.getuid(), oct(os.umask(0)), os.getcwd())
print([
    refused(mount), refused(os.chroot, "/"), refused(os.setuid, os.getuid()),
    refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),
    refused(socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM),
    refused(socket.socket, socket.AF_INET), refused(socket.socket, socket.AF_UNIX),
])
open(os.path.join(sys.argv[1], "state"), "w").close()
open(os.path.join(sys.argv[2], "temporary"), "w").close()
import mmap
print(refused(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE, mmap.PROT_WRITE | mmap.PROT_EXEC))
print([refused(open, os.path.join(place, "other"), "w") for place in sys.argv[3:]])
"""


@dataclass
class Probe:
    """What a confined process says."""

    account: str
    calls: str
    written_and_executed: str
    writes: str


def probe(unit: Path) -> Probe:
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        done = subprocess.run(
            confined(
                *(unit, Path(folder), sys.executable, "-c", PROBE),
                *(folder, TEMPORARY, "/", "/etc", "/tmp", str(ROOT)),
            ),
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return Probe(*done.stdout.splitlines())


def reachable(folder: str, imports: str = "privet.cli, torch") -> bool:
    """Whether an account without rights can read this interpreter and what it imports."""
    done = subprocess.run(
        confined(CLIENT, Path(folder), sys.executable, "-c", f"import {imports}"),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@dataclass
class Confined(Network):
    """A network whose processes are started as their units would start them."""

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        unit = {"link": LINK, "run": RUN}.get(name, CLIENT)
        if os.geteuid() == 0:  # as systemd gives a state directory to the unit's user
            for path in (self.path, *self.path.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        with open(self.path / f"{name}.log", "ab") as output:
            process = subprocess.Popen(
                confined(unit, self.path, sys.executable, "-m", "privet", *command),
                cwd=ROOT,  # where the confinement is found; it leaves that
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        self.processes[name] = process
        return process


@pytest.fixture
def network() -> Iterator[Confined]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to others
        if not reachable(folder):
            pytest.skip(CLOSED)
        with Confined.made(Path(folder), clients=2) as network:
            assert isinstance(network, Confined)
            yield network


@pytest.mark.parametrize("unit", [LINK, RUN, CLIENT], ids=lambda unit: unit.name)
def test_the_confinement_of_these_tests_confines(unit: Path) -> None:
    if not can_filter() or not can_mount():
        pytest.skip("needs systemd-analyze, libseccomp, and a root that may mount")
    with tempfile.TemporaryDirectory() as folder:
        if not reachable(folder, "mmap"):
            pytest.skip(CLOSED)
    assert probe(unit) == Probe(
        account=f"{NOBODY} 0o77 /",
        calls=str([errno.EPERM] * 5 + [0, 0]),
        written_and_executed=str(errno.EACCES if unit == LINK and can_deny_execution() else 0),
        writes=str([errno.EROFS] * 4),
    )


@pytest.mark.slow
def test_a_run_needs_no_privilege_and_is_gone_on_with_by_the_same_words(
    network: Confined,
) -> None:
    run = network.create(rounds=3)
    network.start_link()
    network.start_clients()
    words = ("server", "run", "--resume", str(run), "--format", "json")
    network.start("run", *words)
    wait_until(lambda: len(rounds(ServerHome.read(run))) >= 1)
    network.kill("run")
    data = network.finish(network.start("run", *words))
    assert (data["state"], data["rounds"]["done"], data["server_starts"]) == ("ended", 3, 2)
    assert data["replies"] == {
        **data["replies"], "asked": 6, "valid": 6, "dropped": {}
    }  # fmt: skip
    # A service that is started once more finds that the run is over, and says so.
    assert network.finish(network.start("run", *words))["server_starts"] == 2

    well = [sys.executable, str(ROOT / "deploy" / "health.py"), str(network.federation.path)]
    assert subprocess.run(well, check=False).returncode == 0
    for name in ("link", *network.names):
        limit = read({"link": LINK}.get(name, CLIENT))["Service.MemoryMax"][0]
        most = network.memory(name, "VmHWM")
        print(f"{name}: {most:.0f} MiB at most, of {limit}")
        assert most < 0.7 * 1024 * int(limit.removesuffix("G"))
        assert network.kill(name, 15) == 0
    assert subprocess.run(well, check=False).returncode == 1
    for name in network.names:
        network.home(name).read_ledger()  # whole
    open_to_others = [
        path
        for path in network.path.rglob("*")
        if path.is_file() and path.stat().st_uid == NOBODY and "keys" in str(path.parent)
        if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert open_to_others == []
