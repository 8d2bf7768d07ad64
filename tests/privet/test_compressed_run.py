"""A whole run with coded updates: verified as any other, what it saved is told, killed anywhere."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from common import durable
from privet import running
from privet.cli import run
from privet.running import simulate
from tests.world import EXPERIMENT, killed_at, write_experiment

TABLE = '[plan.compression]\nmethod = "top-k"\nfraction = 0.05\n\n[plan.release]'
VALUES = 650  # ten classes of 64 pixels, and a bias each
SENT = 33


def command(*arguments: object) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run([*map(str, arguments), "--format", "json"]) == 0
    document: dict[str, Any] = json.loads(out.getvalue())
    return document["data"]


@pytest.mark.slow
def test_a_run_with_top_k_tells_what_it_saved_verifies_and_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVET_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(running, "LATENCY_SAMPLES", 1)
    file = write_experiment(tmp_path, EXPERIMENT.replace("[plan.release]", TABLE))
    durable._steps = 0
    whole = tmp_path / "whole"
    summary = simulate(file, out=whole)
    steps = durable._steps

    plain = 4 * VALUES + 2 * 128
    assert summary["traffic"] == {
        "compression": "top-k",
        "update_bytes": 6 * 8 * SENT,
        "uncompressed_bytes": 6 * plain,
        "bytes_per_reply": 8 * SENT,
        "uncompressed_per_reply": plain,
        "ratio": round(plain / (8 * SENT), 3),
    }
    assert command("server", "status", whole)["traffic"]["bytes_per_reply"] == 8 * SENT
    page = (whole / "report.html").read_text()
    assert "264 B" in page
    assert "without compression (top-k)" in page
    assert command("audit", "verify", whole / "bundle", "--trust", whole / "trust.json")

    died = 0
    for step in range(steps // 3, steps, steps // 9):
        out = tmp_path / str(step)
        died += killed_at(step, lambda out=out: simulate(file, out=out))  # type: ignore[misc]
        again = simulate(file, out=out, resume=out.exists())
        assert again["model"]["sha256"] == summary["model"]["sha256"], step
        for client in ("client-0", "client-1", "client-2"):
            (left,) = (out / "clients" / client / "kept").iterdir()
            (right,) = (whole / "clients" / client / "kept").iterdir()
            # Nonces, so names of requests, differ between two runs; the residuals do not.
            assert left.read_bytes() == right.read_bytes()
    assert died >= 5
