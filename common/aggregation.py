"""Which rule makes the next model out of valid updates, and of how many? All of it is public.

The rules: a setting belongs to the aggregations that use it and is refused with any other. An
aggregation that needs so many replies to keep its promise needs a quorum of that many, so that no
round can have too few. No rule weighs by what a client says of itself: every valid reply counts
once. All of this is post-processing of updates that are private already: it costs no privacy.

    name                 breakdown point     memory        least replies  source
    fedavg               0                   constant      1              McMahan et al. 2017
    fedprox              0                   constant      1              Li et al. 2020
    fedavgm              0                   constant      1              Hsu et al. 2019
    fedadam, fedyogi     0                   constant      1              Reddi et al. 2021
    norm-bounded         0, but see below    constant      1              Sun et al. 2019
    fedmedian            1/2                 all replies   3              Yin et al. 2018
    trimmed-mean         ``trim``            all replies   1/trim         Yin et al. 2018
    krum, multi-krum     ``malicious``/n     all replies   2 f + 3        Blanchard et al. 2017
    geometric-median     1/2                 all replies   3              Pillutla et al. 2019

The breakdown point is the greatest share of clients that can lie without limit before the result
can be moved without limit. Where it is 0, what one liar does is still bounded: each coordinate by
the plan's ``update_bound``, and with ``norm-bounded`` the whole update by ``norm_bound``, divided
by the number of replies. Memory is constant in the number of clients, or holds all their updates,
and up to twice as much again while they are combined.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.canonical import Json, number
from common.config import Table

_ADAPTIVE = ("server_learning_rate", "server_beta1", "server_beta2", "server_tau")
# Aggregation to the settings that it uses.
SETTINGS: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedprox": (),
    "fedavgm": ("server_learning_rate", "server_momentum"),
    "fedadam": _ADAPTIVE,
    "fedyogi": _ADAPTIVE,
    "norm-bounded": ("norm_bound",),
    "fedmedian": (),
    "trimmed-mean": ("trim",),
    "krum": ("malicious",),
    "multi-krum": ("malicious", "selected"),
    "geometric-median": ("smoothing", "iterations"),
}
AGGREGATIONS = tuple(SETTINGS)
COUNTS = ("malicious", "selected", "iterations")


@dataclass(frozen=True)
class Aggregation:
    """A rule and its settings; those that it does not use have no effect, and are not in the JSON.

    Args:
        name: one of :data:`AGGREGATIONS`.
        server_learning_rate: > 0, what the server's step is multiplied by.
        server_momentum: of ``fedavgm``, in (0, 1).
        server_beta1, server_beta2: of ``fedadam`` and ``fedyogi``, decay of the mean of updates and
            of their squares, in [0, 1).
        server_tau: of the same, in (0, 1]: the less, the more each coordinate gets a rate of its
            own.
        trim: of ``trimmed-mean``, from 0.001 to 0.49: the share of values cut off at either end of
            each coordinate, rounded down to whole replies.
        malicious: f >= 1, how many clients of a round may lie as they please.
        selected: of ``multi-krum``, >= 1, how many updates are averaged; at most n - f - 2.
        norm_bound: > 0, greatest L2 norm of one whole update; a longer one is scaled down to it.
        smoothing: nu in (0, 1], least distance that the geometric median divides by, in units of
            the update; it keeps a step finite where the median falls on an update.
        iterations: steps of Weiszfeld's algorithm, 1 to 1000. Each takes about as long as a mean.
    """

    name: str = "fedavg"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.9
    server_beta1: float = 0.9
    server_beta2: float = 0.99
    server_tau: float = 1e-3
    trim: float = 0.2
    malicious: int = 1
    selected: int = 1
    norm_bound: float = 1.0
    smoothing: float = 1e-6
    iterations: int = 20

    @property
    def least(self) -> int:
        """How many valid replies the rule needs to keep its promise.

        >>> Aggregation("krum", malicious=2).least, Aggregation("trimmed-mean", trim=0.2).least
        (7, 5)
        """
        if self.name in ("fedmedian", "geometric-median"):
            return 3  # of two values, the median is the mean
        if self.name == "trimmed-mean":
            least = 1
            while self.trimmed(least) == 0:
                least += 1
            return least
        if self.name in ("krum", "multi-krum"):
            needed = 2 * self.malicious + 3  # 2 f + 2 < n (Blanchard et al. 2017, proposition 1)
            chosen = self.selected if self.name == "multi-krum" else 1
            return max(needed, chosen + self.malicious + 2)
        return 1

    def trimmed(self, replies: int) -> int:
        """How many values ``trimmed-mean`` cuts off at either end, of so many replies."""
        return int(self.trim * replies)

    def json(self) -> Json:
        result: Json = {"aggregation": self.name}
        for key in SETTINGS[self.name]:
            value = getattr(self, key)
            result[key] = value if key in COUNTS else number(value)
        return result

    @classmethod
    def read(cls, table: Table, quorum: int) -> Aggregation:
        """Read the part of ``[plan.optimizer]`` that says how updates are combined.

        Args:
            quorum: the cohort's: the fewest replies that a round combines.

        Raises:
            PlanError: names the setting that is wrong, without effect, or not kept by the quorum.
        """
        name = table.text("aggregation", "fedavg", choices=AGGREGATIONS)
        every = {key for keys in SETTINGS.values() for key in keys}
        for key in sorted(every - set(SETTINGS[name])):
            if table.has(key):
                raise table.error(
                    key,
                    f'{key} has no effect with aggregation = "{name}"',
                    hint=f"leave {key} out, or choose the aggregation that it belongs to",
                )
        # Flower 1.41's own defaults.
        rate = {"fedadam": 0.1, "fedyogi": 0.01}.get(name, 1.0)
        read = cls(
            name=name,
            server_learning_rate=table.number("server_learning_rate", rate, above=0, high=1e6),
            server_momentum=table.number("server_momentum", 0.9, above=0, below=1),
            server_beta1=table.number("server_beta1", 0.9, low=0, below=1),
            server_beta2=table.number("server_beta2", 0.99, low=0, below=1),
            server_tau=table.number("server_tau", 1e-3, low=1e-9, high=1),
            trim=table.number("trim", 0.2, low=0.001, high=0.49),
            malicious=table.integer("malicious", 1, low=1, high=10**6),
            selected=table.integer("selected", 1, low=1, high=10**6),
            norm_bound=table.number("norm_bound", 1.0, low=1e-9, high=1e9),
            smoothing=table.number("smoothing", 1e-6, low=1e-12, high=1),
            iterations=table.integer("iterations", 20, low=1, high=1000),
        )
        # What the rule does not use keeps its default: equal rules are equal values.
        result = cls(name, **{key: getattr(read, key) for key in SETTINGS[name]})
        if quorum < result.least:
            raise table.error(
                "aggregation",
                f'aggregation = "{name}"{_of(result)} needs {result.least} valid replies, which '
                f"quorum = {quorum} does not guarantee",
                hint=f"in [plan.cohort], write quorum = {result.least} or more" + _otherwise(name),
            )
        return result


FEDAVG = Aggregation()


def _of(rule: Aggregation) -> str:
    said = [f"{key} = {getattr(rule, key):g}" for key in SETTINGS[rule.name] if key in _NEEDED]
    return f" with {' and '.join(said)}" if said else ""


def _otherwise(name: str) -> str:
    if name == "trimmed-mean":
        return "; or trim more: fewer replies than 1/trim leave nothing to cut off"
    return ", or assume fewer malicious clients" if name in ("krum", "multi-krum") else ""


_NEEDED = ("trim", "malicious", "selected")
