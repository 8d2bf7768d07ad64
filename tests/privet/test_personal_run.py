"""A whole run with personal layers: what is released, what stays, and how its owner gets at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.personal import compare, digits
from client.home import Home
from common.models.networks import parameters_of
from common.models.registry import build
from common.wire import unpack_arrays
from privet import running
from privet.running import simulate
from server.checkpoint import CheckpointStore
from server.home import ServerHome
from tests.privet.test_simulate import command
from tests.world import EXPERIMENT, write_experiment

TEXT = EXPERIMENT.replace('model = "softmax"', 'model = "mlp"').replace(
    "[plan.release]", '[plan.personal]\nlayers = ["output"]\n\n[plan.release]'
)
SHARED, OWN = {"hidden.weight", "hidden.bias"}, {"output.weight", "output.bias"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("personal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIVET_STATE_HOME", str(path / "state"))
        patch.setattr(running, "LATENCY_SAMPLES", 1)
        return path / "run", simulate(write_experiment(path, TEXT), out=path / "run")


def personal(run: Path, *options: object, client: str = "client-0") -> tuple[int, dict[str, Any]]:
    plan = ServerHome.read(run).plan.digest
    return command("client", "personal", plan[:12], "--home", run / "clients" / client, *options)


@pytest.mark.slow
def test_the_server_never_has_a_personal_layer_and_releases_the_initial_one(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    run, summary = finished
    home = ServerHome.read(run)
    latest = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
    assert latest is not None
    assert set(latest.model) == SHARED
    assert latest.changed == 2
    (file,) = (run / "repository" / "targets").rglob("*model.safetensors")
    released = unpack_arrays(file.read_bytes())
    initial = parameters_of(build("mlp", home.plan.schema, seed=0).network)
    assert set(released) == SHARED | OWN
    for name, value in released.items():
        assert np.array_equal(value, initial[name] if name in OWN else latest.model[name])
    # A model without anybody's head has no accuracy worth telling.
    assert summary["personal"] == ["output"]
    assert summary["metrics"]["accuracy"] is summary["device"]["accuracy"] is None
    assert summary["device"]["verified"] is True
    assert command("audit", "verify", run / "bundle", "--trust", run / "trust.json")[0] == 0


@pytest.mark.slow
def test_an_owner_exports_the_clients_own_model_and_nobody_else_has_it(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, _ = finished
    heads = []
    for client in ("client-0", "client-1"):
        file = tmp_path / f"{client}.safetensors"
        code, document = personal(run, "--export", file, client=client)
        data = document["data"]
        assert (code, data["rounds"], set(data["personal"])) == (0, 2, OWN)
        assert set(data["shared"]) == SHARED
        assert 0 <= data["accuracy_on_own_records"] <= 1
        assert data["records"] == len(np.load(run / "clients" / client / "rows.npy"))
        assert file.stat().st_mode & 0o077 == 0
        heads.append(unpack_arrays(file.read_bytes())["output.weight"])
        everywhere = [p for p in run.rglob("*") if p.is_file() and p.parent.name != "kept"]
        assert not any(heads[-1].tobytes() in path.read_bytes() for path in everywhere)
    assert not np.array_equal(*heads)
    assert heads[0].any()


@pytest.mark.slow
def test_the_own_head_goes_on_the_released_layers_and_on_no_other_file(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, _ = finished
    (file,) = (run / "repository" / "targets").rglob("*model.safetensors")
    out = tmp_path / "own.safetensors"
    assert personal(run, "--model", file, "--export", out)[0] == 0
    whole, released = unpack_arrays(out.read_bytes()), unpack_arrays(file.read_bytes())
    assert all(np.array_equal(whole[name], released[name]) for name in SHARED)
    assert not np.array_equal(whole["output.weight"], released["output.weight"])
    for bad in (b"", b"{}", file.read_bytes()[:-1], bytes(10**6), b"\xff" * 8 + b"{}"):
        (tmp_path / "bad").write_bytes(bad)
        assert personal(run, "--model", tmp_path / "bad")[0] == 4
    assert personal(run, "--model", tmp_path / "none")[0] == 4


@pytest.mark.slow
def test_without_a_personal_model_there_is_an_error_with_a_next_step(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    run, _ = finished
    code, document = personal(run, "--run", "0" * 32)
    assert (code, document["error"]["code"]) == (4, "no-personal-model")
    home = Home.read(run / "clients" / "client-2")
    (kept,) = home.kept.iterdir()
    data = kept.read_bytes()
    kept.unlink()
    code, document = personal(run, client="client-2")
    assert (code, document["error"]["code"]) == (4, "no-personal-model")
    assert document["error"]["hint"]
    kept.write_bytes(data)
    assert personal(run, client="client-2")[0] == 0
    assert command("client", "personal", "ffff", "--home", home.path)[1]["error"]["code"] == (
        "no-such-plan"
    )


@pytest.mark.slow
def test_where_classes_differ_own_heads_do_better_on_own_records_kept_aside() -> None:
    """Digits, ten clients, Dirichlet 0.1: measured + 7.5 points without noise, 8.0 at epsilon 8."""
    schema, records = digits()
    for epsilon in (None, 8.0):
        one, own = compare(schema, records, alpha=0.1, epsilon=epsilon, seed=1)
        assert own > one + 5
