"""Our own round loop over Flower's Grid: look, request, wait, validate, aggregate, checkpoint.

The rules: one bad client costs one reply, never the run. A round ends at its deadline whoever is
silent, and asks nobody while a quorum is not there. A round without a quorum of valid replies
changes nothing, and says so. The state on disk after each round is all that the next one needs, so
a run continues where it was killed and ends in the same bits.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from common.canonical import Json
from common.coding import codec_for
from common.ledger import Head
from common.wire import Arrays, RoundRequest, digest_arrays
from server.aggregation.rules import advance, rule_for
from server.aggregation.validate import Expected, Rejected, open_reply
from server.central import CentralRounds, budget_used
from server.checkpoint import ALL_ROUNDS, BUDGET_USED, NO_IMPROVEMENT, Checkpoint, CheckpointStore
from server.endings import SPENT, check_validation, nothing_changed, too_few
from server.events import public_code
from server.federation.lasting import keep_heads, starting_heads
from server.heads import close, head_json, seen_of
from server.home import ServerHome
from server.messages import bytes_of, read_reply, round_requests
from server.metrics import Metrics
from server.nodes import DUPLICATE, LATE, Clock, Nodes
from server.record import Record, RoundReport
from server.stopping import Stopped, StopRequest
from server.suspension import VALID

__all__ = ["RoundLoop", "RoundReport"]

LAST_WORD_SECONDS = 30.0  # that a server which is to stop waits for its clients
_NO_ANSWER = frozenset({"silent", "late", "client-error"})


class RoundLoop:
    """Runs a plan's rounds to the end, from wherever its checkpoints say.

    Args:
        home: the run.
        grid: Flower's connection to the nodes.
        initial: the model before round 1.
        score: accuracy of a model, or None.
        progress: called as (round, answers so far, asked) while a round waits.
        on_round: called after each round's checkpoint is durable.
        clock: what deadlines are read from.
        stop: whether an operator wants the run to stop; by default a file in the run directory.
        metrics: is told how the run is doing.

    Raises:
        InputError: the plan stops early by a validation set, and there is no public one.
    """

    def __init__(
        self,
        home: ServerHome,
        grid: Grid,
        initial: Arrays,
        *,
        score: Callable[[Arrays], float] | None = None,
        progress: Callable[[int, int, int], None] | None = None,
        on_round: Callable[[RoundReport], None] | None = None,
        clock: Clock | None = None,
        stop: StopRequest | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._home, self._plan, self._key = home, home.plan, home.signing_key()
        check_validation(home, scored=score is not None)
        self._clock = clock or Clock()
        self._nodes = Nodes(home, grid, self._key, progress, self._clock)
        self._score = score
        self._on_round = on_round or (lambda _: None)
        self._stop = stop or StopRequest(home.stop)
        metrics = metrics or Metrics(home.run, self._plan.rounds, len(home.members))
        self._record = Record(home, metrics)
        self._shapes = {name: array.shape for name, array in initial.items()}
        optimizer = self._plan.optimizer
        self._codec = codec_for(self._plan.compression, self._shapes, optimizer.update_bound)
        self._limit = sum(array.nbytes + 1024 for array in initial.values())
        if self._codec:
            self._limit = self._codec.size
        self._plain_bytes, self._bytes = bytes_of(initial), 0
        self._settings = home.settings()
        self._store = CheckpointStore(
            home.checkpoints,
            home.run,
            self._plan.digest,
            keep=self._settings.keep,
            every=self._settings.every,
        )
        latest = self._store.latest()
        self._state = latest or Checkpoint(
            home.run,
            self._plan.digest,
            0,
            initial,
            heads=starting_heads(home, self._key.public.fingerprint),
        )
        self._rule = rule_for(self._plan.optimizer.aggregation, self._shapes, self._state.rule)
        self._central = (
            CentralRounds(home, self._shapes, self._state.norm) if self._plan.central else None
        )
        self._taker = self._central or self._rule  # of valid updates

    def run(self) -> Arrays:
        """All remaining rounds; the final model.

        Raises:
            NetworkError: nobody enrolled is there, or no round of the run had a quorum.
            BudgetError: the clients refused because their budgets are spent.
            Stopped: an operator wished it; the run can be resumed.
        """
        incarnation, under_way = self._store.start(self._state.round)
        self._record.start(self._state.round, incarnation)
        first = True
        # A run that was killed after its last round needs nobody to be there.
        while not self._ended():
            nodes = self._assemble(first)
            if self._stop():
                self._leave()
            if first and len(nodes) < self._plan.cohort.quorum:
                raise too_few(len(nodes), self._state.standing, self._plan.cohort.quorum)
            if self._central and not self._central.may_go_on(self._state, incarnation):
                self._state = replace(self._state, ended=BUDGET_USED)
                self._store.save(self._state)
                break
            self._round(self._state.round + 1, incarnation, nodes, under_way)
            first, under_way = False, {}
        self._close()
        self._record.write()
        if self._state.changed == 0:
            raise budget_used() if self._central else nothing_changed(self._nodes.codes)
        return self._state.model

    def _ended(self) -> bool:
        return bool(self._state.ended) or self._state.round >= self._plan.rounds

    def _leave(self) -> None:
        """Stop here, in order: whoever is there hears the last word on its ledger, in time."""
        self._nodes.patience = min(self._nodes.patience, LAST_WORD_SECONDS)
        if self._nodes.present:
            self._close()
        self._record.stopped(self._state.round)
        self._stop.done()
        raise Stopped(
            f"stopped after round {self._state.round} of {self._plan.rounds}, as asked",
            hint="resume the run to go on from there",
        )

    def _close(self) -> None:
        if self._state.heads and not self._state.closed:
            # A server that was killed after its last round comes back before its clients do.
            known = set(self._state.heads)
            if not self._nodes.present:
                self._nodes.gather(lambda: known <= set(self._nodes.present), self._stop)
            present = self._nodes.present
            heads = close(self._home, self._key, self._nodes, present, self._state.heads)
            self._state = replace(self._state, heads=heads, closed=True)
            self._store.save(self._state)
            keep_heads(self._home, heads)

    # -- who is asked --------------------------------------------------------------------------

    def _assemble(self, first: bool) -> dict[str, int]:
        """Those who can be asked now, by name; waits only while a round could not be held.

        At a start all that the plan asks for are waited for, later a quorum is enough.

        Raises:
            NetworkError: so many are suspended that no round could have a quorum.
        """
        self._lift()
        suspended, cohort = self._state.standing.suspended, self._plan.cohort
        members = len(set(self._home.members) - set(suspended))
        if members < cohort.quorum and suspended:
            raise too_few(members, self._state.standing, self._plan.cohort.quorum)

        def there() -> dict[str, int]:
            present = self._nodes.present
            return {name: node for name, node in present.items() if name not in suspended}

        wanted = min(cohort.asked, members) if first else cohort.quorum
        self._nodes.gather(lambda: len(there()) >= wanted, self._stop)
        self._tell()
        return there()

    def _lift(self) -> None:
        """Let those take part again whose suspension an operator has lifted."""
        before = self._state.standing
        self._state = replace(self._state, standing=before.lifted(self._home.read_lifts()))
        self._record.lifted(self._state.round, before, self._state.standing)

    def _choose(self, round_: int, incarnation: int, present: list[str]) -> list[str]:
        """This round's cohort, by stable name: the same in every process for a seed."""
        if self._central:
            return self._central.draw(round_, incarnation, present)
        if len(present) < self._plan.cohort.quorum:
            return []  # whoever was asked would spend for nothing
        size = min(self._plan.cohort.asked, len(present))
        if self._home.seed is None:
            return sorted(secrets.SystemRandom().sample(present, size))

        def draw(name: str) -> str:
            return hashlib.sha256(f"{self._home.seed}/{round_}/{name}".encode()).hexdigest()

        return sorted(sorted(present, key=draw)[:size])

    # -- one round -----------------------------------------------------------------------------

    def _round(
        self, round_: int, incarnation: int, nodes: Mapping[str, int], under_way: Mapping[str, str]
    ) -> None:
        """One round; ``under_way`` holds the nonces of one that a crash cut off, to send again."""
        began = self._clock.now()
        cohort = sorted(set(under_way) & set(nodes))
        cohort = cohort or self._choose(round_, incarnation, sorted(nodes))
        requests = {
            client: self._request(client, round_, incarnation, under_way.get(client))
            for client in cohort
        }
        self._store.begin_round(
            incarnation, round_, {client: request.nonce for client, request in requests.items()}
        )
        self._taker.begin()
        self._bytes = 0
        self._record.begin(round_, asked=len(cohort), present=len(nodes), again=bool(under_way))
        dropped = dict[str, str]()
        heads = dict(self._state.heads)
        by_node = {nodes[client]: client for client in cohort}
        messages = round_requests(
            self._state.model,
            [(nodes[client], request.sign(self._key)) for client, request in requests.items()],
            f"round-{round_}",
            ttl=self._nodes.patience,
        )

        def enough() -> bool:
            return not self._central and self._rule.count >= self._plan.cohort.clients

        for message in self._nodes.exchange(messages, round_, enough):
            client = by_node.pop(message.metadata.src_node_id, None)
            if client is None:
                continue  # an error in a node's stead: it stays silent
            if enough():
                dropped[client] = "late"
                continue
            try:
                heads[client] = self._accept(message, client, requests[client])
            except Rejected as error:
                dropped[client] = public_code(error.code)
        dropped |= dict.fromkeys(by_node.values(), "late" if enough() else "silent")
        asked = {client: nodes[client] for client in cohort}
        self._finish(round_, incarnation, began, heads, dropped, asked)

    def _accept(self, message: Message, client: str, request: RoundRequest) -> Json:
        if not self._home.counts(client):
            raise Rejected("it was revoked while it was asked", code="revoked")
        reply = read_reply(message, self._limit, coded=self._codec is not None)
        expected = Expected(
            client=client,
            key=self._home.members[client].key,
            seen=self._seen(client),
            request=request,
            shapes=self._shapes,
            bound=self._plan.optimizer.update_bound,
            codec=self._codec,
        )
        receipt, update = open_reply(expected, reply.update, reply.receipt)
        self._taker.add(client, update)
        self._bytes += reply.size
        return head_json(receipt)

    def _finish(
        self,
        round_: int,
        incarnation: int,
        began: float,
        heads: Mapping[str, Json],
        dropped: Mapping[str, str],
        asked: Mapping[str, int],
    ) -> None:
        before, valid = self._state.model, self._taker.count
        if self._central:
            model, unchanged = self._central.advance(self._rule, round_, incarnation, before)
        else:
            model, unchanged = advance(self._rule, round_, before, self._plan.cohort.quorum)
        self._nodes.codes.update(dropped.values())
        strays, self._nodes.strays = self._nodes.strays, Counter()
        outcomes = {client: dropped.get(client, VALID) for client in asked}
        report = RoundReport(
            round=round_,
            asked=len(asked),
            valid=valid,
            changed=not unchanged,
            unchanged=unchanged,
            dropped=dropped,
            late=strays[LATE],
            duplicates=strays[DUPLICATE],
            accuracy=self._score(model) if self._score else None,
            seconds=round(self._clock.now() - began, 3),
            update_bytes=self._bytes,
            uncompressed_bytes=valid * self._plain_bytes,
        )
        standing = self._state.standing
        self._state = self._judge(
            replace(
                self._state,
                round=round_,
                model=model,
                changed=self._state.changed + (not unchanged),
                heads=heads,
                rule=self._rule.state(),
                closed=False,
                standing=standing.after(self._settings.rule, round_, outcomes),
                norm=self._central.norm if self._central else None,
            ),
            outcomes,
            report,
        )
        self._record.end(report, outcomes, asked, standing, self._state)
        self._store.save(self._state)
        keep_heads(self._home, heads)
        self._record.count(report, outcomes)
        self._tell()
        self._on_round(report)

    def _judge(
        self, state: Checkpoint, outcomes: Mapping[str, str], report: RoundReport
    ) -> Checkpoint:
        """Whether this was the last round: the state with what led to that."""
        refused = {client for client, code in outcomes.items() if code in SPENT}
        answered = {client for client, code in outcomes.items() if code not in _NO_ANSWER}
        spent = state.spent - answered | refused
        best, waited, ended = state.best, state.waited, ""
        stopping = self._plan.stopping
        if stopping and report.changed and report.accuracy is not None:
            best, waited = stopping.judge(best, waited, report.accuracy)
            ended = NO_IMPROVEMENT if waited >= stopping.patience else ""
        left = len(set(self._home.members) - spent)
        if spent and not self._central and left < self._plan.cohort.quorum:
            ended = BUDGET_USED
        if state.round >= self._plan.rounds:
            ended = ALL_ROUNDS
        return replace(state, spent=spent, best=best, waited=waited, ended=ended)

    def _tell(self) -> None:
        suspended = len(self._state.standing.suspended)
        self._record.stand(self._state.round, len(self._nodes.present), suspended)

    def _seen(self, client: str) -> Head:
        federation = self._key.public.fingerprint
        return seen_of(self._home.members[client], federation, self._state.heads)

    # -- naming and keeping --------------------------------------------------------------------

    def _request(
        self, client: str, round_: int, incarnation: int, nonce: str | None
    ) -> RoundRequest:
        seen = self._seen(client)
        return RoundRequest(
            client=client,
            plan=self._plan.digest,
            run=self._home.run,
            incarnation=incarnation,
            round=round_,
            model=digest_arrays(self._state.model),
            nonce=nonce or secrets.token_hex(16),
            entries=seen.entries,
            root=seen.root,
            signature=seen.sign(self._key),
        )
