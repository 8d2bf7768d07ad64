"""What must be agreed where the server adds the noise? The plan's table for ``trust = "central"``.

The rule: a whole client is the unit, and one round is one use of one mechanism: each enrolled
client is drawn with the privacy table's public rate, its whole update is clipped, the sum is noised
and divided by the public divisor. What a client does locally (steps, sampling of its own records)
is no part of the mechanism and costs nothing, so it has settings of its own. Whatever would let a
model depend on who or how many took part, outside of the noised sum, is refused here.

The clipping norm may follow a quantile of the clients' norms (Andrew, Thakkar, McMahan and
Ramaswamy 2021, arXiv 1905.03871, algorithm 1). The noised sum and the noised count behind that
cost together exactly what the declared noise multiplier alone would.

Source: McMahan, Ramage, Talwar and Zhang 2018 (arXiv 1710.06963), with a fixed divisor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.aggregation import Aggregation
from common.canonical import Json, number
from common.cohort import Cohort
from common.config import Table

# Rules that see the noised mean alone: post-processing. Every other looks at single updates.
AGGREGATIONS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi")


@dataclass(frozen=True)
class Adaptive:
    """A clipping norm that follows a quantile of the norms of the clients' updates.

    Args:
        target_quantile: gamma in (0, 1): the share of updates that the norm should not clip.
        learning_rate: eta_C in (0, 10]: a round multiplies the norm by exp(-eta_C (b - gamma)),
            where b is the noised share of updates that were within it.
        count_noise: sigma_b > noise_multiplier / 2: standard deviation of the noise on the count,
            in clients. The paper's choice is a twentieth of the clients expected in a round.
        least_norm, greatest_norm: the norm stays between them, both in [1e-5, 1e6]. A client clips
            to the greatest; the server clips to the current one.
    """

    target_quantile: float
    learning_rate: float
    count_noise: float
    least_norm: float
    greatest_norm: float

    def sum_noise(self, noise_multiplier: float) -> float:
        """z_Delta, the noise multiplier of the sum, of which the count takes its part.

        A round releases the sum (L2 sensitivity C, noise z_Delta C) and the count, each client
        adding 1/2 or -1/2 (sensitivity 1/2, noise sigma_b). Scaled to unit noise they are one
        Gaussian vector, and 1 / z^2 = 1 / z_Delta^2 + 1 / (2 sigma_b)^2 (theorem 1).

        >>> round(Adaptive(0.5, 0.2, 5.0, 0.01, 10.0).sum_noise(1.0), 6)
        1.005038
        """
        return 1 / math.sqrt(noise_multiplier**-2 - (2 * self.count_noise) ** -2)

    def next_norm(self, norm: float, within: float) -> float:
        """The norm after a round whose noised share of updates within ``norm`` is ``within``."""
        # Noise may put the share anywhere; beyond a whole unit it says no more than 0 or 1 does.
        share = min(2.0, max(-1.0, within))
        moved = norm * math.exp(-self.learning_rate * (share - self.target_quantile))
        return min(self.greatest_norm, max(self.least_norm, moved))

    def json(self) -> Json:
        return {
            "target_quantile": number(self.target_quantile),
            "learning_rate": number(self.learning_rate),
            "count_noise": number(self.count_noise),
            "least_norm": number(self.least_norm),
            "greatest_norm": number(self.greatest_norm),
        }

    @classmethod
    def read(cls, table: Table, clipping_norm: float, noise_multiplier: float) -> Adaptive:
        """Read ``[plan.central.adaptive]``."""
        adaptive = cls(
            target_quantile=table.number("target_quantile", 0.5, above=0, below=1),
            learning_rate=table.number("learning_rate", 0.2, above=0, high=10),
            count_noise=table.number("count_noise", above=0, high=1e9),
            least_norm=table.number("least_norm", 1e-5, low=1e-5, high=1e6),
            greatest_norm=table.number("greatest_norm", low=1e-5, high=1e6),
        )
        if 2 * adaptive.count_noise <= noise_multiplier:
            raise table.error(
                "count_noise",
                f"count_noise = {adaptive.count_noise:g} leaves the sum no noise that could make "
                f"up a noise_multiplier of {noise_multiplier:g}",
                hint="it must be over half of the noise multiplier; a twentieth of the clients "
                "expected in a round is usual",
            )
        if not adaptive.least_norm <= clipping_norm <= adaptive.greatest_norm:
            raise table.error(
                "greatest_norm",
                f"the first clipping_norm, {clipping_norm:g}, is not from least_norm = "
                f"{adaptive.least_norm:g} to greatest_norm = {adaptive.greatest_norm:g}",
            )
        table.done()
        return adaptive


@dataclass(frozen=True)
class Central:
    """How clients train in a round where the server adds the noise, and how it clips them.

    Args:
        local_steps: plain steps of a client in a round, >= 1.
        local_sampling_rate: in (0, 1], the chance that a local step uses a record. It protects
            nobody: the privacy table's ``sampling_rate`` is the clients'.
        adaptive: None: the clipping norm stays what the privacy table says.
    """

    local_steps: int
    local_sampling_rate: float
    adaptive: Adaptive | None = None

    def greatest_norm(self, clipping_norm: float) -> float:
        """What a client clips its update to: no norm of any round is greater."""
        return self.adaptive.greatest_norm if self.adaptive else clipping_norm

    def json(self) -> Json:
        document: Json = {
            "local_steps": self.local_steps,
            "local_sampling_rate": number(self.local_sampling_rate),
        }
        if self.adaptive:
            document["adaptive"] = self.adaptive.json()
        return document

    @classmethod
    def read(cls, table: Table, clipping_norm: float, noise_multiplier: float) -> Central:
        """Read ``[plan.central]``."""
        central = cls(
            local_steps=table.integer("local_steps", low=1, high=10**6),
            local_sampling_rate=table.number("local_sampling_rate", 1.0, low=1e-9, high=1),
            adaptive=Adaptive.read(table.table("adaptive"), clipping_norm, noise_multiplier)
            if table.has("adaptive")
            else None,
        )
        table.done()
        return central


def check_central(table: Table, cohort: Cohort, aggregation: Aggregation) -> None:
    """Refuse what would let a model depend on who or how many took part, besides the noised sum.

    Args:
        table: of the plan, to say where the contradiction is.

    Raises:
        PlanError: names the setting.
    """
    if cohort.quorum != 1:
        raise table.error(
            "cohort.quorum",
            f'quorum = {cohort.quorum} contradicts trust = "central": whether a model changes '
            "would tell how many took part",
            hint="leave quorum out: a round of few or of nobody is noised, applied and charged "
            "like any other",
        )
    if cohort.over_selection:
        raise table.error(
            "cohort.over_selection",
            'over_selection contradicts trust = "central": the fastest replies are no Poisson '
            "sample",
            hint="leave it out: who is asked is drawn with privacy.sampling_rate, and all who "
            "answer count",
        )
    if aggregation.name not in AGGREGATIONS:
        raise table.error(
            "optimizer.aggregation",
            f'aggregation = "{aggregation.name}" contradicts trust = "central": it looks at '
            "single updates, and the noise covers their sum alone",
            hint=f"known with central trust: {', '.join(AGGREGATIONS)}; every update is clipped",
        )
