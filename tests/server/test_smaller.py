"""Models made smaller: with nobody's records, beside their parents, and only where that wins.

The teacher reads 8 x 8 digits; it is trained here, for a second, without any privacy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from common.canonical import digest
from common.data.binding import Binding
from common.data.schema import Column, Schema
from common.data.source import Digits, load
from common.errors import InputError, OperationError, TrustError
from common.inference import KnownAnswers, Session
from common.lineage import PUBLIC, read, write
from common.models.model import Model
from common.models.preprocess import Preprocess, ServingModel
from common.models.registry import build
from server.release.export import to_onnx
from server.release.smaller.compare import Rule, compare
from server.release.smaller.data import Tuning, of_binding, public, synthetic
from server.release.smaller.fit import Effort
from server.release.smaller.quantize import quantize, scopes
from server.release.smaller.shrink import Shrunk, Wish, measured_again, shrink
from server.release.smaller.students import answers_of, distill, prune
from tests.world import killed_at

TEN = tuple("0123456789")
SCHEMA = Schema("image", (1, 8, 8), TEN, upper=16.0)
ANYTHING = Rule(most_loss=1.0, least_agreement=0.0, gain=-100.0, worse=100.0)
HELD_OUT = Binding("digits", test="held-out", held_out=0.2)
SHORT = Effort(epochs=8)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module")
def digits() -> Tuning:
    records = load(Digits(), SCHEMA)
    return Tuning(PUBLIC, "digits", records.features, records.labels)


@pytest.fixture(scope="module")
def teacher(digits: Tuning) -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    features = Preprocess(SCHEMA)(torch.from_numpy(digits.part))
    assert digits.labels is not None
    labels = torch.from_numpy(digits.labels[1::2])
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(features), labels).backward()
        optimizer.step()
    return Model(nn.Identity(), network.eval())


@pytest.fixture(scope="module")
def exported(teacher: Model) -> bytes:
    return to_onnx(ServingModel(teacher, SCHEMA), SCHEMA)


@pytest.fixture(scope="module")
def answers(teacher: Model) -> KnownAnswers:
    serving = ServingModel(teacher, SCHEMA).eval()
    with torch.inference_mode():
        return KnownAnswers.make(SCHEMA, lambda x: serving(torch.from_numpy(x)).numpy())


@pytest.fixture(scope="module")
def shrunk(teacher: Model, answers: KnownAnswers, digits: Tuning) -> Shrunk:
    wish = Wish(fraction=0.5, eight_bits=True, effort=SHORT, rule=ANYTHING)
    made, _ = shrink(teacher, SCHEMA, answers, digits, wish)
    return made


# -- eight bits ------------------------------------------------------------------------------------


def test_eight_bits_are_smaller_and_answer_nearly_the_same(exported: bytes, digits: Tuning) -> None:
    for scope in scopes(exported):
        small = quantize(exported, digits.part, scope)
        found = compare(exported, small, SCHEMA, digits, calls=1)
        assert found.sizes[1] < 0.5 * found.sizes[0]
        assert found.agreement >= 0.985
        assert abs(found.lost) <= 0.01


def test_weights_use_seven_bits_so_that_sums_of_two_products_fit_sixteen(
    exported: bytes, digits: Tuning
) -> None:
    """Two products of an unsigned eight-bit and a signed seven-bit number: 2 x 255 x 64 < 2^15."""
    model = onnx.load_from_string(quantize(exported, digits.part))
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(weights) == 3
    assert max(int(np.abs(value.astype(int)).max()) for value in weights) <= 64
    assert 2 * 255 * 64 < 2**15


def test_eight_bits_are_the_same_bytes_again_with_standard_operators_and_no_trace_of_a_machine(
    exported: bytes, digits: Tuning
) -> None:
    first, second = (quantize(exported, digits.part) for _ in range(2))
    assert first == second
    model = onnx.load_from_string(first)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.metadata_props
    assert b"/tmp" not in first


def test_a_model_without_products_has_no_scope() -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Softmax", ["x"], ["y"])], "g", [], [])
    assert scopes(onnx.helper.make_model(graph).SerializeToString()) == ()


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_a_table_is_quantized_from_made_up_records_too(name: str) -> None:
    columns = tuple(Column(f"c{k}", -1.0, 1.0) for k in range(12))
    schema = Schema("table", (12,), ("no", "yes"), columns, target="ill")
    model = build(name, schema, seed=1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    before = to_onnx(ServingModel(model, schema), schema)
    tuning = synthetic(schema)
    found = compare(before, quantize(before, tuning.part), schema, tuning, calls=1)
    assert found.accuracy is None
    assert found.agreement > 0.95


# -- students --------------------------------------------------------------------------------------


def test_a_student_learns_the_teachers_answers_from_records_without_labels(
    teacher: Model, digits: Tuning
) -> None:
    student = build("mlp", SCHEMA, seed=1)
    before = answers_of(student, SCHEMA, digits.rest).argmax(1)
    taught = distill(student, teacher, SCHEMA, digits.part, Effort(30))
    right = answers_of(teacher, SCHEMA, digits.rest).argmax(1)
    assert (before == right).float().mean() < 0.3
    assert (answers_of(taught, SCHEMA, digits.rest).argmax(1) == right).float().mean() > 0.9


def test_the_same_effort_gives_the_same_bits_whatever_torchs_own_chance_says(
    teacher: Model, digits: Tuning
) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        student = distill(build("mlp", SCHEMA, seed=1), teacher, SCHEMA, digits.part, Effort(1))
        found.append(torch.cat([p.flatten() for p in student.network.parameters()]))
    assert torch.equal(*found)


def test_pruning_takes_whole_channels_and_leaves_the_trained_network_alone(
    teacher: Model, digits: Tuning
) -> None:
    before = parameters(teacher.network)
    thin = prune(teacher, SCHEMA, digits.part, 0.5, SHORT)
    # 8 channels of 3 x 3; 8 x 16 inputs of 32 units; 10 classes
    assert parameters(thin.network) == 8 * 9 + 8 + 128 * 32 + 32 + 32 * 10 + 10
    assert parameters(teacher.network) == before
    right = answers_of(teacher, SCHEMA, digits.rest).argmax(1)
    assert (answers_of(thin, SCHEMA, digits.rest).argmax(1) == right).float().mean() > 0.9


def test_a_network_of_one_layer_cannot_be_pruned(digits: Tuning) -> None:
    with pytest.raises(OperationError) as caught:
        prune(build("softmax", SCHEMA, seed=1), SCHEMA, digits.part, 0.5, SHORT)
    assert caught.value.code == "nothing-to-prune"


# -- beside its parent -----------------------------------------------------------------------------


def test_a_model_beside_itself_agrees_with_no_drift(exported: bytes, digits: Tuning) -> None:
    found = compare(exported, exported, SCHEMA, digits, calls=3)
    assert (found.agreement, found.drift, found.lost) == (1.0, 0.0, 0.0)
    assert found.sizes == (len(exported), len(exported))
    assert min(found.microseconds) > 0


def test_drift_is_the_change_of_a_logit_less_what_a_softmax_does_not_see(
    exported: bytes, digits: Tuning
) -> None:
    """One class' bias grows by 1 of 10: that logit by 1 - 1/10 over the mean, the rest by -1/10."""
    model = onnx.load_from_string(exported)
    bias = next(t for t in model.graph.initializer if tuple(t.dims) == (10,))
    for change, expected in ((np.ones(10), 0.0), (np.eye(10)[3], 0.9)):
        values = (numpy_helper.to_array(bias) + change).astype(np.float32)
        other = onnx.load_from_string(exported)
        kept = next(t for t in other.graph.initializer if t.name == bias.name)
        kept.CopyFrom(numpy_helper.from_array(values, bias.name))
        found = compare(exported, other.SerializeToString(), SCHEMA, digits, calls=1)
        assert found.drift == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"agreement": 0.98}, "agrees"),
        ({"accuracy": (0.9, 0.88)}, "loses 2.00 points"),
        ({"accuracy": (0.9, 0.95)}, ""),
        ({"accuracy": None}, ""),
        ({"sizes": (100, 95), "microseconds": (10.0, 9.5)}, "neither"),
        ({"sizes": (100, 95), "microseconds": (10.0, 5.0)}, ""),
        ({"sizes": (100, 30), "microseconds": (10.0, 16.0)}, "its time 1.60"),
    ],
)
def test_a_step_wins_by_what_it_keeps_and_what_it_saves(
    exported: bytes, digits: Tuning, changes: dict[str, Any], word: str
) -> None:
    found = dataclasses.replace(
        compare(exported, exported, SCHEMA, digits, calls=1),
        **{"sizes": (100, 40), "microseconds": (10.0, 10.0), "accuracy": (0.9, 0.9), **changes},
    )
    why = Rule().against(found)
    assert word in why
    assert bool(why) == bool(word)


def test_what_does_not_win_is_told_and_not_kept(
    teacher: Model, answers: KnownAnswers, digits: Tuning, exported: bytes
) -> None:
    wish = Wish(fraction=0.9, effort=Effort(1), rule=Rule(least_agreement=1.0))
    made, attempts = shrink(teacher, SCHEMA, answers, digits, wish)
    assert (made.model, made.lineage, made.parents) == (exported, (), {})
    assert made.answers is answers
    assert [(one.step.method, bool(one.why)) for one in attempts] == [("prune", True)]


def test_each_step_begins_with_what_the_one_before_it_left(
    shrunk: Shrunk, exported: bytes, digits: Tuning
) -> None:
    thin, eight = shrunk.lineage
    assert (thin.method, eight.method) == ("prune", "quantize")
    assert thin.parent == digest(exported)
    assert thin.child == eight.parent
    assert eight.child == digest(shrunk.model)
    assert shrunk.parents[thin.parent] == exported
    assert thin.settings["fraction"] == "0.5"
    assert (eight.used.tuned, eight.used.compared) == (898, 899)
    shrunk.answers.check(Session(shrunk.model, SCHEMA))
    measured_again(shrunk, SCHEMA, digits, ANYTHING)


# -- whose records ---------------------------------------------------------------------------------


def test_records_that_a_step_works_with_are_never_those_that_it_is_measured_on() -> None:
    features = np.arange(41, dtype=np.float32).reshape(41, 1)
    tuning = Tuning(PUBLIC, "numbers", features, None)
    both = np.concatenate([tuning.part, tuning.rest]).ravel()
    assert sorted(both.tolist()) == list(range(41))
    assert (tuning.used().tuned, tuning.used().compared) == (20, 21)


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda: public("some.csv", " ", SCHEMA), "not-declared"),
        (
            lambda: of_binding(Binding("digits", test="held-out", held_out=0.2), SCHEMA),
            "not-public",
        ),
        (lambda: of_binding(Binding("digits"), SCHEMA), "not-public"),
        (lambda: Tuning(PUBLIC, "few", np.zeros((19, 1), np.float32), None), "too-few-records"),
    ],
)
def test_records_that_nobody_declares_public_are_refused(
    work: Callable[[], object], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        work()
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (Wish(), "nothing-to-try"),
        (Wish(fraction=0.5), "not-on-synthetic"),
        (Wish(student=("mlp", build("mlp", SCHEMA, seed=1))), "not-on-synthetic"),
    ],
)
def test_what_cannot_be_learnt_from_made_up_records_is_refused(
    teacher: Model, answers: KnownAnswers, wish: Wish, code: str
) -> None:
    with pytest.raises(InputError) as caught:
        shrink(teacher, SCHEMA, answers, synthetic(SCHEMA), wish)
    assert caught.value.code == code


# -- what is kept and believed ---------------------------------------------------------------------


def test_what_is_kept_comes_back_as_it_was(shrunk: Shrunk, tmp_path: Path) -> None:
    shrunk.write(tmp_path / "shrunk")
    again = Shrunk.read(tmp_path / "shrunk", SCHEMA)
    assert (again.model, again.lineage, again.parents) == (
        shrunk.model, shrunk.lineage, shrunk.parents,
    )  # fmt: skip


def test_killed_at_any_write_there_is_the_old_the_new_or_nothing(
    shrunk: Shrunk, tmp_path: Path
) -> None:
    place = tmp_path / "shrunk"
    old = dataclasses.replace(shrunk, lineage=(), parents={})
    found, step = set(), 1
    while True:
        old.write(place)
        if not killed_at(step, lambda: shrunk.write(place)):
            break
        found.add(len(Shrunk.read(place, SCHEMA).lineage) if place.exists() else None)
        step += 1
    assert step > 10
    assert found <= {0, 2, None}
    assert len(Shrunk.read(place, SCHEMA).lineage) == 2


def test_a_file_that_was_changed_or_is_gone_is_found(shrunk: Shrunk, tmp_path: Path) -> None:
    place = tmp_path / "shrunk"
    for file in ("model.onnx", f"parents/{shrunk.lineage[0].parent}.onnx", "lineage.json"):
        for change in ("damage", "remove"):
            shrunk.write(place)
            if change == "remove":
                (place / file).unlink()
            else:
                (place / file).write_bytes((place / file).read_bytes()[:-1])
            with pytest.raises(TrustError) as caught:
                Shrunk.read(place, SCHEMA)
            assert caught.value.code == "bad-lineage"


def test_whoever_measures_again_finds_other_records_and_other_models(
    shrunk: Shrunk, exported: bytes, digits: Tuning
) -> None:
    other = dataclasses.replace(digits, features=digits.features[::-1].copy())
    with pytest.raises(TrustError) as caught:
        measured_again(shrunk, SCHEMA, other, ANYTHING)
    assert caught.value.code == "other-records"
    untrained = to_onnx(ServingModel(build("mlp", SCHEMA, seed=5), SCHEMA), SCHEMA)
    lying = dataclasses.replace(
        shrunk,
        model=untrained,
        lineage=(
            shrunk.lineage[0],
            dataclasses.replace(shrunk.lineage[1], child=digest(untrained)),
        ),
    )
    with pytest.raises(TrustError) as caught:
        measured_again(lying, SCHEMA, digits, Rule())
    assert caught.value.code == "bad-lineage"


def altered(model: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    loaded = onnx.load_from_string(model)
    change(loaded.graph)
    return loaded.SerializeToString()


def across_the_batch(graph: onnx.GraphProto) -> None:
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    softmax.attribute[0].i = 0


def hungry(graph: onnx.GraphProto) -> None:
    """A gigabyte of random numbers first, as no device would run it."""
    nodes = [
        onnx.helper.make_node("RandomUniform", [], ["much"], shape=[1 << 28], dtype=1),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)


@pytest.mark.parametrize("change", [across_the_batch, hungry])
def test_a_model_that_a_device_would_not_run_or_that_answers_in_company_alone_is_not_compared(
    exported: bytes, digits: Tuning, change: Callable[[onnx.GraphProto], None]
) -> None:
    for pair in ((exported, altered(exported, change)), (altered(exported, change), exported)):
        with pytest.raises(TrustError):
            compare(*pair, SCHEMA, digits, calls=1)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"agreement": 0.9}, "agreement"),
        ({"drift": 99.0}, "drift"),
        ({"accuracy": (0.999, 0.999)}, "accuracy"),
        ({"accuracy": None}, "accuracy"),
        ({"sizes": (10**6, 10)}, "size"),
    ],
)
def test_numbers_that_are_not_so_are_found_by_whoever_measures_again(
    shrunk: Shrunk, digits: Tuning, changes: dict[str, Any], word: str
) -> None:
    thin, eight = shrunk.lineage
    lying = dataclasses.replace(eight, compared=dataclasses.replace(eight.compared, **changes))
    with pytest.raises(TrustError, match=f"says of its {word}") as caught:
        measured_again(dataclasses.replace(shrunk, lineage=(thin, lying)), SCHEMA, digits, ANYTHING)
    assert caught.value.code == "bad-lineage"


def test_counts_of_records_are_not_believed_and_nothing_is_learnt_from_noise(
    shrunk: Shrunk, digits: Tuning
) -> None:
    thin = shrunk.lineage[0]
    more = dataclasses.replace(thin, used=dataclasses.replace(thin.used, compared=10**6))
    with pytest.raises(TrustError) as caught:
        measured_again(dataclasses.replace(shrunk, lineage=(more,)), SCHEMA, digits, ANYTHING)
    assert caught.value.code == "other-records"
    noise = synthetic(SCHEMA)
    learnt = dataclasses.replace(thin, used=noise.used())
    with pytest.raises(TrustError, match="noise"):
        measured_again(dataclasses.replace(shrunk, lineage=(learnt,)), SCHEMA, noise, ANYTHING)


def change(path: str, value: Any) -> Callable[[list[Any]], None]:
    def work(steps: list[Any]) -> None:
        *places, last = path.split(".")
        inner = steps[0]
        for place in places:
            inner = inner[place]
        if value is None:
            del inner[last]
        else:
            inner[last] = value

    return work


@pytest.mark.parametrize(
    "damage",
    [
        change("method", "guess"),
        change("method", None),
        change("parent", "ab"),
        change("child", "cd" * 32),
        change("extra", "1"),
        change("settings", []),
        change("settings", {"epochs": 3}),
        change("used.kind", "private"),
        change("used.tuned", 0),
        change("used.sha256", "x"),
        change("compared.agreement", "1.5"),
        change("compared.bytes", {"parent": 1}),
        change("compared.bytes", {"parent": 1, "child": -1}),
        change("compared.microseconds", {"parent": "1", "child": "nan"}),
        change("compared.accuracy", {"parent": "0.5", "child": "0.5", "other": "0.5"}),
        lambda steps: steps.reverse(),
        lambda steps: steps.pop(),
        lambda steps: steps.extend(steps * 8),
        lambda steps: steps.insert(0, "step"),
    ],
)
def test_a_lineage_that_does_not_hold_together_is_refused(
    shrunk: Shrunk, damage: Callable[[list[Any]], None]
) -> None:
    steps: list[Any] = write(shrunk.lineage)
    assert read(steps, digest(shrunk.model)) == shrunk.lineage
    damage(steps)
    with pytest.raises(TrustError) as caught:
        read(steps, digest(shrunk.model))
    assert caught.value.code == "bad-lineage"
