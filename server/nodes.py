"""Who is there, and what do they answer? Flower's nodes, by the names that clients enrolled under.

The rules: a node is only an address. Who is behind it is decided by the key that signed its hello,
freshly for each node that turns up, so a client may go, come back and move; its newest proven node
is the one that counts. Looking never waits, and an answer that does not come by the deadline does
not come: if it comes later it is counted, and not read.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import TrustError
from common.keys import SigningKey
from common.statement import Envelope
from common.wire import Hello, RollCall
from server.aggregation.validate import Rejected
from server.home import ServerHome
from server.messages import read_hello, roll_call

POLL_SECONDS = 0.05
MAX_LATE = 10_000  # messages whose late answers are still looked for

LATE, DUPLICATE, UNKNOWN = "late", "duplicate", "unknown"


@dataclass(frozen=True)
class Clock:
    """Seconds that only go forwards, and a way to let some pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class _Call:
    """A question of who somebody is, on its way: when it was put, and until when it is open."""

    node: int
    nonce: str
    number: int
    until: float


class Nodes:
    """The nodes of one run.

    Args:
        home: the run: who is enrolled, and how long to wait.
        grid: Flower's connection to the nodes.
        key: the coordinator's.
        progress: called as (round, answers so far, asked) while answers are awaited.
        clock: what time is read from.

    ``present`` maps each enrolled client that is there to its node; ``codes`` counts why answers
    did not count; ``strays`` counts answers to nothing that is asked now; ``patience`` is how many
    seconds an exchange waits, a round's deadline unless somebody is in a hurry.
    """

    def __init__(
        self,
        home: ServerHome,
        grid: Grid,
        key: SigningKey,
        progress: Callable[[int, int, int], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._home, self._grid, self._key = home, grid, key
        self._cohort = home.plan.cohort
        self._progress = progress or (lambda *_: None)
        self._clock = clock or Clock()
        self._calls: dict[str, _Call] = {}
        self._settled: dict[int, str] = {}  # nodes that said who they are, and who that is
        self._called: set[int] = set()  # nodes that were asked, since the last fresh look
        self._since: dict[str, int] = {}  # the number of the call that a client's node answered
        self._number = 0
        self._late: dict[str, int] = {}  # message to node: not answered in their time
        self.present: dict[str, int] = {}
        self.patience = self._cohort.deadline
        self.codes: Counter[str] = Counter()
        self.strays: Counter[str] = Counter()

    # -- who is there --------------------------------------------------------------------------

    def look(self) -> None:
        """See who is there now, and ask every node that has not proven who it is; never waits."""
        self._forget_absent(set(self._grid.get_node_ids()))
        self._called = {node for node, name in self._settled.items() if name in self.present}
        self._peer()

    def gather(
        self, enough: Callable[[], bool], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, int]:
        """Look until there are enough, it is time to stop, or a round's deadline has passed."""
        until = self._clock.now() + self._cohort.deadline
        self.look()
        while not enough() and not stop() and self._clock.now() < until:
            if not self._peer():
                self._clock.sleep(POLL_SECONDS)
        return self.present

    def who_is_there(self) -> dict[str, int]:
        """Everybody who answers a call now; waits for those who were called."""
        return self.gather(lambda: not self._calls)

    def _peer(self) -> bool:
        """One look, without waiting; whether an answer came."""
        nodes = list(self._grid.get_node_ids())
        self._forget_absent(set(nodes))
        new = [node for node in nodes if node not in self._called]
        self._called.update(new)
        if new:
            nonce = secrets.token_hex(16)
            envelope = RollCall(self._home.run, nonce).sign(self._key)
            messages = roll_call(envelope, new, "roll-call", ttl=self._cohort.deadline)
            self._number += 1
            until = self._clock.now() + self._cohort.deadline
            for name, node in zip(self._grid.push_messages(messages), new, strict=False):
                if name:  # Flower names no message that it could not send
                    self._calls[name] = _Call(node, nonce, self._number, until)
        return self._hear()

    def _forget_absent(self, nodes: set[int]) -> None:
        """Whoever goes proves who it is when it comes back."""
        self.present = {name: node for name, node in self.present.items() if node in nodes}
        self._settled = {node: name for node, name in self._settled.items() if node in nodes}
        self._called &= nodes
        now = self._clock.now()
        self._calls = {
            name: call
            for name, call in self._calls.items()
            if call.node in nodes and now < call.until
        }

    def _hear(self) -> bool:
        """Read the hellos that have come; whether any had."""
        heard = False
        for message in self._grid.pull_messages(list(self._calls)) if self._calls else ():
            call = self._calls.pop(message.metadata.reply_to_message_id, None)
            if call is None:
                continue
            heard = True
            name = self._who(message, call.nonce)
            if name is None or message.metadata.src_node_id != call.node:
                continue
            self._settled[call.node] = name
            if call.number > self._since.get(name, 0) or name not in self.present:
                self.present[name], self._since[name] = call.node, call.number
        return heard

    # -- what they answer ----------------------------------------------------------------------

    def exchange(
        self,
        messages: list[Message],
        round_: int,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Message]:
        """Send, and give answers as they come, one to a message, until the deadline has passed.

        Args:
            messages: what is asked, one message a node.
            round_: for ``progress``.
            enough: looked at before each wait; True ends it early.

        What is not answered by then is late.
        """
        until = self._clock.now() + self.patience
        waiting, answered = self._push(messages), set[str]()
        while waiting and not enough():
            came = False
            for message in list(self._grid.pull_messages([*waiting, *self._late])):
                name = message.metadata.reply_to_message_id
                # An error may come from Flower itself, in a node's stead.
                right = message.has_error() or waiting.get(name) == message.metadata.src_node_id
                if right and waiting.pop(name, None) is not None:
                    came = True
                    answered.add(name)
                    yield message
                else:
                    self._count_stray(message, answered)
            self._progress(round_, len(answered), len(messages))
            if self._clock.now() >= until:
                break
            if waiting and not came:
                self._clock.sleep(min(POLL_SECONDS, max(0.0, until - self._clock.now())))
        late = {**self._late, **waiting}
        self._late = dict(list(late.items())[-MAX_LATE:])

    def _push(self, messages: list[Message]) -> dict[str, int]:
        if not messages:
            return {}
        names = list(self._grid.push_messages(messages))
        nodes = [message.metadata.dst_node_id for message in messages]
        return {name: node for name, node in zip(names, nodes, strict=False) if name}

    def _count_stray(self, message: Message, answered: set[str]) -> None:
        name = message.metadata.reply_to_message_id
        if self._late.pop(name, None) is not None:
            if not message.has_error():  # Flower's word that it gave up is nobody's answer
                self.strays[LATE] += 1
        elif name in answered:
            self.strays[DUPLICATE] += 1
        else:
            self.strays[UNKNOWN] += 1

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
