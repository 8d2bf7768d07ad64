"""The headline epsilon again, by code that is not ours: dp-accounting's PLD and Rényi.

The rule: two accountants that share no code must agree, or the number is not to be used. This half
of the audit needs the ``audit`` extra; the verifying half does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from audit.verify import Verdict, exposure
from common.canonical import Json, parse_number
from common.errors import TrustError
from common.privacy import accountant, reference
from common.privacy.events import Event

# The headline is a PLD value at a pinned discretisation: the same code gives it again to rounding.
HEADLINE_TOLERANCE = 1e-6
RDP_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Recomputed:
    """Epsilon of the declared plan, and of what the most exposed client really spent.

    Args:
        declared: accountant's name to epsilon of the whole plan, or of what was spent where that
            is more.
        spent: PLD epsilon of the entries of the client that spent most.
    """

    declared: dict[str, float]
    spent: float

    def json(self) -> Json:
        return {"declared": self.declared, "spent": self.spent}


def accountants(event: Event, delta: float) -> dict[str, float]:
    """Every accountant's epsilon for one schedule fixed in advance, by the accountant's name."""
    schedule = [event]
    return {
        "pld (dp-accounting)": reference.pld_epsilon(schedule, delta),
        "rdp (dp-accounting)": reference.rdp_epsilon(schedule, delta),
        "rdp (privet)": accountant.epsilon(schedule, delta),
    }


def recompute(verdict: Verdict) -> Recomputed:
    """Compute a verified bundle's claims again.

    Raises:
        TrustError: a claim is not what its accountant gives, or two accountants disagree.
    """
    delta = verdict.plan.privacy.delta
    declared = accountants(exposure(verdict.plan, verdict.clients), delta)
    headline = parse_number(verdict.claims["epsilon"])
    if abs(headline - declared["pld (dp-accounting)"]) > HEADLINE_TOLERANCE:
        raise TrustError(
            f"the headline epsilon {headline} is not {declared['pld (dp-accounting)']}, "
            "which PLD gives for plan and ledgers"
        )
    if abs(declared["rdp (dp-accounting)"] - declared["rdp (privet)"]) > RDP_TOLERANCE:
        raise TrustError("the two Rényi accountants disagree; do not use either number")
    return Recomputed(declared, reference.pld_epsilon(verdict.most_exposed.events, delta))
