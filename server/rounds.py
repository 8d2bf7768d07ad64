"""Our own round loop over Flower's Grid: roll call, request, wait, validate, aggregate, checkpoint.

The rules: one bad client costs one reply, never the run. A round ends at its deadline whoever is
silent. A round without a quorum of valid replies changes nothing, and says so. The state on disk
after each round is all that the next one needs, so a run continues where it was killed and ends in
the same bits.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common import durable
from common.canonical import Json
from common.errors import BudgetError, NetworkError
from common.ledger import Head
from common.wire import Arrays, RoundRequest, digest_arrays
from server.aggregation.rules import advance, rule_for
from server.aggregation.validate import Expected, Rejected, check_reply
from server.checkpoint import Checkpoint, CheckpointStore
from server.heads import close, head_json, seen_of
from server.home import ServerHome
from server.messages import read_reply, round_requests
from server.nodes import Nodes


@dataclass(frozen=True)
class RoundReport:
    """What a round did; one line of ``metrics.jsonl``.

    Args:
        round: 1 … plan.rounds.
        asked, valid: clients asked, and replies that counted.
        changed: whether the model changed.
        unchanged: why it did not: ``no-quorum``, ``too-few-replies``, ``not-finite`` or
            ``no-model``; empty if it did.
        dropped: client to code, for replies that did not count.
        accuracy: on the public test set, in [0, 1]; None if there is none.
        seconds: wall time.
    """

    round: int
    asked: int
    valid: int
    changed: bool
    unchanged: str
    dropped: Mapping[str, str]
    accuracy: float | None
    seconds: float


class RoundLoop:
    """Runs a plan's rounds to the end, from wherever its checkpoints say.

    Args:
        home: the run.
        grid: Flower's connection to the nodes.
        initial: the model before round 1.
        score: accuracy of a model, or None.
        progress: called as (round, answers so far, asked) while a round waits.
        on_round: called after each round's checkpoint is durable.
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
    ) -> None:
        self._home, self._plan, self._key = home, home.plan, home.signing_key()
        self._nodes = Nodes(home, grid, self._key, progress)
        self._score = score
        self._on_round = on_round or (lambda _: None)
        self._shapes = {name: array.shape for name, array in initial.items()}
        self._limit = sum(array.nbytes + 1024 for array in initial.values())
        self._store = CheckpointStore(home.checkpoints, home.run, self._plan.digest)
        latest = self._store.latest()
        self._state = latest or Checkpoint(home.run, self._plan.digest, 0, initial)
        self._rule = rule_for(self._plan.optimizer.aggregation, self._shapes, self._state.rule)

    def run(self) -> Arrays:
        """All remaining rounds; the final model.

        Raises:
            NetworkError: nobody enrolled is there, or no round of the run had a quorum.
            BudgetError: the clients refused because their budgets are spent.
        """
        incarnation, under_way = self._store.start(self._state.round)
        self._trim_metrics()
        remaining = range(self._state.round + 1, self._plan.rounds + 1)
        # A run that was killed after its last round needs nobody to be there.
        nodes = self._nodes.wait_for_quorum() if remaining else {}
        for round_ in remaining:
            self._round(round_, incarnation, nodes, under_way)
            under_way = {}
        if self._state.heads and not self._state.closed:
            present = nodes or self._nodes.who_is_there()
            heads = close(self._home, self._key, self._nodes, present, self._state.heads)
            self._state = replace(self._state, heads=heads, closed=True)
            self._store.save(self._state)
        if self._state.changed == 0:
            raise self._nothing_changed()
        return self._state.model

    # -- one round -----------------------------------------------------------------------------

    def _round(
        self, round_: int, incarnation: int, nodes: Mapping[str, int], under_way: Mapping[str, str]
    ) -> None:
        """One round; ``under_way`` holds the nonces of one that a crash cut off, to send again."""
        began = time.monotonic()
        cohort = sorted(set(under_way) & set(nodes)) or self._choose(round_, sorted(nodes))
        requests = {
            client: self._request(client, round_, incarnation, under_way.get(client))
            for client in cohort
        }
        self._store.begin_round(
            incarnation, round_, {client: request.nonce for client, request in requests.items()}
        )
        self._rule.begin()
        dropped = dict[str, str]()
        heads = dict(self._state.heads)
        by_node = {nodes[client]: client for client in cohort}
        messages = round_requests(
            self._state.model,
            [(nodes[client], request.sign(self._key)) for client, request in requests.items()],
            f"round-{round_}",
        )
        for message in self._nodes.exchange(messages, round_):
            client = by_node.pop(message.metadata.src_node_id, None)
            if client is None:
                continue  # a duplicate, or nobody who was asked
            try:
                heads[client] = self._accept(message, client, requests[client])
            except Rejected as error:
                dropped[client] = error.code
        dropped |= dict.fromkeys(by_node.values(), "silent")
        self._finish(round_, began, heads, dropped, len(cohort))

    def _accept(self, message: Message, client: str, request: RoundRequest) -> Json:
        reply = read_reply(message, self._limit)
        expected = Expected(
            client=client,
            key=self._home.members[client].key,
            seen=self._seen(client),
            request=request,
            shapes=self._shapes,
            bound=self._plan.optimizer.update_bound,
        )
        receipt = check_reply(expected, reply.update, reply.receipt)
        self._rule.add(client, reply.update)
        return head_json(receipt)

    def _finish(
        self,
        round_: int,
        began: float,
        heads: Mapping[str, Json],
        dropped: Mapping[str, str],
        asked: int,
    ) -> None:
        model, unchanged = advance(self._rule, round_, self._state.model, self._plan.cohort.quorum)
        self._nodes.codes.update(dropped.values())
        self._state = replace(
            self._state,
            round=round_,
            model=model,
            changed=self._state.changed + (not unchanged),
            heads=heads,
            rule=self._rule.state(),
        )
        report = RoundReport(
            round=round_,
            asked=asked,
            valid=self._rule.count,
            changed=not unchanged,
            unchanged=unchanged,
            dropped=dropped,
            accuracy=self._score(model) if self._score else None,
            seconds=round(time.monotonic() - began, 3),
        )
        # The metrics line first: a crash between the two repeats the round and trims the line.
        line = json.dumps(asdict(report), sort_keys=True).encode() + b"\n"
        durable.append(self._home.metrics, line)
        self._store.save(self._state)
        self._on_round(report)

    def _seen(self, client: str) -> Head:
        federation = self._key.public.fingerprint
        return seen_of(self._home.members[client], federation, self._state.heads)

    # -- choosing and naming -------------------------------------------------------------------

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

    def _choose(self, round_: int, present: list[str]) -> list[str]:
        """This round's cohort, by stable name: the same in every process for a seed."""
        size = min(self._plan.cohort.clients, len(present))
        if self._home.seed is None:
            return sorted(secrets.SystemRandom().sample(present, size))

        def draw(name: str) -> str:
            return hashlib.sha256(f"{self._home.seed}/{round_}/{name}".encode()).hexdigest()

        return sorted(sorted(present, key=draw)[:size])

    def _trim_metrics(self) -> None:
        """Forget lines of rounds after the checkpoint: they are about to be repeated."""
        if not self._home.metrics.exists():
            return
        lines = self._home.metrics.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _round_of(line) <= self._state.round]
        durable.replace(self._home.metrics, b"".join(kept))

    def _nothing_changed(self) -> BudgetError | NetworkError:
        codes = ", ".join(f"{code} x {count}" for code, count in self._nodes.codes.most_common())
        spent = {"refused-budget-exhausted", "refused-no-rounds-left"}
        if self._nodes.codes and set(self._nodes.codes) <= spent:
            return BudgetError(
                "every client refused: its data set's budget is spent",
                hint="the data owners decide whether there is more",
            )
        return NetworkError(
            f"no round had a quorum of valid replies ({codes or 'no answers'})",
            hint="metrics.jsonl says for each round which client was dropped and why",
            code="no-quorum",
        )


def _round_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # torn by a crash
