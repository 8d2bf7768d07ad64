"""A round where the server adds the noise: who is drawn, what is summed, charged, noised, released.

The rules, in this order. Who is drawn depends on a key, the round and the client's own name, never
on others. A valid update is clipped and added. Then, whoever answered and however few: the intent
is on disk; noise is drawn; the result is on disk; the disclosure that names it is on disk; only
then does a model see it. A crash between intent and disclosure forfeits the round's charge where
noise is cryptographic (a new intent uses a spare round), and is finished under the same entry where
it is simulated, with the same bits. A result that was disclosed is used as it was stored.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from common import durable
from common.canonical import Json
from common.errors import TrustError
from common.keys import KeyDirectory
from common.ledger import Entry
from common.privacy.noise import SIMULATED, Stream
from common.wire import Arrays, digest_arrays, pack_arrays, unpack_arrays
from server.aggregation.rules import Rule, advance
from server.central.books import SECRET, open_books, request_of
from server.central.bounded import BoundedSum
from server.central.release import Noised, noised
from server.checkpoint import Checkpoint
from server.home import ServerHome

CENTRAL = "central"  # in a client's stead: the one update that a rule gets


class CentralRounds:
    """The server's mechanism over a run; adds updates as an aggregation rule does.

    Args:
        home: the run; its plan has central trust.
        shapes: the model's parameter shapes by name.
        norm: the clipping norm so far; None: the plan's first.

    Raises:
        TrustError: the coordinator's ledger is unusable.
        PlanError, BudgetError: the operator's terms forbid the plan.
    """

    def __init__(
        self, home: ServerHome, shapes: dict[str, tuple[int, ...]], norm: float | None
    ) -> None:
        self._home, self._plan = home, home.plan
        self.books = open_books(home)
        if home.seed is not None and not self.books.policy.simulated:
            raise TrustError(
                "a seed makes the noise repeatable, and the operator's terms do not say simulated",
                hint="remove the seed, or say simulated = true where nobody needs protection",
                code="seed-without-simulation",
            )
        self.books.approve(home.plan)
        self.norm = home.plan.privacy.clipping_norm if norm is None else norm
        self._sum = BoundedSum(shapes)
        self._sampling_key = (
            KeyDirectory(home.keys).secret(SECRET)
            if home.seed is None
            else b"privet/simulated-sampling/%d" % home.seed
        )

    # -- what RoundLoop asks of a rule -----------------------------------------------------------

    @property
    def count(self) -> int:
        """Valid updates of this round: for the operator's own record alone."""
        return self._sum.count

    def begin(self) -> None:
        self._sum.begin(self.norm)

    def add(self, client: str, update: Arrays) -> None:
        """Clip and add a validated update."""
        self._sum.add(client, update)

    # -- who is drawn ----------------------------------------------------------------------------

    def draw(self, round_: int, incarnation: int, enrolled: Iterable[str]) -> list[str]:
        """Each of ``enrolled`` independently with the plan's rate: the same if asked again.

        The coin is a keyed hash of round and name (HMAC-SHA-256 under a secret of the coordinator,
        or a seed's), so that a round that a crash cut off is not drawn twice.
        """
        rate = self._plan.privacy.sampling_rate
        # A run's id is random; a seed must draw the same in every run.
        run = "" if self._home.seed is not None else self._home.run

        def coin(name: str) -> int:
            text = "\x1f".join(
                ["privet/client-sampling/v1", run, str(incarnation), str(round_), name]
            )
            return int.from_bytes(hmac.digest(self._sampling_key, text.encode(), "sha256")[:8])

        return sorted(name for name in enrolled if coin(name) < rate * 2**64)

    # -- what is released ------------------------------------------------------------------------

    def may_go_on(self, state: Checkpoint, incarnation: int) -> bool:
        """Whether the round after ``state`` may be charged, or was, and needs no new charge."""
        named = self._named(state.round + 1, incarnation, digest_arrays(state.model))
        intent, disclosure = self.books.find(request_of(named))
        if intent is not None and (disclosure is not None or self._repeatable(intent)):
            return True
        return self.books.admits(self._plan)

    def advance(
        self, rule: Rule, round_: int, incarnation: int, start: Arrays
    ) -> tuple[Arrays, str]:
        """The model after this round, and why it did not change: a code, or nothing.

        Raises:
            BudgetError: no further round may be charged; nothing was drawn.
        """
        released = self._release(round_, incarnation, digest_arrays(start))
        self.norm = released.norm
        rule.begin()
        rule.add(CENTRAL, released.mean)
        return advance(rule, round_, start, quorum=1)

    def _release(self, round_: int, incarnation: int, model: str) -> Noised:
        named = self._named(round_, incarnation, model)
        file = self._home.checkpoints / "central.noised"
        intent, disclosure = self.books.find(request_of(named))
        if intent is not None and disclosure is not None:
            return self._stored(disclosure)
        stream = self._stream(round_)
        if intent is None or not self._repeatable(intent):
            intent = self.books.intend(self._plan, named, self._sum.norm, stream.kind)
        result = noised(self._sum, self._plan, stream)
        durable.replace(file, pack_arrays(result.arrays()), mode=0o600)
        self.books.disclose(intent, digest_arrays(result.arrays()))
        return result

    def _stored(self, disclosure: Entry) -> Noised:
        """A result that was disclosed before a crash: it is used, and not drawn anew."""
        file = self._home.checkpoints / "central.noised"
        try:
            arrays = unpack_arrays(file.read_bytes())
        except OSError as error:
            raise TrustError(
                f"the round's noised sum was disclosed, and cannot be read: {error.strerror}",
                hint=f"put back {file} as it was, or start a new run",
                code="ledger-unusable",
            ) from error
        if digest_arrays(arrays) != disclosure.body["update"]:
            raise TrustError(
                f"{file} is not what the coordinator's ledger disclosed",
                hint="put back the file as it was, or start a new run",
                code="ledger-unusable",
            )
        return Noised.of(arrays)

    def _repeatable(self, intent: Entry) -> bool:
        return self._home.seed is not None and intent.body["noise"] == SIMULATED

    def _stream(self, round_: int) -> Stream:
        if self._home.seed is None:
            return Stream.cryptographic()
        return Stream.simulated(self._home.seed, self._plan.digest, "coordinator", round_)

    def _named(self, round_: int, incarnation: int, model: str) -> Json:
        return {
            "run": self._home.run,
            "incarnation": incarnation,
            "round": round_,
            "model": model,
        }
