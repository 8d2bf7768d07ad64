"""The clauses about a step's sum: what one record does to it, and what it is divided by.

The rule: adding or removing one record moves the sum by at most C, whatever the record, the model
and the other records are. The same streams with and without the record show it; the noise is then
the same and cancels. What else may differ is what the engine says of itself and no more: the grid
of C 2^-20 that noised sums are rounded to, and the float32 of the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from client.training.conformance.subject import Finding, Probe, Records, Replay, Vector
from common.plan import Privacy
from common.privacy.noise import GRID_BITS

OTHERS = 200  # enough that the rounding of the others' sum would show
MOST_OTHERS, MOST_GRADIENTS = 4096, 2**22  # where the rounding itself is looked at
SCALES = (0.1, 1.0, 10.0, 1e3, 1e6)  # of one record's features
WEIGHTS = (1.0, 1e3)  # the server is not trusted to send sensible ones
GRID = 2.0**-GRID_BITS  # in units of C
FLOAT32 = 2.0**-24  # greatest relative error of one rounding


def sensitivity(probe: Probe) -> Iterator[Finding]:
    """One record moves the sum by at most C, be it first, in the middle or last."""
    rest = probe.records(OTHERS, "others")
    # With a small C every gradient is clipped; sampling half of the records is another path.
    small = probe.privacy.clipping_norm / 64
    worst: tuple[float, float, str] | None = None  # beyond what is allowed, the change, and where
    for clip, rate in ((probe.privacy.clipping_norm, 1.0), (small, 0.5)):
        privacy = _one_step(probe.privacy, clip, rate)
        for weights in WEIGHTS:
            pairs = _Pairs(probe, privacy, rest, weights)
            for turn, (kind, one) in enumerate(_strange_records(probe)):
                position = (0, OTHERS // 2, OTHERS)[turn % 3]
                change, allowed = pairs.change(one, position)
                excess = math.inf if math.isnan(change) else change - allowed
                if worst is None or excess > worst[0]:
                    where = f"{kind}, position {position}, weights x {weights:g}, C = {clip:g}"
                    worst = excess, change, where
    assert worst is not None
    yield Finding(
        "sensitivity",
        worst[0] <= 0,
        worst[1],
        None,
        f"one record moved the sum by {worst[1]:.6g} C ({worst[2]}; {OTHERS} others)",
    )


def exact(probe: Probe) -> Iterator[Finding]:
    """What a record adds is the same whoever is beside it: no rounding but the two that are known.

    In float32, one record more shifts the rounding of all the others' sum.
    """
    from scipy import stats  # type: ignore[import-untyped]

    privacy = _one_step(probe.privacy, probe.privacy.clipping_norm / 64, 1.0)
    others = max(OTHERS, min(MOST_OTHERS, MOST_GRADIENTS // probe.size))
    features, labels = probe.records(others, "alike")
    rest = features[:1] + 0.1 * features, labels[:1].expand(others)  # their gradients add up
    sums = _Pairs(probe, privacy, rest, 1.0).sums
    one = probe.records(1, "strange")
    beside = sums(_insert(rest, one, 0)), sums(rest)
    alone = sums(one), sums(probe.nobody())
    clip = privacy.clipping_norm
    difference = (beside[0] - beside[1] - alone[0] + alone[1]) / clip
    # An engine with float32 weights rounds twice, next to a weight; uniform errors: h^2 / 12.
    variance = np.zeros(probe.size)
    for part in (*beside, *alone):
        variance += (GRID**2 + 2 * np.square(2 * FLOAT32 * (1 + np.abs(part) / clip))) / 12
    excess = float((np.square(difference) / variance).sum())
    p_value = float(stats.chi2.sf(excess, probe.size))
    yield Finding(
        "exact-sum",
        p_value > probe.alpha,
        math.sqrt(excess / probe.size),
        p_value,
        f"with {others} others beside it, what a record adds changes by "
        f"{np.linalg.norm(difference):.3g} C: {math.sqrt(excess / probe.size):.2f} times what grid "
        "and float32 explain",
    )


def not_finite(probe: Probe) -> Iterator[Finding]:
    """A record without a finite gradient counts as zero, and cannot spoil the sum."""
    privacy = _one_step(probe.privacy, probe.privacy.clipping_norm, 1.0)
    pairs = _Pairs(probe, privacy, probe.records(20, "others"), 1.0)
    features, labels = probe.records(1, "strange")
    for value in (math.nan, math.inf):
        change, allowed = pairs.change((torch.full_like(features, value), labels), 10)
        yield Finding(
            "not-finite",
            change <= allowed - 1,
            change,
            None,
            f"a record whose features are {value} moved the sum by {change:.6g} C",
        )


def size(probe: Probe) -> Iterator[Finding]:
    """|D| and |D| + 1 records, the additional one without a gradient: same rate, same divisor."""
    privacy = replace(probe.privacy, sampling_rate=0.5, steps=3)
    features, labels = probe.records(40, "size")
    empty = torch.full_like(features[:1], math.nan)
    rate = 2.0**-10  # one difference in rounding then does not become another in the next step
    worst, where, ok = 0.0, 0, True
    for position in (0, 20, 40):
        without = probe.sums(
            privacy, Replay(probe.seed, absent=position), (features, labels), rate=rate
        )
        more = _insert((features, labels), (empty, labels[:1]), position)
        whole = probe.sums(privacy, Replay(probe.seed, present=position), more, rate=rate)
        change = float(np.abs(whole - without).max()) / privacy.clipping_norm
        largest = float(np.abs(without).max()) / privacy.clipping_norm
        ok &= change <= privacy.steps * GRID + 2 * FLOAT32 * largest
        if not change <= worst:
            worst, where = change, position
    yield Finding(
        "size",
        ok,
        worst,
        None,
        f"a record without a gradient, one more than 40, moved a coordinate of the sum by "
        f"{worst:.3g} C" + ("" if ok else f" (position {where}): rate or divisor depend on |D|"),
    )


def grid(probe: Probe) -> Iterator[Finding]:
    """Noised sums are multiples of C 2^-20, which hides the last bits of noise and of records."""
    privacy = _one_step(probe.privacy, 1.0, 1.0)
    sums = probe.sums(privacy, Replay(probe.seed), probe.records(4, "grid"))
    start = np.concatenate([value.ravel() for value in probe.start().values()])
    units = sums / GRID
    # An engine whose weights are float32 rounds once more.
    allowed = 2 * FLOAT32 * (np.abs(sums) + np.abs(start)) / GRID
    off = int((np.abs(units - np.rint(units)) > allowed).sum())
    yield Finding(
        "grid",
        off == 0,
        float(off),
        None,
        f"{off} of {sums.size} noised sums are not multiples of C x 2^-{GRID_BITS}",
    )


# -- pieces --------------------------------------------------------------------------------------


def _one_step(privacy: Privacy, clip: float, rate: float) -> Privacy:
    """Noise enough to make grid rounding random, and little enough for float32 to hold it."""
    return replace(
        privacy,
        steps=1,
        sampling_rate=rate,
        clipping_norm=clip,
        divisor=1.0,
        noise_multiplier=1.0,
    )


def _strange_records(probe: Probe) -> Iterator[tuple[str, Records]]:
    features, labels = probe.records(1, "strange")
    for scale in SCALES:
        yield f"features x {scale:g}", (scale * features, labels)
    yield "features all 0", (0 * features, labels)  # only biases have a gradient then
    single = torch.zeros_like(features)
    single.view(-1)[0] = 1e6
    yield "one feature of 1e6", (single, labels)


class _Pairs:
    """The same records under the same streams, with and without one more.

    The learning rate makes an update larger than the weights, for engines that round the weights
    to float32: what such rounding does comes after the noise, and is no record's doing.
    """

    def __init__(self, probe: Probe, privacy: Privacy, rest: Records, weights: float) -> None:
        self._probe, self._privacy, self._rest, self._weights = probe, privacy, rest, weights
        self._rate = 2.0 ** math.ceil(math.log2(8 * weights / privacy.clipping_norm))
        self._without: dict[int, Vector] = {}

    def change(self, one: Records, position: int) -> tuple[float, float]:
        """By how much a record moves the sum, and by how much it may: both in units of C."""
        clip = self._privacy.clipping_norm
        if position not in self._without:
            self._without[position] = self.sums(self._rest, absent=position)
        without = self._without[position]
        whole = self.sums(_insert(self._rest, one, position), present=position)
        return float(np.linalg.norm(whole - without)) / clip, 1 + _rounding(without, whole, clip)

    def sums(
        self, records: Records, *, present: int | None = None, absent: int | None = None
    ) -> Vector:
        replay = Replay(self._probe.seed, present=present, absent=absent)
        return self._probe.sums(
            self._privacy, replay, records, rate=self._rate, weights=self._weights
        )


def _rounding(one: Vector, other: Vector, clip: float) -> float:
    """What grid and float32 can add to a change of C, in units of C.

    With h the most that they move a coordinate by, noise makes the P roundings independent, with
    mean 0 and variance at most h^2 / 4. Their part in the direction of the change is below 6 h but
    for a chance of 1e-8; what is at right angles to it adds P h^2 / 4 to the square of the norm.
    """
    largest = 1 + float(max(np.abs(one).max(), np.abs(other).max())) / clip  # and the weights
    step = GRID + 2 * FLOAT32 * largest
    return 6 * step + one.size * step**2 / 8


def _insert(rest: Records, one: Records, position: int) -> Records:
    features, labels = (
        torch.cat([many[:position], single, many[position:]])
        for many, single in zip(rest, one, strict=True)
    )
    return features, labels
