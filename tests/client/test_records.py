"""What training reads is this client's rows, and in a round no trouble with them can be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from client.home import Home
from client.records import TrainingSet, check_records, network_of, records_for_round
from client.rounds import Client
from common.data.schema import Schema
from common.errors import DataError, PlanError
from common.models.model import Model
from common.wire import Arrays
from tests.world import COORDINATOR, HEADER, PLAN, ROWS, ask, make_home, model, write_rows


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
        case "all-out-of-bounds":
            write_rows(file, ["7,7,yes"])
        case "another-header":
            file.write_text("a,b,c\n1,2,3\n")
        case "empty":
            file.write_bytes(b"")
        case "not-text":
            file.write_bytes(b"\xff\xfe\x00" * 50)
        case "a-directory":
            file.unlink()
            file.mkdir()


@pytest.mark.parametrize(
    "how",
    [
        "deleted",
        "all-out-of-bounds",
        "another-header",
        "empty",
        "not-text",
        "a-directory",
    ],
)
def test_data_that_stopped_fitting_as_a_whole_counts_as_no_records(home: Home, how: str) -> None:
    assert len(records_for_round(home, PLAN).labels) == 5
    spoil(home, how)
    with pytest.raises(DataError):
        check_records(home, PLAN)
    found = records_for_round(home, PLAN)
    assert found.features.shape == (0, 2)
    assert isinstance(network_of(home, PLAN), nn.Linear)


# -- one bad row ---------------------------------------------------------------------------------

BAD_ROWS = {
    "above-its-bound": b"5,1,yes",
    "below-its-bound": b"1,-1.01,yes",
    "nan": b"nan,1,yes",
    "inf": b"1,inf,yes",
    "-inf": b"-inf,1,yes",
    "beyond-float32": b"1e39,1,yes",
    "empty-cell": b",1,yes",
    "empty-label": b"1,1,",
    "unknown-label": b"1,1,maybe",
    "another-case": b"1,1,YES",
    "not-a-number": b"1,not-a-number,yes",
    "a-cell-less": b"1,1",
    "a-cell-more": b"1,1,yes,extra",
    "stray-quote": b'"',
    "opening-quote": b'1,1,"yes',
    "quote-within": b'1,"1"1,yes',
    "not-utf-8": b"1,1,yes\xff",
    "nul": b"1,1,yes\0",
    "carriage-return": b"1,1\r,yes",
    "byte-order-mark": b"\xef\xbb\xbf1,1,yes",
    "long-cell": b"1,1," + b"y" * 200_000,
    "header-again": HEADER.strip().encode(),
}
bad_row = pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)


def write_lines(home: Home, lines: list[bytes]) -> Home:
    text = HEADER.encode() + b"".join(line + b"\n" for line in lines)
    Path(str(home.binding.path)).write_bytes(text)
    return home


def lines_with(row: bytes, at: int) -> list[bytes]:
    lines = [line.encode() for line in ROWS]
    return [*lines[:at], row, *lines[at:]]


def same(one: TrainingSet, other: TrainingSet) -> bool:
    features = np.array_equal(one.features.numpy(), other.features.numpy())
    return features and one.labels.tolist() == other.labels.tolist()


@bad_row
def test_one_bad_row_more_changes_nothing_that_is_trained_on(home: Home, row: bytes) -> None:
    before = records_for_round(home, PLAN)
    for at in range(len(ROWS) + 1):
        after = records_for_round(write_lines(home, lines_with(row, at)), PLAN)
        assert same(before, after)


@bad_row
def test_before_an_approval_a_bad_row_is_named_by_its_line(home: Home, row: bytes) -> None:
    for at in range(len(ROWS) + 1):
        with pytest.raises(DataError, match=rf"clinic-a\.csv, line {at + 2}: "):
            check_records(write_lines(home, lines_with(row, at)), PLAN)


@bad_row
def test_one_bad_row_more_leaves_the_update_as_it_was(tmp_path: Path, row: bytes) -> None:
    """Formerly it moved by the bound of all the records that it switched off."""

    def update(name: str, extra: list[bytes]) -> Arrays:
        home = make_home(tmp_path / name, rows=["1,1,yes"] * 400)
        write_lines(home, [b"1,1,yes"] * 400 + extra)
        return Client(home).answer(ask().sign(COORDINATOR), model()).update

    before, after = update("before", []), update("after", [row])
    assert all(np.array_equal(before[name], after[name]) for name in before)


@bad_row
def test_a_row_that_turns_bad_costs_no_client_of_a_shared_source_another_row(
    home: Home, row: bytes
) -> None:
    everything = records_for_round(home, PLAN)
    lines = [line.encode() for line in ROWS]
    write_lines(home, [lines[0], row, *lines[2:]])
    for share in ([0, 3], [1, 4], [1], [2]):
        found = records_for_round(with_rows(home, share), PLAN)
        left = [place for place in share if place != 1]
        assert same(found, TrainingSet(everything.features[left], everything.labels[left]))


def test_lines_that_are_cut_off_or_emptied_are_no_records(home: Home) -> None:
    everything = records_for_round(home, PLAN)
    with_rows(home, range(5))
    for lines, left in (
        (ROWS[:4], [0, 1, 2, 3]),
        ([*ROWS[:2], "", *ROWS[3:]], [0, 1, 3, 4]),
        ([], []),
    ):
        found = records_for_round(write_lines(home, [line.encode() for line in lines]), PLAN)
        assert same(found, TrainingSet(everything.features[left], everything.labels[left]))


# -- features ------------------------------------------------------------------------------------


class _OnlySmall(nn.Module):
    """Features that fail on some records: what a careless user's model may do."""

    def forward(self, value: Tensor) -> Tensor:
        if bool((value < -0.9).any()):
            raise RuntimeError("a record below -0.9")
        return value.flatten(1)


def careless(schema: Schema) -> Model:
    return Model(_OnlySmall(), nn.Linear(2, 2))


def test_a_record_that_the_features_fail_on_costs_no_other(tmp_path: Path) -> None:
    good, bad = [f"{i / 400},0,{'yes' if i % 3 else 'no'}" for i in range(300)], "-0.95,0,yes"
    plan, models = replace(PLAN, model="theirs"), {"theirs": f"{__name__}:careless"}
    for at in (0, 128, 200, 300):
        home = make_home(tmp_path / str(at), plan=None, rows=[*good[:at], bad, *good[at:]])
        home = replace(home, binding=replace(home.binding, models=models))
        found = records_for_round(home, plan)
        write_rows(Path(str(home.binding.path)), good)
        assert same(found, records_for_round(home, plan))
    write_rows(Path(str(home.binding.path)), [bad])
    assert records_for_round(home, plan).features.shape == (0, 2)


def test_a_model_that_is_gone_is_told_because_it_is_no_record(home: Home) -> None:
    with pytest.raises(PlanError):
        records_for_round(home, replace(PLAN, model="theirs"))
