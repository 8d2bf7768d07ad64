"""A start that takes as done what an update did: the same answers, and no way around a check."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.device import prepared, preparing, slots, verify
from client.device.home import DeviceHome
from client.device.prepared import Prepared
from client.device.rollback import roll_back
from client.device.runtime import Predictor
from client.device.status import Status
from client.device.updater import update
from common import durable
from common.errors import OperationError, TrustError
from common.inference import KnownAnswers
from tests.client.device_fixtures import (
    FIRST,
    NOW,
    RECORDS,
    SECOND,
    Recipe,
    World,
    answers,
    contents,
    is_answer_of,
)

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.updated(tmp_path)


def is_whole(home: DeviceHome, recipe: Recipe = FIRST) -> bool:
    return is_answer_of(recipe, answers(home))


@pytest.fixture
def fully(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of each release that a start verifies in full."""
    seen: list[str] = []
    real = verify.verify

    def counted(*arguments, **more):
        if "known" in more:  # not an update
            seen.append(more["name"])
        return real(*arguments, **more)

    monkeypatch.setattr(verify, "verify", counted)
    return seen


def file_of(home: DeviceHome, slot: str = "a") -> Path:
    return home.slots / slot / "prepared.sealed"


def test_a_start_after_an_update_verifies_nothing_in_full_and_answers_the_same(
    world: World, fully: list[str]
) -> None:
    assert is_whole(world.home)
    assert fully == []
    quick = Predictor.load(world.home).probabilities(RECORDS)
    file_of(world.home).unlink()
    np.testing.assert_array_equal(Predictor.load(world.home).probabilities(RECORDS), quick)
    assert fully == ["clinic-linear"]


def test_a_start_imports_no_check_that_an_update_made_and_no_reader(world: World) -> None:
    code = (
        "import sys\n"
        "from client.device.runtime import Predictor\n"
        "from common.inference import synthetic_records\n"
        f"model = Predictor.load({str(world.home.path)!r})\n"
        "model.probabilities(synthetic_records(model.schema, 2))\n"
        "own = [name for name in sys.modules if name.startswith(('client.', 'common.'))]\n"
        "print(*own, *({'tuf', 'tempfile', 'tomllib', 'difflib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "client.device.prepared" in imported
    unneeded = {"verify", "documents", "updater", "preparing", "reading", "reading.opening"}
    assert not imported & {f"client.device.{name}" for name in unneeded}
    assert not imported & {"common.onnx_format", "common.onnx_grammar", "common.weights"}
    assert not imported & {"tuf", "tempfile", "tomllib", "difflib"}


def test_a_release_that_was_gone_back_to_starts_quickly_too(world: World, fully: list[str]) -> None:
    world.publish(SECOND)
    update(world.home, NOW)
    assert is_whole(world.home, SECOND)
    roll_back(world.home, NOW)
    assert is_whole(world.home, FIRST)
    assert fully == []


# -- what does not open counts for nothing, and is mended ------------------------------------------


def a_bit_is_flipped(world: World) -> None:
    data = bytearray(file_of(world.home).read_bytes())
    data[len(data) // 2] ^= 1
    file_of(world.home).write_bytes(data)


def it_is_cut_short(world: World) -> None:
    file_of(world.home).write_bytes(file_of(world.home).read_bytes()[:-1])


def it_is_empty(world: World) -> None:
    file_of(world.home).write_bytes(b"")


def it_is_gone(world: World) -> None:
    file_of(world.home).unlink()


def it_is_that_of_an_older_release(world: World) -> None:
    kept = file_of(world.home).read_bytes()
    world.publish(SECOND)
    update(world.home, NOW)
    file_of(world.home, "b").write_bytes(kept)


def it_is_that_of_another_device(world: World) -> None:
    other = world.device("other")
    update(other, NOW)
    shutil.copy(file_of(other), file_of(world.home))


def it_is_another_file_that_this_device_sealed(world: World) -> None:
    shutil.copy(world.home.slots / "a" / "model.onnx.sealed", file_of(world.home))


def it_expects_another_answer(world: World) -> None:
    """Sealed by the device itself: as if the runtime computed something else than it did."""
    release = slots.current(world.home).release
    made = slots.ready(world.home, release)
    assert made is not None
    wrong = KnownAnswers(made.answers.inputs, 1 - made.answers.probabilities, 1e-4)
    slots.put_ready(world.home, release, replace(made, answers=wrong))


def its_graph_is_no_graph(world: World) -> None:
    release = slots.current(world.home).release
    made = slots.ready(world.home, release)
    assert made is not None
    slots.put_ready(world.home, release, replace(made, graph=b"\xff" * 100))


def it_has_another_form(world: World) -> None:
    """Of a build that counted the same checks."""
    release = slots.current(world.home).release
    sealed = world.home.identity.seal(b"\xff" * 100, release.prepared_as())
    file_of(world.home).write_bytes(sealed)


def it_is_larger_than_it_can_be(world: World) -> None:
    os.truncate(file_of(world.home), 1 << 40)  # a file with a hole


WRONG_INSIDE = [it_expects_another_answer, its_graph_is_no_graph, it_has_another_form]


@pytest.mark.parametrize(
    "change",
    [
        a_bit_is_flipped,
        it_is_cut_short,
        it_is_empty,
        it_is_gone,
        it_is_that_of_an_older_release,
        it_is_that_of_another_device,
        it_is_another_file_that_this_device_sealed,
        *WRONG_INSIDE,
    ],
)
def test_what_is_prepared_wrongly_is_not_used_and_the_release_is_verified_in_full(
    world: World, fully: list[str], change: Callable[[World], None]
) -> None:
    change(world)
    before = contents(world.path, without=())
    recipe = SECOND if slots.current(world.home).version == 2 else FIRST
    assert is_whole(world.home, recipe)
    assert fully == ["clinic-linear"]
    assert contents(world.path, without=()) == before


@pytest.mark.parametrize("change", [*WRONG_INSIDE, it_is_larger_than_it_can_be])
def test_what_cannot_be_used_is_told_and_an_update_makes_it_anew(
    world: World, fully: list[str], change: Callable[[World], None]
) -> None:
    change(world)
    assert not Status.of(world.home).prepared
    assert not update(world.home, NOW).installed
    assert Status.of(world.home).prepared
    assert is_whole(world.home)
    assert fully == []


def test_a_pipe_in_its_place_is_not_waited_for(world: World, fully: list[str]) -> None:
    file_of(world.home).unlink()
    os.mkfifo(file_of(world.home))
    assert is_whole(world.home)
    assert fully == ["clinic-linear"]


# -- a release is sound without it -----------------------------------------------------------------


def the_disk_has_no_room_for_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = durable.replace

    def replace_others(path: Path, data: bytes, **more: int) -> None:
        if path.name == "prepared.sealed":
            raise OperationError("no space left", code="disk-full")
        real(path, data, **more)

    monkeypatch.setattr(durable, "replace", replace_others)


def a_directory_is_in_its_place(world: World, _: pytest.MonkeyPatch) -> None:
    file_of(world.home, "b").mkdir(parents=True)


def the_runtime_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(preparing, "optimized", fail)


@pytest.mark.parametrize(
    "trouble", [the_disk_has_no_room_for_it, a_directory_is_in_its_place, the_runtime_fails]
)
def test_a_release_that_cannot_be_prepared_is_installed_all_the_same(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[World, pytest.MonkeyPatch], None],
) -> None:
    world.publish(SECOND)
    trouble(world, monkeypatch)
    assert update(world.home, NOW).version == 2
    assert is_whole(world.home, SECOND)
    assert not update(world.home, NOW).installed
    assert not Status.of(world.home).prepared


def test_what_an_owner_went_back_to_is_prepared_for_another_processor_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(SECOND)
    update(world.home, NOW)
    roll_back(world.home, NOW)
    monkeypatch.setattr(prepared, "_FEATURES", {"another": True})
    assert not Status.of(world.home).prepared
    assert not update(world.home, NOW).installed
    assert Status.of(world.home).prepared


CHECKED_BY = """
    client/device/documents.py client/device/prepared.py client/device/release.py
    client/device/succession.py client/device/verify.py common/canonical.py common/data/schema.py
    common/inference.py common/keys.py common/onnx_format.py common/onnx_grammar.py
    common/onnx_runtime.py common/onnx_slices.py common/statement.py common/weights.py
"""
COUNTED = "e714a297e5d1f6f0"  # 2


def test_whoever_changes_what_a_release_has_to_pass_counts_that_up() -> None:
    """What was prepared passed the checks of its day: ``CHECKS`` says which those were.

    If this fails, raise ``prepared.CHECKS`` where devices should check again what they run (a check
    became stricter, a form changed), and write down here what there is now.
    """
    known = hashlib.sha256()
    for name in CHECKED_BY.split():
        tree = ast.parse((ROOT / name).read_text())
        for node in ast.walk(tree):
            if ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None:
                del node.body[0]
        known.update(ast.dump(tree).encode())
    assert known.hexdigest()[:16] == COUNTED


@pytest.mark.parametrize(
    ("name", "value"),
    [("CHECKS", prepared.CHECKS + 1), ("_FEATURES", {"another": True})],
)
def test_other_checks_or_another_processor_ask_for_another_and_an_update_makes_it(
    world: World, fully: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(prepared, name, value)
    assert is_whole(world.home)
    assert fully == ["clinic-linear"]
    assert not Status.of(world.home).prepared
    assert not update(world.home, NOW).installed
    assert Status.of(world.home).prepared
    assert is_whole(world.home)
    assert fully == ["clinic-linear"]


@pytest.mark.parametrize("library", ["onnxruntime", "cryptography"])
def test_another_runtime_or_another_verifier_of_signatures_asks_for_another(
    world: World, fully: list[str], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setattr(f"{library}.__version__", "0.0.1")
    assert is_whole(world.home)
    assert fully == ["clinic-linear"]


def test_this_processor_has_features_that_tell_it_from_others() -> None:
    """numpy has no public name for them: an upgrade that moves them is found here."""
    assert len(str(prepared.made_for()["processor"]).split()) > 3


def test_where_no_file_can_be_made_in_memory_a_device_works_without(
    world: World, fully: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.memfd_create")
    world.publish(SECOND)
    assert update(world.home, NOW).version == 2
    assert not file_of(world.home, "b").exists()
    assert is_whole(world.home, SECOND)
    assert "in full each time" in "\n".join(Status.of(world.home).lines())
    assert not Status.of(world.home).wrong
    assert fully == ["clinic-linear"]


def test_a_directory_of_the_seal_before_is_mended_by_an_update(world: World) -> None:
    file = world.home.current
    file.write_bytes(file.read_bytes().replace(b'"schema_version":3', b'"schema_version":2'))
    with pytest.raises(TrustError, match=r"current\.json"):
        Predictor.load(world.home)
    assert update(world.home, NOW).installed
    assert is_whole(world.home)


def test_what_is_prepared_comes_back_as_it_was_written(world: World) -> None:
    made = slots.ready(world.home, slots.current(world.home).release)
    assert made is not None
    again = Prepared.decode(memoryview(made.encode()))
    assert (again.claims, again.graph, again.begins) == (made.claims, made.graph, made.begins)
    np.testing.assert_array_equal(again.answers.inputs, made.answers.inputs)
    np.testing.assert_array_equal(again.answers.probabilities, made.answers.probabilities)
    assert again.answers.tolerance == made.answers.tolerance
