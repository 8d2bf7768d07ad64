"""Central differential privacy: the server clips, sums, charges, and draws the noise."""

from server.central.books import budget_used
from server.central.rounds import CentralRounds

__all__ = ["CentralRounds", "budget_used"]
