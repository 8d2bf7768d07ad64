"""The clauses about noise: how much, of which shape, where, and related to nothing.

The rule: each step adds to each coordinate of the sum its own normal value with standard deviation
sigma C, whatever the batch is. Too little is a fault; too much costs accuracy and is only said. On
no records an update is noise and nothing else. Relations are looked for in the values, in their
magnitudes (two normals made from one radius are uncorrelated, yet not independent), and in exact
repetitions, which on a grid as fine as C 2^-20 chance hardly ever makes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from client.training.conformance.subject import Finding, Probe, Replay, Vector
from common.plan import Privacy
from common.privacy.noise import GRID_BITS, Stream

# A tensor's noise that is a tenth too small is 6 standard deviations off at 2,000 values.
VALUES_A_TENSOR = 2000
MOST_ROUNDS = 256
MOST_VALUES = 2**23  # of all rounds, unless fewer than 16 rounds would be left
VALUES_FOR_SHAPE = 2**14
STEPS = 4
# Two normals of standard deviation 1 fall on the same multiple of h with chance h / (2 sqrt(pi)).
REPETITION = 2.0**-GRID_BITS / (2 * math.sqrt(math.pi))


def variance(probe: Probe) -> Iterator[Finding]:
    """Each tensor has noise of sigma C a step, under the declared figures and under others."""
    declared = replace(probe.privacy, steps=3)
    # Figures that no constant in the code fits too; C > 1 shows noise that is not scaled by it.
    other = replace(
        declared,
        clipping_norm=8 * max(1.0, declared.clipping_norm),
        noise_multiplier=2 * declared.noise_multiplier,
        divisor=8 * declared.divisor,
        steps=1,
    )
    for privacy in (declared, other):
        yield from _variance(probe, privacy)


def normal(probe: Probe) -> Iterator[Finding]:
    """Noise is normal, in the bulk (Kolmogorov and Smirnov) and beyond 3 standard deviations."""
    from scipy import stats  # type: ignore[import-untyped]

    rounds = math.ceil(VALUES_FOR_SHAPE / probe.size)
    values = np.concatenate(_noises(probe, "normal", rounds))[:VALUES_FOR_SHAPE]
    deviation = _deviation(values)
    if deviation == 0:
        yield Finding(
            "noise-normal", False, 0.0, 0.0, "there is no noise whose shape could be seen"
        )
        return
    distance, bulk = stats.kstest(values / deviation, "norm")
    far = int((np.abs(values) > 3 * deviation).sum())
    chance = 2 * stats.norm.sf(3)
    tail = stats.binomtest(far, values.size, chance).pvalue
    p_value = min(1.0, 2 * min(bulk, tail))
    yield Finding(
        "noise-normal",
        p_value > probe.alpha,
        float(distance),
        p_value,
        f"noise is {distance:.4f} from a normal distribution, and {far} of {values.size} values "
        f"are beyond 3 standard deviations, where {chance * values.size:.0f} should be",
    )


def with_records(probe: Probe) -> Iterator[Finding]:
    """A batch has the noise that an empty one has: the same batch twice, with different noise."""
    from scipy import stats

    records = probe.records(200, "with-records")
    pairs = max(2, math.ceil(VALUES_A_TENSOR / probe.size))
    for clip in (1.0, 1024.0):  # with every gradient clipped, and with none
        privacy = replace(_one_step(probe.privacy), clipping_norm=clip)
        differences = []
        for pair in range(pairs):
            one, other = (
                probe.sums(privacy, Replay(probe.seed, noise), records)
                for noise in (2 * pair, 2 * pair + 1)
            )
            differences.append((one - other) / (clip * math.sqrt(2)))
        values = np.concatenate(differences)
        p_value = float(stats.chi2.cdf(np.square(values).sum(), values.size))
        deviation = _deviation(values)
        yield Finding(
            "noise-with-records",
            p_value > probe.alpha,
            deviation,
            p_value,
            f"on 200 records, noise has {deviation:.3f} of the declared standard deviation "
            f"(C = {clip:g}; {values.size} values)",
        )


def tensors(probe: Probe) -> Iterator[Finding]:
    """Within one step, no coordinate's noise tells anything about another's."""
    noises = _noises(probe, "tensors", max(8, math.ceil(VALUES_FOR_SHAPE / probe.size)))
    names = list(probe.subject.shapes)
    parts = [dict(probe.tensors(noise)) for noise in noises]
    worst = _Relation(0.0, 0, 1.0)
    between = ""
    pairs = list(combinations(names, 2))
    for one, other in pairs:
        size = min(parts[0][one].size, parts[0][other].size, VALUES_FOR_SHAPE)
        left, right = (
            np.concatenate([part[name][:size] for part in parts]) for name in (one, other)
        )
        relation = _related(left, right, len(pairs) + 2)
        if not between or relation.p_value < worst.p_value:
            worst, between = relation, f"{one} and {other}: "
    yield worst.finding("noise-tensors", probe.alpha, f"{between}noise within one step")
    yield _shifted(noises, probe.alpha)
    yield _repeated(noises, probe.alpha)


def steps(probe: Probe) -> Iterator[Finding]:
    """Each step of a round has noise of its own: rounds of 1, 2, 3, … steps, taken apart."""
    rounds = max(1, math.ceil(256 / probe.size))
    parts: list[list[Vector]] = [[] for _ in range(STEPS)]
    for number in range(rounds):
        before = np.zeros(probe.size)
        for count in range(1, STEPS + 1):
            privacy = replace(_one_step(probe.privacy), steps=count)
            noise = probe.sums(privacy, probe.stream("steps", number)) / privacy.noise_multiplier
            parts[count - 1].append(noise - before)
            before = noise
    named = [(f"step {step + 1}", np.concatenate(part)) for step, part in enumerate(parts)]
    yield _closest("noise-steps", named, probe.alpha)


def runs(probe: Probe) -> Iterator[Finding]:
    """Training twice, each time with a stream that nobody can repeat, gives unrelated noise."""
    named = []
    for run in ("one run", "the next"):
        rounds = max(1, math.ceil(256 / probe.size))
        streams = [Stream.cryptographic() for _ in range(rounds)]
        named.append((run, np.concatenate([_unit(probe, stream) for stream in streams])))
    yield _closest("noise-runs", named, probe.alpha)


def clients(probe: Probe) -> Iterator[Finding]:
    """Every client has its own noise in every round."""
    named = [
        (f"client {client!r} in round {round_}", _unit(probe, probe.subject.stream(client, round_)))
        for client in ("client-1", "client-2", "client-11")
        for round_ in (1, 2, 12)
    ]
    yield _closest("noise-clients", named, probe.alpha)


def replay(probe: Probe) -> Iterator[Finding]:
    """Nothing but the stream is random: the same stream gives the same bits."""
    records = probe.records(20, "replay")
    one, again = (probe.sums(probe.privacy, Replay(probe.seed), records) for _ in range(2))
    same = bool(np.array_equal(one, again))
    change = float(np.abs(one - again).max())
    yield Finding(
        "replay",
        same,
        change,
        None,
        "the same stream gives the same update"
        if same
        else f"the same stream gives updates that are {change:.3g} apart in one coordinate: some "
        "randomness comes from elsewhere",
    )


# -- how much ------------------------------------------------------------------------------------


def _variance(probe: Probe, privacy: Privacy) -> Iterator[Finding]:
    from scipy import stats

    smallest = min(math.prod(shape) for shape in probe.subject.shapes.values())
    wanted = max(VALUES_A_TENSOR / smallest, VALUES_FOR_SHAPE / probe.size)
    rounds = int(max(16, min(math.ceil(wanted), MOST_ROUNDS, MOST_VALUES // probe.size)))
    declared = privacy.noise_multiplier * privacy.clipping_norm * math.sqrt(privacy.steps)
    squares = np.zeros(probe.size)
    for number in range(rounds):
        noise = probe.sums(privacy, probe.stream("variance", privacy.steps, number))
        squares += np.square(noise / declared)
    figures = f"C = {privacy.clipping_norm:g}, {privacy.steps} steps"
    for name, part in probe.tensors(squares):
        count = rounds * part.size
        deviation = math.sqrt(float(part.sum()) / count)
        p_value = float(stats.chi2.cdf(part.sum(), count))
        too_much = stats.chi2.sf(part.sum(), count) < probe.alpha
        yield Finding(
            "noise-variance",
            p_value > probe.alpha,  # a sum that is not a number fails too
            deviation,
            p_value,
            f"{name}: noise has {deviation:.3f} of the declared standard deviation ({figures}; "
            f"{count} values)"
            + ("; more than declared costs accuracy, not privacy" if too_much else ""),
            where=name,
        )
    least = int(np.argmin(squares))
    deviation = math.sqrt(float(squares[least]) / rounds)
    p_value = min(1.0, float(stats.chi2.cdf(squares[least], rounds)) * probe.size)
    name = _tensor_at(probe, least)
    yield Finding(
        "noise-coordinates",
        p_value > probe.alpha,
        deviation,
        p_value,
        f"{name}: the quietest of {probe.size} coordinates has {deviation:.3f} of the declared "
        f"standard deviation ({figures}; {rounds} values)",
        where=name,
    )


def _tensor_at(probe: Probe, position: int) -> str:
    for name, part in probe.tensors(np.arange(probe.size, dtype=np.float64)):
        if position <= part[-1]:
            return name
    raise IndexError(position)


# -- relations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Relation:
    correlation: float
    equal: int
    p_value: float

    def finding(self, check: str, alpha: float, what: str) -> Finding:
        return Finding(
            check,
            self.p_value > alpha,
            self.correlation,
            self.p_value,
            f"{what}: correlation {self.correlation:.3f}, {self.equal} equal values",
        )


def _related(one: Vector, other: Vector, places: int) -> _Relation:
    """Whether two pieces of noise know of each other; the p-value is for ``places`` such looks."""
    from scipy import stats

    both = (one != 0) & (other != 0)
    equal = int((one == other)[both].sum())
    found = [float(stats.poisson.sf(equal - 1, one.size * REPETITION))]
    if one.size >= 30:
        for left, right in zip(_scores(one), _scores(other), strict=True):
            z = float(left @ right) / math.sqrt(one.size)
            found.append(2 * float(stats.norm.sf(abs(z))))
    spread = _deviation(one) * _deviation(other)
    correlation = float(np.mean(one * other)) / spread if spread > 0 else 0.0
    return _Relation(correlation, equal, min(1.0, len(found) * places * min(found)))


def _scores(noise: Vector) -> tuple[Vector, Vector]:
    """Values and magnitudes as scores with mean 0, variance 1 and no tails: sums of them behave."""
    from scipy import special

    deviation, there = _deviation(noise), noise != 0  # missing noise is another check's
    if deviation == 0:
        return np.zeros_like(noise), np.zeros_like(noise)
    ranks = special.ndtr(noise / deviation)  # in [0, 1]
    return _standard(ranks, there), _standard(np.abs(ranks - 0.5), there)


def _standard(values: Vector, there: NDArray[np.bool_]) -> Vector:
    spread = float(values[there].std())
    return np.where(there, values - values[there].mean(), 0.0) / (spread or 1.0)


def _closest(check: str, named: Sequence[tuple[str, Vector]], alpha: float) -> Finding:
    """The most related pair of several pieces of noise."""
    pairs = list(combinations(named, 2))
    found = [
        (_related(left, right, len(pairs)), f"noise of {one} and of {other}")
        for (one, left), (other, right) in pairs
    ]
    relation, what = min(found, key=lambda item: item[0].p_value)
    return relation.finding(check, alpha, what)


def _shifted(noises: Sequence[Vector], alpha: float) -> Finding:
    """The same step's noise beside itself, shifted by every distance."""
    from scipy import stats

    size = min(noises[0].size, VALUES_FOR_SHAPE)
    products = np.zeros((2, size))  # by score and distance
    for kind, scores in enumerate(_scores(np.concatenate([noise[:size] for noise in noises]))):
        spectrum = np.fft.rfft(scores.reshape(len(noises), size), 2 * size)
        products[kind] = np.fft.irfft(np.abs(spectrum) ** 2, 2 * size).sum(0)[:size]
    terms = len(noises) * np.arange(size, 0, -1)
    usable = np.flatnonzero(terms >= 100)[1:]  # of fewer terms a sum is not normal
    if usable.size == 0:
        return Finding("noise-tensors", True, 0.0, 1.0, "too few values to shift")
    z = np.abs(products[:, usable]) / np.sqrt(terms[usable])
    row, column = np.unravel_index(int(np.argmax(z)), z.shape)
    p_value = min(1.0, 2 * z.size * float(stats.norm.sf(z[row, column])))
    distance = int(usable[column])
    correlation = float(products[row, distance] / terms[distance])
    what = ("values", "magnitudes")[row]
    return Finding(
        "noise-tensors",
        p_value > alpha,
        correlation,
        p_value,
        f"{what} that are {distance} coordinates apart have correlation {correlation:.3f}",
    )


def _repeated(noises: Sequence[Vector], alpha: float) -> Finding:
    """How often one value occurs twice in a step: pieces used again, or too coarse a grid."""
    from scipy import stats

    size = min(noises[0].size, VALUES_FOR_SHAPE)
    found, chance = 0, 0.0
    for noise in noises:
        values = np.abs(noise[:size])  # a piece with its signs turned counts too
        values = values[values > 0]
        _, counts = np.unique(np.rint(values * 2.0**GRID_BITS), return_counts=True)
        found += int((counts * (counts - 1) // 2).sum())
        chance += values.size * (values.size - 1) * REPETITION  # twice, for the lost sign
    p_value = float(stats.poisson.sf(found - 1, chance))
    return Finding(
        "noise-repeats",
        p_value > alpha,
        float(found),
        p_value,
        f"within a step, {found} pairs of coordinates have the same noise but for its sign; chance "
        f"makes {chance:.1f}",
    )


# -- pieces --------------------------------------------------------------------------------------


def _one_step(privacy: Privacy) -> Privacy:
    """One step at C = 1 and divisor 1, so that float32 holds a noised sum exactly up to 16 C."""
    return replace(
        privacy,
        steps=1,
        sampling_rate=1.0,
        clipping_norm=1.0,
        divisor=1.0,
        noise_multiplier=1.0,
    )


def _unit(probe: Probe, stream: Stream) -> Vector:
    return probe.sums(_one_step(probe.privacy), stream)


def _noises(probe: Probe, label: str, count: int) -> list[Vector]:
    return [_unit(probe, probe.stream(label, number)) for number in range(count)]


def _deviation(values: Vector) -> float:
    return math.sqrt(float(np.mean(np.square(values))))
