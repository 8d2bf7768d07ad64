"""Every row goes to exactly one client; what is prepared is whole, or was never there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import approval
from client.home import Home
from common import durable
from common.config import NAME
from common.data.binding import Binding
from common.data.records import Records
from common.errors import BudgetError, DataError, InputError, OperationError, PlanError, PrivetError
from common.keys import KeyDirectory, SigningKey
from common.ledger import Kind
from server.home import ServerHome
from simulations import population
from simulations.experiment import Experiment
from simulations.population import Run, deal, prepare, reopen, state_home
from tests.world import write_experiment


def records(count: int, classes: int = 4, groups: tuple[str, ...] | None = None) -> Records:
    labels = np.arange(count) % classes
    return Records(np.zeros((count, 1), np.float32), labels.astype(np.int64), groups)


def dealt(clients: int, partition: str = "equal", alpha: float | None = None) -> Binding:
    return Binding(source="digits", clients=clients, partition=partition, alpha=alpha)


# -- dealing out ---------------------------------------------------------------------------------


def test_a_share_names_places_in_the_source_so_no_line_left_out_shifts_it() -> None:
    everything = records(5, groups=tuple("ababa"))
    some = everything.take(np.array([0, 2, 3]))
    grouped = replace(dealt(1), clients=None, partition=None, partition_by="ward")
    assert {name: rows.tolist() for name, rows in deal(some, grouped, 1).items()} == {
        "a": [0, 2],
        "b": [3],
    }
    shares = deal(some, dealt(2, "unequal"), 1)
    assert sorted(np.concatenate(list(shares.values())).tolist()) == [0, 2, 3]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.sampled_from(["equal", "unequal", "dirichlet"]),
    st.integers(0, 2**53 - 1),
)
def test_every_row_goes_to_exactly_one_client(
    count: int, clients: int, partition: str, seed: int
) -> None:
    clients = min(clients, count)
    alpha = 0.3 if partition == "dirichlet" else None
    shares = deal(records(count), dealt(clients, partition, alpha), seed)
    assert len(shares) == clients
    assert sorted(np.concatenate(list(shares.values())).tolist()) == list(range(count))
    assert all(rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in shares.values())
    assert list(shares) == sorted(shares)
    assert all(NAME.fullmatch(name) for name in shares)
    if partition == "equal":
        sizes = [len(rows) for rows in shares.values()]
        assert max(sizes) - min(sizes) <= 1


def test_unequal_sizes_go_from_one_to_three() -> None:
    shares = deal(records(1437), dealt(10, "unequal"), 1)
    sizes = [len(rows) for rows in shares.values()]
    assert sizes == sorted(sizes)
    assert sizes[-1] / sizes[0] == pytest.approx(3, rel=0.03)


def test_a_small_alpha_is_less_even_than_a_large_one() -> None:
    def spread(alpha: float) -> float:
        shares = deal(records(4000, 10), dealt(10, "dirichlet", alpha), 3)
        counts = [np.bincount(rows % 10, minlength=10) for rows in shares.values()]
        return float(np.std(counts))

    assert spread(0.1) > 3 * spread(100.0)


@pytest.mark.parametrize("partition", ["equal", "unequal", "dirichlet"])
def test_a_seed_repeats_a_deal_and_another_does_not(partition: str) -> None:
    binding = dealt(5, partition, 0.5 if partition == "dirichlet" else None)

    def rows(seed: int | None) -> list[list[int]]:
        return [part.tolist() for part in deal(records(200), binding, seed).values()]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert rows(None) != rows(None)


def test_more_clients_than_records_is_an_error() -> None:
    with pytest.raises(DataError, match="11 clients for 10 records"):
        deal(records(10), dealt(11), 1)


def test_clients_are_named_after_their_group() -> None:
    groups = ("north", "south", "north", "east")
    binding = Binding(source="csv", path="/x.csv", partition_by="clinic")
    shares = deal(records(4, groups=groups), binding, 1)
    assert {name: rows.tolist() for name, rows in shares.items()} == {
        "east": [3],
        "north": [0, 2],
        "south": [1],
    }


ODD = (
    "../../etc",
    "a b",
    "a-b",
    "a/b",
    ".",
    "..",
    "",
    "-",
    "Ä",
    "ß",
    "北京",
    "上海",
    "x" * 200,
    "-rf",
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=70)), min_size=1, max_size=60))
def test_whatever_a_group_is_called_its_client_has_a_plain_name_of_its_own(
    groups: list[str],
) -> None:
    binding = Binding(source="csv", path="/x.csv", partition_by="clinic")
    shares = deal(records(len(groups), groups=tuple(groups)), binding, 1)
    assert len(shares) == len(set(groups))
    assert sorted(np.concatenate(list(shares.values())).tolist()) == list(range(len(groups)))
    for name in shares:
        assert NAME.fullmatch(name), name
        assert name not in (".", "..")


def test_a_hundred_groups_in_another_script_have_a_hundred_usable_names() -> None:
    groups = tuple(chr(0x4E00 + index) * 2 for index in range(100))
    binding = Binding(source="csv", path="/x.csv", partition_by="clinic")
    shares = deal(records(100, groups=groups), binding, 1)
    assert len(shares) == 100
    assert all(NAME.fullmatch(name) for name in shares)


# -- preparing -----------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.read(write_experiment(tmp_path))


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIVET_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_prepared_run_holds_a_home_for_everybody(tmp_path: Path, experiment: Experiment) -> None:
    seen: list[tuple[int, int]] = []
    run = prepare(experiment, tmp_path / "run", progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    server = ServerHome.read(run.path)
    assert server.plan == experiment.plan
    assert server.seed == 1
    homes = [Home.read(path) for path in sorted(run.clients.iterdir())]
    assert [home.client for home in homes] == sorted(server.members)
    for home in homes:
        (entry,) = home.open_ledger().chain(home.federation)
        assert entry.kind is Kind.APPROVAL
        assert entry.client == server.members[home.client].pseudonym
        assert entry.signed_by(server.members[home.client].key)
        assert home.policy.dataset == f"digits.{home.client}"
    assert len({home.policy.dataset for home in homes}) == 3
    again = reopen(run.path, experiment)
    assert again == run


def test_each_simulated_owner_signs_a_policy_of_their_own(
    tmp_path: Path, experiment: Experiment
) -> None:
    run = prepare(experiment, tmp_path / "run")
    homes = [Home.read(path) for path in sorted(run.clients.iterdir())]
    assert len({home.owner.fingerprint for home in homes}) == 3
    for home in homes:
        assert run.owner(home.client).load("owner").public == home.owner
        assert home.ledger == run.ledger(home.client)
        assert sorted(file.name for file in home.custody.path.iterdir()) == [
            "ledger.jsonl",
            "policy.dsse.json",
        ]
        assert home.policy.approved_plans == (experiment.plan.digest,)
        assert home.policy.version == 2


def test_a_long_data_set_id_leaves_each_owner_an_id_of_its_own(
    tmp_path: Path, experiment: Experiment
) -> None:
    policy = replace(experiment.policy, dataset="d" * 64)
    run = prepare(replace(experiment, policy=policy), tmp_path / "run")
    ids = {Home.read(path).policy.dataset for path in run.clients.iterdir()}
    assert len(ids) == 3
    assert all(NAME.fullmatch(name) for name in ids)


def secrets_of(keys: Path) -> list[bytes]:
    files = [file for file in keys.rglob("*") if file.is_file() and file.suffix != ".mark"]
    return [file.read_bytes() for file in files]


def test_no_private_key_is_inside_a_run(tmp_path: Path, experiment: Experiment) -> None:
    run = prepare(experiment, tmp_path / "run")
    secrets = secrets_of(run.keys)
    assert len(secrets) == 3 + 3 + 3  # coordinator, approver, recovery; clients; their owners
    assert run.path not in run.keys.parents
    for file in run.path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            for secret in secrets:
                assert secret not in data, file
                assert secret.hex().encode() not in data, file


def test_keys_can_be_read_by_their_owner_alone(tmp_path: Path, experiment: Experiment) -> None:
    run = prepare(experiment, tmp_path / "run")
    for path in [run.keys, *run.keys.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def left(tmp_path: Path) -> list[str]:
    """Everything that is there, but for the experiment file and empty folders of our state."""
    return sorted(
        path.relative_to(tmp_path).as_posix()
        for path in tmp_path.rglob("*")
        if path.name != "small.toml" and not (path.is_dir() and "state" in path.parts)
    )


def with_budget(experiment: Experiment, epsilon: float) -> Experiment:
    budget = replace(experiment.policy.budget, epsilon=epsilon)
    return replace(experiment, policy=replace(experiment.policy, budget=budget))


FAILURES: dict[str, tuple[Callable[[Experiment], Experiment], type[PrivetError]]] = {
    "budget": (lambda e: with_budget(e, 0.5), BudgetError),
    "floor": (
        lambda e: replace(e, policy=replace(e.policy, least_noise_multiplier=9.0)),
        PlanError,
    ),
    "data": (
        lambda e: replace(e, binding=Binding(source="csv", path="/nowhere.csv", clients=3)),
        DataError,
    ),
    "schema": (
        lambda e: replace(e, plan=replace(e.plan, schema=replace(e.plan.schema, shape=(1, 9, 9)))),
        DataError,
    ),
    "partition": (lambda e: replace(e, binding=replace(e.binding, clients=5000)), DataError),
    "model": (lambda e: replace(e, plan=replace(e.plan, model="theirs")), PlanError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_preparation_that_is_refused_leaves_nothing_behind(
    tmp_path: Path, experiment: Experiment, name: str
) -> None:
    change, error = FAILURES[name]
    with pytest.raises(error):
        prepare(change(experiment), tmp_path / "run")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
@pytest.mark.parametrize("client", [0, 2])
def test_a_preparation_that_breaks_off_halfway_leaves_nothing_behind(
    tmp_path: Path,
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    client: int,
) -> None:
    calls: list[Home] = []

    def breaks(home: Home, envelope: bytes, owner: SigningKey) -> object:
        calls.append(home)
        if len(calls) == client + 1:
            raise error
        return approval.approve(home, envelope, owner)

    monkeypatch.setattr(population, "approve", breaks)
    with pytest.raises((OperationError, KeyboardInterrupt)):
        prepare(experiment, tmp_path / "run")
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written_leaves_no_keys(
    tmp_path: Path, experiment: Experiment
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperationError):
        prepare(experiment, tmp_path / "file" / "run")
    assert left(tmp_path) == ["file"]


def test_a_directory_in_use_is_never_written_to(tmp_path: Path, experiment: Experiment) -> None:
    used = tmp_path / "run"
    used.mkdir()
    prepare(experiment, used)  # an empty one is fine
    with pytest.raises(InputError) as caught:
        prepare(experiment, used)
    assert caught.value.code == "directory-in-use"
    file = tmp_path / "a-file"
    file.write_text("")
    with pytest.raises(InputError):
        durable.check_free(file)


def test_a_run_is_only_reopened_by_what_it_was_made_from(
    tmp_path: Path, experiment: Experiment
) -> None:
    prepare(experiment, tmp_path / "run")
    for other in (
        replace(experiment, plan=replace(experiment.plan, rounds=3)),
        replace(experiment, settings=replace(experiment.settings, seed=2)),
    ):
        with pytest.raises(InputError) as caught:
            reopen(tmp_path / "run", other)
        assert caught.value.code == "another-plan"
    with pytest.raises(InputError) as caught:
        reopen(tmp_path / "nowhere", experiment)
    assert caught.value.code == "no-run"


def test_state_lives_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert state_home() == tmp_path / "state"
    monkeypatch.delenv("PRIVET_STATE_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_home() == tmp_path / "privet"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_home() == Path.home() / ".local" / "state" / "privet"


def test_parties_have_directories_of_their_own(tmp_path: Path) -> None:
    run = Run(tmp_path, tmp_path / "keys")
    paths = {run.party(name).path for name in ("coordinator", "approver", "recovery", "clients")}
    assert len(paths) == 4
    assert all(isinstance(run.party(name), KeyDirectory) for name in ("coordinator", "clients"))
    assert os.fspath(run.plan_envelope).endswith("plan.dsse.json")
