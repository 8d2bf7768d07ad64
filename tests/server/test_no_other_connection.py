"""No process of a deployed federation connects to anything but the federation's own server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.link.place import Place
from simulations.processes import Network

HOOK = """\
import json, os, sys

def hook(event, arguments):
    if event == "socket.connect" or event == "socket.sendto":
        what = [event, *map(str, arguments[1:2])]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        what = [event, *map(str, arguments[:2])]
    elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
        what = [event, str(arguments[0])]
    else:
        return
    line = json.dumps([os.getpid(), *what]) + "\\n"
    handle = os.open(os.environ["PRIVET_TEST_HOOK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)

sys.addaudithook(hook)
"""


@pytest.mark.slow
def test_link_clients_and_coordinator_speak_with_one_another_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = tmp_path / "heard"
    monkeypatch.setenv("PRIVET_TEST_HOOK", str(heard))
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOOK)
    with Network.made(tmp_path / "network", clients=2) as network:
        network.imports.append(str(hooks))
        network.start_link()
        network.start_clients()
        run = network.create(rounds=2)
        network.finish(network.start_run(run))
        numbers = {name: process.pid for name, process in network.processes.items()}
        public, inside = network.federation.address.port, Place(network.federation).inside()
        lines = [json.loads(line) for line in heard.read_text().splitlines()]
    outside, within = f"('127.0.0.1', {public})", str(tuple_of(inside))
    connected = [(pid, what[0]) for pid, event, *what in lines if event == "socket.connect"]
    for name in network.names:
        assert {where for pid, where in connected if pid == numbers[name]} == {outside}
    assert {where for pid, where in connected if pid == numbers["run"]} == {within}
    assert {pid for pid, _ in connected} == set(numbers.values()) - {numbers["link"]}
    # Names are looked up for those two alone, nothing is sent without a connection.
    looked = {what[0] for _, event, *what in lines if event == "socket.getaddrinfo"}
    assert looked <= {"127.0.0.1", "b'127.0.0.1'"}
    other = [line for line in lines if line[1] not in ("socket.connect", "socket.getaddrinfo")]
    assert other == []  # and no process starts another


def tuple_of(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
