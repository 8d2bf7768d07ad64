"""Where does a data owner keep a data set's terms and its history? Beside the data, together.

The rules: a data set has one custody directory, and a client's ledger is the one that lies in it.
Every federation's client over the data set names the same custody, so all of them spend one budget.
The policy in it counts only with the pinned owner's signature, and never in an older version than
was seen before: the ledger records each version, in the chain that is the owner's alone.

    policy.dsse.json   what the owner allows, signed (DSSE)
    ledger.jsonl       what was spent, by every federation
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common import durable
from common.canonical import CanonicalError, decode
from common.errors import InputError, OperationError, PlanError, TrustError
from common.keys import PublicKey, SigningKey
from common.ledger import Entry, Kind, Ledger
from common.ledger.file import LOCAL
from common.policy import Policy
from common.statement import POLICY_TYPE, Envelope

OWNER = "owner"  # the name of the owner's key in its key directory
MAX_POLICY_BYTES = 2**20
_SEEN = b'"kind":"policy"'  # inside of a JSON string the quotes would be escaped


@dataclass(frozen=True)
class Custody:
    """The directory of one data set's policy and ledger."""

    path: Path

    @property
    def policy_file(self) -> Path:
        return self.path / "policy.dsse.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    # -- reading -------------------------------------------------------------------------------

    def policy(self, owner: PublicKey) -> Policy:
        """The policy in force, if ``owner`` signed it and no later one was seen.

        Raises:
            InputError: there is none, or it cannot be read.
            PlanError: signed, but not a policy of this version of Privet.
            TrustError: ``policy-not-the-owners``, or as :meth:`check_not_older` says.
        """
        policy = self.signed_policy(owner)
        self.check_not_older(policy)
        return policy

    def signed_policy(self, owner: PublicKey) -> Policy:
        """The policy that ``owner`` signed, whatever was seen before."""
        try:
            with open(self.policy_file, "rb") as file:
                data = file.read(MAX_POLICY_BYTES + 1)
        except OSError as error:
            raise InputError(
                f"cannot read the policy {self.policy_file}: {error.strerror}",
                hint="is this a data set's custody? privet client policy sign writes a policy",
                code="no-policy",
            ) from error
        try:
            if len(data) > MAX_POLICY_BYTES:
                raise TrustError(f"over {MAX_POLICY_BYTES} bytes")
            payload = Envelope.decode(data).verify(POLICY_TYPE, [owner])
        except TrustError as error:
            raise TrustError(
                f"{self.policy_file} is not a policy that the data owner "
                f"{owner.fingerprint[:16]}… signed: {error}",
                hint="put back the owner's policy; or remove the file, sign the terms anew and "
                "approve plans again",
                code="policy-not-the-owners",
            ) from error
        try:
            return Policy.decode(payload)
        except PlanError as error:
            raise PlanError(f"{self.policy_file}: {error}", hint=error.hint) from error

    def check_not_older(self, policy: Policy) -> None:
        """Refuse a policy that an owner has replaced since.

        Raises:
            TrustError: ``policy-rolled-back``: a later version was seen, or another of this one.
        """
        seen = self._seen()
        if seen and (policy.version, policy.digest) != seen and policy.version <= seen[0]:
            raise TrustError(
                f"{self.policy_file} is version {policy.version}, and "
                + (f"version {seen[0]}" if policy.version < seen[0] else "another of that version")
                + " was in force before",
                hint="put back the newest policy; or remove the file, sign the terms anew and "
                "approve plans again",
                code="policy-rolled-back",
            )

    def _seen(self) -> tuple[int, str] | None:
        """Version and digest of the latest policy that the ledger records."""
        for line in reversed(self._lines()):
            if _SEEN in line and (entry := _entry(line)).kind is Kind.POLICY:
                return entry.body["version"], entry.body["digest"]
        return None

    def _lines(self) -> list[bytes]:
        try:
            return self.ledger.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []  # nobody has enrolled with this data set yet
        except OSError as error:
            raise TrustError(
                f"cannot read the ledger {self.ledger}: {error.strerror}", code="ledger-unusable"
            ) from error

    # -- writing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the policy against every other process that would replace it."""
        busy = OperationError(
            f"{self.path} is being changed by another process",
            hint="wait until it is done and run the command again",
            code="custody-in-use",
        )
        with contextlib.ExitStack() as stack:
            with durable.disk_errors(self.path):
                stack.enter_context(durable.exclusively(self.path, busy))
            yield

    def sign(self, terms: Policy, owner: SigningKey, *, withdraw: Iterable[str] = ()) -> Policy:
        """Put an owner's terms in force, as the version after the last one.

        Args:
            terms: its version and approved plans are ignored: approvals of the policy before are
                carried over.
            owner: whoever signed the policy before.
            withdraw: digests of plans whose approval ends.

        Returns:
            The policy that is in force now.

        Raises:
            TrustError: the policy there is another owner's, or older than what was seen.
            PlanError: it is for another data set, or another unit.
            OperationError: the disk refused; the policy before is in force.
        """
        with durable.disk_errors(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.held():
            version = 1
            approved: tuple[str, ...] = ()
            if self.policy_file.exists():
                before = self.policy(owner.public)
                if before.dataset != terms.dataset:
                    raise PlanError(
                        f"{self.path} holds data set {before.dataset!r}, not {terms.dataset!r}",
                        hint="a data set keeps its id; another one gets a custody of its own",
                        code="another-data-set",
                    )
                if before.unit != terms.unit:
                    raise PlanError(
                        f"the budget of {before.dataset!r} is for each {before.unit}, and these "
                        f"terms are for each {terms.unit}",
                        hint="costs of the two do not add up; another unit needs a data set and a "
                        "custody of its own",
                        code="other-unit",
                    )
                version, approved = before.version + 1, before.approved_plans
            elif seen := self._seen():
                version = seen[0] + 1
            kept = tuple(plan for plan in approved if plan not in set(withdraw))
            return self.write(replace(terms, version=version, approved_plans=kept), owner)

    def write(self, policy: Policy, owner: SigningKey) -> Policy:
        """Sign exactly this policy and put it in force. Call it while :meth:`held`."""
        envelope = Envelope.sign(POLICY_TYPE, policy.encode(), [owner])
        durable.replace(self.policy_file, envelope.encode())
        return policy

    def note(self, ledger: Ledger, policy: Policy) -> None:
        """Record that this policy was seen. Call it while the ledger is locked."""
        chain = [entry for entry in ledger.chain(LOCAL) if entry.kind is Kind.POLICY]
        if not chain or chain[-1].body["version"] < policy.version:
            body = {"version": policy.version, "digest": policy.digest}
            ledger.append(LOCAL, Kind.POLICY, body)


def _entry(line: bytes) -> Entry:
    try:
        return Entry.from_json(decode(line).get("entry"))
    except CanonicalError as error:
        raise TrustError(f"not a ledger line: {error}", code="ledger-unusable") from error
