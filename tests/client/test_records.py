"""What training reads is this client's rows, and in a round no trouble with them can be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from client.home import Home
from client.records import check_records, network_of, records_for_round
from common.data.schema import Schema
from common.errors import DataError, PlanError
from common.models.model import Model
from tests.world import PLAN, ROWS, make_home, write_rows


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path)


def with_rows(home: Home, rows: object) -> Home:
    np.save(home.rows, np.array(rows, np.int64))
    return home


def test_features_are_clamped_and_scaled_by_public_bounds_alone(home: Home) -> None:
    found = records_for_round(home, PLAN)
    expected = [[float(cell) for cell in row.split(",")[:2]] for row in ROWS]
    np.testing.assert_allclose(found.features.numpy(), expected, atol=1e-6)
    assert found.labels.tolist() == [1, 0, 1, 0, 0]


def test_a_record_looks_the_same_whoever_is_beside_it(tmp_path: Path) -> None:
    alone = records_for_round(make_home(tmp_path / "a", rows=ROWS[:1]), PLAN)
    among = records_for_round(make_home(tmp_path / "b"), PLAN)
    assert np.array_equal(alone.features[0].numpy(), among.features[0].numpy())


def test_a_client_sees_its_own_rows_only(home: Home) -> None:
    found = records_for_round(with_rows(home, [0, 3]), PLAN)
    np.testing.assert_allclose(found.features.numpy(), [[0.5, -0.25], [-1, 0]], atol=1e-6)
    assert found.labels.tolist() == [1, 0]


def test_a_client_may_hold_no_rows(home: Home) -> None:
    found = records_for_round(with_rows(home, []), PLAN)
    assert found.features.shape == (0, 2)
    assert found.labels.shape == (0,)


@pytest.mark.parametrize("rows", [[5], [-1], [[0, 1]]], ids=["beyond", "negative", "two-axes"])
def test_rows_that_are_not_there_are_an_error_before_approval(home: Home, rows: object) -> None:
    with pytest.raises(DataError):
        check_records(with_rows(home, rows), PLAN)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"PK\x03\x04", b"pickle"])
def test_a_damaged_list_of_rows_is_an_error_before_approval(home: Home, data: bytes) -> None:
    home.rows.write_bytes(data)
    with pytest.raises(DataError):
        check_records(home, PLAN)
    assert len(records_for_round(home, PLAN).labels) == 0


def spoil(home: Home, how: str) -> None:
    file = Path(str(home.binding.path))
    match how:
        case "deleted":
            file.unlink()
        case "out-of-bounds":
            write_rows(file, ["7,7,yes"])
        case "not-a-number":
            write_rows(file, ["nan,inf,yes"])
        case "another-class":
            write_rows(file, ["0,0,perhaps"])
        case "another-header":
            file.write_text("a,b,c\n1,2,3\n")
        case "empty":
            file.write_bytes(b"")
        case "not-text":
            file.write_bytes(b"\xff\xfe\x00" * 50)
        case "a-directory":
            file.unlink()
            file.mkdir()
        case "fewer-rows":
            with_rows(home, range(5))
            write_rows(file, ROWS[:2])


@pytest.mark.parametrize(
    "how",
    [
        "deleted",
        "out-of-bounds",
        "not-a-number",
        "another-class",
        "another-header",
        "empty",
        "not-text",
        "a-directory",
        "fewer-rows",
    ],
)
def test_data_that_stopped_fitting_counts_as_no_records(home: Home, how: str) -> None:
    assert len(records_for_round(home, PLAN).labels) == 5
    spoil(home, how)
    with pytest.raises(DataError):
        check_records(home, PLAN)
    found = records_for_round(home, PLAN)
    assert found.features.shape == (0, 2)
    assert isinstance(network_of(home, PLAN), nn.Linear)


class _OnlySmall(nn.Module):
    """Features that fail on some records: what a careless user's model may do."""

    def forward(self, value: Tensor) -> Tensor:
        if bool((value < -0.9).any()):
            raise RuntimeError("a record below -0.9")
        return value.flatten(1)


def careless(schema: Schema) -> Model:
    return Model(_OnlySmall(), nn.Linear(2, 2))


def test_features_that_fail_on_a_record_count_as_no_records(tmp_path: Path) -> None:
    home = make_home(tmp_path, plan=None, rows=["0,0,no", "-0.95,0,yes"])
    models = {"theirs": f"{__name__}:careless"}
    home = replace(home, binding=replace(home.binding, models=models))
    found = records_for_round(home, replace(PLAN, model="theirs"))
    assert found.features.shape == (0, 2)


def test_a_model_that_is_gone_is_told_because_it_is_no_record(home: Home) -> None:
    with pytest.raises(PlanError):
        records_for_round(home, replace(PLAN, model="theirs"))
