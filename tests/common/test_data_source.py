"""Claims about reading records: what is given, and what is refused with its place."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data import source, table
from common.data.records import Records, split
from common.data.schema import Column, Schema
from common.data.source import DEBIAN_FOLDER, Digits, FashionMnist, load, read_idx
from common.data.table import Csv
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
    one = Records(everything.features[:1], everything.labels[:1])
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
        ('A,0,yes,"1', "line 3: cannot read its cells"),
        ('"A\nB",0,yes,1', "line 3: cannot read its cells"),
        ("A,0,yes\r,1", "line 3: cannot read its cells"),
    ],
)
def test_a_bad_cell_is_told_with_its_line_and_column(
    tmp_path: Path, row: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, f"{HEADER}A,0,yes,1\n{row}\n", partition_by="ward")
    assert message in caught.value.message
    assert "data.csv" in caught.value.message
    if "cells:" in message:
        assert "a quoted cell ends on its own line" in caught.value.hint


GOOD = ["A,0,yes,1", '"B, left",1.5,no,2', "C,-1,yes,3", "D,2,no,4", "E,0,no,5"]


def served(tmp_path: Path, lines: list[bytes]) -> Records:
    path = tmp_path / "data.csv"
    path.write_bytes(HEADER.encode() + b"".join(line + b"\n" for line in lines))
    return load(Csv(str(path), partition_by="ward"), TABLE, strict=False)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    at=st.integers(0, len(GOOD)),
    line=st.binary(max_size=40).filter(lambda line: b"\n" not in line)
    | st.text('",\r\ufeffA01yes.-', max_size=20).map(str.encode),
)
def test_a_line_more_changes_nothing_about_the_others(tmp_path: Path, at: int, line: bytes) -> None:
    lines = [text.encode() for text in GOOD]
    before, after = served(tmp_path, lines), served(tmp_path, [*lines[:at], line, *lines[at:]])
    others = after.take(np.flatnonzero(after.places != at))
    assert np.array_equal(others.features, before.features)
    assert np.array_equal(others.labels, before.labels)
    assert others.groups == before.groups
    assert (others.places - (others.places > at)).tolist() == before.places.tolist()
    assert after.extent == before.extent + 1


def test_a_line_of_any_length_is_read_or_left_out_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MOST_BYTES", 20)
    lines = [b"A,0,yes," + b"0" * (size - 10) + b"1" for size in range(15, 60)]
    found = served(tmp_path, [line for long in lines for line in (long, b"B,0,no,2")])
    kept = sum(len(line) < 20 for line in lines)  # with its newline: at most 20 bytes
    assert found.labels.tolist() == [1, 0] * kept + [0] * (len(lines) - kept)


def test_what_no_line_can_cause_is_an_error_in_a_round_too(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    for content in (b"", b"\xff\xfe", b"ward,change,ill\n", b'ward,change,ill,"age\n'):
        path.write_bytes(content + b"A,0,yes,1\n")
        with pytest.raises(DataError, match="line 1"):
            load(Csv(str(path)), TABLE, strict=False)
    assert len(served(tmp_path, [])) == 0


def test_held_out_records_stay_the_same_when_others_no_longer_fit(tmp_path: Path) -> None:
    lines = [b"%d,0,yes,%d" % (i, i) for i in range(50)]
    whole = split(served(tmp_path, lines), 0.3)
    for spoilt in (0, 7, 49):
        parts = split(served(tmp_path, [*lines[:spoilt], b'"', *lines[spoilt + 1 :]]), 0.3)
        for part, before in zip(parts, whole, strict=True):
            expected = [i for i in before.places.tolist() if i != spoilt]
            assert part.places.tolist() == expected
            assert part.features[:, 0].tolist() == expected


BAD_IMAGES = {"nan": np.nan, "inf": np.inf, "above": 17.0, "below": -0.5}


@pytest.mark.parametrize("how", [*BAD_IMAGES, "label-10", "label--1"])
def test_an_image_that_does_not_fit_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    images, labels = source._digits()
    images, labels = images.astype(float), labels.copy()
    before = split(load(Digits(), DIGITS), 0.2)
    if how in BAD_IMAGES:
        images[5, 3, 3] = BAD_IMAGES[how]
    else:
        labels[5] = int(how.removeprefix("label-"))
    monkeypatch.setattr(source, "_digits", lambda: (images, labels))
    with pytest.raises(DataError, match=r"image 5 \(from 0\) has"):
        load(Digits(), DIGITS)
    after = split(load(Digits(), DIGITS, strict=False), 0.2)
    for part, whole in zip(after, before, strict=True):
        left = whole.take(np.flatnonzero(whole.places != 5))
        assert np.array_equal(part.features, left.features)
        assert np.array_equal(part.labels, left.labels)
        assert np.array_equal(part.places, left.places)
    assert sum(map(len, after)) == 1796


def test_an_image_of_an_idx_file_that_does_not_fit_costs_no_other(tmp_path: Path) -> None:
    pixels = np.zeros((4, 28, 28), np.uint8)
    pixels[1, 0, 0] = 255
    images, labels = idx((4, 28, 28), pixels.tobytes()), idx((4,), bytes([3, 4, 10, 5]))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    schema = Schema("image", (1, 28, 28), TEN, upper=254.0)
    found = load(FashionMnist("train", str(tmp_path)), schema, strict=False)
    assert (found.labels.tolist(), found.places.tolist()) == ([3, 5], [0, 3])
    with pytest.raises(DataError, match="image 1"):
        load(FashionMnist("train", str(tmp_path)), schema)


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
