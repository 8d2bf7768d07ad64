"""May this request be served? The client decides, from its own policy, approvals and ledger.

The rule: everything is checked before anything is reserved, and what the server says about itself
counts for nothing. A request is served only if the coordinator signed it, the owner approved its
plan, it brings the model that it names, it is newer than anything served before, the ledger here
is the one that the coordinator last saw, the owner's floors hold, and the remaining budget covers
it. This module is pure: it reads values and returns a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from client.central import NO_NOISE, check_paid
from common.canonical import Json, number
from common.errors import PlanError, Refusal, TrustError
from common.keys import PublicKey
from common.ledger import Entry, Head, Kind, merkle
from common.ledger.entry import spent_json
from common.plan import Plan
from common.policy import Policy
from common.privacy.events import Event
from common.wire import Arrays, RoundRequest, digest_arrays

MAX_WEIGHT = 1e4  # greatest absolute parameter of a model that is trained from


@dataclass(frozen=True)
class Admission:
    """A request that may be served.

    ``answered`` is the disclosure that already answers it: the same bytes go out again, at no cost.
    ``begun`` is the intent of a seeded round that was begun and cut off: repeatable noise gives the
    same bits again, so it is finished under the same entry, as is one without noise of its own
    (central trust). Otherwise ``intent`` is the body of the
    entry to record before any noise is drawn.
    """

    request: RoundRequest
    plan: Plan
    intent: Json
    answered: Entry | None = None
    begun: Entry | None = None


def read_request(envelope: bytes, coordinator: PublicKey) -> RoundRequest:
    """Hostile bytes to a request that the coordinator signed; :class:`Refusal` otherwise."""
    try:
        return RoundRequest.verify(envelope, coordinator)
    except TrustError as error:
        raise Refusal(str(error), code=_code(error)) from error


def judge(
    request: RoundRequest,
    arrays: Arrays,
    *,
    client: str,
    pseudonym: str,
    coordinator: PublicKey,
    plans: Mapping[str, Plan],
    shapes: Mapping[str, tuple[int, ...]],
    policy: Policy,
    chain: Sequence[Entry],
    spent: Iterable[Event],
    noise: str,
    bound: Json,
    now: str,
) -> Admission:
    """Decide on a request whose signature is already verified.

    Args:
        request: what the coordinator asks.
        arrays: the model that came along.
        client: the name that this client enrolled under.
        pseudonym: what its ledger calls it in this federation.
        coordinator: whose countersignature the request carries.
        plans: approved plans by digest.
        shapes: parameter shapes of the approved plan's model, by name.
        policy: the owner's terms, as they stand now.
        chain: this federation's ledger entries.
        spent: events on this data set, across all federations.
        noise: which stream would be used, ``cryptographic`` or ``simulated``.
        bound: what would run now (plan, terms, code, model, features), as an approval would record
            it.
        now: the present, UTC, ISO 8601 with a ``Z``: the clock's, or the ledger's if that is later.

    Raises:
        Refusal: its ``code`` is all that the server learns.
    """
    if request.client != client:
        raise Refusal("the request is for another client", code="wrong-client")
    plan = plans.get(request.plan)
    if plan is None or bound["plan"] != request.plan or not is_approved(chain, bound):
        raise Refusal("the owner has not approved this plan", code="not-approved")
    if {name: array.shape for name, array in arrays.items()} != dict(shapes) or any(
        array.dtype.name != "float32" for array in arrays.values()
    ):
        raise Refusal("the arrays are not this plan's model", code="wrong-model")
    if not all(is_reasonable(array) for array in arrays.values()):
        raise Refusal("the model's values are not finite, or huge", code="wrong-model")
    if digest_arrays(arrays) != request.model:
        raise Refusal("the arrays are not those that were signed for", code="wrong-model")
    seen = Head(coordinator.fingerprint, pseudonym, request.entries, request.root)
    check_seen(chain, seen, request.signature, coordinator)
    if not 1 <= request.round <= plan.rounds:
        raise Refusal(f"round {request.round} is not in the plan", code="stale-round")
    try:
        policy.check(plan, now)
    except PlanError as error:
        raise Refusal(str(error), code=error.code) from error
    if noise == "simulated" and not policy.simulated:
        raise Refusal("repeatable noise on data that is not simulated", code="below-floor")

    earlier = [entry for entry in chain if entry.kind is Kind.INTENT]
    for entry in earlier:
        if entry.body["request"] == request.digest:
            return _retry(Admission(request, plan, entry.body), noise, chain, entry)
    _check_fresh(request, earlier)
    served = sum(entry.body["plan"] == request.plan for entry in earlier)
    if served >= plan.rounds + policy.spare_rounds:
        raise Refusal("the plan's rounds, spare ones included, are used", code="no-rounds-left")
    if plan.central:
        check_paid(request, plan, chain)
    elif not policy.budget.admits(spent, plan.privacy.event()):
        raise Refusal("the data set's budget does not cover this round", code="budget-exhausted")
    order = policy.budget.order
    return Admission(request, plan, intent_body(request, plan, noise, order, chain))


def check_seen(chain: Sequence[Entry], seen: Head, signature: str, coordinator: PublicKey) -> None:
    """Whether the coordinator countersigned a prefix of this very chain.

    Raises:
        Refusal: it did not sign, or it holds another history than the one that is here: this
            ledger was restored from an older copy, or written anew.
    """
    if not seen.signed_by(coordinator, signature):
        raise Refusal("the countersignature is not the coordinator's", code="bad-signature")
    if seen.entries > len(chain):
        raise Refusal(
            f"the coordinator saw {seen.entries} entries of this ledger and {len(chain)} are here: "
            "it was restored from an older copy, which forgets what was spent",
            hint="restore the ledger as it was last written; without it, enrol again",
            code="ledger-rolled-back",
        )
    if merkle.root(entry.leaf for entry in chain[: seen.entries]).hex() != seen.root:
        raise Refusal(
            f"the first {seen.entries} entries of this ledger are not those that the coordinator "
            "saw: there are two histories",
            hint="restore the ledger as it was last written; without it, enrol again",
            code="ledger-forked",
        )


def intent_body(
    request: RoundRequest, plan: Plan, noise: str, order: int, chain: Sequence[Entry]
) -> Json:
    """What is recorded before noise is drawn: all that its cost depends on, and what it answers.

    With central trust no noise is drawn here and an enrolment has paid: the event is null.
    """
    event = None if plan.central else plan.privacy.event()
    return {
        "plan": request.plan,
        "run": request.run,
        "incarnation": request.incarnation,
        "round": request.round,
        "request": request.digest,
        "model": request.model,
        "event": event.json() if event else None,
        "clipping_norm": number(plan.privacy.clipping_norm),
        "divisor": number(plan.privacy.divisor),
        "noise": NO_NOISE if plan.central else noise,
        "spent": spent_json(chain, order, *([event] if event else [])),
        "countersigned": {"entries": request.entries, "signature": request.signature},
    }


def latest_approval(chain: Sequence[Entry], plan: str | None = None) -> Entry | None:
    """The last approval in a federation's chain, of one plan (its digest) or of any."""
    for entry in reversed(chain):
        if entry.kind is Kind.APPROVAL and plan in (None, entry.body["plan"]):
            return entry
    return None


def is_approved(chain: Sequence[Entry], bound: Json) -> bool:
    """Whether the last approval of this plan is of exactly this: earlier terms do not count."""
    entry = latest_approval(chain, bound["plan"])
    return entry is not None and all(entry.body[name] == value for name, value in bound.items())


def _retry(admission: Admission, noise: str, chain: Sequence[Entry], intent: Entry) -> Admission:
    """The same request again: the same answer, at no further cost, or none."""
    for entry in chain:
        if entry.kind is Kind.DISCLOSURE and entry.body["intent"] == intent.seq:
            return replace(admission, answered=entry)
    if intent.body["noise"] == noise == "simulated" or intent.body["noise"] == NO_NOISE:
        return replace(admission, begun=intent)
    # Killed between intent and disclosure. Fresh noise under an old entry would let the same budget
    # buy two answers, so the round is lost and stays charged.
    raise Refusal("this round was begun and never finished: its budget is spent", code="forfeited")


def is_reasonable(array: NDArray[np.float32]) -> bool:
    """Finite and not huge: beyond that, rounding of one record's logits could shift another's."""
    return bool(np.isfinite(array).all()) and float(np.abs(array).max(initial=0.0)) <= MAX_WEIGHT


def _check_fresh(request: RoundRequest, earlier: Sequence[Entry]) -> None:
    """Rounds only go forward; a restored server says so by its incarnation."""
    served = [
        (entry.body["incarnation"], entry.body["round"])
        for entry in earlier
        if entry.body["run"] == request.run
    ]
    if served:
        last = max(served)
        if request.incarnation < last[0] or (request.incarnation, request.round) <= last:
            raise Refusal("an old round is asked again", code="stale-round")


def _code(error: TrustError) -> str:
    return error.code if error.code in ("malformed", "bad-signature") else "malformed"
