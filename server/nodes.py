"""Who is there, and what do they answer? Flower's nodes, by the names that clients enrolled under.

The rules: a node is only an address. Who is behind it is decided by the key that signed its hello,
and an answer that does not come by the deadline does not come.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import NetworkError, TrustError
from common.keys import SigningKey
from common.statement import Envelope
from common.wire import Hello, RollCall
from server.aggregation.validate import Rejected
from server.home import ServerHome
from server.messages import read_hello, roll_call

POLL_SECONDS = 0.05


class Nodes:
    """The nodes of one run.

    Args:
        home: the run: who is enrolled, and how long to wait.
        grid: Flower's connection to the nodes.
        key: the coordinator's.
        progress: called as (round, answers so far, asked) while answers are awaited.

    ``codes`` counts why answers did not count.
    """

    def __init__(
        self,
        home: ServerHome,
        grid: Grid,
        key: SigningKey,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self._home, self._grid, self._key = home, grid, key
        self._cohort = home.plan.cohort
        self._progress = progress or (lambda *_: None)
        self.codes: Counter[str] = Counter()

    def wait_for_quorum(self) -> dict[str, int]:
        """Enrolled clients that are there, by name; waits for them up to a round's deadline.

        Raises:
            NetworkError: fewer than a quorum answered.
        """
        found: dict[str, int] = {}
        asked: set[int] = set()
        deadline = time.monotonic() + self._cohort.deadline
        while True:
            found = self.who_is_there(asked) | found
            if len(found) >= min(self._cohort.clients, len(self._home.members)):
                return found
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        if len(found) < self._cohort.quorum:
            raise NetworkError(
                f"{len(found)} enrolled clients answered; a round needs {self._cohort.quorum}",
                hint="start more clients, or look into their logs for why they refused",
                code="too-few-clients",
            )
        return found

    def who_is_there(self, asked: set[int] | None = None) -> dict[str, int]:
        """Call every node once that is not among ``asked``, and add it there; who answered."""
        asked = set() if asked is None else asked
        new = [node for node in self._grid.get_node_ids() if node not in asked]
        asked.update(new)
        nonce = secrets.token_hex(16)
        envelope = RollCall(self._home.run, nonce).sign(self._key)
        found: dict[str, int] = {}
        for message in self.exchange(roll_call(envelope, new, "roll-call"), 0):
            name = self._who(message, nonce)
            if name is not None:
                found.setdefault(name, message.metadata.src_node_id)
        return found

    def exchange(self, messages: list[Message], round_: int) -> list[Message]:
        """Send, and collect answers until all are here or the deadline has passed."""
        waiting = set(self._grid.push_messages(messages)) if messages else set()
        deadline = time.monotonic() + self._cohort.deadline
        answers: list[Message] = []
        while waiting:
            batch = list(self._grid.pull_messages(waiting))
            answers += batch
            waiting -= {message.metadata.reply_to_message_id for message in batch}
            self._progress(round_, len(answers), len(messages))
            if time.monotonic() > deadline:
                break
            if waiting and not batch:
                time.sleep(POLL_SECONDS)
        return answers

    def _who(self, message: Message, nonce: str) -> str | None:
        """The enrolled client that signed this hello, whatever it calls itself."""
        try:
            envelope = read_hello(message)
        except Rejected as error:
            self.codes[error.code] += 1
            return None
        try:
            # The key id is a hint; the signature decides.
            hints = {name for name, _ in Envelope.decode(envelope).signatures}
            for member in self._home.members.values():
                if member.key.fingerprint in hints:
                    hello = Hello.verify(envelope, member.key)
                    known = (hello.client, hello.nonce) == (member.name, nonce)
                    return member.name if known else None
        except TrustError as error:
            self.codes[error.code] += 1
        return None
