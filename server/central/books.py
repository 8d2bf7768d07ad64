"""What has the coordinator spent, and may it go on? Its own ledger, in the form that clients keep.

The rules: the ledger is the coordinator's, not a run's: every run adds to it, and its budget is for
all of them. A round's intent is on disk before its noise is drawn; the disclosure names the stored
result before it is used. An entry holds nothing about who or how many took part.

    ledger.jsonl     one chain: what the operator allowed, and what each round cost
    keys/ledger      the secret that its key and pseudonym are derived from
    keys/ledger.mark how far it came
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from common import durable
from common.canonical import Json, digest, encode, number
from common.code import digest_of_code
from common.errors import BudgetError, PlanError, TrustError
from common.keys import Identity, KeyDirectory, SigningKey
from common.ledger import Entry, Head, Kind, Ledger, SignedHead
from common.ledger.entry import spent_json
from common.ledger.head import CLIENT, COORDINATOR
from common.plan import Plan
from common.policy import Policy, public_terms
from server.home import ServerHome

SECRET, MARK = "ledger", "ledger.mark"  # in the coordinator's key directory


class Books:
    """The coordinator's ledger, open.

    Args:
        path: the ledger file; :meth:`create` makes it once.
        keys: the coordinator's key directory.
        key: the coordinator's signing key, whose fingerprint names the federation.
        policy: what the operator allows; its unit is the client.

    Raises:
        TrustError: the ledger is missing, damaged, restored from an older copy, or another's.
    """

    def __init__(self, path: Path, keys: Path, key: SigningKey, policy: Policy) -> None:
        self._key, self.policy = key, policy
        self._ledger = Ledger(path, KeyDirectory(keys).secret(SECRET), keys / MARK)
        self.federation = key.public.fingerprint

    @staticmethod
    def create(path: Path, keys: Path) -> None:
        """Make an empty ledger, unless there is one; one that is remembered is never replaced."""
        directory = KeyDirectory(keys)
        if path.exists():
            return
        with durable.disk_errors(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = (keys / SECRET).exists()
        secret = directory.secret(SECRET) if known else directory.create_secret(SECRET)
        Ledger.create(path, secret, keys / MARK)

    @cached_property
    def identity(self) -> Identity:
        """The pseudonym and the key that entries are signed with."""
        return self._ledger.identity(self.federation)

    def chain(self) -> tuple[Entry, ...]:
        return self._ledger.chain(self.federation)

    def note(self) -> SignedHead:
        """The ledger's head, signed by its key and by the coordinator's."""
        chain, who = self.chain(), self.identity
        head = Head.of(self.federation, who.pseudonym, chain)
        note = SignedHead.of(head).with_signature(CLIENT, who.key.public, head.sign(who.key))
        return note.with_signature(COORDINATOR, self._key.public, head.sign(self._key))

    # -- what is allowed -----------------------------------------------------------------------

    def approve(self, plan: Plan) -> None:
        """Record the operator's terms for a plan, unless these terms and this code stand already.

        Raises:
            PlanError: the terms forbid the plan.
            BudgetError: a fresh budget would not cover it.
        """
        self.policy.check_terms(plan)
        self.policy.check_budget(plan)
        with self._ledger.locked():
            chain = self.chain()
            bound: Json = {
                "plan": plan.digest,
                "terms": public_terms(self.policy),
                "code": digest_of_code(Path(__file__).parents[2], ("server", "common")),
                "model": plan.model,
                "features": [column.name for column in plan.schema.columns] or ["pixels"],
            }
            for entry in reversed(chain):
                if entry.kind is Kind.APPROVAL and entry.body["plan"] == plan.digest:
                    if all(entry.body[name] == value for name, value in bound.items()):
                        return
                    break
            who, seq = self.identity, len(chain)
            body = {
                **bound,
                "policy": who.commit(f"policy/{seq}", self.policy.encode()),
                "data": who.commit(f"data/{seq}", encode(["the data is the clients'"])),
            }
            self._ledger.append(self.federation, Kind.APPROVAL, body)

    def admits(self, plan: Plan) -> bool:
        """Whether one more round of ``plan`` is within its rounds, spare ones included, the
        operator's period, and the budget."""
        try:
            self.policy.check_terms(plan, self._ledger.now())
        except PlanError:
            return False
        return self._rounds_left(plan) > 0 and self.policy.budget.admits(
            self._ledger.spent(), plan.privacy.event()
        )

    def _rounds_left(self, plan: Plan) -> int:
        begun = sum(
            entry.kind is Kind.INTENT and entry.body["plan"] == plan.digest
            for entry in self.chain()
        )
        return plan.rounds + self.policy.spare_rounds - int(begun)

    # -- one round -----------------------------------------------------------------------------

    def find(self, request: str) -> tuple[Entry | None, Entry | None]:
        """The last intent of a round, by the digest that names it, and its disclosure."""
        with self._ledger.locked():
            chain = self.chain()
        for intent in reversed(chain):
            if intent.kind is Kind.INTENT and intent.body["request"] == request:
                for entry in chain[intent.seq + 1 :]:
                    if entry.kind is Kind.DISCLOSURE and entry.body["intent"] == intent.seq:
                        return intent, entry
                return intent, None
        return None, None

    def intend(self, plan: Plan, named: Json, norm: float, noise: str) -> Entry:
        """Record, durably, that a round's noise is about to be drawn: spent from here on.

        Args:
            named: run, incarnation, round and model digest; see :func:`request_of`.
            norm: this round's clipping norm.
            noise: the kind of the stream.

        Raises:
            BudgetError: the budget or the plan's rounds are used; nothing was recorded.
        """
        with self._ledger.locked():
            if not self.admits(plan):
                raise budget_used()
            chain, event = self.chain(), plan.privacy.event()
            head = Head.of(self.federation, self.identity.pseudonym, chain)
            body = {
                **named,
                "plan": plan.digest,
                "request": request_of(named),
                "event": event.json(),
                "clipping_norm": number(norm),
                "divisor": number(plan.privacy.divisor),
                "noise": noise,
                "spent": spent_json(chain, self.policy.budget.order, event),
                "countersigned": {"entries": len(chain), "signature": head.sign(self._key)},
            }
            return self._ledger.append(self.federation, Kind.INTENT, body)

    def disclose(self, intent: Entry, update: str) -> Entry:
        """Record, durably, which bytes the round released; ``update`` is their digest."""
        with self._ledger.locked():
            spent = spent_json(self.chain(), self.policy.budget.order)
            body = {"intent": intent.seq, "update": update, "spent": spent}
            return self._ledger.append(self.federation, Kind.DISCLOSURE, body)


def budget_used() -> BudgetError:
    return BudgetError(
        "the operator's budget or terms admit no further round of this plan",
        hint="a further round would cost every client more than was allowed; the budget is for "
        "all of the coordinator's runs",
        code="budget-used",
    )


def request_of(named: Json) -> str:
    """The digest that names one round of one incarnation of a run."""
    return digest(encode(named))


def check_operator(home: ServerHome) -> tuple[Policy, Path]:
    """The operator's terms of a run with central trust, and the coordinator's ledger.

    Raises:
        TrustError: there are none.
    """
    if home.operator is None or home.ledger is None:
        raise TrustError(
            "the run has central trust and no operator's terms, so nothing bounds what it spends",
            hint="prepare the run again with a [policy] whose unit is the client",
            code="no-operator-policy",
        )
    return home.operator, home.ledger


def open_books(home: ServerHome) -> Books:
    """The coordinator's ledger of a run with central trust."""
    policy, ledger = check_operator(home)
    return Books(ledger, home.keys, home.signing_key(), policy)
