"""What does a data owner see before agreeing, and of what is left? Composed of client and audit.

The rule: the numbers are computed by the code that will charge them, the headline epsilon by the
auditor's. Whatever is shown stays on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.approval import Proposal, approved_plans, stands, what_is_bound
from client.budget import APPROVED, CHANGED, WITHDRAWN, BudgetReport, budget_report
from client.custody import OWNER
from client.guard import latest_approval
from client.home import Home
from common.canonical import MAX_DOCUMENT_BYTES, Json
from common.config import read_toml
from common.errors import InputError
from common.keys import KeyDirectory, SigningKey
from common.plan import Plan
from common.policy import Policy
from privet.plancheck import check_plan

# What a greater (+) or a smaller (-) value of a field means for a record.
_COSTS = {"noise_multiplier": "-", "sampling_rate": "+", "rounds": "+", "steps": "+"}


@dataclass(frozen=True)
class Change:
    """One field that differs from the last approval: its place in words, and both values."""

    field: str
    was: str
    now: str
    remark: str = ""


def proposal_json(home: Home, proposal: Proposal) -> dict[str, Any]:
    """All that ``privet client approve`` shows: plan, cost, what is left, data, code, changes."""
    plan, policy, binding = proposal.plan, proposal.policy, home.binding
    previous = _previous(home, proposal)
    return {
        **check_plan(plan, policy),
        "federation": home.federation,
        "dataset": policy.dataset,
        "policy_version": policy.version,
        "epsilon_filter_before": proposal.epsilon_before,
        "epsilon_filter_after": proposal.epsilon_after,
        "data": binding.path or binding.source,
        "columns": [binding.columns.get(name, name) for name in proposal.bound["features"]],
        "target": binding.columns.get(plan.schema.target, plan.schema.target) or None,
        "model_is": proposal.bound["model"],
        "code": proposal.bound["code"],
        "already_approved": proposal.approved,
        "previous": proposal.before["plan"] if proposal.before else None,
        "changes": [vars(change) for change in changes(proposal, previous)],
    }


def changes(proposal: Proposal, previous: Plan | None) -> list[Change]:
    """What differs from the last approval in this federation, field by field; equal fields absent.

    Args:
        previous: the plan that was approved then; None: nothing was, or its file is gone.
    """
    before = proposal.before
    if before is None:
        return []
    old = previous.json() if previous else {}
    result = list(_differences(old, proposal.plan.json())) if previous else []
    bound = proposal.bound
    result += _differences(before["terms"], bound["terms"], "your terms: ")
    if before["model"] != bound["model"]:
        result.append(Change("the model is here", before["model"], bound["model"]))
    if before["code"] != bound["code"]:
        result.append(Change("code that will run", before["code"][:16], bound["code"][:16]))
    return result


def _differences(old: Json, new: Json, place: str = "") -> Iterator[Change]:
    for key in [*old, *(name for name in new if name not in old)]:
        was, now, words = old.get(key), new.get(key), place + key.replace("_", " ")
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{words}: ")
        else:
            yield Change(words, *_unlike(was, now), _remark(key, was, now))


def _unlike(was: Any, now: Any) -> tuple[str, str]:
    """Both values in words; of two lists only what the other lacks, if it lacks something."""
    if isinstance(was, list) and isinstance(now, list):
        gone = [item for item in was if item not in now]
        come = [item for item in now if item not in was]
        was, now = (gone, come) if gone or come else (was, now)
    return _text(was), _text(now)


def _text(value: Any) -> str:
    """A value of a plan as a person would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        name = value.get("name")
        rest = " ".join(f"{key} {_text(item)}" for key, item in value.items() if key != "name")
        return f"{name} ({rest})" if name is not None and rest else str(name or rest)
    return str(value)


def _remark(key: str, was: Any, now: Any) -> str:
    if key not in _COSTS or was is None or now is None:
        return ""
    more = (float(now) > float(was)) == (_COSTS[key] == "+")
    return "costs more of the budget" if more else "costs less of the budget"


def _previous(home: Home, proposal: Proposal) -> Plan | None:
    if proposal.before is None:
        return None
    return approved_plans(home).get(proposal.before["plan"])


def budget_of(home: Home) -> BudgetReport:
    """What is left of a home's data set, as its ledger, policy and plans stand now."""
    policy, ledger, plans = home.terms(), home.read_ledger(), approved_plans(home)
    entries, chain = ledger.entries(), ledger.chain(home.federation)
    standing = {}
    for plan in plans.values():
        if latest_approval(chain, plan.digest) is None:
            continue  # an approval was begun and never finished: the plan counts for nothing
        stood = stands(chain, policy, what_is_bound(home, plan, policy))
        listed = plan.digest in policy.approved_plans
        standing[plan.digest] = APPROVED if stood else CHANGED if listed else WITHDRAWN
    return budget_report(
        policy,
        entries,
        home.federation,
        [plans[digest] for digest in standing],
        standing,
        ledger.now(),
    )


def read_envelope(path: Path) -> bytes:
    """A signed plan's bytes; :class:`InputError` if there are none to read."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}",
            hint="name the plan as its coordinator signed it, such as runs/first/plan.dsse.json",
            code="no-such-file",
        ) from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InputError(f"{path} is over {MAX_DOCUMENT_BYTES} bytes: not a plan")
    return data


def read_policy(path: Path, overrides: list[str]) -> Policy:
    """The terms in the ``[policy]`` table of a TOML file, which may be an experiment."""
    root = read_toml(path, overrides)
    for other in ("plan", "data", "simulation"):
        root.table(other, required=False)
    policy = Policy.read(root.table("policy"))
    root.done()
    return policy


def owner_key(directory: Path | None) -> SigningKey:
    """The data owner's key, from its key directory."""
    if directory is None:
        raise InputError(
            "only the data owner can do this, and no key directory was named",
            hint="--owner-keys DIR; privet client owner DIR makes one",
            code="no-owner-key",
        )
    return KeyDirectory(directory).load(OWNER)
