"""All checks, one after another: a list of findings, whatever the engine does.

The rule: each check is one clause of the declared mechanism (Abadi et al. 2016, arXiv 1607.00133,
algorithm 1, with a public rate and divisor) and says which. None stops another, and a check that an
engine's error stops has failed. A correct engine fails one with a chance of at most alpha for each
finding that has a p-value.

Source: with and without one record under the same streams: Cebere et al. 2026 (arXiv 2602.17454).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator

from client.training.conformance import noise, sampling, sums
from client.training.conformance.subject import Finding, Probe, Subject
from common.plan import Privacy

log = logging.getLogger("privet.client")

DECLARED = Privacy(
    trust="local",
    sampling_rate=0.4,
    noise_multiplier=1.5,
    clipping_norm=0.7,
    steps=3,
    divisor=20.0,
    delta=1e-5,
)

CHECKS: dict[str, Callable[[Probe], Iterator[Finding]]] = {
    "replay": noise.replay,
    "noise-variance": noise.variance,
    "noise-normal": noise.normal,
    "noise-with-records": noise.with_records,
    "noise-tensors": noise.tensors,
    "noise-steps": noise.steps,
    "noise-runs": noise.runs,
    "noise-clients": noise.clients,
    "sensitivity": sums.sensitivity,
    "exact-sum": sums.exact,
    "not-finite": sums.not_finite,
    "size": sums.size,
    "grid": sums.grid,
    "batches": sampling.batches,
}


def conformance(
    subject: Subject,
    *,
    privacy: Privacy = DECLARED,
    seed: int = 0,
    alpha: float = 1e-6,
    only: Collection[str] | None = None,
) -> list[Finding]:
    """Hold a training engine against the mechanism that it declares.

    Args:
        subject: what is examined; :func:`engine_subject` for this project's engine.
        privacy: the declared mechanism. Some checks change a figure, to see that it has an effect.
        seed: of the records, models and streams that are tried; only what is to be compared across
            fresh runs is random beyond it.
        alpha: the chance that a correct engine fails one check.
        only: names of :data:`CHECKS`; all of them if left out.

    Returns:
        Findings in the order of the checks; the engine conforms if each is ``ok``.
    """
    probe = Probe(subject, privacy, seed, alpha)
    findings: list[Finding] = []
    for name in CHECKS if only is None else only:
        check = CHECKS[name]
        try:
            findings.extend(check(probe))
        except Exception as error:
            log.debug("the engine failed while it was checked for %s", name, exc_info=True)
            what = f"the engine could not be checked: {type(error).__name__}: {error}"
            findings.append(Finding(name, False, float("nan"), None, what))
    return findings
