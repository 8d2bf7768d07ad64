"""How do noised gradients become a model? The part of a plan that costs no privacy.

The rule: all of it is post-processing of what the mechanism gave. A setting that a choice leaves
without effect is refused: whoever writes one expects an effect.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.aggregation import FEDAVG, Aggregation
from common.canonical import Json, number
from common.config import Table

METHODS = ("sgd", "adam")
SCHEDULES = ("constant", "linear", "cosine", "step")


@dataclass(frozen=True)
class Optimizer:
    """How noised gradients become a model. All of it is post-processing: it costs no privacy.

    What the method or the schedule does not use has no effect, and is not in the JSON.

    Args:
        learning_rate: of a local step, > 0; the schedule's greatest.
        method: ``sgd``, or ``adam`` (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1). Either
            starts anew in each round: a client keeps nothing.
        momentum: of ``sgd`` within one round, in [0, 1); 0 with ``adam``.
        beta1: ``adam``'s decay of the mean of gradients, in [0, 1).
        beta2: ``adam``'s decay of the mean of their squares, in [0, 1).
        epsilon: ``adam``'s term against division by zero, in (0, 1]. Not a privacy parameter.
        schedule: ``constant``, ``linear``, ``cosine`` or ``step``, over all steps of all rounds.
        warmup: fraction of all steps, in [0, 1), in which the learning rate first rises in equal
            parts to its greatest; what the schedule says begins after them.
        final_learning_rate: where the schedule ends, at most ``learning_rate``. ``linear`` (a line)
            and ``cosine`` (half a wave) would get there one step after the last, so that even an
            end of 0 wastes no step; ``step`` is there in its last stage, and needs more than 0.
        stages: of ``step``, >= 2: equal parts of the time, each with a constant learning rate: the
            one before it times the same factor.
        averaging: in [0, 1), decay of the average of a round's iterates that the round gives
            instead of its last (De et al. 2022, arXiv 2204.13650); 0 is the last one.
        proximal: mu >= 0 of FedProx (Li et al. 2020, arXiv 1812.06127): each step's gradient gets
            mu (w - w_start), which pulls towards the model that the round began with.
        aggregation: how valid updates become the next model, a value of its own.
        update_bound: greatest absolute value of one coordinate of a valid update, > 0.
    """

    learning_rate: float
    method: str = "sgd"
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    schedule: str = "constant"
    warmup: float = 0.0
    final_learning_rate: float = 0.0
    stages: int = 3
    averaging: float = 0.0
    proximal: float = 0.0
    aggregation: Aggregation = FEDAVG
    update_bound: float = 1000.0

    def json(self) -> Json:
        result: Json = {
            "learning_rate": number(self.learning_rate),
            "method": self.method,
            "momentum": number(self.momentum),
            "schedule": self.schedule,
            "warmup": number(self.warmup),
            "averaging": number(self.averaging),
            "proximal": number(self.proximal),
            **self.aggregation.json(),
            "update_bound": number(self.update_bound),
        }
        if self.method == "adam":
            result |= {key: number(getattr(self, key)) for key in ("beta1", "beta2", "epsilon")}
        if self.schedule != "constant":
            result["final_learning_rate"] = number(self.final_learning_rate)
        if self.schedule == "step":
            result["stages"] = self.stages
        return result

    @classmethod
    def read(cls, table: Table, quorum: int) -> Optimizer:
        """Read ``[plan.optimizer]``; a setting that would have no effect is an error."""
        method = table.text("method", "sgd", choices=METHODS)
        if method == "sgd":
            _without(table, ("beta1", "beta2", "epsilon"), 'method = "sgd"')
        schedule = table.text("schedule", "constant", choices=SCHEDULES)
        if schedule != "step":
            unused = ("stages", "final_learning_rate") if schedule == "constant" else ("stages",)
            _without(table, unused, f'schedule = "{schedule}"')
        rate = table.number("learning_rate", above=0, high=1e6)
        optimizer = cls(
            learning_rate=rate,
            method=method,
            momentum=table.number("momentum", 0.0, low=0, below=1),
            beta1=table.number("beta1", 0.9, low=0, below=1),
            beta2=table.number("beta2", 0.999, low=0, below=1),
            epsilon=table.number("epsilon", 1e-8, above=0, high=1),
            schedule=schedule,
            warmup=table.number("warmup", 0.0, low=0, below=1),
            final_learning_rate=table.number("final_learning_rate", 0.0, low=0, high=rate),
            stages=table.integer("stages", 3, low=2, high=10**6),
            averaging=table.number("averaging", 0.0, low=0, below=1),
            proximal=table.number("proximal", 0.0, low=0, high=1e6),
            aggregation=Aggregation.read(table, quorum),
            # 2^10 with 2^16 clients and 36 fractional bits fills the exact mean's 63 bits.
            update_bound=table.number("update_bound", 1000.0, above=0, high=1024),
        )
        if method == "adam" and optimizer.momentum:
            raise table.error(
                "momentum",
                f'momentum = {optimizer.momentum:g} has no effect with method = "adam"',
                hint="leave momentum out; adam's own is beta1",
            )
        if schedule == "step" and not optimizer.final_learning_rate:
            raise table.error(
                "final_learning_rate",
                'schedule = "step" needs a final_learning_rate above 0',
                hint="its last stage trains at that rate, and at 0 would learn nothing",
            )
        if optimizer.aggregation.name == "fedprox" and not optimizer.proximal:
            raise table.error(
                "aggregation",
                'aggregation = "fedprox" without proximal is "fedavg"',
                hint="add proximal = mu, what each local step is pulled back by; say 0.01",
            )
        table.done()
        return optimizer


def _without(table: Table, keys: tuple[str, ...], choice: str) -> None:
    """Refuse settings that a choice leaves without effect: whoever gives one expects an effect."""
    for key in keys:
        if table.has(key):
            hint = f"leave {key} out, or choose otherwise"
            if key == "epsilon":
                hint = f"{hint}; a target for privacy belongs in [plan.privacy]"
            raise table.error(key, f"{key} has no effect with {choice}", hint=hint)
