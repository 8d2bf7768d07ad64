"""The clauses about batches: who is in one, how often, and with which weight.

The rule: each step takes each record with probability q, apart from all others, and adds its
clipped gradient once. What an engine *did* is read from its updates, not from what its stream was
asked: with next to no noise, a sum is a combination of the records' own clipped gradients, each
seen alone before, and its coefficients say how often each record was counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.training.conformance.subject import Finding, Probe, Records, Vector
from common.plan import Privacy
from common.privacy.noise import Stream

MOST_RECORDS = 80
ROUNDS = 60
STEPS = 5
LEAST_RESIDUAL = 0.1  # of a record's gradient must be its own, for it to be told from the others
COUNTING_ERROR = 0.02  # a coefficient farther than this from a whole number is none
QUIET = 2.0**-20  # noise multiplier: noise of one grid step


def batches(probe: Probe) -> Iterator[Finding]:
    """Batch sizes, participation, their rate at |D| and 2 |D|, and apart in each step."""
    counter = _Counter(probe)
    if len(counter.chosen) < 2:
        yield Finding(
            "sum",
            False,
            float(len(counter.chosen)),
            None,
            f"of {MOST_RECORDS} records, only {len(counter.chosen)} have a gradient of their own: "
            "nobody can see who was in a batch",
        )
        return
    everybody = len(counter.chosen)
    whole = np.stack([counter.counts(everybody, 1, number) for number in range(ROUNDS)])
    half = np.stack([counter.counts(everybody // 2, 1, number) for number in range(ROUNDS)])
    yield _sum(counter)
    yield _once(whole, counter)
    yield _sizes(whole, counter.rate, probe.alpha)
    yield _participation(whole, counter.rate, probe.alpha)
    for counts in (half, whole):
        yield _rate(counts, counter.rate, probe.alpha)
    rounds = [counter.counts(everybody, STEPS, number) for number in range(ROUNDS // 3)]
    yield _apart(np.stack(rounds), counter.rate, probe.alpha)


class _Counter:
    """Reads from a round's update how often it counted each record.

    ``worst`` is the farthest that a coefficient of one-step rounds was from a whole number, and
    ``unexplained`` the largest part of a sum that is no combination of the records' gradients; both
    in units of one clipped gradient.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        declared = probe.privacy.sampling_rate
        self.rate = declared if 0.1 <= declared <= 0.9 else 0.4
        self.worst, self.unexplained = 0.0, 0.0

    @cached_property
    def _clip(self) -> float:
        return self._probe.privacy.clipping_norm / 64  # small, so that gradients are equally long

    @cached_property
    def _candidates(self) -> Records:
        return self._probe.records(MOST_RECORDS, "batches")

    @cached_property
    def _alone(self) -> NDArray[np.float64]:
        """Each candidate's own sum, in units of C: (80, P)."""
        features, labels = self._candidates
        rows = [
            self._sum(
                (features[i : i + 1], labels[i : i + 1]), 1, self._probe.stream("alone", i), 1
            )
            for i in range(MOST_RECORDS)
        ]
        return np.stack(rows)

    @cached_property
    def chosen(self) -> NDArray[np.intp]:
        """Candidates whose gradients can be told apart: pivots of a QR decomposition."""
        from scipy import linalg  # type: ignore[import-untyped]

        if not np.isfinite(self._alone).all():
            return np.zeros(0, np.intp)
        _, triangle, order = linalg.qr(self._alone.T, mode="economic", pivoting=True)
        own = np.abs(np.diag(triangle))
        return np.asarray(order[: own.size][own > LEAST_RESIDUAL], np.intp)

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """How much each chosen record adds when it is alone, in units of C."""
        return np.asarray(np.linalg.norm(self._alone[self.chosen], axis=1))

    @cached_property
    def _inverse(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.pinv(self._alone[self.chosen].T), np.float64)

    def counts(self, records: int, steps: int, number: int) -> NDArray[np.int64]:
        """How often a round of some steps counted each of the first records: (records,)."""
        features, labels = self._candidates
        chosen = self.chosen[:records]
        stream = self._probe.stream("batches", records, steps, number)
        total = self._sum((features[chosen], labels[chosen]), self.rate, stream, steps)
        if not np.isfinite(total).all():
            self.unexplained = np.inf
            return np.zeros(records, np.int64)
        found = self._inverse @ total
        whole = np.rint(found)
        if steps == 1:
            self.worst = max(self.worst, float(np.abs(found - whole).max()))
            left = total - found @ self._alone[self.chosen]
            self.unexplained = max(self.unexplained, float(np.linalg.norm(left)))
        return whole[:records].astype(np.int64)

    def _sum(self, records: Records, rate: float, stream: Stream, steps: int) -> Vector:
        privacy: Privacy = replace(
            self._probe.privacy,
            sampling_rate=rate,
            noise_multiplier=QUIET,
            clipping_norm=self._clip,
            steps=steps,
            divisor=1.0,
        )
        # Slow enough that gradients hardly change within a round, fast enough for float32 weights.
        learning_rate = 1.0 if steps == 1 else 1e-5 / self._clip
        return self._probe.sums(privacy, stream, records, rate=learning_rate) / self._clip


# -- findings ------------------------------------------------------------------------------------


def _sum(counter: _Counter) -> Finding:
    ok = counter.worst <= COUNTING_ERROR and counter.unexplained <= COUNTING_ERROR
    return Finding(
        "sum",
        ok,
        max(counter.worst, counter.unexplained),
        None,
        f"a batch's sum is whole numbers of its records' own clipped gradients, but for "
        f"{counter.worst:.3g} in a number and {counter.unexplained:.3g} C beside them"
        + ("" if ok else ": what a record adds depends on the others"),
    )


def _once(counts: NDArray[np.int64], counter: _Counter) -> Finding:
    most = float((np.abs(counts) * counter.lengths).max())  # whatever it is counted, alone too
    times = int(counts.max())
    return Finding(
        "once",
        most <= 1 + COUNTING_ERROR,
        most,
        None,
        f"in one step, a record added as much as {most:.3g} C, and was counted {times} times as "
        "often as when it is alone",
    )


def _sizes(counts: NDArray[np.int64], rate: float, alpha: float) -> Finding:
    sizes = counts.sum(1)  # (rounds,)
    expected = counts.shape[1] * rate
    variance = expected * (1 - rate)
    p_value = _two_sided(float((np.square(sizes - expected) / variance).sum()), sizes.size)
    return Finding(
        "batch-sizes",
        p_value > alpha,
        float(sizes.std()),
        p_value,
        f"batches have {sizes.mean():.1f} +- {sizes.std():.1f} of {counts.shape[1]} records; at a "
        f"rate of {rate:g} it should be {expected:.1f} +- {variance**0.5:.1f}",
    )


def _participation(counts: NDArray[np.int64], rate: float, alpha: float) -> Finding:
    from scipy import stats

    rounds, records = counts.shape
    times = counts.sum(0)  # (records,)
    variance = rounds * rate * (1 - rate)
    together = _two_sided(float((np.square(times - rounds * rate) / variance).sum()), records)
    least, most = int(times.min()), int(times.max())
    alone = min(stats.binom.cdf(least, rounds, rate), stats.binom.sf(most - 1, rounds, rate))
    p_value = min(1.0, 2 * together, 4 * records * float(alone))
    return Finding(
        "participation",
        p_value > alpha,
        float(times.std()),
        p_value,
        f"in {rounds} steps a record was counted {times.mean():.1f} +- {times.std():.1f} times, "
        f"from {least} to {most}; at a rate of {rate:g} it should be {rounds * rate:.1f} +- "
        f"{variance**0.5:.1f}",
    )


def _rate(counts: NDArray[np.int64], rate: float, alpha: float) -> Finding:
    from scipy import stats

    taken = int(np.clip(counts, 0, 1).sum())
    p_value = float(stats.binomtest(taken, counts.size, rate).pvalue)
    return Finding(
        "rate",
        p_value > alpha,
        taken / counts.size,
        p_value,
        f"with {counts.shape[1]} records, a step takes a record with chance "
        f"{taken / counts.size:.3f}; declared is {rate:g}",
    )


def _apart(counts: NDArray[np.int64], rate: float, alpha: float) -> Finding:
    expected, variance = STEPS * rate, STEPS * rate * (1 - rate)
    spread = np.square(counts - expected) / variance
    p_value = _two_sided(float(spread.sum()), counts.size)
    return Finding(
        "participation-steps",
        p_value > alpha,
        float(np.sqrt(spread.mean())),
        p_value,
        f"in rounds of {STEPS} steps, how often a record is counted varies "
        f"{np.sqrt(spread.mean()):.2f} times as much as if each step sampled by itself",
    )


def _two_sided(statistic: float, degrees: int) -> float:
    from scipy import stats

    return 2 * float(
        min(stats.chi2.cdf(statistic, degrees), stats.chi2.sf(statistic, degrees), 0.5)
    )
