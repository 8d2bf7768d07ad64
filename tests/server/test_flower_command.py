"""Flower's command `flwr` against a link: what it can do, and what its token does not open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    ListRunsResponse,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.federation_config_pb2 import SimulationConfig as Simulation
from flwr.superlink.routers.control.router import router

from common import durable
from common.canonical import encode
from common.invitation import Address
from common.keys import KeyDirectory
from server import thin_app
from server.federation.directory import Federation
from server.home import ServerHome
from server.link.desk import MOST_BODY, Desk
from server.link.place import Place
from server.link.superlink.app import superlink_app
from server.link.superlink.control import Control
from server.link.waking import COLLECT, SEND
from server.status import rounds, status
from simulations.processes import ROOT, Network, free_port, wait_until
from tests.privet.test_cli import call
from tests.server.test_link_attacks import ask

pytestmark = [
    pytest.mark.slow,
    # Flower's own, where a test has its state, or a bundle of it, in this process.
    pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
FLWR = Path(sys.executable).parent / "flwr"
MARKER = "PRIVET_TEST_MARKER"
EVIL = f"""\
import os
open(os.environ["{MARKER}"], "w").write("code of a bundle ran")
from flwr.serverapp import ServerApp
app = ServerApp()
"""


@dataclass(frozen=True)
class Operator:
    """Somebody with Flower's habits, beside a federation at work."""

    network: Network
    path: Path

    @property
    def app(self) -> Path:
        return self.path / "app"

    @property
    def place(self) -> Place:
        return Place(self.network.federation)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != MARKER}
        return {
            **kept,
            "FLWR_HOME": str(self.path / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1",
            "COLUMNS": "400",
        }

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """What these words do, typed by the operator."""
        return subprocess.run(
            list(map(str, words)),
            env=self.environment(),
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def flwr(self, *words: object) -> str:
        """One command of Flower's that has to succeed; what it says."""
        done = self.run(FLWR, *words)
        assert done.returncode == 0, done.stdout + done.stderr + self.network.log("link")
        return done.stdout + done.stderr

    def listed(self) -> list[dict[str, Any]]:
        """Flower's runs, the newest first."""
        answer = self.post("list-runs", ListRunsRequest())
        runs = ListRunsResponse.FromString(answer.content).run_dict.values()
        found = [
            {
                "id": run.run_id,
                "status": f"{run.status.status}:{run.status.sub_status}",
                "details": run.status.details,
                "at": run.pending_at,
            }
            for run in runs
        ]
        return sorted(found, key=lambda one: str(one["at"]), reverse=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Clients stand still."""
        clients = [self.network.processes[name] for name in self.network.names]
        for client in clients:
            client.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for client in clients:
                client.send_signal(signal.SIGCONT)

    def post(self, route: str, message: Any, token: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {token or self.place.flower_token()}"}
        return self.knock(f"/v1/control/{route}", message.SerializeToString(), headers)

    def knock(self, path: str, body: bytes, headers: Any) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=120) as client:
            return client.post(f"http://{self.place.inside()}{path}", content=body, headers=headers)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    path = tmp_path_factory.mktemp("operator")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARKER, str(path / "marker"))  # to link, run and clients
        with Network.made(path / "network", clients=1) as network:
            network.start_link()
            network.start_clients()
            operator = Operator(network, path)
            words = ("server", "flower", operator.app, "--federation", network.federation.path)
            made = operator.run(sys.executable, "-m", "privet", *words)
            assert made.returncode == 0, made.stderr
            yield operator


def start_request(path: object, **config: Any) -> StartRunRequest:
    run = {} if path is None else {thin_app.RUN: str(path)}
    return StartRunRequest(override_config=user_config_to_proto({**run, **config}))


# -- what it is for ------------------------------------------------------------------------------


def test_flwr_runs_lists_stops_and_follows_a_run_and_no_code_of_its_app_is_run(
    operator: Operator,
) -> None:
    evil = operator.path / "evil"
    evil.mkdir()
    (evil / "evil.py").write_text(EVIL)
    project = thin_app.THIN_APP.replace("server.app:app", "evil:app")
    (evil / "pyproject.toml").write_text(project.replace("client.app:app", "evil:app"))
    run, other = (operator.network.create(name, rounds=3) for name in ("habits", "waiting"))
    home = ServerHome.read(run)

    with operator.held():  # no round ends meanwhile
        said = operator.flwr("run", evil, "privet", "--run-config", f'run="{run}"')
        assert "no code of the app is used" in said
        first = operator.listed()[0]
        assert f"Successfully started run {first['id']}" in said
        wait_until(lambda: operator.listed()[0] == {**first, "status": "running:"})
        operator.network.kill("link", signal.SIGTERM)
        operator.network.start_link()  # what it began goes on, and it knows that
        refused = operator.post("start-run", start_request(other))
        assert (refused.status_code, code(refused)) == (412, "link-in-use")
        assert "successfully stopped" in operator.flwr("stop", first["id"], "privet")
    followed = operator.flwr("log", first["id"], "privet").splitlines()
    done = len(rounds(home))
    assert done <= 1
    assert f"ended: stopped after round {done} of 3, as asked" in followed
    assert operator.listed()[0]["status"] == "finished:stopped"

    assert operator.post("start-run", start_request(run)).status_code == 200
    second = operator.listed()[0]
    assert second["id"] != first["id"]
    log = operator.post("stream-logs", StreamLogsRequest(run_id=second["id"])).content
    assert b"round 3 of 3: 1 of 1 valid, changed the model" in log  # it lasts to the end
    assert b"ended: all-rounds\n" in log
    assert str(second["id"]) in operator.flwr("list", "privet")
    assert operator.listed()[0] == {**second, "status": "finished:completed"}
    counted = {"asked": 3, "valid": 3, "dropped": {}, "late": 0, "duplicates": 0}
    assert status(home)["replies"] == counted
    assert code(operator.post("start-run", start_request(run))) == "run-finished"
    assert code(operator.post("stop-run", StopRunRequest(run_id=second["id"]))) == "no-such-run"
    # What was refused was not begun, and no bundle was unpacked.
    assert not list((other / "checkpoints").iterdir())
    assert not (operator.path / "marker").exists()
    for folder in ("flwr", "network"):
        assert not list((operator.path / folder).rglob("*evil*"))


# -- what is refused, in words -------------------------------------------------------------------


def code(answer: httpx.Response) -> str:
    """The code in a refusal's words."""
    detail = str(answer.json().get("detail", "")) if answer.status_code >= 400 else ""
    return detail.partition(" (")[2].partition(")")[0]


def test_flwr_shows_in_words_what_was_refused(operator: Operator) -> None:
    refused = operator.run(FLWR, "run", operator.app, "privet")
    assert refused.returncode == 1
    assert "no run is named" in refused.stdout + refused.stderr


def test_nothing_but_a_run_of_this_federation_is_begun(operator: Operator, tmp_path: Path) -> None:
    network = operator.network
    run = network.create("refused", rounds=1)
    before = operator.listed()
    other = Federation.create(tmp_path / "fed", tmp_path / "k", Address("127.0.0.1", free_port()))
    foreign, simulated, exposed = (network.create(f"refused-{n}", rounds=1) for n in range(3))
    document = json.loads((foreign / "server.json").read_text())
    for path, federation in ((foreign, str(other.path)), (simulated, None)):
        edited = {**document, "federation": federation}
        if federation is None:
            del edited["federation"]
        durable.replace(path / "server.json", encode(edited))
    exposed.chmod(0o777)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("server.json", "plan.json"):
        (linked / name).symlink_to(run / name)

    refusals = [
        (start_request(None), "no-run-named"),
        (start_request(""), "no-run-named"),
        (start_request("refused"), "no-run-named"),
        (start_request(run, rounds=5), "not-here"),
        (StartRunRequest(app_spec="@flwrlabs/evil", fab=Fab()), "not-here"),
        (
            StartRunRequest(override_federation_config=Simulation(num_supernodes=3)),
            "not-here",
        ),
        (StartRunRequest(federation="@a/b"), "not-here"),
        (start_request(tmp_path / "nothing"), "no-run"),
        (start_request(network.path), "no-run"),
        (start_request(foreign), "another-federation"),
        (start_request(simulated), "not-in-a-federation"),
        (start_request(exposed), "run-exposed"),
        (start_request(linked), "run-exposed"),
    ]
    for request, wanted in refusals:
        answer = operator.post("start-run", request)
        assert (code(answer), answer.status_code >= 400) == (wanted, True), request
    headers = {"authorization": f"Bearer {operator.place.flower_token()}"}
    rubbish = operator.knock("/v1/control/start-run", b"\xff\xff\xff", headers)
    assert code(rubbish) == "malformed"
    large = operator.knock("/v1/control/start-run", b"x" * (MOST_BODY + 1), headers)
    assert code(large) == "too-large"
    for route in ("stop-run", "stream-logs", "list-runs"):
        request = {
            "stop-run": StopRunRequest(run_id=7),
            "stream-logs": StreamLogsRequest(run_id=7),
            "list-runs": ListRunsRequest(run_id=7),
        }[route]
        assert code(operator.post(route, request)) == "no-such-run"
    assert operator.listed() == before
    assert not any((path / "server.log").exists() for path in (run, foreign, simulated, exposed))


# -- processes that go wrong ---------------------------------------------------------------------


@dataclass
class Fake:
    """A run's process, as far as a desk can tell."""

    reason: str

    def ended(self) -> bool:
        return True

    def why(self) -> str:
        return self.reason


def answered(desk: Desk, route: str, message: Any) -> tuple[int, bytes]:
    """What a desk answers, once it has minded whatever it began."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": message.SerializeToString()}

    async def send(part: Any) -> None:
        sent.append(part)

    async def talk() -> None:
        await desk({"path": f"/v1/control/{route}", "method": "POST"}, receive, send)
        await asyncio.gather(*desk._begun)

    asyncio.run(talk())
    return sent[0]["status"], sent[1]["body"]


def desk_that(operator: Operator, tmp_path: Path, begin: Any) -> Desk:
    control = Control(superlink_app(tmp_path / "state.db", b"s" * 32))
    return Desk(operator.place, control, asyncio.to_thread, begin)


def only_run(desk: Desk) -> tuple[str, str]:
    _, body = answered(desk, "list-runs", ListRunsRequest())
    (run,) = ListRunsResponse.FromString(body).run_dict.values()
    return f"{run.status.status}:{run.status.sub_status}", run.status.details


@pytest.mark.parametrize(("why", "shown"), [("no quorum", "failed"), ("", "stopped")])
def test_a_flower_run_ends_with_its_process_and_says_why(
    operator: Operator, tmp_path: Path, why: str, shown: str
) -> None:
    run = operator.network.create(f"ended-{shown}", rounds=1)
    desk = desk_that(operator, tmp_path, lambda home: Fake(why))
    assert answered(desk, "start-run", start_request(run))[0] == 200
    assert only_run(desk) == (f"finished:{shown}", why)


def test_a_process_that_does_not_start_leaves_a_run_that_failed(
    operator: Operator, tmp_path: Path
) -> None:
    def begin(home: ServerHome) -> Any:
        raise OSError("no more processes")

    run = operator.network.create("not-started", rounds=1)
    desk = desk_that(operator, tmp_path, begin)
    status, body = answered(desk, "start-run", start_request(run))
    assert (status, b"failed" in body, b"no more processes" in body) == (412, True, False)
    assert only_run(desk) == ("finished:failed", "its process could not be started")


def test_a_link_that_begins_nothing_says_so_and_shows_what_there_is(
    operator: Operator, tmp_path: Path
) -> None:
    desk = desk_that(operator, tmp_path, None)
    status, body = answered(desk, "start-run", start_request(operator.path))
    assert (status, b"(not-here)" in body) == (412, True)
    status, body = answered(desk, "list-runs", ListRunsRequest())
    assert (status, len(ListRunsResponse.FromString(body).run_dict)) == (200, 0)


# -- what the token does not open ----------------------------------------------------------------


def test_without_the_token_nothing_is_begun_listed_or_stopped(operator: Operator) -> None:
    token, secret = operator.place.flower_token(), operator.place.secret().hex()
    assert token != secret
    bearer = f"Bearer {token}"
    wrong = [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {'0' * 64}"},
        {"authorization": f"Bearer {token[:-1]}"},
        {"authorization": f"Bearer {token}0"},
        {"authorization": f"Bearer {secret}"},
        {"authorization": f"Basic {token}"},
        {"authorization": token},
        {"privet-executor": token},
        [("authorization", bearer), ("authorization", bearer)],
    ]
    for headers in wrong:
        for path in sorted(Desk.ROUTES):
            answer = operator.knock(path, b"", headers)
            assert answer.status_code == 401, (headers, path)
    said = operator.knock("/v1/control/list-runs", b"", {"authorization": "Bearer wrong"})
    assert code(said) == "wrong-token"
    assert token not in said.text


def test_the_token_opens_four_routes_and_no_task_no_node_and_no_federation(
    operator: Operator,
) -> None:
    headers = {"authorization": f"Bearer {operator.place.flower_token()}"}
    control = {f"/v1/control{route.path.removeprefix('/v1/control')}" for route in router.routes}  # type: ignore[attr-defined]
    assert control > Desk.ROUTES
    assert {f"/v1/control/{name}" for name in ("register-node", "create-federation")} < control
    for path in sorted(control - Desk.ROUTES | {"/v1/control/", "/v1/control/no-such"}):
        answer = operator.knock(path, b"", headers)
        assert (answer.status_code, code(answer)) == (403, "not-here"), path
    for path in ("/v1/runtime/acquire-task", "/v1/runtime/push-task-output", SEND, COLLECT):
        answer = operator.knock(path, b"", headers)
        assert (answer.status_code, answer.content) == (401, b""), path
    with httpx.Client(trust_env=False) as client:
        for path in sorted(Desk.ROUTES):
            url = f"http://{operator.place.inside()}{path}"
            assert client.get(url, headers=headers).status_code == 403
            assert client.options(url).status_code == 401  # what a browser asks first


def test_the_token_is_good_for_nothing_at_the_public_door(operator: Operator) -> None:
    headers = {"authorization": f"Bearer {operator.place.flower_token()}"}
    for path in sorted(Desk.ROUTES):
        answer = ask(operator.network, path, headers=headers)
        assert (answer.status_code, answer.content) == (404, b"")


# -- how Flower's command learns of a link -------------------------------------------------------


def test_the_token_stands_in_a_private_file_and_is_never_printed(operator: Operator) -> None:
    flower, token = operator.path / "flwr", operator.place.flower_token()
    for name in ("config.toml", "credentials.yaml"):
        assert (flower / name).stat().st_mode & 0o077 == 0
    assert token not in (flower / "config.toml").read_text()
    said = operator.flwr("list", "privet")
    assert "privet (127.0.0.1:" in said
    assert token not in said


def test_what_else_flower_was_told_stays_and_an_unusable_file_is_not_touched(
    operator: Operator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    federation, home = operator.network.federation.path, tmp_path / "flwr"
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.org:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org")
    home.mkdir()
    config = home / "config.toml"
    mine = '# mine\n[superlink]\ndefault = "grid"\n\n[superlink.grid]\naddress = "grid:1"\n'
    config.write_text(mine)
    words = ("server", "flower", tmp_path / "app", "--federation", federation)
    done, data = call(capsys, *words)
    assert (done, data["connection"], data["proxied"]) == (0, "privet", True)
    assert config.read_text().startswith(mine)
    again = config.read_text()
    assert call(capsys, *words)[0] == 0  # once more changes nothing
    assert config.read_text() == again
    moved = again.replace(operator.place.inside(), "127.0.0.1:9")
    config.write_text(moved)
    assert call(capsys, *words)[0] == 0  # the link listens elsewhere by now
    assert operator.place.inside() in config.read_text()
    assert 'address = "grid:1"' in config.read_text()
    for name, wanted in (("grid", "name-taken"), ("default", "bad-name"), ("a.b", "bad-name")):
        before = config.read_bytes()
        code, error = call(capsys, *words, "--name", name)
        assert (code, error["code"], config.read_bytes()) == (4, wanted, before)
    config.write_text("[superlink")
    code, error = call(capsys, *words)
    assert (code, error["code"], config.read_text()) == (4, "bad-flower-config", "[superlink")


def test_a_directory_in_use_and_a_federation_without_a_link_are_refused(
    operator: Operator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.py").write_text("")
    words = ("server", "flower", tmp_path / "app", "--federation")
    code, error = call(capsys, *words, operator.network.federation.path)
    assert (code, error["code"]) == (4, "directory-in-use")
    address = Address("127.0.0.1", free_port())
    other = Federation.create(tmp_path / "fed", tmp_path / "keys", address)
    code, error = call(capsys, "server", "flower", tmp_path / "new", "--federation", other.path)
    assert (code, error["code"]) == (4, "no-link")
    assert not KeyDirectory(other.keys).has("executor")
    assert not (tmp_path / "flwr").exists()
    assert not (tmp_path / "new").exists()
