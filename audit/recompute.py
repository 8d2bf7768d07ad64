"""Every epsilon of a bundle again, by code that is not ours: dp-accounting's PLD and Rényi.

The rule: two accountants that share no code must agree, or the number is not to be used. What is
charged and stated is computed twice, by our Rényi accountant and by dp-accounting's at the same
orders; the headline is computed by privacy loss distributions (PLD). This half of the audit needs
the ``audit`` extra; the verifying half does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from audit.ledgers import Spend
from audit.verify import Verdict, exposure
from common.canonical import Json, parse_number
from common.errors import TrustError
from common.privacy import accountant, reference
from common.privacy.events import ADJACENCY, REPLACE_ONE, Event

# The headline is a PLD value at a pinned discretisation: the same code gives it again to rounding.
HEADLINE_TOLERANCE = 1e-6
RDP_TOLERANCE = 1e-9

PLD, LIBRARY_RDP, OWN_RDP = "pld (dp-accounting)", "rdp (dp-accounting)", "rdp (privet)"


@dataclass(frozen=True)
class Recomputed:
    """Epsilon of the declared plan, and of what the most exposed client really spent.

    Args:
        declared: accountant's name to epsilon of the whole plan, or of what was spent where that
            is more.
        spent: PLD epsilon of the entries of the client that spent most: ``epsilon_spent``.
    """

    declared: dict[str, float]
    spent: float

    def json(self) -> Json:
        return {"declared": self.declared, "epsilon_spent": self.spent}


@dataclass(frozen=True)
class Pair:
    """One number by two codes that share nothing: ours, and dp-accounting's at the same orders."""

    own: float
    library: float

    @property
    def difference(self) -> float:
        """Absolute, or relative to a number above one."""
        if math.isinf(self.own) and math.isinf(self.library):
            return 0.0
        return abs(self.own - self.library) / max(1.0, self.library)

    def json(self) -> Json:
        return {
            OWN_RDP: self.own,
            LIBRARY_RDP: self.library,
            "difference": self.difference,
        }


@dataclass(frozen=True)
class ClientCost:
    """One client's spending, computed twice.

    Args:
        pseudonym: the client's name in this federation.
        rounds: that were charged.
        epsilon_filter: at the owner's order and delta: what the filter has charged.
        epsilon_rdp: the least over the pinned orders, at the plan's delta.
    """

    pseudonym: str
    rounds: int
    epsilon_filter: Pair
    epsilon_rdp: Pair

    def json(self) -> Json:
        return {
            "pseudonym": self.pseudonym,
            "rounds": self.rounds,
            "epsilon_filter": self.epsilon_filter.json(),
            "epsilon_rdp": self.epsilon_rdp.json(),
        }


@dataclass(frozen=True)
class Recomputation:
    """All of a bundle's numbers again. It exists only if they agree.

    Args:
        summary: the declared plan by every accountant, and ``epsilon_spent``.
        delta: of the plan.
        stated: the headline as the statement has it.
        replace_one: PLD epsilon of the same plan under replace-one; to compare, never stated.
        clients: each client's spending, the most exposed first.
    """

    summary: Recomputed
    delta: float
    stated: float
    replace_one: float
    clients: Sequence[ClientCost]

    @property
    def worst(self) -> float:
        """The greatest difference between our code and the library's, of all pairs."""
        plan = Pair(self.summary.declared[OWN_RDP], self.summary.declared[LIBRARY_RDP])
        pairs = [plan]
        for client in self.clients:
            pairs += [client.epsilon_filter, client.epsilon_rdp]
        return max(pair.difference for pair in pairs)

    def json(self) -> Json:
        return {
            "delta": self.delta,
            "adjacency": ADJACENCY,
            "epsilon": self.summary.declared[PLD],
            "epsilon_as_stated": self.stated,
            "epsilon_replace_one": self.replace_one,
            **self.summary.json(),
            "clients": [client.json() for client in self.clients],
            "greatest_difference": self.worst,
            "tolerance": RDP_TOLERANCE,
            "agree": True,
        }


def accountants(event: Event, delta: float) -> dict[str, float]:
    """Every accountant's epsilon for one schedule fixed in advance, by the accountant's name."""
    schedule = [event]
    return {
        PLD: reference.pld_epsilon(schedule, delta),
        LIBRARY_RDP: reference.rdp_epsilon(schedule, delta),
        OWN_RDP: accountant.epsilon(schedule, delta),
    }


def recompute(verdict: Verdict) -> Recomputed:
    """Compute a verified bundle's headline again.

    Raises:
        TrustError: a claim is not what its accountant gives, or two accountants disagree.
    """
    delta = verdict.plan.privacy.delta
    declared = accountants(exposure(verdict.plan, verdict.clients), delta)
    headline = parse_number(verdict.claims["epsilon"])
    if abs(headline - declared[PLD]) > HEADLINE_TOLERANCE:
        raise TrustError(
            f"the headline epsilon {headline} is not {declared[PLD]}, "
            "which PLD gives for plan and ledgers"
        )
    named = verdict.claims["accountants"]
    if not isinstance(named, dict) or set(named) != set(declared):
        raise TrustError("the statement names other accountants than were used")
    for name, value in declared.items():
        if abs(parse_number(named[name]) - value) > HEADLINE_TOLERANCE:
            raise TrustError(f"the statement's epsilon by {name} is not {value}")
    _agree(Pair(declared[OWN_RDP], declared[LIBRARY_RDP]), "for the declared plan")
    return Recomputed(declared, reference.pld_epsilon(verdict.most_exposed.events, delta))


def recompute_all(verdict: Verdict) -> Recomputation:
    """Compute every epsilon of a verified bundle again, client by client.

    Raises:
        TrustError: as :func:`recompute`; names the client.
    """
    plan = verdict.plan
    delta = plan.privacy.delta
    ranked = sorted(verdict.clients, key=lambda client: (-client.epsilon_filter, client.pseudonym))
    return Recomputation(
        summary=recompute(verdict),
        delta=delta,
        stated=parse_number(verdict.claims["epsilon"]),
        replace_one=reference.pld_epsilon(
            [exposure(plan, verdict.clients)], delta, adjacency=REPLACE_ONE
        ),
        clients=[_client(client, delta) for client in ranked],
    )


def _client(client: Spend, delta: float) -> ClientCost:
    # What verify computed is ours; it is compared with the library, and not computed once more.
    at_order = reference.rdp_epsilon(client.events, client.delta, orders=(client.order,))
    charged = accountant.rdp(client.events, client.order)
    if at_order == 0.0 and client.delta**2 + math.expm1(-charged) > 0:
        # So little that delta alone pays for it: the library says 0, a filter never does.
        at_order = client.epsilon_filter
    cost = ClientCost(
        pseudonym=client.pseudonym,
        rounds=client.rounds,
        epsilon_filter=Pair(client.epsilon_filter, at_order),
        epsilon_rdp=Pair(client.epsilon_rdp, reference.rdp_epsilon(client.events, delta)),
    )
    for pair in (cost.epsilon_filter, cost.epsilon_rdp):
        _agree(pair, f"for client {client.pseudonym[:12]}…")
    return cost


def _agree(pair: Pair, where: str) -> None:
    if not pair.difference <= RDP_TOLERANCE:  # nor a difference that is not a number
        raise TrustError(
            f"the two Rényi accountants disagree {where}: {pair.own!r} by ours and "
            f"{pair.library!r} by dp-accounting",
            hint="do not use either number; please report it with the bundle",
        )
