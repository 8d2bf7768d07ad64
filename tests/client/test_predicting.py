"""Records of any file, batch by batch, and what is said of them; no error repeats a value."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.device.answers import Prediction, Thresholds
from client.device.bounds import RECORDS as BATCH
from client.device.bounds import batch_of
from client.device.reading.opening import open_source
from client.device.runtime import Predictor
from client.device.updater import update
from client.device.verify import verify
from common.data.schema import Schema
from common.errors import DataError, InputError, PrivetError
from privet.cli import run
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    NOW,
    POLICY,
    RECORDS,
    SCHEMA,
    Recipe,
    World,
    contents,
)

RECIPE = Recipe(version=7)
NAMES = [column.name for column in SCHEMA.columns]
IMAGES = Schema("image", (1, 3, 4), ("a", "b"), lower=0.0, upper=255.0)
SECRET = 777.25  # a value out of every column's bounds, which no error may repeat

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(
        verify(RECIPE.files(), POLICY, (COORDINATOR.public, APPROVER.public), successors=dict)
    )


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = World.make(tmp_path_factory.mktemp("world"))
    world.publish(RECIPE)
    update(world.home, NOW)
    return world.home.path


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def table(rows: int) -> str:
    """A CSV of the three records, over and over."""
    lines = [",".join(f"{value:g}" for value in row) for row in RECORDS.tolist()]
    return "\n".join([",".join(NAMES), *(lines[i % 3] for i in range(rows)), ""])


def expected(records: np.ndarray = RECORDS) -> list[str]:
    return [SCHEMA.classes[i] for i in RECIPE.model.answer(records).argmax(axis=1)]


# -- tables ----------------------------------------------------------------------------------------


def test_a_csv_is_read_by_the_names_of_its_columns(predictor: Predictor, tmp_path: Path) -> None:
    """Another order, a column more, no target, a byte-order mark, CRLF, an empty line."""
    lines = ["\ufeffpulse,name,age,height, weight "] + [
        f'{pulse:g},"x, y",{age:g},{height!r},{weight:g}'
        for age, weight, height, pulse in RECORDS.astype(float).round(3).tolist()
    ]
    found = predictor.predict_file(write(tmp_path / "people.csv", "\r\n".join(lines) + "\r\n\r\n"))
    assert [row.label for row in found] == expected()
    probabilities = RECIPE.model.answer(RECORDS).max(axis=1)
    np.testing.assert_allclose([row.probability for row in found], probabilities, atol=1e-6)


WRONG_LINES = [
    ("30,70,1.7,fast", "line 3, column 'pulse' is not a number"),
    ("30,70,1.7,", "line 3, column 'pulse' is empty"),
    ("30,70,1_7,60", "line 3, column 'height' is not a number"),
    ("30,70,17,60", "line 3, column 'height' is outside of 0.5 to 2.5"),
    (f"{SECRET},70,1.7,60", "line 3, column 'age' is outside of 0 to 120"),
    ("nan,70,1.7,60", "line 3, column 'age' is outside"),
    ("30,inf,1.7,60", "line 3, column 'weight' is outside"),
    ("30,70,1.7", "line 3: 3 fields where the header has 4"),
    ('30,70,1.7,"60', "line 3: cannot read its cells"),
]


@pytest.mark.parametrize(("line", "where"), WRONG_LINES)
def test_an_unusable_value_is_named_by_its_place_and_not_repeated(
    predictor: Predictor, tmp_path: Path, line: str, where: str
) -> None:
    path = write(tmp_path / "people.csv", f"{','.join(NAMES)}\n30,70,1.7,60\n{line}\n")
    with pytest.raises(DataError) as caught:
        predictor.predict_file(path)
    assert f"{path}, {where}" in caught.value.message
    for value in ("fast", str(SECRET), "1_7"):
        assert value not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("header", ["age,weight,height", "age,weight,height,pulse,pulse", ""])
def test_a_missing_or_doubled_column_is_named(
    predictor: Predictor, tmp_path: Path, header: str
) -> None:
    for text in (header + "\n", header):
        with pytest.raises(DataError, match=r"line 1: column '(pulse|age)' is there [02] times"):
            predictor.predict_file(write(tmp_path / "people.csv", text))


def test_a_header_without_rows_predicts_nothing(predictor: Predictor, tmp_path: Path) -> None:
    assert predictor.predict_file(write(tmp_path / "p.csv", ",".join(NAMES))) == []


def test_what_is_no_file_of_records_is_a_typed_error(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\x00")
    (tmp_path / "folder.csv").mkdir()
    for name in ("binary.csv", "absent.csv", "absent.npy", "folder.csv", "records.xlsx"):
        with pytest.raises(InputError) as caught:
            predictor.predict_file(tmp_path / name)
        assert caught.value.exit_code == 4


def test_a_stream_is_answered_as_it_comes(predictor: Predictor) -> None:
    """What a pipe has brought is answered before more of it is asked for."""
    taken: list[int] = []

    class Pipe(io.RawIOBase):
        parts = (table(2).encode(), b"30,70,1.7,60\n4,16,", b"1.0,120")

        def read1(self, _size: int) -> bytes:
            taken.append(1)
            return self.parts[len(taken) - 1] if len(taken) <= 3 else b""

    stream = predictor.stream(predictor.open(Pipe()))
    seen = [(len(taken), len(answers)) for answers in stream]
    assert seen == [(1, 2), (2, 1), (4, 1)]


def test_a_line_without_an_end_is_refused_before_it_fills_memory(predictor: Predictor) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read1(self, size: int) -> bytes:
            self.given += size
            return b"1" * size

    endless = Endless()
    with pytest.raises(DataError, match="a line has over"):
        predictor.predict_file(endless)
    assert endless.given < 2**25


def test_a_csv_of_any_length_is_read_in_batches(predictor: Predictor, tmp_path: Path) -> None:
    source = predictor.open(write(tmp_path / "long.csv", table(1000)))
    sizes = [len(batch.records) for batch in source]
    assert sum(sizes) == 1000
    assert max(sizes) == BATCH
    assert source.size == (tmp_path / "long.csv").stat().st_size


def test_parquet_gives_the_answers_of_csv_and_names_what_is_wrong(
    predictor: Predictor, tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "people.parquet"

    def made(**changes: Any) -> Path:
        columns = {name: RECORDS[:, i].astype(float).tolist() for i, name in enumerate(NAMES)}
        columns = {"name": ["a", "b", "c"], **dict(reversed(columns.items())), **changes}
        parquet.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
        return path

    assert [row.label for row in predictor.predict_file(made())] == expected()
    integers = np.array([30, 90, 4], np.int16)
    assert [row.label for row in predictor.predict_file(made(age=integers))] == expected()
    for changes, why in (
        ({"age": [30.0, SECRET, 4.0]}, "row 1 .*'age' is outside of 0 to 120"),
        ({"age": [30.0, float("nan"), 4.0]}, "row 1 .*'age' is outside of 0 to 120"),
        ({"age": [30.0, 90.0, None]}, r"row 2 \(from 0\): 'age' is empty"),
        ({"age": ["30", "90", "4"]}, "'age' is string, not numbers"),
        ({"age": None}, "'age' is there 0 times"),
    ):
        with pytest.raises(DataError, match=why) as caught:
            predictor.predict_file(made(**changes))
        assert str(SECRET) not in caught.value.message
    whole = made().read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], whole[:40] + whole[60:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"people\.parquet"):
            predictor.predict_file(path)


@pytest.mark.parametrize(("name", "extra"), [("x.parquet", "parquet"), ("folder", "images")])
def test_a_format_whose_package_is_missing_names_the_extra(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pyarrow", "PIL"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.parquet").touch()
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / name, SCHEMA if extra == "parquet" else IMAGES)
    assert caught.value.code == "not-installed"
    assert f"privet[{extra}]" in caught.value.hint


# -- arrays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_file_gives_the_same_answers(
    predictor: Predictor, tmp_path: Path, order: Any
) -> None:
    np.save(tmp_path / "records.npy", np.asarray(np.tile(RECORDS, (200, 1)), order=order))
    found = predictor.predict_file(tmp_path / "records.npy")
    assert len(found) == 600
    assert found[:3] == predictor.predict(RECORDS) == found[-3:]


def test_an_array_of_no_records_predicts_nothing(predictor: Predictor, tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 4)))
    assert predictor.predict_file(tmp_path / "none.npy") == []


def test_a_pickle_in_an_array_file_is_not_run(predictor: Predictor, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", RECORDS)
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    (tmp_path / "bomb.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 80)
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}".ljust(79) + b"\n"
    )  # fmt: skip
    for name in ("objects.npy", "archive.npy", "bomb.npy"):
        with pytest.raises(DataError):
            predictor.predict_file(tmp_path / name)


def test_an_array_that_is_cut_off_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "records.npy"
    np.save(path, np.tile(RECORDS, (1000, 1)))
    batches = iter(open_source(path, SCHEMA))
    next(batches)
    os.truncate(path, 10_000)
    with pytest.raises(DataError, match="cut off"):
        list(batches)


def test_memory_does_not_grow_with_an_array_file(tmp_path: Path) -> None:
    """4 GiB that are nearly all hole, of which only the first part is read here."""
    path, schema = tmp_path / "large.npy", Schema("image", (1, 64, 64), ("a", "b"), upper=255.0)
    header = io.BytesIO()
    shape = (2**20, *schema.shape)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    path.write_bytes(header.getvalue())
    os.truncate(path, len(header.getvalue()) + 2**32)
    source = open_source(path, schema)
    assert source.size == 2**20
    tracemalloc.start()
    try:
        count = 0
        for batch in source:
            count += len(batch.records)
            if count >= 2**14:  # 64 MiB of the file, 256 MiB as float32
                break
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**24
    finally:
        tracemalloc.stop()


def test_a_batch_has_a_bounded_size_whatever_a_record_has() -> None:
    assert batch_of(SCHEMA) == 256
    assert batch_of(Schema("image", (3, 1024, 1024), ("a", "b"))) == 1
    assert batch_of(Schema("image", (3, 224, 224), ("a", "b"))) * 3 * 224 * 224 * 4 <= 2**24


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (np.full((2, 4), np.nan), "bounds"),
        (np.full((2, 4), np.nan, np.float32), "bounds"),
        (np.array([[30, 70, 1.7, 60], [30, 70, 1e300, 60]]), "record 1 "),
        (np.concatenate([np.tile(RECORDS, (200, 1)), RECORDS + 500]), "record 600 "),
        (np.zeros((2, 3)), "shape"),
        (np.zeros(4), "shape"),
        (np.array(3.0), "shape"),
        (np.zeros((1, 4), bool), "bool"),
        (np.array([["a"] * 4]), "<U1"),
        (np.zeros((1, 4), complex), "complex"),
    ],
)
def test_records_that_do_not_fit_the_schema_are_refused(
    predictor: Predictor, tmp_path: Path, records: np.ndarray, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        predictor.predict(records)
    np.save(tmp_path / "r.npy", records)
    with pytest.raises(DataError, match=why) as caught:
        predictor.predict_file(tmp_path / "r.npy")
    assert str(tmp_path / "r.npy") in caught.value.message


# -- images ----------------------------------------------------------------------------------------


def test_images_are_records_in_the_order_of_their_names(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 4), np.uint8)
    (tmp_path / "ward").mkdir()
    for name, one in zip(("b.png", "ward/a.PNG", "a.png"), pixels, strict=True):
        image.fromarray(one).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (batch,) = open_source(tmp_path, IMAGES)
    assert batch.names == ("a.png", "b.png", "ward/a.PNG")
    np.testing.assert_array_equal(batch.records[:, 0], pixels[[2, 0, 1]].astype(np.float32))


def test_the_channels_of_an_image_come_first(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 3), np.uint8)  # (H, W, C)
    image.fromarray(pixels).save(tmp_path / "a.png")
    (batch,) = open_source(tmp_path, replace(IMAGES, shape=(3, 3, 4)))
    np.testing.assert_array_equal(batch.records[0], pixels.transpose(2, 0, 1))


def _save(mode: str, size: tuple[int, int], **options: Any) -> Callable[[Path, Any], None]:
    return lambda path, image: image.new(mode, size, **options).save(path, format="PNG")


WRONG_IMAGES: dict[str, tuple[Callable[[Path, Any], Any], str]] = {
    "another size": (_save("L", (3, 4)), "4 x 3 pixels"),
    "colour": (_save("RGB", (4, 3)), "of RGB"),
    "a palette": (_save("P", (4, 3)), "of P"),
    "transparency": (_save("LA", (4, 3)), "of LA"),
    "a size that would fill memory": (_save("1", (40_000, 4_000)), "pixels of 1|damaged"),
    "16 bits out of the bounds": (_save("I;16", (4, 3), color=9999), "outside of"),
    "another format": (
        lambda path, image: image.new("L", (4, 3)).save(path, format="BMP"),
        "no PNG or JPEG",
    ),
    "text": (lambda path, _: path.write_text("not an image"), "no PNG or JPEG"),
    "nothing": (lambda path, _: path.touch(), "no PNG or JPEG"),
    "cut off": (
        lambda path, image: (
            image.effect_noise((4, 3), 50).save(path),
            path.write_bytes(path.read_bytes()[:48]),
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_IMAGES)
@pytest.mark.filterwarnings("ignore::Warning")
def test_an_image_that_is_no_record_is_named(wrong: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    make, why = WRONG_IMAGES[wrong]
    make(tmp_path / "x.png", image)
    with pytest.raises(DataError, match=why) as caught:
        list(open_source(tmp_path, IMAGES))
    assert "x.png" in caught.value.message


def test_a_folder_without_images_and_a_model_of_tables_are_refused(tmp_path: Path) -> None:
    for schema in (IMAGES, SCHEMA, replace(IMAGES, shape=(2, 3, 4))):
        with pytest.raises(DataError):
            open_source(tmp_path, schema)


# -- what is said ----------------------------------------------------------------------------------

CLASSES = ("well", "ill")


def said(words: list[str], *rows: tuple[float, ...], classes: tuple[str, ...] = CLASSES) -> str:
    found = Thresholds.read(words, classes).decide(np.array(rows, np.float32), classes)
    return " ".join(classes[index] if index >= 0 else "?" for index in found.tolist())


def test_without_a_threshold_the_likeliest_class_is_said() -> None:
    assert said([], (0.6, 0.4), (0.4, 0.6)) == "well ill"


def test_a_screening_says_ill_from_its_threshold_on() -> None:
    assert said(["ill=0.2"], (0.79, 0.21), (0.8, 0.2), (0.81, 0.19)) == "ill ill well"


def test_nobody_is_told_the_opposite_because_an_answer_was_not_sure_enough() -> None:
    assert said(["ill=0.8"], (0.1, 0.9), (0.25, 0.75), (0.6, 0.4)) == "ill ? well"


def test_one_number_is_what_every_answer_needs() -> None:
    assert said(["0.8"], (0.1, 0.9), (0.25, 0.75), (0.85, 0.15)) == "ill ? well"
    assert said(["0.8", "ill=0.7"], (0.25, 0.75), (0.75, 0.25)) == "ill ?"


def test_of_several_that_reach_their_thresholds_the_likeliest_is_said() -> None:
    rows = ((0.5, 0.3, 0.2), (0.5, 0.2, 0.3), (0.9, 0.05, 0.05), (0.3, 0.15, 0.55))
    assert said(["b=0.2", "c=0.2"], *rows, classes=("a", "b", "c")) == "b c a c"


def test_a_threshold_is_reached_by_the_float32_that_is_nearest_to_it() -> None:
    assert float(np.float32(0.7)) < 0.7
    assert said(["ill=0.7"], (0.3, 0.7)) == "ill"


@pytest.mark.parametrize(
    "words",
    [["ill=0"], ["ill=1.01"], ["ill=nan"], ["ill=-0.1"], ["ill"], ["ill="], ["other=0.5"], [""],
     ["0.5", "0.6"], ["ill=0.5", "ill=0.5"]],
)  # fmt: skip
def test_what_is_no_threshold_is_refused(words: list[str]) -> None:
    with pytest.raises(InputError):
        Thresholds.read(words, CLASSES)


def test_a_class_called_undecided_cannot_be_told_from_no_answer() -> None:
    with pytest.raises(InputError, match="undecided"):
        Thresholds.read(["0.5"], ("yes", "undecided"))
    assert Thresholds.read([], ("yes", "undecided")).least == {}


def test_python_gives_the_same_answers(predictor: Predictor) -> None:
    rows = RECIPE.model.answer(RECORDS)
    strict = Thresholds(dict.fromkeys(SCHEMA.classes, 1.0))
    for found, row in zip(predictor.predict(RECORDS, strict), rows, strict=True):
        assert found == Prediction(None, pytest.approx(float(row.max()), abs=1e-6))


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_rows_or_one_object(device: Path, tmp_path: Path, capsys: Out) -> None:
    people = str(write(tmp_path / "p.csv", table(3)))
    assert run(["device", "predict", str(device), people]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert (header, [row.split(",")[0] for row in rows]) == ("class,probability", expected())
    assert run(["device", "predict", str(device), people, "--format", "json"]) == 0
    answers = json.loads(capsys.readouterr().out)["data"]["predictions"]
    assert [answer["class"] for answer in answers] == expected()
    assert set(answers[0]) == {"class", "probability"}


def test_every_class_and_no_answer_can_be_printed(
    device: Path, tmp_path: Path, capsys: Out
) -> None:
    people = str(write(tmp_path / "p.csv", table(3)))
    more = ["--probabilities", "--threshold", "1"]
    assert run(["device", "predict", str(device), people, *more]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "class,probability,probability_no,probability_perhaps,probability_yes"
    assert [row.split(",")[0] for row in rows] == ["undecided"] * 3
    assert run(["device", "predict", str(device), people, *more, "--lines"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class"] for line in lines] == [None] * 3
    found = [list(line["probabilities"].values()) for line in lines]
    np.testing.assert_allclose(found, RECIPE.model.answer(RECORDS), atol=1e-6)


def test_a_pipe_is_predicted(device: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(table(600).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert run(["device", "predict", str(device), "-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 601


def test_a_file_of_answers_is_written_whole_or_not_at_all(
    device: Path, tmp_path: Path, capsys: Out
) -> None:
    people, bad = write(tmp_path / "p.csv", table(700)), tmp_path / "bad.csv"
    bad.write_text(table(700) + f"{SECRET},70,1.7,60\n")
    out = tmp_path / "answers.csv"
    arguments = ["device", "predict", str(device), str(bad), "--out", str(out)]
    before = contents(tmp_path)
    assert run(arguments) == 4
    assert contents(tmp_path) == before
    arguments[3] = str(people)
    assert run([*arguments, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {"out": str(out), "records": 700}
    whole = out.read_bytes()
    assert len(whole.splitlines()) == 701
    assert out.stat().st_mode & 0o777 == 0o600
    arguments[3] = str(bad)
    assert run(arguments) == 4
    assert out.read_bytes() == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.csv", "bad.csv", "p.csv"]
    lines = tmp_path / "answers.jsonl"
    assert run(["device", "predict", str(device), str(people), "--out", str(lines)]) == 0
    assert len([json.loads(line) for line in lines.read_text().splitlines()]) == 700


def test_progress_is_told_as_far_as_the_end_is_known(
    device: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        "privet.output.progress",
        lambda quiet: contextlib.nullcontext(lambda *one: None if quiet else told.append(one)),
    )
    people = write(tmp_path / "p.csv", table(600))
    size = people.stat().st_size
    np.save(tmp_path / "p.npy", np.tile(RECORDS, (200, 1)))
    for source, last in (
        (str(people), ("predicting, bytes", size, size)),
        (str(tmp_path / "p.npy"), ("predicting, records", 600, 600)),
        ("-", ("predicting, bytes", size, 0)),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(people.read_bytes())))
        assert run(["device", "predict", str(device), source]) == 0
        assert told[-1] == last
        told.clear()
        assert run(["device", "predict", str(device), str(people), "--quiet"]) == 0
        assert told == []
    capsys.readouterr()


def test_options_that_contradict_each_other_are_refused(
    device: Path, tmp_path: Path, capsys: Out
) -> None:
    people = str(write(tmp_path / "p.csv", table(3)))
    for more in (
        ["--lines", "--format", "json"],
        ["--out", str(tmp_path / "x.txt")],
        ["--out", str(tmp_path / "x.csv"), "--lines"],
        ["--threshold", "maybe=0.5"],
    ):
        assert run(["device", "predict", str(device), people, *more]) == 4
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
    assert [file.name for file in tmp_path.iterdir()] == ["p.csv"]


def test_a_refused_file_leaves_the_device_as_it_was(device: Path, tmp_path: Path) -> None:
    before = contents(device, without=())
    with pytest.raises(PrivetError):
        Predictor.load(device).predict_file(write(tmp_path / "p.csv", "age\n1\n"))
    assert contents(device, without=()) == before
