"""How is a release made ready for the next start?

The rule: it is made of a candidate that passed every check, and is itself held against all known
answers, asked together and alone. Where this system or runtime cannot do it there is none, and
every start verifies in full.
"""

from __future__ import annotations

import logging

from client.device.prepared import Prepared, most
from client.device.release import Candidate
from client.device.sealing import memory
from common.inference import KnownAnswers, Session
from common.onnx_runtime import optimized
from common.release import ANSWERS, MODEL

log = logging.getLogger("privet.device")


def prepare(candidate: Candidate) -> Prepared | None:
    """What the next starts of a candidate need, in memory; None where it cannot be made.

    Args:
        candidate: just verified in full.
    """
    try:
        model, claims = candidate.files[MODEL], candidate.claims
        answers = KnownAnswers.decode(candidate.files[ANSWERS], claims.schema)
        graph, begins = optimized(model)
        one = KnownAnswers(answers.inputs[:1], answers.probabilities[:1], answers.tolerance)
        made = Prepared(claims, candidate.signers, graph, begins, one)
        held = memory(len(model), made.shift)
        held[:] = model
        answers.check(Session(graph, claims.schema, held.toreadonly()))
    except Exception as error:  # noqa: BLE001  (whatever it is, the release itself is sound)
        log.info("nothing is prepared for the next start: %s", type(error).__name__)
        return None
    return made if len(made.encode()) <= most(len(model)) else None
