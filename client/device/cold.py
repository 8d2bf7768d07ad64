"""From nothing to the first answer: what does a device's start take, and how much memory?

    python -m client.device.cold DIR BEGAN RECORDS

A process of its own, started by :mod:`client.device.measure`, so that nothing is imported yet. The
rule: it cannot be helped by what a device does not have: importing torch or Flower fails here.
``BEGAN`` is the monotonic clock when the process was asked for, so the interpreter's own start
counts. Prints one JSON object: seconds, and the most memory that the process has held, in bytes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ABSENT = ("flwr", "opacus", "ray", "torch")


def main(home: str, began: float, records: int) -> None:
    """Load, answer one record, note the time; then answer a batch, note the memory."""
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]
    from client.device.runtime import Predictor
    from common.inference import synthetic_records

    imported = time.monotonic()
    predictor = Predictor.load(home)
    loaded = time.monotonic()
    predictor.probabilities(synthetic_records(predictor.schema, 1))
    answered = time.monotonic()
    predictor.probabilities(synthetic_records(predictor.schema, records))
    print(
        json.dumps(
            {
                "seconds": answered - began,
                "imports_seconds": imported - began,
                "load_seconds": loaded - imported,
                "answer_seconds": answered - loaded,
                "peak_bytes": peak_bytes(),
            }
        )
    )


def peak_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """The most memory that this program was given at once; None where nobody counts it.

    Not ``ru_maxrss``, which begins with what the process that started this one held.
    """
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("VmHWM:")), [])
    return 1024 * int(words[1]) if len(words) == 3 else None


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
