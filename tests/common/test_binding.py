"""Claims about a binding: what it may say, and that it never says two things at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical import encode
from common.config import Table, read_toml
from common.data.binding import Binding, load_test, load_training
from common.data.records import split
from common.data.schema import Column, Schema
from common.data.source import Digits, load
from common.errors import DataError, PlanError

DIGITS = Schema("image", (1, 8, 8), tuple("0123456789"), upper=16.0)
TABLE = Schema("table", (1,), ("no", "yes"), (Column("age", 0.0, 120.0),), target="ill")
BASE = Path("/somewhere/experiments")


def read(text: str, base: Path = BASE) -> Binding:
    return Binding.read(Table(tomllib.loads(text), "data", "test.toml"), base)


def test_a_binding_is_read_with_its_paths_made_absolute() -> None:
    binding = read(
        """
        source = "csv"
        path = "../records/north.csv"
        test = "public"
        test_path = "/public/test.csv"
        partition_by = "ward"
        columns = { age = "Age (years)" }
        models = { mynet = "their_models.nets:make" }
        """
    )
    assert binding == Binding(
        source="csv",
        path="/somewhere/records/north.csv",
        columns={"age": "Age (years)"},
        models={"mynet": "their_models.nets:make"},
        test="public",
        test_path="/public/test.csv",
        partition_by="ward",
    )


def test_a_fifth_is_held_out_and_shares_are_equal_unless_said() -> None:
    binding = read('source = "digits"\ntest = "held-out"\nclients = 10')
    assert (binding.held_out, binding.partition) == (0.2, "equal")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('source = "digit"', "'digit' is not known"),
        ('source = "csv"', "needs a path"),
        ('source = "digits"\npath = "x"', "have no path"),
        ('source = "digits"\ntest = "public"', "no test set of their own"),
        ('source = "digits"\ncolumns = { a = "b" }', "columns is for CSV files"),
        ('source = "digits"\npartition_by = "a"', "partition_by is for CSV files"),
        ('source = "digits"\nheld_out = 0.2', "the test set is not held out"),
        ('source = "fashion-mnist"\ntest = "public"\nheld_out = 0.2', "not held out"),
        ('source = "digits"\ntest = "held-out"\nheld_out = 1.0', "held_out"),
        ('source = "digits"\ntest = "held-out"\nheld_out = 0', "held_out"),
        ('source = "csv"\npath = "a"\ntest = "public"', "needs the public file"),
        ('source = "csv"\npath = "a"\ntest_path = "b"', "test_path is for"),
        ('source = "fashion-mnist"\ntest = "public"\ntest_path = "b"', "test_path is for"),
        (
            'source = "csv"\npath = "a"\ntest = "public"\ntest_path = "./x/../a"',
            "is the private data itself",
        ),
        ('source = "csv"\npath = "a"\nclients = 2\npartition_by = "w"', "both say who holds"),
        ('source = "digits"\npartition = "equal"', "not to how many clients"),
        ('source = "digits"\nclients = 2\npartition = "dirichlet"', "alpha goes with"),
        ('source = "digits"\nclients = 2\nalpha = 0.5', "alpha goes with"),
        ('source = "digits"\nclients = 0', "clients"),
        ('source = "digits"\nmodels = { softmax = "a:b" }', "built in"),
        ('source = "digits"\nmodels = { mynet = "/tmp/net.py" }', "names no function"),
        ('source = "digits"\nsplit = 0.2', "unknown key 'split'"),
    ],
)
def test_a_binding_that_contradicts_itself_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read(text)


def test_a_contradiction_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text('[data]\nsource = "digits"\nclients = 10\nalpha = 0.5\n')
    with pytest.raises(PlanError, match=r"experiment\.toml, line 4: alpha"):
        Binding.read(read_toml(path).table("data"), tmp_path)


names = st.text(min_size=1, max_size=20).filter(str.strip)


@given(
    path=names,
    columns=st.dictionaries(names, names, max_size=3),
    held_out=st.floats(0.001, 0.999),
    alpha=st.floats(0.01, 100),
)
def test_a_binding_comes_back_from_json_to_the_bit(
    path: str, columns: dict[str, str], held_out: float, alpha: float
) -> None:
    binding = Binding(
        source="csv",
        path="/data/" + path.replace("/", "_").replace(".", "_"),
        columns=columns,
        test="held-out",
        held_out=held_out,
        clients=3,
        partition="dirichlet",
        alpha=alpha,
    )
    assert Binding.decode(binding.encode()) == binding
    assert len(binding.digest) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"path": "relative.csv"},
        {"held_out": "0.20"},
        {"held_out": None},
        {"extra": 1},
        {"source": "digits"},
    ],
)
def test_stored_bytes_that_are_not_exactly_a_binding_are_refused(change: dict[str, Any]) -> None:
    good = Binding("csv", "/a.csv", test="held-out", held_out=0.2).json()
    value = {key: item for key, item in (good | change).items() if item is not None}
    with pytest.raises(PlanError):
        Binding.decode(encode(value))
    with pytest.raises(PlanError, match="not a binding"):
        Binding.decode(b'{"source": "digits"}')


def test_held_out_records_are_never_trained_on() -> None:
    binding = read('source = "digits"\ntest = "held-out"\nheld_out = 0.25')
    kept, held = split(load(Digits(), DIGITS), 0.25)
    training, test = load_training(binding, DIGITS), load_test(binding, DIGITS)
    assert (training.features == kept.features).all()
    assert (test.features == held.features).all()
    assert len(training) + len(test) == 1797


def test_a_public_test_file_has_the_same_columns_as_the_private_one(tmp_path: Path) -> None:
    (tmp_path / "private.csv").write_text("years,ill,ward\n60,yes,A\n61,no,B\n")
    (tmp_path / "public.csv").write_text("years,ill\n50,no\n")
    binding = read(
        'source = "csv"\npath = "private.csv"\ntest = "public"\ntest_path = "public.csv"\n'
        'partition_by = "ward"\ncolumns = { age = "years" }',
        tmp_path,
    )
    assert load_training(binding, TABLE).groups == ("A", "B")
    np.testing.assert_array_equal(load_test(binding, TABLE).features, [[50.0]])


def test_without_a_test_set_there_is_nothing_to_measure_on() -> None:
    binding = read('source = "digits"')
    assert len(load_training(binding, DIGITS)) == 1797
    with pytest.raises(DataError, match="names no test set"):
        load_test(binding, DIGITS)
