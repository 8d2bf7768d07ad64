"""`make demo-network`: every party's part, as processes over TLS, to a prediction and an end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_the_demo_trains_releases_and_predicts_and_leaves_no_process(tmp_path: Path) -> None:
    mark = f"privet-demo-{os.getpid()}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MARK": mark}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "network.py"), str(tmp_path), "--format", "json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert (result["rounds"], result["valid_replies"], result["release"]) == (10, 50, 1)
    assert result["predictions"] == 600
    assert result["epsilon"] == pytest.approx(2.0, abs=0.01)  # as the plan asked for
    assert result["accuracy"] > 0.75  # three in four; most of what there is to learn
    assert not any(mark.encode() in environ for environ in environments())


def environments() -> list[bytes]:
    """What every process of this user was started with."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            found.append((process / "environ").read_bytes())
        except (OSError, ValueError):
            continue
    return found
