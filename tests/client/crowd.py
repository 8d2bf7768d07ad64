"""How many calls does a server find at once when eight connections ask, in turn with it?

Run as a module, with the experiments of gRPC's core that the service runs with.
"""

from __future__ import annotations

import json
import select
import tempfile
from contextlib import ExitStack, closing

from benchmarks.http2 import Connection
from client.device.serving.core import Call, CoreServer

PATH = "/test.Service/Method"


class Crowd:
    """Connections, and a server that answers, when it is idle, all that was there by then."""

    def __init__(self, folder: str, stack: ExitStack) -> None:
        self._together: list[int] = []
        self._held: list[tuple[Call, bytes]] = []
        self._server = CoreServer(
            {PATH: lambda call, message: self._held.append((call, message))},
            options=[],
            most=16,
            pending=lambda: bool(self._held),
            idle=self._answer,
        )
        self._server.listen(f"unix:{folder}/socket")
        self._server.start()
        stack.callback(self._server.stop, 0.0)
        self._lines = [
            stack.enter_context(closing(Connection(f"{folder}/socket", PATH, b"%d" % index)))
            for index in range(8)
        ]

    def _answer(self) -> None:
        if self._held:
            self._together.append(len(self._held))
        for call, message in self._held:
            call.answer(message)
        self._held.clear()

    def ask(self, count: int, times: int) -> list[int]:
        """So many of the connections ask so often, each again as soon as it is answered."""
        self._together.clear()
        left = dict.fromkeys(self._lines[:count], times)
        for line in left:
            line.ask()
        while left:
            self._server.turn()
            for line in select.select(list(left), [], [], 0)[0]:
                answer = line.read()
                if answer is None:
                    continue
                assert answer == b"%d" % self._lines.index(line)
                left[line] -= 1
                if left[line]:
                    line.ask()
                else:
                    del left[line]
        return self._together.copy()


def main() -> None:
    """Print how many calls were answered at once: with a crowd, alone, and joined by others."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        crowd = Crowd(folder, stack)
        together = crowd.ask(8, times=40)
        print(
            json.dumps(
                {
                    "together": together,
                    "alone": crowd.ask(1, times=200),
                    "joined": crowd.ask(8, times=40),
                }
            )
        )


if __name__ == "__main__":
    main()
