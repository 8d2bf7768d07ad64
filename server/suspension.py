"""Who is not asked any more? A rule over what a client's replies were dropped for.

The rules: only faults of the client's own count, and each is a fact that the server checked, never
a guess about intent: silence, a crash, a refusal and lateness are no faults. A client with
``faults`` of them in the last ``window`` rounds that it was asked in is suspended, with the
reasons, until an operator lifts that suspension; then it starts with a clean record. The same
replies give the same suspensions, so a run that was killed continues with the same cohorts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from common.canonical import Json

VALID = ""  # the code of a reply that counted
_NO_FAULT = frozenset({VALID, "silent", "late", "client-error", "refused", "revoked"})


def is_fault(code: str) -> bool:
    """Whether a reply was dropped for something that its sender alone answers for.

    >>> is_fault("wrong-shape"), is_fault("silent"), is_fault("refused-budget-exhausted")
    (True, False, False)
    """
    return code not in _NO_FAULT and not code.startswith("refused-")


@dataclass(frozen=True)
class Rule:
    """Suspend after ``faults`` (0: never) in the last ``window`` rounds asked, faults <= window."""

    faults: int = 3
    window: int = 5


@dataclass(frozen=True)
class Suspension:
    """Since which round a client is not asked, and the codes that led to it, oldest first."""

    round: int
    codes: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """How every client stands after a round.

    Args:
        records: by client, the codes of the last rounds that it was asked in, oldest first;
            clients without a fault in them are left out.
        suspended: by client.
    """

    records: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    suspended: Mapping[str, Suspension] = field(default_factory=dict)

    def after(self, rule: Rule, round_: int, outcomes: Mapping[str, str]) -> Standing:
        """The standing after a round, from each asked client's code (:data:`VALID` if it counted).

        A client whose record holds no fault is not listed: the rounds before a first fault can
        neither hasten nor delay a suspension.
        """
        records, suspended = dict(self.records), dict(self.suspended)
        for client in sorted(outcomes):
            record = (*records.pop(client, ()), outcomes[client])[-rule.window :]
            codes = tuple(code for code in record if is_fault(code))
            if rule.faults and len(codes) >= rule.faults and is_fault(outcomes[client]):
                suspended[client] = Suspension(round_, codes)
            elif codes:
                records[client] = record
        return Standing(records, suspended)

    def lifted(self, lifts: Mapping[str, int]) -> Standing:
        """Without the suspensions that an operator lifted: by client, the round each dates from."""
        kept = {
            client: suspension
            for client, suspension in self.suspended.items()
            if lifts.get(client) != suspension.round
        }
        return replace(self, suspended=kept)

    def json(self) -> Json:
        return {
            "records": {client: list(codes) for client, codes in self.records.items()},
            "suspended": {
                client: {"round": suspension.round, "codes": list(suspension.codes)}
                for client, suspension in self.suspended.items()
            },
        }

    @classmethod
    def of(cls, document: Json) -> Standing:
        """What :meth:`json` wrote."""
        return cls(
            {client: tuple(codes) for client, codes in document["records"].items()},
            {
                client: Suspension(item["round"], tuple(item["codes"]))
                for client, item in document["suspended"].items()
            },
        )
