"""Does this engine, on this machine, do what a plan says? Conformance, accounting, canaries.

The rules: what canaries are scored by is fixed and on disk before anything is trained, conformance
included (:mod:`audit.canaries`); everything that was found is in the record, whatever found it; and
no number is shown without what it is not. The verdict is ``consistent`` or ``violates``, and an
engine that does as it declares gets ``violates`` with a chance of at most 1e-5 a run: half of it
for conformance, half for canaries; accounting has no chance in it.

What this tests is the code that is installed here, on records made for the purpose. That another
machine ran the same code is for a ledger's entries and digests to say, and for nobody to prove.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audit.canaries import wording
from audit.canaries.claims import Clause, check_accounting, claim_of
from audit.canaries.design import Claim, Design
from audit.canaries.interval import Interval, epsilon_interval, interval_json
from audit.canaries.judgement import Judgement
from audit.canaries.record import MOST_STEPS, Recorder
from audit.canaries.trial import canary_subject, flip_coins, run_trial
from client.training.conformance import CHECKS, Finding, Probe, Subject, conformance
from common.canonical import Json
from common.keys import SigningKey
from common.plan import Privacy
from common.privacy.events import Event

BUILT_IN = Privacy(  # epsilon 3.99 at delta 1e-5, in 200 steps
    trust="local",
    sampling_rate=0.05,
    noise_multiplier=1.0962,
    clipping_norm=1.0,
    steps=200,
    divisor=25.0,
    delta=1e-5,
)
CONFORMANCE_ALARM = 5e-6
CONFORMANCE_STEPS, CONFORMANCE_CLIP = 3, 100.0

Progress = Callable[[str, int, int], None]
MakeSubject = Callable[[Privacy, int, int], Subject]
Check = Callable[[Probe], Iterator[Finding]]

log = logging.getLogger("privet.client")


@dataclass(frozen=True)
class Result:
    """What a test found.

    Args:
        privacy: the declared mechanism of a round.
        planned: the whole declared schedule.
        checks: how many clauses of conformance were looked at.
        findings: of conformance.
        accounting: clauses of the accounting.
        claim: what the audited steps are said to cost.
        design, judgement: of the canaries.
        epsilon: interval for the whole schedule, from the noise that there was.
        record: where the record is.
        declared: digest of its first line.
        seconds: what conformance, canaries and the rest took.
    """

    privacy: Privacy
    planned: Event
    checks: int
    findings: Sequence[Finding]
    accounting: Sequence[Clause]
    claim: Claim
    design: Design
    judgement: Judgement
    epsilon: Interval
    record: Path
    declared: str
    seconds: dict[str, float]

    @property
    def wrong(self) -> list[str]:
        """Every clause that does not hold, by name, with what was seen."""
        found = [
            f"conformance, {finding.check}: {finding.message}"
            for finding in self.findings
            if not finding.ok
        ]
        found += [
            f"accounting, {clause.name}: {clause.message}"
            for clause in self.accounting
            if not clause.ok
        ]
        return found + wording.refuted(self.design, self.claim, self.judgement)

    @property
    def verdict(self) -> str:
        return "violates" if self.wrong else "consistent"

    def json(self) -> Json:
        """For scripts: plain numbers, as the other commands print them; infinity is null."""
        judgement, claim = self.judgement, self.claim
        return {
            "verdict": self.verdict,
            "wrong": self.wrong,
            "mechanism": self.privacy.json(),
            "planned_steps": self.planned.steps,
            "audited_steps": claim.event.steps,
            "claim": claim.json(),
            "conformance": {
                "checks": self.checks,
                "findings": [finding.json() for finding in self.findings],
            },
            "accounting": [
                {"clause": clause.name, "ok": clause.ok, "message": clause.message}
                for clause in self.accounting
            ],
            "canaries": {"design": self.design.json(), **judgement.json()},
            "means": {
                method: wording.means(self.design, judgement.best(method))
                for method in wording.NAMES
            },
            "interval": {
                "sigma": interval_json(judgement.sigma),
                "epsilon": interval_json(self.epsilon),
                "relative_half_width": _finite(self.epsilon.relative_half_width),
            },
            "is_not": wording.is_not(self.design, claim, judgement, self.planned),
            "record": str(self.record),
            "declared": self.declared,
            "seconds": self.seconds,
        }


def examine(
    subject: Subject,
    privacy: Privacy,
    record: Path,
    *,
    rounds: int = 1,
    plan: str | None = None,
    claimed: float | None = None,
    more: Mapping[str, Check] | None = None,
    with_canaries: MakeSubject = canary_subject,
    design: Design | None = None,
    key: SigningKey | None = None,
    announce: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Result:
    """Test an engine against a declared mechanism.

    Args:
        subject: the engine that trains the plan's own network; for conformance.
        privacy: the declared mechanism of one round.
        record: where the record of the canaries goes; must not be there yet.
        rounds: of the plan.
        plan: its digest.
        claimed: an epsilon that somebody states for the whole plan.
        more: checks of conformance beside the suite's, by name; they have no part in the chance of
            a false alarm, so each must be one in which chance plays none.
        with_canaries: makes the subject that trains the canaries' network, from mechanism, number
            of canaries and of steps; the same engine.
        design: of the canaries.
        key: signs the record; made for it if left out.
        announce: called with the digest of what was fixed, before anything is trained.
        progress: called as (what, done, of).

    Raises:
        InputError: there is a record already, or the mechanism claims nothing that could be tested.
    """
    began = time.perf_counter()
    more = more or {}
    design, planned = design or Design(), privacy.event(rounds)
    steps = min(planned.steps, MOST_STEPS)
    recorder = Recorder(record, key)
    claim = claim_of(replace(planned, steps=steps), privacy.delta)
    accounting = check_accounting(planned, privacy.delta, claimed)
    coins = flip_coins(design.canaries)
    declared = recorder.declare(
        design, claim, coins, privacy=privacy.json(), planned_steps=planned.steps, plan=plan
    )
    announce(declared)
    accounted = time.perf_counter()

    findings = _conform(subject, privacy, more, progress)
    conformed = time.perf_counter()

    observed = run_trial(
        with_canaries(privacy, design.canaries, steps),
        privacy,
        coins,
        steps,
        progress=lambda done, of: progress("canaries: train", done, of),
    )
    recorder.observe(observed)
    judgement = recorder.reveal([finding.json() for finding in findings], accounting)
    trained = time.perf_counter()
    epsilon = epsilon_interval(judgement.sigma, planned, privacy.delta, claim.method)
    ended = time.perf_counter()
    return Result(
        privacy=privacy,
        planned=planned,
        checks=len(CHECKS) + len(more),
        findings=findings,
        accounting=accounting,
        claim=claim,
        design=design,
        judgement=judgement,
        epsilon=epsilon,
        record=record,
        declared=declared,
        seconds={
            "conformance": conformed - accounted,
            "canaries": trained - conformed,
            "accounting": accounted - began + ended - trained,
            "total": ended - began,
        },
    )


def _conform(
    subject: Subject, privacy: Privacy, more: Mapping[str, Check], progress: Progress
) -> list[Finding]:
    """Every check of the suite under the declared figures, but for many steps and a huge C.

    Next to a C of more than 100, the suite's records would vanish in the grid that sums are rounded
    to, and nobody could see who was in a batch. Canaries are made for the declared C.
    """
    declared = replace(
        privacy,
        steps=min(privacy.steps, CONFORMANCE_STEPS),
        clipping_norm=min(privacy.clipping_norm, CONFORMANCE_CLIP),
    )
    # Each tensor has two findings with a p-value, and all other checks together fewer than twenty.
    alpha = CONFORMANCE_ALARM / (2 * len(subject.shapes) + 20)
    findings: list[Finding] = []
    checks = len(CHECKS) + len(more)
    for done, name in enumerate(CHECKS):
        progress("conformance: check", done, checks)
        findings += conformance(subject, privacy=declared, alpha=alpha, only=[name])
    for done, (name, check) in enumerate(more.items(), len(CHECKS)):
        progress("conformance: check", done, checks)
        try:
            findings += check(Probe(subject, declared, 0, alpha))
        except Exception as error:
            log.debug("the engine failed while it was checked for %s", name, exc_info=True)
            what = f"the engine could not be checked: {type(error).__name__}: {error}"
            findings.append(Finding(name, False, float("nan"), None, what))
    progress("conformance: check", checks, checks)
    return findings


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
