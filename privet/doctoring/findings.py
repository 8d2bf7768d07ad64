"""What did a check find, and how is it mended?

The rules: each finding says what is wrong and the next step; the exit code is that of the gravest
class found: trust (11), budget (10), input (4), network (3), operation (1). A check that cannot be
made because of another is not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import (
    EXIT_BUDGET,
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_NETWORK,
    EXIT_TRUST,
    PrivetError,
)

OK, WARNING, WRONG = "ok", "warning", "wrong"
GRAVEST = (EXIT_TRUST, EXIT_BUDGET, EXIT_INPUT, EXIT_NETWORK, EXIT_FAILED)


@dataclass(frozen=True)
class Finding:
    """One check.

    Args:
        check: its name, stable.
        state: ``ok``, ``warning`` or ``wrong``.
        what: what was found, in words.
        mend: the next step; "" if there is none to take.
        exit_code: of its class, if ``wrong``; else 0.
    """

    check: str
    state: str
    what: str
    mend: str = ""
    exit_code: int = 0


def exit_code(findings: Iterable[Finding]) -> int:
    """That of the gravest class which was found; 0 if nothing is wrong."""
    found = {finding.exit_code for finding in findings}
    return next((code for code in GRAVEST if code in found), 0)


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """As JSON."""
    rows = [asdict(finding) for finding in findings]
    states = {row["state"] for row in rows}
    worst = next(state for state in (WRONG, WARNING, OK) if state in states or state == OK)
    return {"state": worst, "findings": rows}


def look(check: str, work: Callable[[], Any], findings: list[Finding], words: str) -> Any | None:
    """What ``work`` returns; what it raises becomes a finding, and then None is returned."""
    try:
        result = work()
    except PrivetError as error:
        mend = error.hint or "put the file back as it was written; without it, enrol again"
        findings.append(Finding(check, WRONG, error.message, mend, error.exit_code))
        return None
    findings.append(Finding(check, OK, words))
    return result if result is not None else True
