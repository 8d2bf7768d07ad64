"""The images run as nobody in particular, hold no secret, and start what the command line knows."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shlex
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.units import ROOT, parse, read

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
IMAGES = {"privet-server": "server", "privet-client": "client"}


def stages() -> dict[str, list[tuple[str, str]]]:
    """Each stage's instructions as (word, rest), those of the stages that it is made from first."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, [("FROM", base)]))
            continue
        found[name].append((word, rest.strip()))
    return found


def last(stage: str, word: str) -> str:
    return [rest for one, rest in stages()[stage] if one == word][-1]


def copied() -> list[str]:
    """What is taken from the repository, in any stage."""
    every = {rest for stage in stages().values() for word, rest in stage if word == "COPY"}
    return [
        source.rstrip("/")
        for rest in every
        if not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]


def services() -> dict[str, dict[str, Any]]:
    document = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    found: dict[str, dict[str, Any]] = document["services"]
    return found


# -- the images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["server", "client"])
def test_an_image_runs_as_an_account_without_rights_and_starts_what_is_known(stage: str) -> None:
    words = [word for word, _ in stages()[stage]]
    user = last(stage, "USER")
    assert re.fullmatch(r"[1-9][0-9]{4,}:[1-9][0-9]{4,}", user)  # numbers, which Kubernetes checks
    assert not {"RUN", "COPY", "ADD"} & set(words[words.index("USER") :])
    assert json.loads(last(stage, "ENTRYPOINT")) == ["privet"]
    parse(json.loads(last(stage, "CMD")))
    assert last(stage, "STOPSIGNAL") == "SIGTERM"


def test_the_servers_health_is_the_links_own_answer() -> None:
    health = last("server", "HEALTHCHECK")
    *_, program, federation = json.loads(health.partition(" CMD ")[2])
    assert program == "/opt/privet/health.py"
    assert ("COPY", f"deploy/health.py {program}") in stages()["server"]
    assert federation == json.loads(last("server", "CMD"))[-1]


def test_an_image_is_built_from_code_alone_at_versions_that_are_pinned() -> None:
    text = DOCKERFILE.read_text()
    assert "\nADD " not in text
    for word, rest in (line for stage in stages().values() for line in stage):
        if word in ("ARG", "ENV"):
            assert not re.search(r"TOKEN|SECRET|PASSWORD|_KEY", rest, re.IGNORECASE)
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11-slim-\w+", base)
    pins = (ROOT / "constraints.txt").read_text().split()
    (torch,) = re.findall(r"torch==[0-9.]+", text)
    assert torch in pins
    assert "PIP_CONSTRAINT=/src/constraints.txt" in last("build", "ENV")


def test_what_the_wheel_is_made_of_reaches_the_builder_and_nothing_else_can() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "constraints.txt"}
    needed |= {project["project"]["readme"], *project["project"]["license-files"]}
    assert set(copied()) == needed | {"deploy/health.py"}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert let_in == set(copied())
    for secret in ("runs/first", "federation.keys", "clinic.toml", ".git", "tests", ".venv"):
        assert not any(fnmatch.fnmatch(secret, rule) for rule in let_in)


# -- compose -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["link", "run", "client"])
def test_a_container_can_write_to_its_volume_alone_and_gain_nothing(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"] == {"core": 0}
    assert "cap_add" not in service
    assert "privileged" not in service
    for volume in service["volumes"]:
        source, _, rest = volume.rpartition(":") if volume.endswith(":ro") else (volume, "", "rw")
        assert rest == "ro" or re.fullmatch(r"\w+:/var/lib/privet", source)
    (tmpfs,) = service["tmpfs"]
    assert {"noexec", "nosuid", "nodev"} <= set(tmpfs.partition(":")[2].split(","))
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}


@pytest.mark.parametrize(
    ("name", "unit"),
    [("link", "privet-link"), ("run", "privet-run@"), ("client", "privet-client@")],
)
def test_a_container_starts_what_its_unit_does_within_the_same_limits(name: str, unit: str) -> None:
    service, found = services()[name], read(ROOT / "deploy" / "systemd" / f"{unit}.service")
    ours, theirs = parse(service["command"]), parse(shlex.split(found["Service.ExecStart"][0])[1:])
    assert ours.command_path == theirs.command_path
    assert ours.params.get("go_on") == theirs.params.get("go_on")
    assert service["mem_limit"] == found["Service.MemoryMax"][0].lower()
    assert str(service["pids_limit"]) == found["Service.TasksMax"][0]
    assert service["stop_grace_period"].rstrip("s") == (
        found["Service.TimeoutStopSec"][0].replace("min", "m")
    )
    ends = name == "run"
    assert service["restart"] == ("on-failure" if ends else "unless-stopped")


def test_only_the_links_port_is_open_and_a_run_reaches_its_inside() -> None:
    found = services()
    assert {name: service.get("ports") for name, service in found.items()} == {
        "link": ["8443:8443"],
        "run": None,
        "client": None,
    }
    assert found["run"]["network_mode"] == "service:link"
    assert found["run"]["volumes"] == found["link"]["volumes"]
    assert not set(found["client"]["volumes"]) & set(found["link"]["volumes"])
    for service in found.values():
        if "build" in service:
            assert service["build"]["target"] == IMAGES[service["image"]]
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT


# -- health --------------------------------------------------------------------------------------


def is_well(federation: Path) -> bool:
    spec = importlib.util.spec_from_file_location("health", ROOT / "deploy" / "health.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return bool(module.is_well(federation))


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[type[BaseHTTPRequestHandler]]:
    """Something on a loopback port that answers ``status``, noted as a link's."""

    class Answers(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        (tmp_path / "link").mkdir()
        ports = json.dumps({"inside": server.server_port})
        (tmp_path / "link" / "ports.json").write_text(ports)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Answers
        server.shutdown()
        thread.join()


def test_a_link_is_well_if_it_says_so_itself(answering: Any, tmp_path: Path) -> None:
    assert is_well(tmp_path)
    answering.status = 503
    assert not is_well(tmp_path)


@pytest.mark.parametrize("noted", [None, "", "{}", "[]", '{"inside": "x"}', '{"inside": 1}'])
def test_a_link_that_cannot_be_asked_is_not_well(noted: str | None, tmp_path: Path) -> None:
    if noted is not None:
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "ports.json").write_text(noted)
    assert not is_well(tmp_path)
