"""How does this server run? What its operator chose, in ``server.toml`` of the run directory.

The rule: nothing here is in the plan, so nobody has to approve it, and nothing here touches what a
round costs or computes, except that a suspended client is not asked. A file that is not there means
the defaults; a key that is not known is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from common.config import read_toml
from server.suspension import Rule


@dataclass(frozen=True)
class Settings:
    """An operator's choices for one run.

    Args:
        rule: who is suspended; ``[suspension] faults, window``.
        keep: how many of the newest checkpoints are kept, >= 2; ``[checkpoints] keep``.
        every: of the older ones every N-th round's is kept too, 0: none; ``[checkpoints] every``.
        metrics_port: where Prometheus may ask, on the loopback address alone, 1024 to 65535; None:
            nowhere; ``[metrics] port``.
    """

    rule: Rule = field(default_factory=Rule)
    keep: int = 3
    every: int = 0
    metrics_port: int | None = None

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read ``server.toml``.

        Raises:
            PlanError: it is malformed; the message names the line.
        """
        if not file.exists():
            return cls()
        table = read_toml(file)
        conduct = table.table("suspension", required=False)
        window = conduct.integer("window", 5, low=1, high=1000)
        rule = Rule(conduct.integer("faults", min(3, window), low=0, high=window), window)
        checkpoints = table.table("checkpoints", required=False)
        metrics = table.table("metrics", required=False)
        settings = cls(
            rule=rule,
            keep=checkpoints.integer("keep", 3, low=2, high=10**6),
            every=checkpoints.integer("every", 0, low=0, high=10**6),
            metrics_port=(
                metrics.integer("port", low=1024, high=65535) if metrics.has("port") else None
            ),
        )
        for part in (conduct, checkpoints, metrics, table):
            part.done()
        return settings
