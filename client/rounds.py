"""One round, as the data sees it: guard, intent, training, disclosure, reply. No Flower in here.

The rule is an order of events. The guard decides; the intent is on disk; only then is noise drawn;
the update is on disk before the disclosure that names it; only then does it leave. A crash at any
point wastes budget at worst. The same request gets the same bytes again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from client.approval import approved_plans, what_is_bound
from client.guard import Admission, check_seen, judge, latest_approval, read_request
from client.home import Home, version_of
from client.kept import Kept
from client.personal import begin, part
from client.records import TrainingSet, engine_of, network_of, records_for_round
from common import durable
from common.bundle import ledger_bytes
from common.coding import Codec, codec_for
from common.errors import InputError, PlanError, Refusal, TrustError
from common.keys import Identity
from common.ledger import Entry, Head, Kind, Ledger, merkle
from common.ledger.entry import spent_json
from common.personal import shared
from common.plan import Plan
from common.policy import Policy
from common.privacy.noise import CRYPTOGRAPHIC, SIMULATED, Stream
from common.wire import (
    Arrays,
    Closed,
    Closing,
    Hello,
    LedgerCall,
    Receipt,
    RollCall,
    RoundRequest,
    Update,
    digest_update,
    head_in,
    pack_arrays,
    unpack_arrays,
)

log = logging.getLogger("privet.client")


@dataclass(frozen=True)
class Answer:
    """What leaves the client: an update, and a signed :class:`~common.wire.Receipt`."""

    update: Update
    receipt: bytes


class Client:
    """A client at work: its directory, ledger, approved plans, and records once needed."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._ledger: Ledger = home.open_ledger()
        self._plans: dict[str, Plan] = {}
        self._plans_version: tuple[int, ...] | None = None
        self._records: dict[str, TrainingSet] = {}
        self._kept = Kept(home.kept)
        self._approved()
        self._clean_outbox()

    @property
    def identity(self) -> Identity:
        return self._ledger.identity(self.home.federation)

    def answer_roll_call(self, envelope: bytes) -> bytes:
        """Say who this is, to the coordinator that it enrolled with and to nobody else."""
        call = RollCall.verify(envelope, self.home.coordinator)
        return Hello(self.home.client, call.nonce).sign(self.identity.key)

    def answer(self, envelope: bytes, arrays: Arrays) -> Answer:
        """Serve one round request, or refuse it.

        Raises:
            Refusal: nothing was spent; the code may be told to the server.
            OperationError: the disk refused; whatever was recorded stays charged.
        """
        request = read_request(envelope, self.home.coordinator)
        with self._ledger.locked():
            admission = self._judge(request, arrays)
            if admission.answered is not None:
                return self._again(admission, admission.answered)
            intent = admission.begun or self._ledger.append(
                self.home.federation, Kind.INTENT, admission.intent
            )
            kept: Arrays = {}
            if admission.plan.keeps:
                chain = self._ledger.chain(self.home.federation)
                kept = self._kept.read(chain, request.plan, request.run)
        start = begin(self.home, admission.plan, arrays, kept)
        update, keep = part(admission.plan, start, self._train(admission, start))
        return self._disclose(admission, intent, update, kept, keep)

    def answer_closing(self, envelope: bytes) -> bytes:
        """Store the coordinator's countersignature of a run's end, once, and say so.

        Raises:
            Refusal: the coordinator saw another history than the one that is here.
        """
        closing = _closing(envelope, self.home)
        federation = self.home.federation
        with self._ledger.locked():
            chain = self._ledger.chain(federation)
            seen = head_in(closing, federation, self.identity.pseudonym)
            check_seen(chain, seen, closing.signature, self.home.coordinator)
            if _is_open(chain, closing.run):
                body = {
                    "countersigned": {"entries": closing.entries, "signature": closing.signature},
                    "spent": spent_json(chain, _order(chain)),
                }
                self._ledger.append(federation, Kind.COUNTERSIGNATURE, body)
        head, proof = self._head(closing.entries)
        closed = Closed(
            client=self.home.client,
            run=closing.run,
            entries=head.entries,
            root=head.root,
            signature=head.sign(self.identity.key),
            consistency=proof,
        )
        return closed.sign(self.identity.key)

    def answer_ledger_call(self, envelope: bytes) -> bytes:
        """What this data set's ledger says of the coordinator's federation, for a release.

        It is what every bundle publishes: terms, costs and commitments, under this federation's
        pseudonym. What is spent elsewhere is in sums alone.

        Raises:
            Refusal: not this client's coordinator, or meant for another client.
        """
        try:
            call = LedgerCall.verify(envelope, self.home.coordinator)
        except TrustError as error:
            raise Refusal(str(error), code="bad-request") from error
        if call.client != self.home.client:
            raise Refusal("a call for another client", code="wrong-client")
        return ledger_bytes(self._ledger.chain(self.home.federation))

    # -- the steps -----------------------------------------------------------------------------

    def _judge(self, request: RoundRequest, arrays: Arrays) -> Admission:
        plan = self._approved().get(request.plan)
        policy = self._policy()
        return judge(
            request,
            arrays,
            client=self.home.client,
            pseudonym=self.identity.pseudonym,
            coordinator=self.home.coordinator,
            plans=self._plans,
            shapes=self._shapes(plan) if plan else {},
            policy=policy,
            chain=self._ledger.chain(self.home.federation),
            spent=self._ledger.spent(),
            noise=SIMULATED if self.home.seed is not None else CRYPTOGRAPHIC,
            bound=what_is_bound(self.home, plan, policy) if plan else {},
            now=self._ledger.now(),
        )

    def _approved(self) -> dict[str, Plan]:
        """The plans that were ever approved; an owner may approve one while the client runs."""
        if (version := version_of(self.home.plans)) != self._plans_version:
            self._plans, self._plans_version = approved_plans(self.home), version
        return self._plans

    def _policy(self) -> Policy:
        """The owner's terms as they stand, recorded once seen, so that no older ones come back."""
        try:
            policy = self.home.terms()
            self.home.custody.note(self._ledger, policy)
        except (InputError, PlanError, TrustError) as error:
            # Which of them it is, is no business of the server's.
            raise Refusal(
                f"the owner's policy cannot be used: {error}",
                hint=error.hint,
                code="policy-unusable",
            ) from error
        return policy

    def _train(self, admission: Admission, arrays: Arrays) -> Arrays:
        plan, round_ = admission.plan, admission.request.round
        records, engine = self._training_set(plan), engine_of(self.home, plan)
        try:
            stream = self._stream(plan, round_)
            return engine.round(arrays, records.features, records.labels, stream, round_)
        except Exception:
            # No record causes this: one that the features, the network or its gradient fail on was
            # left out, or counted as zero, and took no other along. The server must not see it all
            # the same. Nothing that was drawn has left, so the round is answered, under the same
            # intent, as if there were no records.
            log.exception("training on no records, because training on them failed")
            features, labels = records.features[:0], records.labels[:0]
            stream = self._stream(plan, round_)
            return engine.round(arrays, features, labels, stream, round_)

    def _stream(self, plan: Plan, round_: int) -> Stream:
        if self.home.seed is None:
            return Stream.cryptographic()
        return Stream.simulated(self.home.seed, plan.digest, self.home.client, round_)

    def _disclose(
        self, admission: Admission, intent: Entry, trained: Arrays, kept: Arrays, keep: Arrays
    ) -> Answer:
        request, codec = admission.request, self._codec(admission.plan)
        update, residual = codec.encode(trained, kept) if codec else (trained, {})
        keep = keep | residual
        file = self._outbox_file(request)
        with self._ledger.locked():
            # Another process of this client may have finished the same seeded round meanwhile.
            chain = self._ledger.chain(self.home.federation)
            for entry in chain:
                if entry.kind is Kind.DISCLOSURE and entry.body["intent"] == intent.seq:
                    return self._again(admission, entry)
            if keep:
                self._kept.write(request, keep)
            data = update if isinstance(update, bytes) else pack_arrays(update)
            durable.replace(file, data, mode=0o600)
            spent = spent_json(chain, intent.body["spent"]["order"])
            body = {"intent": intent.seq, "update": digest_update(update), "spent": spent}
            self._ledger.append(self.home.federation, Kind.DISCLOSURE, body)
            for older in self.home.outbox.glob("*.update"):
                if older != file:
                    older.unlink(missing_ok=True)
            self._kept.forget(self._ledger.chain(self.home.federation))
        return self._sign(request, intent, update)

    def _again(self, admission: Admission, disclosure: Entry) -> Answer:
        """The bytes that were disclosed before; if they are gone, the round is forfeited."""
        request = admission.request
        try:
            data = self._outbox_file(request).read_bytes()
        except FileNotFoundError as error:
            raise Refusal("answered before, and the answer is gone", code="forfeited") from error
        update: Update = data if admission.plan.compression else unpack_arrays(data)
        if digest_update(update) != disclosure.body["update"]:
            raise Refusal("the stored answer is not what was disclosed", code="ledger-unusable")
        chain = self._ledger.chain(self.home.federation)
        return self._sign(request, chain[disclosure.body["intent"]], update)

    def _sign(self, request: RoundRequest, intent: Entry, update: Update) -> Answer:
        head, proof = self._head(request.entries)
        receipt = Receipt(
            client=self.home.client,
            plan=request.plan,
            round=request.round,
            request=request.digest,
            intent=intent.digest,
            update=digest_update(update),
            entries=head.entries,
            root=head.root,
            signature=head.sign(self.identity.key),
            consistency=proof,
        )
        return Answer(update, receipt.sign(self.identity.key))

    def _head(self, before: int) -> tuple[Head, tuple[str, ...]]:
        """This ledger's head, and the proof that its first ``before`` entries are a prefix."""
        chain = self._ledger.chain(self.home.federation)
        proof = merkle.consistency_proof([entry.leaf for entry in chain], before)
        head = Head.of(self.home.federation, self.identity.pseudonym, chain)
        return head, tuple(hash_.hex() for hash_ in proof)

    # -- what is kept --------------------------------------------------------------------------

    def _training_set(self, plan: Plan) -> TrainingSet:
        if plan.digest not in self._records:
            self._records = {plan.digest: records_for_round(self.home, plan)}
        return self._records[plan.digest]

    def _shapes(self, plan: Plan) -> dict[str, tuple[int, ...]]:
        """Of the parameters that travel."""
        parameters = dict(network_of(self.home, plan).named_parameters())
        return {n: tuple(value.shape) for n, value in shared(plan.personal, parameters).items()}

    def _codec(self, plan: Plan) -> Codec | None:
        return codec_for(plan.compression, self._shapes(plan), plan.optimizer.update_bound)

    def _outbox_file(self, request: RoundRequest) -> Path:
        return self.home.outbox / f"{request.digest}.update"

    def _clean_outbox(self) -> None:
        """Bytes without a disclosure never left and never may: a crash came between."""
        with self._ledger.locked():
            chain = self._ledger.chain(self.home.federation)
            disclosed = {e.body["intent"] for e in chain if e.kind is Kind.DISCLOSURE}
            kept = {
                f"{entry.body['request']}.update"
                for entry in chain
                if entry.kind is Kind.INTENT and entry.seq in disclosed
            }
            for file in self.home.outbox.iterdir():
                if file.name not in kept:
                    file.unlink(missing_ok=True)
            self._kept.forget(chain)


def _closing(envelope: bytes, home: Home) -> Closing:
    try:
        closing = Closing.verify(envelope, home.coordinator)
    except TrustError as error:
        raise Refusal(str(error), code="malformed") from error
    if closing.client != home.client:
        raise Refusal("the closing is for another client", code="wrong-client")
    return closing


def _order(chain: Sequence[Entry]) -> int:
    """The order that the last approval adds up at."""
    approval = latest_approval(chain)
    if approval is None:
        raise Refusal("nothing was ever approved here", code="not-approved")
    return int(approval.body["terms"]["order"])


def _is_open(chain: Sequence[Entry], run: str) -> bool:
    """Whether a run spent something since the coordinator last vouched for the end of one."""
    last = chain[-1].kind if chain else None
    return last in (Kind.INTENT, Kind.DISCLOSURE) and any(
        entry.kind is Kind.INTENT and entry.body["run"] == run for entry in chain
    )


def open_client(path: Path) -> Client:
    """The client at work in a directory; opened once a process, and again if it was replaced."""
    return _open(path, version_of(path / "client.json"))


@lru_cache(maxsize=4096)
def _open(path: Path, version: tuple[int, ...] | None) -> Client:  # noqa: ARG001
    return Client(Home.read(path))
