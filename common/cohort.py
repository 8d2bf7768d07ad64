"""Who is asked in a round, and when do the rounds end early? The plan's tables for both.

The rule: what is left out is not in the plan's JSON, so a plan that asks for none of this has the
digest that it always had. Neither table touches what a client's round costs: it says who is asked
and when asking stops, and every client that is asked spends, whether its reply is used or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.canonical import Json, number
from common.config import Table

MAX_CLIENTS = 2**16


@dataclass(frozen=True)
class Cohort:
    """Who is asked in a round.

    Args:
        clients: how many valid replies a round is after, 1 to 65,536, which is what the exact mean
            holds; all that are there if fewer.
        quorum: how many valid replies a round needs to change the model, 1 to ``clients``.
        deadline: seconds that a round waits for replies, > 0.
        over_selection: how many more clients than that are asked, >= 0. The round ends as soon as
            ``clients`` valid replies are in; what comes later is dropped, although its sender has
            spent that round's budget. Which replies are first is up to the network, so a run with
            over-selection cannot be repeated to the bit.
    """

    clients: int
    quorum: int
    deadline: float
    over_selection: int = 0

    @property
    def asked(self) -> int:
        """How many clients a round asks, if that many are there."""
        return self.clients + self.over_selection

    def json(self) -> Json:
        document: Json = {
            "clients": self.clients,
            "quorum": self.quorum,
            "deadline": number(self.deadline),
        }
        if self.over_selection:
            document["over_selection"] = self.over_selection
        return document

    @classmethod
    def read(cls, table: Table) -> Cohort:
        """Read ``[plan.cohort]``."""
        clients = table.integer("clients", low=1, high=MAX_CLIENTS)
        cohort = cls(
            clients=clients,
            quorum=table.integer("quorum", 1, low=1, high=clients),
            deadline=table.number("deadline", 3600.0, above=0, high=10**7),
            over_selection=table.integer("over_selection", 0, low=0, high=10**6),
        )
        table.done()
        return cohort


@dataclass(frozen=True)
class Stopping:
    """When more rounds are not worth their budget: judged on the public validation set alone.

    The score is the global model's accuracy, a function of a released model and public records:
    post-processing, which costs no privacy. It is optimistic by as much as it was chosen on.

    Args:
        patience: rounds that changed the model without improving its score before the run ends,
            >= 1.
        least_improvement: by how much a score must exceed the best so far to count, in [0, 1).
    """

    patience: int
    least_improvement: float = 0.0

    def judge(self, best: float | None, waited: int, score: float) -> tuple[float, int]:
        """The best score so far, and for how many rounds nothing was better by enough.

        >>> Stopping(patience=2, least_improvement=0.01).judge(0.90, 0, 0.905)
        (0.9, 1)
        """
        if best is None or score > best + self.least_improvement:
            return score, 0
        return best, waited + 1

    def json(self) -> Json:
        return {
            "patience": self.patience,
            "least_improvement": number(self.least_improvement),
        }

    @classmethod
    def read(cls, table: Table) -> Stopping:
        """Read ``[plan.stopping]``."""
        stopping = cls(
            patience=table.integer("patience", low=1, high=10**6),
            least_improvement=table.number("least_improvement", 0.0, low=0, below=1),
        )
        table.done()
        return stopping
