"""The units start what they should, confine it, hand keys to nobody, and never give up."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import click
import pytest

from tests.deploy.confinement import can_filter
from tests.deploy.units import ROOT, UNITS, commands, parse, read, system_calls

SYSTEMD = ROOT / "deploy" / "systemd"
ONCE = ("privet-join@.service", "privet-renew.service")
SERVICES = [unit for unit in UNITS if unit.name not in ONCE]
HARDENED = {
    "AmbientCapabilities": "",
    "CapabilityBoundingSet": "",
    "DynamicUser": "yes",
    "LimitCORE": "0",
    "LockPersonality": "yes",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateIPC": "yes",
    "PrivateTmp": "yes",
    "PrivateUsers": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHome": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "ProtectSystem": "strict",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "StateDirectoryMode": "0700",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
    "UMask": "0077",
}
every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
every_service = pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)


def only(unit: Path, key: str) -> str:
    (value,) = read(unit)[key]
    return value


def test_there_is_a_unit_for_the_link_runs_clients_enrolment_and_renewal() -> None:
    assert [unit.name for unit in UNITS] == [
        "privet-client@.service",
        "privet-join@.service",
        "privet-link.service",
        "privet-renew.service",
        "privet-run@.service",
    ]


@every_unit
def test_the_command_line_knows_what_a_unit_starts(unit: Path) -> None:
    for words in commands(only(unit, "Service.ExecStart")):
        parse(words)
        with pytest.raises(click.UsageError):
            parse([*words, "--no-such-option"])


@every_unit
def test_a_unit_is_confined_in_every_way_that_it_can_bear(unit: Path) -> None:
    assert {key: only(unit, f"Service.{key}") for key in HARDENED} == HARDENED
    assert read(unit)["Service.SystemCallFilter"] == ["@system-service", "~@privileged @keyring"]
    # Only the one that meets strangers imports no torch, which compiles while it runs.
    alone = ["yes"] if unit.name == "privet-link.service" else None
    assert read(unit).get("Service.MemoryDenyWriteExecute") == alone
    for limit in ("MemoryMax", "TasksMax"):
        assert re.fullmatch(r"[1-9][0-9]*G?", only(unit, f"Service.{limit}"))


@every_service
def test_a_service_comes_back_for_ever_and_is_given_time_to_end(unit: Path) -> None:
    run = unit.name == "privet-run@.service"  # a run ends: nobody wants it back after that
    assert only(unit, "Service.Restart") == ("on-failure" if run else "always")
    assert only(unit, "Unit.StartLimitIntervalSec") == "0"  # or it is left alone after five
    assert only(unit, "Service.RestartSec") == "5"
    assert only(unit, "Service.KillSignal") == "SIGTERM"
    assert "Service.RestartPreventExitStatus" not in read(unit)
    assert "Service.TimeoutStopSec" in read(unit)


def test_a_run_that_somebody_stopped_is_not_begun_again() -> None:
    from server.stopping import Stopped

    assert only(SYSTEMD / "privet-run@.service", "Service.SuccessExitStatus") == str(
        Stopped.exit_code
    )


@every_unit
def test_a_unit_writes_to_its_state_alone_and_works_there(unit: Path) -> None:
    state, found = only(unit, "Service.StateDirectory"), read(unit)
    assert state == only(unit, "Service.User")
    assert only(unit, "Service.WorkingDirectory") == f"/var/lib/{state}"
    assert found.get("Service.CacheDirectory", [state]) == [state]
    assert not {"Service.ReadWritePaths", "Service.BindPaths"} & set(found)
    for words in commands(only(unit, "Service.ExecStart")):
        paths = [word for word in words if word.startswith("/")]
        assert all(path.startswith((f"/var/lib/{state}/", "/etc/privet/")) for path in paths)


def test_a_repository_is_renewed_many_times_before_devices_stop_believing_it() -> None:
    from server.release.roots import Expiry

    timer = read(SYSTEMD / "privet-renew.timer")
    assert (timer["Timer.OnCalendar"], timer["Timer.Persistent"]) == (["daily"], ["yes"])
    assert min(Expiry().timestamp, Expiry().snapshot) >= timedelta(days=3)


def test_an_enrolment_token_is_a_credential_and_never_on_a_command_line(tmp_path: Path) -> None:
    unit = SYSTEMD / "privet-join@.service"
    assert only(unit, "Service.LoadCredential") == "token:/etc/privet/%i.token"
    (tmp_path / "token").write_text("privet1-secret\n")
    stub = tmp_path / "privet"
    stub.write_text('#!/bin/sh\necho "$@"\ncat\n')
    stub.chmod(0o755)
    start = only(unit, "Service.ExecStart").replace("/opt/privet/bin/privet", str(stub))
    done = subprocess.run(
        shlex.split(start.replace("$$", "$").replace("%i", "clinic-a")),  # as systemd reads it
        env={"CREDENTIALS_DIRECTORY": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    words, token = done.stdout.splitlines()
    assert token == "privet1-secret"
    assert words == (
        "client join - --home /var/lib/privet-client/clinic-a --data /etc/privet/clinic-a.toml"
    )


@pytest.mark.skipif(not can_filter(), reason="systemd-analyze or libseccomp is not installed")
def test_the_filter_lets_through_what_a_service_needs_and_nothing_that_mends_a_kernel() -> None:
    for unit in UNITS:
        calls = system_calls(unit)
        assert {"read", "fsync", "rename", "flock", "futex", "accept4", "execve"} <= calls
        assert not {"mount", "chroot", "bpf", "init_module", "ptrace", "setuid", "add_key"} & calls


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units_and_finds_them_hardly_exposed(tmp_path: Path) -> None:
    program = tmp_path / "privet"
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    files: list[Path] = []
    for unit in UNITS:
        file = tmp_path / unit.name.replace("@.", "@clinic-a.")
        file.write_text(unit.read_text().replace("/opt/privet/bin/privet", str(program)))
        files.append(file)
    files.append(shutil.copy(SYSTEMD / "privet-renew.timer", tmp_path))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for file in files[:-1]:
        out = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (exposure,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+) ", out)
        assert float(exposure) <= 1.5, out


# -- privet-as -----------------------------------------------------------------------------------


def privet_as(folder: Path, *words: str, groups: str = "") -> tuple[int, list[str]]:
    """Run it with a systemd-run that only says what it was given."""
    stub = folder / "systemd-run"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
    stub.chmod(0o755)
    done = subprocess.run(
        [str(SYSTEMD / "privet-as"), *words],
        env={"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PRIVET_GROUPS": groups},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("side", ["server", "client"])
def test_privet_as_runs_a_command_as_the_services_user_in_their_directory(
    side: str, tmp_path: Path
) -> None:
    words = [side, "doctor", "--home", "a name with spaces; and $signs"]
    code, given = privet_as(tmp_path, *words)
    assert code == 0
    split = given.index("--")
    assert given[split + 1 :] == ["/opt/privet/bin/privet", *words]
    told = {word.removeprefix("--property=") for word in given[:split]}
    (unit,) = [one for one in UNITS if one.name in ("privet-link.service", "privet-client@.service")
               and only(one, "Service.User") == f"privet-{side}"]  # fmt: skip
    for key in ("DynamicUser", "User", "StateDirectory", "StateDirectoryMode", "WorkingDirectory",
                "UMask", "LimitCORE", "CapabilityBoundingSet", "ProtectHome"):  # fmt: skip
        assert f"{key}={only(unit, f'Service.{key}')}" in told


def test_privet_as_may_read_what_named_groups_may(tmp_path: Path) -> None:
    wanted = "--property=SupplementaryGroups=clinic data"
    assert wanted in privet_as(tmp_path, "client", "doctor", groups="clinic data")[1]
    alone = privet_as(tmp_path, "client", "doctor")[1]
    assert not any("SupplementaryGroups" in word for word in alone)
    assert "" not in alone


def test_privet_as_looks_after_releases_as_the_servers_user(tmp_path: Path) -> None:
    code, given = privet_as(tmp_path, "release", "status")
    assert (code, given[-3:]) == (0, ["/opt/privet/bin/privet", "release", "status"])
    assert "--property=User=privet-server" in given
    assert "--setenv=PRIVET_FEDERATION=/var/lib/privet-server/federation" in given


@pytest.mark.parametrize("words", [(), ("audit", "verify"), ("--help",)])
def test_privet_as_knows_two_sides(words: tuple[str, ...], tmp_path: Path) -> None:
    assert privet_as(tmp_path, *words) == (2, [])
