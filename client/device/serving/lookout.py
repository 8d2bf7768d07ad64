"""Which model has to answer now? What answers, held against what is installed and allowed.

The rules: whatever changes pointer, policy or roots is looked at within a second. The model in use
is held against the owner's policy of now by what it claims and who has signed that, as found when
it was verified, so no copy on the disk withdraws it or keeps it: where the policy refuses them, it
is withdrawn. What is installed is verified like at a start; where that fails the model in use
stays. A failure may have been the machine's, so it is tried again, ever more seldom, until
something changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from client.device.home import DeviceHome
from client.device.release import Candidate
from client.device.runtime import Predictor, installed
from client.device.terms import check_again
from common.errors import PrivetError, TrustError
from common.release import STATEMENT

log = logging.getLogger("privet.device")

LONGEST_PAUSE = 64  # looks
Stamp = tuple[tuple[int, int, int] | None, ...]


class Verdict(Enum):
    """What a look found, besides a model that takes over."""

    SAME = "same"
    WITHDRAWN = "withdrawn"  # the owner does not allow the model in use any more


class Lookout:
    """Looks after the model in use.

    Args:
        seen: of :func:`stamp`, from before the model was loaded.
        model: that answers.
        refused: called once for each change that is refused.
    """

    def __init__(
        self, home: DeviceHome, seen: Stamp, model: Candidate, refused: Callable[[], None]
    ) -> None:
        self._home, self._seen, self._refused = home, seen, refused
        self._model: Candidate | None = _kept(model)
        self._pause = self._left = 0  # looks from a failure to the next trial; 0: nothing failed

    def look(self) -> Predictor | Verdict:
        """A model that takes over, or what there is to say of the one in use; never raises."""
        now = stamp(self._home)
        fresh = now != self._seen
        if not fresh and not self._due():
            return Verdict.SAME
        self._seen = now
        try:
            found: Predictor | Verdict = self._decide()
        except Exception as error:  # noqa: BLE001  (whatever it is, the next release is noticed)
            if fresh:
                why = error.message if isinstance(error, PrivetError) else repr(error)
                log.warning("what is installed is refused: %s", why)
                self._refused()
            found = Verdict.SAME
            self._pause = 1 if fresh else min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._pause = 1 if found is Verdict.WITHDRAWN else 0  # another may be installed
        self._left = self._pause
        return found

    def _due(self) -> bool:
        self._left -= 1
        return self._pause > 0 and self._left <= 0

    def _decide(self) -> Predictor | Verdict:
        if self._model is not None and (why := self._against(self._model)) is not None:
            log.warning("the model in use is withdrawn: %s", why.message)
            self._model = None
            return Verdict.WITHDRAWN
        found = installed(self._home)
        if self._model is not None and found.digests == self._model.digests:
            return Verdict.SAME
        predictor = Predictor(found)
        predictor.expect_batches()  # here, where nobody waits for an answer
        self._model = _kept(found)
        return predictor

    def _against(self, model: Candidate) -> TrustError | None:
        """Why the owner's policy of now refuses a model; None: it does not."""
        try:
            check_again(self._home, model.claims, model.signers, model.files[STATEMENT])
        except TrustError as error:
            if error.code == "damaged":
                raise
            return error
        return None


def stamp(home: DeviceHome) -> Stamp:
    """Another one after each change of the pointer, the policy or the roots that are kept."""
    found: list[tuple[int, int, int] | None] = []
    for path in (home.current, home.path / "policy.json", home.tuf / "root_history"):
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _kept(model: Candidate) -> Candidate:
    """What the policy is held against, without the bytes of the model."""
    return replace(model, files={STATEMENT: model.files[STATEMENT]})
