"""A mistake in a file is told with its place, and nothing unknown is ignored."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path

import pytest

from common.config import MAX_FILE_BYTES, Table, read_toml
from common.errors import InputError, PlanError

FILE = """\
# a comment
[plan]
name = "digits"
rounds = 5

[plan.privacy]
delta = 1e-5
trust = "local"

[[plan.columns]]
name = "age"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(FILE)
    return path


def test_a_wrong_value_is_told_with_file_and_line(file: Path) -> None:
    privacy = read_toml(file).table("plan").table("privacy")
    with pytest.raises(PlanError, match=r"experiment\.toml, line 7: delta = 1e-05 must be above 1"):
        privacy.number("delta", above=1)


def test_an_unknown_key_is_told_with_its_line_and_what_was_meant(file: Path) -> None:
    file.write_text(FILE.replace("rounds", "ronds"))
    plan = read_toml(file).table("plan")
    plan.name("name")
    plan.table("privacy")
    plan.tables("columns")
    with pytest.raises(PlanError, match="rounds is missing") as caught:
        plan.integer("rounds", low=1, high=9)
    assert "line 2" in caught.value.message
    with pytest.raises(PlanError, match=r"line 4: unknown key 'ronds' in \[plan\]") as caught:
        plan.done()
    assert "did you mean 'rounds'?" in caught.value.hint


def test_a_missing_key_is_told_with_its_table(file: Path) -> None:
    with pytest.raises(PlanError, match=r"line 6: steps is missing in \[plan\.privacy\]") as caught:
        read_toml(file).table("plan").table("privacy").integer("steps", low=1, high=9)
    assert caught.value.hint == "add steps = … in [plan.privacy]"


def test_a_choice_that_is_not_one_is_told_with_the_nearest(file: Path) -> None:
    file.write_text(FILE.replace('"local"', '"locla"'))
    with pytest.raises(PlanError, match="line 8") as caught:
        read_toml(file).table("plan").table("privacy").text("trust", choices=("local", "central"))
    assert caught.value.hint.startswith("did you mean 'local'?")


ROOT = {
    "text": "a",
    "empty": "",
    "long": "x" * 5000,
    "path": "../etc",
    "number": 1.5,
    "whole": 3,
    "yes": True,
    "list": ["a", "b"],
    "twice": ["a", "a"],
    "mixed": ["a", 1],
    "ints": [1, 2],
    "table": {},
    "infinite": math.inf,
    "nan": math.nan,
    "vast": 10**400,
}
WRONG = [
    ("text", lambda t: t.number("text")),
    ("text", lambda t: t.integer("text", low=0, high=9)),
    ("text", lambda t: t.flag("text")),
    ("text", lambda t: t.table("text")),
    ("text", lambda t: t.tables("text")),
    ("text", lambda t: t.texts("text")),
    ("text", lambda t: t.integers("text", low=0, high=9)),
    ("empty", lambda t: t.text("empty")),
    ("long", lambda t: t.text("long")),
    ("path", lambda t: t.name("path")),
    ("number", lambda t: t.integer("number", low=0, high=9)),
    ("number", lambda t: t.text("number")),
    ("number", lambda t: t.number("number", high=1)),
    ("number", lambda t: t.number("number", low=2)),
    ("number", lambda t: t.number("number", below=1.5)),
    ("number", lambda t: t.number("number", above=1.5)),
    ("whole", lambda t: t.integer("whole", low=4, high=9)),
    ("whole", lambda t: t.flag("whole")),
    ("yes", lambda t: t.integer("yes", low=0, high=9)),
    ("yes", lambda t: t.number("yes")),
    ("list", lambda t: t.texts("list", least=3)),
    ("list", lambda t: t.texts("list", most=1)),
    ("list", lambda t: t.integers("list", low=0, high=9)),
    ("twice", lambda t: t.texts("twice")),
    ("mixed", lambda t: t.texts("mixed")),
    ("mixed", lambda t: t.integers("mixed", low=0, high=9)),
    ("ints", lambda t: t.integers("ints", low=0, high=1)),
    ("ints", lambda t: t.texts("ints")),
    ("ints", lambda t: t.tables("ints")),
    ("table", lambda t: t.text("table")),
    ("infinite", lambda t: t.number("infinite")),
    ("nan", lambda t: t.number("nan", low=0, high=1)),
    ("vast", lambda t: t.number("vast")),
    ("vast", lambda t: t.integer("vast", low=0, high=9)),
    ("vast", lambda t: t.integers("vast", low=0, high=9)),
    ("none", lambda t: t.text("none")),
    ("none", lambda t: t.table("none")),
]


@pytest.mark.parametrize(("key", "take"), WRONG)
def test_a_value_of_another_kind_or_range_is_a_plan_error_that_names_the_key(key, take) -> None:
    with pytest.raises(PlanError, match=rf"^here: .*{key}"):
        take(Table(dict(ROOT), source="here"))


def test_defaults_are_taken_only_where_a_key_is_absent() -> None:
    table = Table({"a": 2}, source="here")
    assert table.integer("a", 1, low=0, high=9) == 2
    assert table.integer("b", 1, low=0, high=9) == 1
    assert table.flag("c", True) is True
    assert table.table("d", required=False).values == {}
    table.done()


def test_numbers_of_digested_json_are_canonical_texts() -> None:
    table = Table({"a": "0.1", "b": "0.10", "c": "x"}, source="plan", json_numbers=True)
    assert table.number("a") == 0.1
    for key in ("b", "c"):
        with pytest.raises(PlanError):
            table.number(key)
    with pytest.raises(PlanError):
        Table({"a": "0.1"}).number("a")


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["[plan", "a = ", 'a = "x', "a = 1\na = 2", "[a]\n[a]", "a = 1" + "0" * 5000]
    + ["a = " + "[" * 20_000 + "]" * 20_000],
)
def test_what_is_not_toml_is_told_with_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"broken\.toml is not valid TOML") as caught:
        read_toml(path)
    assert caught.value.code == "malformed-toml"


def test_a_missing_oversized_or_binary_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file") as caught:
        read_toml(tmp_path / "absent.toml")
    assert caught.value.code == "no-such-file"
    with pytest.raises(InputError, match="cannot read"):
        read_toml(tmp_path)
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(PlanError, match="over"):
        read_toml(big)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read"):
        read_toml(binary)


# -- --set -----------------------------------------------------------------------------------------


def test_an_override_replaces_adds_and_is_named_as_such(file: Path) -> None:
    root = read_toml(file, ["plan.rounds=7", "plan.privacy.delta = 0.5", "policy.name=new"])
    plan = root.table("plan")
    assert plan.integer("rounds", low=1, high=9) == 7
    assert root.table("policy").text("name") == "new"
    with pytest.raises(PlanError, match=r"^--set: delta = 0\.5 must be below 0\.1"):
        plan.table("privacy").number("delta", below=0.1)


def test_an_unknown_override_is_refused_like_an_unknown_key(file: Path) -> None:
    plan = read_toml(file, ["plan.ronds=7"]).table("plan")
    for key in ("name", "rounds", "privacy", "columns"):
        plan._take(key, None)
    with pytest.raises(PlanError, match=r"^--set: unknown key 'ronds'"):
        plan.done()


@pytest.mark.parametrize("override", ["plan", "=1", ".a=1", "a..b=1", "plan.name.deeper=1", ""])
def test_an_override_that_makes_no_sense_is_an_input_error(file: Path, override: str) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match="--set"):
        read_toml(file, [override])
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "value"),
    [("4.0", 4.0), ("true", True), ('"x"', "x"), ("x", "x"), ("[1, 2]", [1, 2]), ("a=b", "a=b")]
    + [("", ""), ("1" * 5000, "1" * 5000)],
)
def test_an_overrides_value_is_toml_or_a_bare_word(file: Path, text: str, value: object) -> None:
    assert read_toml(file, [f"plan.x={text}"]).table("plan").values["x"] == value


def test_a_day_is_a_toml_date_or_its_text_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "days.toml"
    file.write_text('a = 2030-02-28\nb = "2030-02-28"\n')
    table = read_toml(file)
    assert table.day("a") == table.day("b") == date(2030, 2, 28)
    assert table.day("c") is None
    table.done()
    for text in ('"2030-02-30"', '"28.2.2030"', "2030-02-28T00:00:00Z", "12:00:00", "1", '""'):
        file.write_text(f"\na = {text}\n")
        with pytest.raises(PlanError, match=r"days\.toml, line 2: a must be a day"):
            read_toml(file).day("a")
