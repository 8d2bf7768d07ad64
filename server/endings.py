"""Why can a run not begin, not go on, or end without a model? One error for each, with what to do.

The rule: what is told are counts and codes, never who answered what.
"""

from __future__ import annotations

from collections import Counter

from common.errors import BudgetError, InputError, NetworkError
from server.events import public_code
from server.home import ServerHome
from server.suspension import Standing

SPENT = frozenset({"refused-budget-exhausted", "refused-no-rounds-left"})


def too_few(there: int, standing: Standing, quorum: int) -> NetworkError:
    """So few can be asked that no round could have a quorum."""
    hint = "start more clients, or look into their logs for why they refused"
    if suspended := len(standing.suspended):
        hint = f"{hint}; {suspended} are suspended: see `privet server suspended`"
    return NetworkError(
        f"{there} enrolled clients can be asked; a round needs {quorum}",
        hint=hint,
        code="too-few-clients",
    )


def nothing_changed(codes: Counter[str]) -> BudgetError | NetworkError:
    """No round had a quorum of valid replies; ``codes`` counts why they did not count."""
    if codes and set(codes) <= SPENT:
        return BudgetError(
            "every client refused: its data set's budget is spent",
            hint="the data owners decide whether there is more",
        )
    told = ", ".join(f"{public_code(code)} x {count}" for code, count in codes.most_common())
    return NetworkError(
        f"no round had a quorum of valid replies ({told or 'no answers'})",
        hint="metrics.jsonl says for each round which client was dropped and why",
        code="no-quorum",
    )


def check_validation(home: ServerHome, *, scored: bool) -> None:
    """A plan that stops early by a score needs a test set, public unless all is simulated."""
    if home.plan.stopping is None:
        return
    if not scored:
        raise InputError(
            "the plan stops early by its score on a public test set, and there is none here",
            hint='name one in the binding (test = "public"), or plan without [plan.stopping]',
            code="no-validation-set",
        )
    if home.binding.test == "held-out" and home.seed is None:
        raise InputError(
            "the plan stops early, and the records held out here are private: when a run ends "
            "would depend on them, and nothing accounts for that",
            hint="use a public test set; held-out records are for simulations",
            code="private-validation-set",
        )
