"""Which nodes are still there, of those that said so lately?

The rules: a heartbeat of a node that is known here costs no transaction of its own, and waits for
none. It is noted, and what was noted is written down together, well within the time after which
Flower forgets a node: of two hundred nodes, forty heartbeats a second would otherwise keep the
database from their messages, and the messages would keep it from the heartbeats. Any other request
of a node says as much. Nobody is gone because the link itself was: a machine that slept or stood
still, or whose clock was put forward, heard nobody meanwhile.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from common.parcel import HEARTBEAT_SECONDS

NOTE_SECONDS = 2.0  # between two writings; Flower forgets a node after twenty
PAUSE_SECONDS = 5.0  # without a sign of life of the link's own


class Beats:
    """Heartbeats that are not written down yet. Safe to call from several threads.

    Args:
        state: Flower's.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._nodes: dict[bytes, int] = {}
        self._heard: dict[int, float] = {}  # by node, the interval that it keeps
        self._gone: set[int] = set()  # since the writing under way began
        self._written = time.monotonic()
        self._last: dict[int, float] = {}  # by node, when it was heard, seconds since the epoch
        self._awake = time.time()

    def wake(self) -> None:
        """Say that the link is at work; to be called before its state is asked for anything.

        Who was there when it was last, is there now: it could not be heard.
        """
        with self._lock:
            now, awake = time.time(), self._awake
            self._awake = now
            if now - awake < PAUSE_SECONDS:
                return
            for node, last in self._last.items():
                if awake - last < 2 * HEARTBEAT_SECONDS:
                    self._heard[node], self._last[node] = HEARTBEAT_SECONDS, now
            self._written = -math.inf

    def know(self, key: bytes, node: int) -> None:
        """Flower was found to have this key's node under this number."""
        with self._lock:
            self._nodes[key], self._last[node] = node, time.time()
            self._gone.discard(node)

    def hear(self, key: bytes, node: int, interval: float) -> bool:
        """Note a heartbeat; False: nothing is known of this node yet."""
        with self._lock:
            if self._nodes.get(key) != node:
                return False
            self._heard[node], self._last[node] = interval, time.time()
            return True

    def hear_of(self, key: bytes) -> None:
        """A node asked for something, so it is there."""
        with self._lock:
            node = self._nodes.get(key)
            if node is not None:
                self._heard.setdefault(node, HEARTBEAT_SECONDS)
                self._last[node] = time.time()

    def forget(self, key: bytes) -> None:
        """The node with this key goes; what it said before it went does not bring it back."""
        with self._lock:
            node = self._nodes.pop(key, 0)
            self._heard.pop(node, None)
            self._last.pop(node, None)
            self._gone.add(node)

    def keep_only(self, keys: set[bytes]) -> None:
        """Nobody else is a node any more."""
        for key in set(self._nodes) - keys:
            self.forget(key)

    @property
    def waiting(self) -> bool:
        """Whether there is anything to write down."""
        return bool(self._heard)

    @property
    def due(self) -> bool:
        """Whether it is time to write it down."""
        return self.waiting and time.monotonic() - self._written >= NOTE_SECONDS

    def write(self) -> None:
        """Tell Flower of everybody who was heard since the last time, in one transaction."""
        with self._lock:
            heard, self._heard, self._gone = self._heard, {}, set()
            self._written = time.monotonic()
        try:
            with self._state.session():
                for node, interval in heard.items():
                    self._state.acknowledge_node_heartbeat(node, interval)
        except BaseException:
            with self._lock:  # the next time, unless they went or were heard anew
                left = {node: one for node, one in heard.items() if node not in self._gone}
                self._heard = {**left, **self._heard}
            raise
        with self._lock:
            gone = self._gone & set(heard)
        for node in gone:  # it went while it was written to be there
            self._state.deactivate_node(node)
