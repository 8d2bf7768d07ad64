"""Claims about reading records: what is given, and what is refused with its place."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from common.data.schema import Column, Schema
from common.data.source import (
    DEBIAN_FOLDER,
    Csv,
    Digits,
    FashionMnist,
    Records,
    load,
    read_idx,
    split,
)
from common.errors import DataError

TEN = tuple("0123456789")
DIGITS = Schema("image", (1, 8, 8), TEN, upper=16.0)
FASHION = Schema("image", (1, 28, 28), TEN, upper=255.0)
TABLE = Schema(
    "table",
    (2,),
    ("no", "yes"),
    (Column("age", 0.0, 120.0), Column("change", -5.0, 5.0)),
    target="ill",
)
HEADER = "ward,change,ill,age\n"

needs_fashion = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="apt-get install dataset-fashion-mnist"
)


def read(tmp_path: Path, text: str | bytes, **options: object) -> Records:
    path = tmp_path / "data.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(Csv(str(path), **options), TABLE)  # type: ignore[arg-type]


# -- digits --------------------------------------------------------------------------------------


def test_digits_are_1797_images_in_raw_units() -> None:
    records = load(Digits(), DIGITS)
    assert records.features.shape == (1797, 1, 8, 8)
    assert records.features.dtype == np.float32
    assert records.labels.dtype == np.int64
    assert (records.features.min(), records.features.max()) == (0, 16)
    # The classes' sizes as the data set's own description gives them (0 to 9).
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(records.labels).tolist() == counts


def test_a_schema_that_does_not_fit_the_digits_is_refused() -> None:
    wrong = {
        "shape": Schema("image", (1, 28, 28), TEN, upper=16.0),
        "10 classes": Schema("image", (1, 8, 8), TEN[:9], upper=16.0),
        "outside the schema's bounds": Schema("image", (1, 8, 8), TEN, upper=1.0),
        "describes table": TABLE,
    }
    for message, schema in wrong.items():
        with pytest.raises(DataError, match=message):
            load(Digits(), schema)


def test_the_held_out_share_is_fixed_and_disjoint() -> None:
    everything = Records(
        np.arange(1797, dtype=np.float32).reshape(-1, 1), np.arange(1797) % 10, None
    )
    kept, held = split(everything, 0.2)
    assert (len(kept), len(held)) == (1437, 360)  # 0.2 x 1797 = 359.4, rounded up
    numbers = [*kept.features[:, 0], *held.features[:, 0]]
    assert sorted(numbers) == list(range(1797))
    again = split(everything, 0.2)[1]
    assert (again.features == held.features).all()
    # By definition: the places whose decimal name has the least SHA-256.
    first = min(range(1797), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    assert first in held.features[:, 0]


def test_a_split_carries_groups_and_never_leaves_a_part_empty() -> None:
    groups = tuple("abcdefghij")
    everything = Records(np.arange(10, dtype=np.float32)[:, None], np.zeros(10, np.int64), groups)
    for part in split(everything, 0.3):
        assert part.groups == tuple(groups[int(i)] for i in part.features[:, 0])
    one = everything.take(np.array([0]))
    with pytest.raises(DataError, match="leaves nothing"):
        split(one, 0.2)


# -- Fashion-MNIST -------------------------------------------------------------------------------


@needs_fashion
def test_fashion_mnist_has_its_official_parts() -> None:
    for part, count in (("train", 60_000), ("test", 10_000)):
        records = load(FashionMnist(part), FASHION)
        assert records.features.shape == (count, 1, 28, 28)
        assert np.bincount(records.labels).tolist() == [count // 10] * 10
        assert (records.features.min(), records.features.max()) == (0, 255)


def idx(axes: tuple[int, ...], data: bytes, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(axes)]) + struct.pack(f">{len(axes)}I", *axes) + data


def test_an_idx_file_is_read_as_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx((2, 1, 3), bytes(range(6)))))
    assert read_idx(path, (1, 3)).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx((2, 1, 3), bytes(5)), "should hold 6 bytes of values but holds 5"),
        (idx((2, 1, 3), bytes(7)), "holds more"),
        (idx((2, 3, 1), bytes(6)), "shape"),
        (idx((2**32 - 1, 1, 3), bytes(6)), "4294967295 records"),
        (idx((2, 1, 3), bytes(6), kind=13), "not an idx file"),
        (idx((6,), bytes(6)), "not an idx file"),
        (b"\0\0", "not an idx file"),
    ],
)
def test_an_idx_file_that_is_not_as_it_should_be_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        read_idx(path, (1, 3))


def test_a_torn_or_missing_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    whole = gzip.compress(idx((1000, 1, 3), np.random.default_rng(0).bytes(3000)))
    for torn in (whole[:-100], b"plain text", whole[:50] + b"\xff" * 50 + whole[100:]):
        path.write_bytes(torn)
        with pytest.raises(DataError, match=r"cannot read .*x\.gz"):
            read_idx(path, (1, 3))
    with pytest.raises(DataError, match="no file") as caught:
        load(FashionMnist(path=str(tmp_path / "nowhere")), FASHION)
    assert "dataset-fashion-mnist" in caught.value.hint


def test_images_and_labels_must_be_as_many(tmp_path: Path) -> None:
    images, labels = idx((2, 28, 28), bytes(2 * 784)), idx((3,), bytes(3))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(DataError, match="2 images but 3 labels"):
        load(FashionMnist("test", str(tmp_path)), FASHION)


# -- CSV -----------------------------------------------------------------------------------------


def test_csv_columns_are_taken_by_name_in_the_plans_order(tmp_path: Path) -> None:
    records = read(tmp_path, HEADER + "A,-1.5,yes,60\nB,5,no,1e2\n")
    assert records.features.tolist() == [[60.0, -1.5], [100.0, 5.0]]
    assert records.labels.tolist() == [1, 0]
    assert records.groups is None


def test_a_local_header_stands_for_a_plans_column(tmp_path: Path) -> None:
    text = "Alter (Jahre),change,krank\n60,0,yes\n"
    columns = {"age": "Alter (Jahre)", "ill": "krank"}
    assert read(tmp_path, text, columns=columns).features.tolist() == [[60.0, 0.0]]


def test_the_partition_column_comes_along(tmp_path: Path) -> None:
    text = HEADER + "north,0,yes,60\nsouth,0,no,61\nnorth,0,no,62\n"
    assert read(tmp_path, text, partition_by="ward").groups == ("north", "south", "north")


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbfward,change,"ill",age\r\n"A, left",0, yes ," 60 "\r\n\r\n'
    records = read(tmp_path, text, partition_by="ward")
    assert records.groups == ("A, left",)
    assert records.features.tolist() == [[60.0, 0.0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("A,0,yes,", "line 3: column 'age' is empty"),
        ("A,0,yes,old", "line 3: column 'age' holds 'old', not a finite number"),
        ("A,0,yes,nan", "line 3: column 'age' holds 'nan'"),
        ("A,0,yes,inf", "line 3: column 'age' holds 'inf'"),
        ("A,0,yes,1_0", "line 3: column 'age' holds '1_0'"),
        ("A,0,yes,٣", "line 3: column 'age'"),
        ("A,0,yes,121", "line 3: column 'age' is 121, outside its bounds 0 to 120"),
        ("A,-5.01,yes,1", "line 3: column 'change' is -5.01, outside its bounds -5 to 5"),
        ("A,0,maybe,1", "line 3: column 'ill' holds 'maybe', which is not a class"),
        ("A,0,yes", "line 3: 3 cells, but the header has 4"),
        ("A,0,yes,1,2", "line 3: 5 cells, but the header has 4"),
        (" ,0,yes,1", "line 3: column 'ward' must name the record's client"),
        ('A,0,yes,"1', "cannot read"),
    ],
)
def test_a_bad_cell_is_told_with_its_line_and_column(
    tmp_path: Path, row: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, f"{HEADER}A,0,yes,1\n{row}\n", partition_by="ward")
    assert message in caught.value.message
    assert "data.csv" in caught.value.message


def test_a_message_never_quotes_a_long_cell(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, f"{HEADER}A,0,yes,{'secret' * 1000}\n")
    assert len(caught.value.message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("ward,change,age\nA,0,1\n", {}, "no column 'ill'"),
        ("change,change,ill,age\n0,0,yes,1\n", {}, "more than one column 'change'"),
        (HEADER + "A,0,yes,1\n", {"columns": {"height": "age"}}, "maps 'height'"),
        (HEADER + "A,0,yes,1\n", {"columns": {"age": "years"}}, "no column 'years'"),
        (HEADER + "A,0,yes,1\n", {"partition_by": "clinic"}, "no column 'clinic'"),
        (HEADER, {}, "no records"),
        ("", {}, "no column 'age'"),
        (HEADER.encode() + b"\xff,0,yes,1\n", {}, "not UTF-8"),
        (HEADER + f"A,0,yes,{'1' * 200_000}\n", {}, "cannot read"),
    ],
)
def test_a_file_without_the_plans_columns_is_refused(
    tmp_path: Path, text: str | bytes, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, **options)


def test_a_missing_file_and_an_image_schema_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file") as caught:
        load(Csv(str(tmp_path / "none.csv")), TABLE)
    assert caught.value.code == "no-such-file"
    with pytest.raises(DataError, match="holds a table"):
        load(Csv(str(tmp_path / "none.csv")), DIGITS)
    with pytest.raises(DataError, match="cannot read"):
        load(Csv(str(tmp_path)), TABLE)
