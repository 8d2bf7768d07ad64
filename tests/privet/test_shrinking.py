"""A finished run's model is made smaller, and released by two parties who both measured it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.device.home import DeviceHome
from client.device.runtime import Predictor
from common.canonical import digest
from common.release import CARD, MODEL, STATEMENT
from common.statement import Envelope, read_privacy_statement
from privet.releasing import exported, trained
from privet.running import simulate
from privet.shrinking import Asked, shrink_run
from server.checkpoint import CheckpointStore
from server.release.smaller.compare import Rule
from server.release.smaller.data import public, synthetic
from server.release.smaller.shrink import SHRUNK, Shrunk, Wish, shrink
from tests.privet.test_cli import call
from tests.privet.two_parties import Out, Parties, approve, propose, proposed, published
from tests.world import EXPERIMENT, Snapshot, write_experiment

ANYTHING = Rule(most_loss=1.0, least_agreement=0.0, gain=-100.0, worse=100.0)


# -- a simulated run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIVET_STATE_HOME", str(path / "state"))
        simulate(write_experiment(path, EXPERIMENT), out=path / "run")
        yield path / "run"


def test_a_simulated_run_is_released_again_and_its_device_takes_the_smaller_model(
    finished: Path, capsys: Out
) -> None:
    before = Predictor.load(DeviceHome(finished / "device"))
    attempts, published = shrink_run(finished, Asked(quantize=True, synthetic=True, rule=ANYTHING))
    assert [one.why for one in attempts] == [""]
    assert published is not None
    assert published.version == 2
    _, claims = read_privacy_statement(Envelope.decode(published.files[STATEMENT]).payload)
    (step,) = claims["lineage"]
    assert (step["method"], step["used"]["kind"]) == ("quantize", "synthetic")
    assert step["child"] == digest(published.files[MODEL])
    assert "Quantized to eight bits" in published.files[CARD].decode()
    code, data = call(capsys, "device", "update", finished / "device")
    assert (code, data["version"]) == (0, 2)
    after = Predictor.load(DeviceHome(finished / "device"))
    records = np.full((1, 1, 8, 8), 8.0, np.float32)
    assert np.allclose(before.probabilities(records), after.probabilities(records), atol=0.1)
    verify = ("audit", "verify", finished / "bundle", "--trust", finished / "trust.json")
    assert call(capsys, *verify)[0] == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--synthetic",), "nothing-to-try"),
        (("--quantize",), "not-public"),
        (("--quantize", "--data", "some.csv"), "not-declared"),
        (("--prune", "0.5", "--synthetic"), "not-on-synthetic"),
        (("--distill", "nothing", "--synthetic"), "unknown-model"),
    ],
)
def test_what_cannot_be_tried_is_refused_and_nothing_changes(
    finished: Path, capsys: Out, words: tuple[str, ...], code: str
) -> None:
    before = Snapshot.of(finished)
    found, data = call(capsys, "release", "shrink", finished, *words)
    assert (found, data["code"]) == (4, code)
    assert Snapshot.of(finished) == before


def test_what_does_not_win_is_shown_and_nothing_changes(finished: Path, capsys: Out) -> None:
    before = Snapshot.of(finished)
    words = ("--quantize", "--synthetic", "--least-agreement", "1", "--most-loss", "0")
    code, data = call(capsys, "release", "shrink", finished, *words)
    assert code == 0
    assert data["version"] is None
    assert data["tried"][0]["why"]
    assert Snapshot.of(finished) == before


# -- a deployed one --------------------------------------------------------------------------------


@pytest.fixture
def records(parties: Parties) -> Path:
    """Public records of the plan's own kind."""
    schema = parties.home.plan.schema
    draw = np.random.default_rng(1)
    names = [column.name for column in schema.columns]
    lines = [",".join([*names, str(schema.target)])]
    for number in range(60):
        values = [f"{draw.uniform(c.lower, c.upper):.3f}" for c in schema.columns]
        lines.append(",".join([*values, schema.classes[number % len(schema.classes)]]))
    path = parties.path("public.csv")
    path.write_text("\n".join(lines) + "\n")
    return path


def make_smaller(parties: Parties, records: Path | None) -> Shrunk:
    """As ``privet release shrink`` would keep it, if eight bits won for a model of six numbers."""
    home = parties.home
    checkpoint = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
    assert checkpoint is not None
    model, schema = trained(home, checkpoint.model), home.plan.schema
    tuning = public(str(records), "somebody", schema) if records else synthetic(schema)
    wish = Wish(eight_bits=True, rule=ANYTHING)
    made, _ = shrink(model, schema, exported(model, schema)[1], tuning, wish)
    made.write(parties.run / SHRUNK)
    return made


LOOSE = {"most-loss": 1, "least-agreement": 0}


def test_an_approver_measures_a_smaller_model_again_on_records_of_its_own(
    parties: Parties, capsys: Out, records: Path
) -> None:
    made = make_smaller(parties, records)
    proposal = proposed(parties, capsys)
    assert (proposal / "parents" / f"{made.lineage[0].parent}.onnx").exists()
    code, data = approve(parties, capsys, proposal, **LOOSE)
    assert (code, data["code"]) == (4, "needs-records")
    other = parties.path("other.csv")
    other.write_text("\n".join(records.read_text().splitlines()[:-2]) + "\n")
    code, data = approve(parties, capsys, proposal, data=other, **LOOSE)
    assert (code, data["code"]) == (11, "other-records")
    assert not parties.path("approval").exists()
    assert approve(parties, capsys, proposal, data=records, **LOOSE)[0] == 0
    code, data = published(parties, capsys, proposal)
    assert code == 0
    verify = ("audit", "verify", data["bundle"], "--trust", data["trust"])
    assert call(capsys, *verify)[0] == 0


def test_a_model_made_smaller_with_made_up_records_needs_none_of_an_approver(
    parties: Parties, capsys: Out
) -> None:
    make_smaller(parties, None)
    assert approve(parties, capsys, proposed(parties, capsys), **LOOSE)[0] == 0


def test_a_proposal_with_other_files_than_its_lineage_names_is_not_signed(
    parties: Parties, capsys: Out, records: Path
) -> None:
    made = make_smaller(parties, records)
    whole = proposed(parties, capsys)
    parent = f"{made.lineage[0].parent}.onnx"

    def check(change: Any) -> None:
        proposal = parties.path("altered")
        shutil.copytree(whole, proposal)
        change(proposal / "parents")
        code, _ = approve(parties, capsys, proposal, data=records, **LOOSE)
        assert code == 11
        assert not parties.path("approval").exists()
        shutil.rmtree(proposal)

    check(lambda folder: (folder / parent).unlink())
    check(lambda folder: (folder / parent).write_bytes(b"another"))
    check(lambda folder: (folder / "more.onnx").write_bytes(b"more"))


def test_a_smaller_model_of_another_training_is_not_proposed(
    parties: Parties, capsys: Out, records: Path
) -> None:
    made = make_smaller(parties, records)
    step = dataclasses.replace(made.lineage[0], parent=digest(made.model))
    other = dataclasses.replace(made, lineage=(step,), parents={digest(made.model): made.model})
    other.write(parties.run / SHRUNK)
    code, data = propose(parties, capsys, recovery=parties.recovery)
    assert (code, data["code"]) == (11, "bad-lineage")
    assert not parties.path("proposal").exists()
