"""How is the run doing, for machines? Numbers in Prometheus' text format.

The rules: what is shown are counts, times and codes from a fixed list; nothing depends on a record,
and no client is named. Counters start at 0 with each process, as Prometheus expects.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from common.exposition import Samples, by, family, one
from server.events import public_code


class Metrics:
    """The numbers of one server process; safe to read from another thread.

    Args:
        run: the run's id.
        rounds: how many the plan has.
        enrolled: how many clients are enrolled.
    """

    def __init__(self, run: str, rounds: int, enrolled: int) -> None:
        self._lock = threading.Lock()
        self._run, self._rounds, self._enrolled = run, rounds, enrolled
        self._round = self._present = self._suspended = 0
        self._outcomes: Counter[str] = Counter({"changed": 0, "unchanged": 0})
        self._replies: Counter[str] = Counter({"valid": 0})
        self._strays: Counter[str] = Counter()
        self._seconds = 0.0
        self._accuracy: float | None = None

    def stand(self, round_: int, present: int, suspended: int) -> None:
        """What is so now: rounds done, clients there, clients suspended."""
        with self._lock:
            self._round, self._present, self._suspended = round_, present, suspended

    def count(
        self,
        *,
        changed: bool,
        seconds: float,
        codes: Mapping[str, int],
        strays: Mapping[str, int],
        accuracy: float | None,
    ) -> None:
        """A round has ended.

        Args:
            changed: whether the model changed.
            seconds: that it took.
            codes: how many replies had which code; ``valid`` for those that counted.
            strays: answers to nothing that was asked then, by kind.
            accuracy: on the public test set.
        """
        with self._lock:
            self._outcomes["changed" if changed else "unchanged"] += 1
            self._seconds += seconds
            for code, number in codes.items():
                self._replies[public_code(code)] += number
            self._strays.update(strays)
            self._accuracy = accuracy

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        with self._lock:
            ended = sum(self._outcomes.values())
            families: list[tuple[str, str, str, Samples]] = [
                ("privet_run_info", "gauge", "The run.", [("", {"run": self._run}, 1)]),
                ("privet_rounds_planned", "gauge", "Rounds of the plan.", one(self._rounds)),
                ("privet_round", "gauge", "Rounds that are done.", one(self._round)),
                (
                    "privet_rounds_total",
                    "counter",
                    "Rounds that ended in this process, by whether the model changed.",
                    by("outcome", self._outcomes),
                ),
                (
                    "privet_round_duration_seconds",
                    "summary",
                    "Wall time of the rounds of this process.",
                    [("_sum", {}, self._seconds), ("_count", {}, ended)],
                ),
                (
                    "privet_replies_total",
                    "counter",
                    "Asked clients of this process's rounds, by what became of their replies.",
                    by("code", self._replies),
                ),
                (
                    "privet_stray_replies_total",
                    "counter",
                    "Replies that answered nothing that was asked, by kind.",
                    by("kind", self._strays),
                ),
                ("privet_clients_enrolled", "gauge", "Clients enrolled.", one(self._enrolled)),
                ("privet_clients_present", "gauge", "Clients that are there.", one(self._present)),
                (
                    "privet_clients_suspended",
                    "gauge",
                    "Clients that are not asked, by rule.",
                    one(self._suspended),
                ),
            ]
            if self._accuracy is not None:
                help_ = "Accuracy of the global model on its public test set, 0 to 1."
                families.append(
                    ("privet_model_accuracy_ratio", "gauge", help_, one(self._accuracy))
                )
        return "".join(family(*one_of_them) for one_of_them in families)
