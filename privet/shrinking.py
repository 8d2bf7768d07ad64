"""How is a run's model made smaller for devices, and by whom is that believed?

The rule: the coordinator tries, and keeps what wins in the run's directory; whatever is released
next of the run is that, and its statement holds the lineage. A simulated run, where both parties
live next door, is released again at once; a deployed one is proposed, and its approver measures
each step again on records got by another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import durable
from common.errors import InputError
from common.models.registry import build
from privet.releasing import Published, exported, publish_run, trained
from server.checkpoint import CheckpointStore
from server.home import ServerHome
from server.release.smaller.compare import Rule
from server.release.smaller.data import Tuning, of_binding, public, synthetic
from server.release.smaller.fit import Effort
from server.release.smaller.shrink import (
    SHRUNK,
    Attempt,
    Progress,
    Wish,
    shrink,
)
from simulations.population import Run


@dataclass(frozen=True)
class Asked:
    """What an operator asks for; see :class:`server.release.smaller.shrink.Wish`.

    Args:
        distill: a model's name, built in or bound by the run; empty: none.
        data, declared: see :func:`server.release.smaller.data.public`; empty: the run's own public
            test set.
        synthetic: use made-up records instead.
    """

    distill: str = ""
    prune: float = 0.0
    quantize: bool = False
    data: str = ""
    declared: str = ""
    synthetic: bool = False
    effort: Effort = field(default_factory=Effort)
    rule: Rule = field(default_factory=Rule)


def shrink_run(
    path: Path, asked: Asked, progress: Progress = lambda *_: None
) -> tuple[Sequence[Attempt], Published | None]:
    """Try smaller models of a finished run's, and keep what wins in ``RUN/shrunk``.

    Returns:
        Each attempt; and the new release, where the run is simulated and anything won.

    Raises:
        InputError: the run has not ended, the records are not public, or nothing is asked for.
        OperationError: a step cannot be done on this model.
    """
    home = ServerHome.read(path)
    busy = InputError(f"{path} is being run by another process", code="directory-in-use")
    with durable.exclusively(path, busy, patience=1.0):
        checkpoint = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
        if checkpoint is None or not checkpoint.ended:
            raise InputError(
                f"{path} has not ended", hint="wait for its last round", code="not-ended"
            )
        tuning = _tuning(home, asked)
        plan = home.plan
        student = None
        if asked.distill:
            model = build(asked.distill, plan.schema, seed=1, bindings=home.binding.models)
            student = (asked.distill, model)
        wish = Wish(student, asked.prune, asked.quantize, asked.effort, asked.rule)
        model = trained(home, checkpoint.model)
        answers = exported(model, plan.schema)[1]
        shrunk, attempts = shrink(model, plan.schema, answers, tuning, wish, progress)
        if not shrunk.lineage:
            return attempts, None
        shrunk.write(path / SHRUNK)
        if home.federation is not None:
            return attempts, None
        return attempts, publish_run(Run(path, home.keys.parent))


def _tuning(home: ServerHome, asked: Asked) -> Tuning:
    schema = home.plan.schema
    if asked.synthetic:
        if asked.data:
            raise InputError("--data and --synthetic exclude each other", hint="leave one out")
        return synthetic(schema)
    if asked.data:
        return public(asked.data, asked.declared, schema)
    return of_binding(home.binding, schema)
