"""What does the installed model cost on this machine? Time, memory, disk, CPU time and energy.

The rules: every figure is of calls through our own API on synthetic records of the schema, and
beside it stands ONNX Runtime alone over the same bytes, called in turn in the same process, so that
what we add is seen. A start is measured in a process of its own. Nothing is called joules that was
not counted (:mod:`client.device.energy`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.device import slots
from client.device.cold import ABSENT
from client.device.energy import WATTS, Energy, Rapl
from client.device.home import DeviceHome
from client.device.runtime import Predictor, installed
from common.errors import OperationError
from common.inference import INPUT, OUTPUT, Array, synthetic_records
from common.release import MODEL

CALLS, BATCH, STARTS = 2000, 256, 5
SECONDS = 10.0  # a measurement of calls ends here, however few there were
BLOCK, WARMUP = 20, 10
_START_SECONDS = 120.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calls:
    """Calls with so many records each: microseconds a call, records a second.

    Args:
        api: through :class:`~client.device.runtime.Predictor`.
        bare: ONNX Runtime alone.
        overhead_us: of a call: by how much ours took longer, a median of blocks beside each other.
    """

    records: int
    calls: int
    api_p50_us: float
    api_p99_us: float
    api_per_second: float
    bare_p50_us: float
    bare_p99_us: float
    bare_per_second: float
    overhead_us: float

    @classmethod
    def of(cls, records: int, api: list[int], bare: list[int]) -> Calls:
        """From times in nanoseconds, in pairs."""
        ours, theirs = np.array(api) / 1000, np.array(bare) / 1000
        p50, p99 = np.percentile((ours, theirs), [50, 99], axis=1).tolist()
        return cls(
            records=records,
            calls=len(api),
            api_p50_us=p50[0],
            api_p99_us=p99[0],
            api_per_second=1e6 * records * len(api) / float(ours.sum()),
            bare_p50_us=p50[1],
            bare_p99_us=p99[1],
            bare_per_second=1e6 * records * len(bare) / float(theirs.sum()),
            overhead_us=float(np.median(_by_block(ours) - _by_block(theirs))),
        )


def _by_block(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each block of calls; of fewer calls than a block has, that of all."""
    whole = len(times) // BLOCK * BLOCK
    blocks: NDArray[np.float64] = np.median(
        times[:whole].reshape(-1, BLOCK) if whole else times[None], axis=1
    )
    return blocks


@dataclass(frozen=True)
class Starts:
    """Processes that were started one after the other: medians, in seconds and bytes.

    Args:
        seconds: from asking for the process to its first answer.
        imports_seconds, load_seconds, answer_seconds: its parts; imports with the interpreter,
            loading with all verification.
        peak_bytes: of memory, after a batch of records; None where nobody counts it.
    """

    starts: int
    seconds: float
    slowest_seconds: float
    imports_seconds: float
    load_seconds: float
    answer_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """Everything that was measured."""

    model: str
    version: int
    single: Calls
    batched: Calls
    start: Starts
    model_bytes: int
    release_bytes: int
    cpu_seconds_per_1000: float
    batched_cpu_seconds_per_1000: float
    energy_per_1000: Energy

    def json(self) -> dict[str, Any]:
        energy = asdict(self.energy_per_1000)
        return {
            "model": self.model,
            "version": self.version,
            "single": asdict(self.single),
            "batched": asdict(self.batched),
            "start": {**asdict(self.start), "without": list(ABSENT)},
            "model_bytes": self.model_bytes,
            "release_bytes": self.release_bytes,
            "cpu_seconds_per_1000": self.cpu_seconds_per_1000,
            "batched_cpu_seconds_per_1000": self.batched_cpu_seconds_per_1000,
            "energy_source": energy.pop("source"),
            "energy_why": energy.pop("why"),
            "watts_per_core": energy.pop("watts_per_core"),
            "joules_per_1000": energy.pop("joules"),
            "joules_per_1000_range": [energy.pop("low"), energy.pop("high")],
        }


def measure(
    home: DeviceHome,
    *,
    batch: int = BATCH,
    calls: int = CALLS,
    starts: int = STARTS,
    watts: float = WATTS,
    rapl: Rapl | None = None,
    progress: Progress = lambda *_: None,
) -> Cost:
    """Measure a device's model.

    Args:
        batch: records of a call, besides calls with one; >= 1.
        calls: of each kind, at most; fewer of a model that is slow.
        starts: processes to start, >= 1.
        watts: assumed of a busy core where nothing can be measured, > 0.
        rapl: counters; those of this machine if None.
        progress: is told (what, done, of).

    Raises:
        OperationError: nothing is installed, or a process could not be started.
        TrustError: what is installed does not verify.
    """
    model = installed(home)
    predictor, session = Predictor(model), model.session

    def bare(records: Array) -> Any:
        return session.runtime(len(records))([OUTPUT], {INPUT: records}, None)

    one, many = (synthetic_records(predictor.schema, count) for count in (1, batch))
    single = _pairs(predictor.probabilities, bare, one, calls, "one record a call", progress)
    batched = _pairs(predictor.probabilities, bare, many, calls, f"{batch} a call", progress)
    cpu, energy = _spent(predictor.probabilities, one, single, watts, rapl or Rapl.find())
    batched_cpu, _ = _spent(predictor.probabilities, many, batched, watts, Rapl(()))
    return Cost(
        model=predictor.name,
        version=predictor.version,
        single=single,
        batched=batched,
        start=_starts(home.path, batch, starts, progress),
        model_bytes=len(slots.load(home)[1][MODEL]),
        release_bytes=slots.size(home),
        cpu_seconds_per_1000=cpu,
        batched_cpu_seconds_per_1000=batched_cpu,
        energy_per_1000=energy,
    )


def _pairs(
    ours: Callable[[Array], Any],
    bare: Callable[[Array], Any],
    records: Array,
    calls: int,
    what: str,
    progress: Progress,
) -> Calls:
    """Time both, some calls of one and then of the other: a machine that drifts slows both.

    Some, and not one, because in use nothing else comes between and empties the caches.
    """
    for _ in range(WARMUP):
        ours(records)
        bare(records)
    times: tuple[list[int], list[int]] = ([], [])
    for call in _while_time(-(-calls // BLOCK)):
        pair = ((ours, times[0]), (bare, times[1]))
        for work, taken in pair if call % 2 else reversed(pair):  # nobody is always the second
            for _ in range(min(BLOCK, calls)):
                began = time.perf_counter_ns()
                work(records)
                taken.append(time.perf_counter_ns() - began)
        progress(what, min((call + 1) * BLOCK, calls), calls)
    progress(what, calls, calls)
    return Calls.of(len(records), *times)


def _while_time(blocks: int) -> Iterator[int]:
    """Numbers from 0: so many, or fewer once SECONDS have passed, but one."""
    ends = time.monotonic() + SECONDS
    for block in range(blocks):
        if block and time.monotonic() >= ends:
            return
        yield block


def _spent(
    work: Callable[[Array], Any], records: Array, measured: Calls, watts: float, rapl: Rapl
) -> tuple[float, Energy]:
    """CPU-seconds and energy of a thousand predictions, over calls of ours alone."""
    before, began = rapl.read(), time.process_time()
    for _ in range(measured.calls):
        work(records)
    cpu, after = time.process_time() - began, rapl.read()
    share = 1000 / (measured.calls * len(records))
    if before is None or after is None:
        return share * cpu, Energy.estimated(share * cpu, watts, rapl.why_not)
    energy = Energy.measured(before, after)
    scaled = share * energy.joules
    return share * cpu, Energy(energy.source, scaled, scaled, scaled, None, "")


def _starts(path: Path, batch: int, count: int, progress: Progress) -> Starts:
    found = []
    for index in range(count):
        found.append(start(path, batch))
        progress("starts", index + 1, count)

    def middle(name: str) -> float:
        return median(float(one[name]) for one in found)

    peaks = [one["peak_bytes"] for one in found if one["peak_bytes"] is not None]
    return Starts(
        count,
        middle("seconds"),
        max(one["seconds"] for one in found),
        middle("imports_seconds"),
        middle("load_seconds"),
        middle("answer_seconds"),
        round(median(peaks)) if peaks else None,
    )


def start(path: Path, batch: int, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One start of a process that loads a device's model and answers; see :mod:`.cold`.

    Args:
        environment: of the process; None: this one's.

    Raises:
        OperationError: it did not come to an answer.
    """
    command = [sys.executable, "-m", "client.device.cold", str(path)]
    try:
        done = subprocess.run(
            [*command, repr(time.monotonic()), str(batch)],
            capture_output=True,
            check=True,
            text=True,
            timeout=_START_SECONDS,
            env=environment,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise OperationError(
            "a process that loads the model could not be measured",
            hint=f"run {' '.join(command)} 0 1 to see why",
        ) from error
    return found
