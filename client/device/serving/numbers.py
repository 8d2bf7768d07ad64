"""How is the service doing? Counts and times, in Prometheus' text format.

The rules: nothing depends on what a record holds, no caller is told from another, and the labels
come from fixed lists: the protocol's methods, gRPC's codes, the model in use.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter

from common.exposition import Samples, by, family, one

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds


class Numbers:
    """The numbers of one process; safe to read from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._times = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0
        self._batches = self._records = 0
        self._model = ("", 0)
        self._swaps: Counter[str] = Counter({"accepted": 0, "refused": 0, "withdrawn": 0})

    def answered(self, method: str, code: str, seconds: float) -> None:
        """A call has ended with a gRPC status code."""
        with self._lock:
            self._calls[(method, code)] += 1
            if method == "ModelInfer":
                self._times[bisect_left(BUCKETS, seconds)] += 1
                self._seconds += seconds

    def ran(self, records: int) -> None:
        """The model was called with so many records."""
        with self._lock:
            self._batches += 1
            self._records += records

    def serves(self, name: str, version: int) -> None:
        """This model answers from now on."""
        with self._lock:
            self._model = (name, version)

    def serves_none(self) -> None:
        """No model answers from now on; its version is given as 0."""
        self.serves("", 0)

    def swapped(self, outcome: str) -> None:
        """A model that was installed meanwhile was ``accepted`` or ``refused``.

        Or the one in use was ``withdrawn`` by the device's owner.
        """
        with self._lock:
            self._swaps[outcome] += 1

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        with self._lock:
            name, version = self._model
            calls: Samples = [
                ("", {"method": method, "code": code}, count)
                for (method, code), count in sorted(self._calls.items())
            ]
            times: Samples = []
            for index, bound in enumerate((*map(str, BUCKETS), "+Inf")):
                times.append(("_bucket", {"le": bound}, sum(self._times[: index + 1])))
            times += [("_sum", {}, self._seconds), ("_count", {}, sum(self._times))]
            model: Samples = [("", {"name": name, "version": str(version)}, 1)] if name else []
            ran: Samples = [("_sum", {}, self._records), ("_count", {}, self._batches)]
            return "".join(
                (
                    family("privet_device_model_info", "gauge", "The model in use.", model),
                    family(
                        "privet_device_requests_total",
                        "counter",
                        "Calls that have ended, by method and gRPC status code.",
                        calls,
                    ),
                    family(
                        "privet_device_inference_seconds",
                        "histogram",
                        "Time of ModelInfer, from its arrival to its answer.",
                        times,
                    ),
                    family(
                        "privet_device_batch_records",
                        "summary",
                        "Records in a call of the model.",
                        ran,
                    ),
                    family(
                        "privet_device_model_swaps_total",
                        "counter",
                        "Models that were installed, or withdrawn, while this process served.",
                        by("outcome", self._swaps),
                    ),
                    family(
                        "privet_device_model_version",
                        "gauge",
                        "Version of the model in use.",
                        one(version),
                    ),
                )
            )
