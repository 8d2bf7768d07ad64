"""What a model costs here: counted where there is a counter, else an estimate that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client.device import measure as module
from client.device.cold import peak_bytes
from client.device.energy import Energy, Rapl
from client.device.measure import Calls, measure, start
from client.device.updater import update
from common.errors import OperationError, TrustError
from common.release import MODEL
from privet.cli import run
from tests.client.device_fixtures import NOW, Recipe, World

RECIPE = Recipe(version=3)

Out = pytest.CaptureFixture[str]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World.make(tmp_path)
    made.publish(RECIPE)
    update(made.home, NOW)
    return made


RANGE = 262_143_328_850


def powercap(root: Path, **zones: tuple[str, int, int]) -> Path:
    """A tree as the kernel's: zone to name, microjoules, and where the counter begins again."""
    for zone, (name, energy, greatest) in zones.items():
        place = root / f"intel-rapl{zone.removeprefix('zone').replace('_', ':')}"
        place.mkdir(parents=True)
        (place / "name").write_text(f"{name}\n")
        (place / "energy_uj").write_text(f"{energy}\n")
        (place / "max_energy_range_uj").write_text(f"{greatest}\n")
    return root


def machine(root: Path) -> Path:
    """Two packages, a part and the memory of one, and a package once more by another way."""
    powercap(
        root,
        zone_0=("package-0", 1_000_000, RANGE),
        zone_1=("package-1", 5_000_000, RANGE),
        zone_0_0=("core", 400_000, RANGE),
        zone_0_1=("dram", 65_000_000, 65_712_999_613),
        zone_2=("psys", 9_000_000, RANGE),
    )
    (root / "intel-rapl-mmio:0").symlink_to(root / "intel-rapl:0")
    return root


# -- energy ----------------------------------------------------------------------------------------


def test_packages_and_memory_are_counted_once_each(tmp_path: Path) -> None:
    root = machine(tmp_path)
    rapl = Rapl.find(root)
    before = rapl.read()
    for folder, energy in (("0", 3_500_000), ("1", 5_250_000), ("0:0", 10**9), ("0:1", 65_250_000)):
        (root / f"intel-rapl:{folder}" / "energy_uj").write_text(str(energy))
    after = rapl.read()
    assert before is not None
    assert after is not None
    energy = Energy.measured(before, after)
    assert energy.joules == energy.low == energy.high == pytest.approx(2.5 + 0.25 + 0.25)
    assert (energy.source, energy.watts_per_core, energy.why) == ("rapl", None, "")


def test_a_counter_that_began_again_is_no_negative_energy(tmp_path: Path) -> None:
    root = powercap(tmp_path, zone_0=("package-0", 9_800_000, 10_000_000))
    rapl = Rapl.find(root)
    before = rapl.read()
    (root / "intel-rapl:0" / "energy_uj").write_text("300000")
    assert Energy.measured(before or {}, rapl.read() or {}).joules == pytest.approx(0.5)


def test_why_a_counter_was_not_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Rapl.find(tmp_path / "none")
    assert absent.zones == ()
    assert "no RAPL counter" in absent.why_not
    root = machine(tmp_path / "powercap")
    (root / "intel-rapl:1" / "energy_uj").write_text("not a number")
    assert "cannot be read" in Rapl.find(root).why_not
    denied = PermissionError(13, "Permission denied", str(root / "intel-rapl:0" / "energy_uj"))
    monkeypatch.setattr("client.device.energy.Zone.read", lambda _: (_ for _ in ()).throw(denied))
    assert "read by root alone" in Rapl.find(root).why_not


def test_an_estimate_is_cpu_time_by_an_assumption_with_a_range() -> None:
    energy = Energy.estimated(2.0, 5.0, "why")
    assert (energy.source, energy.why, energy.watts_per_core) == ("estimate", "why", 5.0)
    assert (energy.joules, energy.low, energy.high) == (10.0, 2.0, 30.0)
    assert Energy.estimated(2.0, 40.0, "").high == 80.0
    assert Energy.estimated(2.0, 0.5, "").low == 1.0


# -- time ------------------------------------------------------------------------------------------


def test_figures_of_calls_are_those_of_the_arithmetic() -> None:
    found = Calls.of(4, api=[30_000, 50_000, 40_000], bare=[20_000, 25_000, 15_000])
    assert (found.api_p50_us, found.bare_p50_us) == (40.0, 20.0)
    assert found.overhead_us == 20.0
    assert found.api_per_second == pytest.approx(12 / 120e-6)
    assert found.bare_per_second == pytest.approx(12 / 60e-6)
    assert found.api_p99_us == pytest.approx(np.percentile([30, 50, 40], 99))


def test_what_we_add_is_told_from_a_machine_that_drifts() -> None:
    """Blocks of 20 calls: we take 5 longer than the other, and everything slows threefold."""
    api = [15_000] * 19 + [900_000] + [45_000] * 20 + [45_000] * 20
    bare = [10_000] * 20 + [40_000] * 20 + [40_000] * 19 + [900_000]
    assert Calls.of(1, api, bare).overhead_us == 5.0


def test_a_slow_model_is_called_fewer_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    assert len(list(module._while_time(2000))) == 1
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    assert len(list(module._while_time(2000))) == 2000


def test_the_most_memory_is_this_programs_own(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  9 kB\nVmHWM:\t   1234 kB\n")
    assert peak_bytes(status) == 1234 * 1024
    status.write_text("Name:\tpython\n")
    assert peak_bytes(status) is None
    assert peak_bytes(tmp_path / "none") is None


def test_a_start_is_a_process_that_has_neither_torch_nor_flower(world: World) -> None:
    found = start(world.home.path, 64)
    parts = found["imports_seconds"] + found["load_seconds"] + found["answer_seconds"]
    assert found["seconds"] == pytest.approx(parts)
    assert min(parts, found["load_seconds"]) > 0
    assert 2**20 < found["peak_bytes"] < 2**30


def test_a_start_that_fails_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="could not be measured"):
        start(tmp_path / "no-device", 1)


# -- all of it -------------------------------------------------------------------------------------


def test_a_cost_holds_what_the_files_and_the_counters_say(world: World, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    rapl = Rapl.find(machine(tmp_path / "powercap"))
    cost = measure(
        world.home, batch=8, calls=30, starts=1, rapl=rapl, progress=lambda *one: told.append(one)
    )
    files = RECIPE.files()
    assert (cost.model, cost.version) == ("clinic-linear", 3)
    assert cost.model_bytes == len(files[MODEL])
    sealed = 48  # bytes that sealing adds, a salt and an AES-GCM tag, to each of two files
    prepared = (world.home.slots / "a" / "prepared.sealed").stat().st_size
    assert cost.release_bytes == sum(map(len, files.values())) + 2 * sealed + prepared
    assert (cost.single.records, cost.batched.records, cost.single.calls) == (1, 8, 40)
    assert cost.energy_per_1000.source == "rapl"
    assert cost.energy_per_1000.joules == 0  # nobody moved the counter
    assert cost.cpu_seconds_per_1000 > cost.batched_cpu_seconds_per_1000 > 0
    assert told[-1] == ("starts", 1, 1)


def test_the_command_prints_a_table_or_one_object(world: World, capsys: Out) -> None:
    arguments = ["device", "bench", str(world.home.path), "--calls", "30", "--starts", "1"]
    assert run([*arguments, "--watts-per-core", "2"]) == 0
    page = capsys.readouterr().out
    for word in ("cold start", "peak memory", "on disk", "CPU time", "energy"):
        assert word in page
    assert run([*arguments, "--watts-per-core", "2", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    if data["energy_source"] == "estimate":
        assert data["energy_why"]
        assert data["joules_per_1000"] == pytest.approx(2 * data["cpu_seconds_per_1000"])
        low, high = data["joules_per_1000_range"]
        assert low < data["joules_per_1000"] < high
    assert "torch" in data["start"]["without"]


def test_what_does_not_verify_is_not_measured(world: World) -> None:
    (file,) = (world.home.slots / "a").glob(f"{MODEL}*")
    file.write_bytes(b"")
    with pytest.raises(TrustError):
        measure(world.home, calls=1, starts=1)
