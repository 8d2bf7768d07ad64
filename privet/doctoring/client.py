"""Is everything well with a client: its home, its data, its ledger, its certificate, its server?

The rule: looking changes nothing and spends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.enrolment import ABOUT_PATH, About
from common.errors import (
    EXIT_TRUST,
    PrivetError,
)
from privet.doctoring.findings import OK, WARNING, WRONG, Finding, look
from privet.doctoring.machine import certificate, machine, private


def check(path: Path) -> list[Finding]:
    """Everything about a client's directory, its data, its ledger and its server."""
    from client.home import Home

    findings = [*machine(path, ("flwr", "torch", "cryptography"))]
    home = look("home", lambda: Home.read(path), findings, "readable, and the policy is signed")
    if home is None:
        return findings
    findings += private(home.keys)
    ledger = look("ledger", home.read_ledger, findings, "whole, signed, and as long as it was")
    if ledger is not None:
        findings += _client_ledger(home, ledger)
    findings += _client_enrolment(home)
    return findings


def _client_ledger(home: Any, ledger: Any) -> Iterator[Finding]:
    from client.approval import approved_plans, examine
    from common.statement import PLAN_TYPE, Envelope

    spent, budget = home.terms().budget.spent(ledger.spent()), home.terms().budget.epsilon
    words = f"epsilon_filter {spent:.4g} of {budget:g} is spent"
    if spent >= 0.9 * budget:
        yield Finding("budget", WARNING, words, "ask the data owner before planning more rounds")
    else:
        yield Finding("budget", OK, words)
    found: list[Finding] = []
    plans = look("plans", lambda: approved_plans(home), found, "those that were approved verify")
    yield from found
    listed = home.terms().approved_plans
    for plan in (plans or {}).values():
        if plan.digest not in listed:
            continue
        file = home.plans / f"{plan.digest}.json"
        assert Envelope.decode(file.read_bytes()).payload_type == PLAN_TYPE
        found = []
        proposal = look(
            f"plan {plan.name}",
            lambda file=file: examine(home, file.read_bytes()),  # type: ignore[misc]
            found,
            "the data fits its schema, its model can be trained, the budget covers the rest",
        )
        if proposal is not None and not proposal.approved:
            found = [
                Finding(
                    f"plan {plan.name}",
                    WRONG,
                    "the code, the model or the terms changed since it was approved",
                    "look at it again with privet client approve",
                    EXIT_TRUST,
                )
            ]
        yield from found


def _client_enrolment(home: Any) -> Iterator[Finding]:
    from client.joining import Clock, Line
    from client.site import AUTHORITY, node_key, read_enrolment
    from common.invitation import Address

    if not (home.path / AUTHORITY).exists():
        yield Finding("enrolment", WARNING, "this client was not enrolled over a network")
        return
    found: list[Finding] = []
    enrolment = look("enrolment", lambda: read_enrolment(home), found, "signed, for this client")
    look("node key", lambda: node_key(home), found, "the one that was enrolled")
    yield from found
    if enrolment is None:
        return
    if _secret_matches(home, enrolment):
        yield Finding("ledger key", OK, "the one that was enrolled")
    else:
        yield Finding(
            "ledger key",
            WRONG,
            "the key directory holds another secret than the one that was enrolled",
            "restore the key directory, or enrol again as another client",
            EXIT_TRUST,
        )
    yield certificate("authority", enrolment.authority)
    line = Line(Address.parse(enrolment.address), Clock(sleep=lambda _: None))

    def reach() -> None:
        line.pin(enrolment.authority)
        About.verify(line.ask(ABOUT_PATH, None), home.federation)

    found = []
    look("server", reach, found, f"{enrolment.address} answers, and is the right one")
    yield from found


def _secret_matches(home: Any, enrolment: Any) -> bool:
    from common.keys import Identity, KeyDirectory

    try:
        secret = KeyDirectory(home.keys).secret(home.policy.dataset)
    except PrivetError:
        return False
    mine = Identity.derive(secret, home.federation)
    return (mine.key.public.text(), mine.pseudonym) == (enrolment.ledger_key, enrolment.pseudonym)
