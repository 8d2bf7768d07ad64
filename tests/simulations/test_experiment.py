"""An experiment file is read and checked before anything is made, and mistakes have a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.errors import InputError, PlanError
from simulations.experiment import Experiment
from tests.world import EXPERIMENT, write_experiment


def read(tmp_path: Path, text: str = EXPERIMENT, **options: object) -> Experiment:
    return Experiment.read(write_experiment(tmp_path, text), **options)  # type: ignore[arg-type]


def test_four_tables_become_four_values(tmp_path: Path) -> None:
    experiment = read(tmp_path)
    assert (experiment.plan.name, experiment.plan.rounds) == ("small", 2)
    assert experiment.policy.budget.epsilon == 8.0
    assert experiment.binding.clients == 3
    assert (experiment.settings.seed, experiment.settings.workers) == (1, 1)
    assert experiment.settings.backend == "in-process"


def test_nothing_local_is_part_of_what_is_signed(tmp_path: Path) -> None:
    plan = read(tmp_path).plan
    for change in (
        "simulation.seed=2",
        "simulation.workers=2",
        "policy.budget=9.5",
        "policy.dataset=other",
        "data.clients=4",
    ):
        assert read(tmp_path, overrides=[change]).plan.digest == plan.digest
    for change in ("plan.rounds=3", "plan.privacy.noise_multiplier=4.1", "plan.name=other"):
        assert read(tmp_path, overrides=[change]).plan.digest != plan.digest


def test_the_command_lines_values_go_before_the_files(tmp_path: Path) -> None:
    experiment = read(tmp_path, seed=9, rounds=4, workers=2, overrides=["plan.rounds=3"])
    assert experiment.settings.seed == 9
    assert experiment.settings.workers == 2
    assert experiment.plan.rounds == 4


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rounds = 2", "rounds = 0", 4),
        ("learning_rate = 2.0", "learning_rate = 2.0\nmomentun = 0.1", 19),
        ("quorum = 2", "quorum = 4", 14),
        ('trust = "local"', 'trust = "distributed"', 21),
        ("sampling_rate = 0.5", "sampling_rate = 1.5", 25),
        ("budget = 8.0", 'budget = "8"', 34),
        ("clients = 3\npartition", "clients = 0\npartition", 42),
        ("seed = 1", "seed = -1", 46),
        ("seed = 1", 'backend = "cloud"', 46),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    assert EXPERIMENT.count(old) == 1
    with pytest.raises(PlanError) as caught:
        read(tmp_path, EXPERIMENT.replace(old, new))
    assert re.search(rf"small\.toml, line {line}\b", caught.value.message), caught.value.message


def test_a_table_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="unknown key 'secrets'"):
        read(tmp_path, EXPERIMENT + "\n[secrets]\na = 1\n")


def test_a_seed_needs_data_that_is_simulated(tmp_path: Path) -> None:
    honest = EXPERIMENT.replace("simulated = true", "simulated = false")
    for text, options in ((honest, {}), (honest.replace("seed = 1", ""), {"seed": 3})):
        with pytest.raises(PlanError) as caught:
            read(tmp_path, text, **options)
        assert caught.value.code == "seed-without-simulation"
    assert read(tmp_path, honest.replace("seed = 1", "")).settings.seed is None


def test_somebody_must_hold_the_records(tmp_path: Path) -> None:
    text = EXPERIMENT.replace('clients = 3\npartition = "unequal"\n', "")
    with pytest.raises(PlanError, match="nothing says who holds which record"):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Experiment.read(tmp_path / "nothing.toml")
    assert caught.value.code == "no-such-file"
