"""What canaries' numbers say, in plain words, and what they do not.

The rule: nobody sees a number without the sentence that keeps it from being taken for another one.
"""

from __future__ import annotations

from audit.canaries.design import Claim, Design
from audit.canaries.interval import PLD
from audit.canaries.judgement import Bound, Judgement
from common.privacy.events import Event

NAMES = {
    "steinke": "one run, (epsilon, delta)",
    "f-dp": "one run, Gaussian curve",
    "cp-gdp": "error rates, Gaussian curve",
}
ASSUMES = {
    "steinke": "nothing is assumed of the engine",
    "f-dp": "nothing is assumed of the engine, and its curve is read as Gaussian",
    "cp-gdp": "it is assumed that canaries do not influence each other, as they do not in an "
    "engine that does what it declares, and its curve is read as Gaussian",
}


def refuted(design: Design, claim: Claim, judgement: Judgement) -> list[str]:
    """The clauses of a declaration that canaries refute, each with what was seen."""
    words = []
    if "noise" in judgement.wrong:
        words.append(
            f"canaries, noise: the run's own noise has a multiplier of {judgement.sigma.low:.4g} "
            f"to {judgement.sigma.high:.4g}, and {claim.event.noise_multiplier:g} is declared"
        )
    if "influence" in judgement.wrong:
        words.append(
            "canaries, influence: included canaries moved the sums further than clipping to C and "
            f"a sampling rate of {claim.event.sampling_rate:g} allow"
        )
    words += [
        f"canaries, {bound.method} by {bound.score}: they were found too well for epsilon "
        f"{claim.epsilon:.4g} (at {_percent(design.confidence)}, epsilon is at least "
        f"{bound.epsilon:.4g})"
        for bound in judgement.bounds
        if bound.refutes
    ]
    return words


def means(design: Design, bound: Bound) -> str:
    """What one bound says."""
    odds = round(1 / (1 - design.confidence))
    return (
        f"epsilon is at least {bound.epsilon:.2f}, unless this was the one run in {odds} that "
        f"misleads; {ASSUMES[bound.method]}"
    )


def is_not(design: Design, claim: Claim, judgement: Judgement, planned: Event) -> list[str]:
    """What the numbers of a test are not, one sentence each."""
    bounds = {method: judgement.best(method) for method in NAMES}
    most = ", ".join(f"{bounds[name].ceiling:.1f} ({name})" for name in NAMES)
    confidence, interval = _percent(design.confidence), _percent(design.interval)
    words = [
        "A lower bound is not an estimate: the true epsilon may be far above it, and a low bound "
        "does not show privacy.",
        f"With {design.canaries} canaries and every guess right, the methods would give {most}: "
        "what leaks more than that cannot be told apart here.",
        f"Each of the three bounds holds at {confidence}; that all three hold at once is not "
        "claimed at that level.",
        f"The interval for epsilon holds at {interval} only if records are clipped and sampled as "
        "declared, which conformance tests; it is about noise, and not about an attack.",
        "An alarm is raised at a chance of 1e-5 a run, not at "
        f"{_percent(1 - design.confidence)}: a bound above the claim is no alarm by itself, and "
        "nobody should test until one is gone.",
        "What is tested are the noised sums, before the optimizer: that is post-processing. Of a "
        "plan's own optimizer, only that it works on the sums that were tested is looked at, over "
        "the first few steps of a first round, at another learning rate.",
        "All of this is about the code on this machine and records made for it; it does not show "
        "what ran elsewhere.",
    ]
    short = [name for name, bound in bounds.items() if bound.ceiling <= claim.epsilon]
    if short:
        words.append(
            f"The claim is epsilon {claim.epsilon:.2f}, which {' and '.join(short)} cannot reach "
            "with so many canaries, whatever the engine does."
        )
    if claim.event.steps < planned.steps:
        words.append(
            f"Canaries saw {claim.event.steps} of {planned.steps} steps, which cost epsilon "
            f"{claim.epsilon:.4g}; the bounds are about those steps, not about the whole plan."
        )
    if claim.method != PLD:
        words.append(
            "Epsilon is our own Rényi bound, which is above the headline: dp-accounting is not "
            "installed, or its loss distribution would take long at so little noise."
        )
    return words


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
