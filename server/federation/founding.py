"""How does a run begin in a deployment? A plan, signed, and those who are enrolled now.

The rule: a run takes its members from the registry when it is made, under the very keys that were
enrolled. Whoever is revoked later counts no more from that moment; whoever is enrolled later takes
part in the next run. Nothing of a run is made before its plan was read and judged. With central
trust the federation keeps one ledger of what its coordinator spent, over all of its runs.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import durable
from common.config import Table, read_toml
from common.data.binding import Binding
from common.errors import InputError
from common.models.registry import build
from common.plan import Plan
from common.policy import Policy
from common.statement import PLAN_TYPE, Envelope
from server.central.books import Books
from server.federation.directory import Federation
from server.home import ServerHome

PLAN_ENVELOPE = "plan.dsse.json"
LEDGER = "ledger.jsonl"  # the coordinator's own, in a federation's directory


def create_run(
    federation: Federation, out: Path, file: Path, overrides: Sequence[str] = ()
) -> ServerHome:
    """Make a run directory from a plan and the clients that are active now.

    Args:
        federation: whose coordinator signs the plan.
        out: must not exist, or be empty.
        file: TOML with ``[plan]``, and ``[data]`` if the server has a public test set or models of
            its own; with central trust ``[policy]`` is what the operator allows, in whole clients.
            The other tables of an experiment are not read.
        overrides: ``KEY=VALUE`` with dotted keys of the file.

    Raises:
        InputError: the directory is in use; ``too-few-clients``; ``no-operator-policy``; or the
            plan is none.
        BudgetError: with central trust: the operator's budget does not cover the plan.
        TrustError: the registry is damaged, or the keys lie together.
        OperationError: the disk refused; nothing was made.
    """
    root = read_toml(file, overrides)
    plan = Plan.read(root.table("plan"))
    # A coordinator trains on nothing: without [data] there is no test set, and no file is read.
    binding = (
        Binding.read(root.table("data"), file.absolute().parent)
        if root.has("data")
        else Binding(source="digits")
    )
    operator = _operator(root, plan) if plan.central else None
    for other in ("policy", "simulation"):
        root.table(other, required=False)
    root.done()
    if binding.test == "held-out":
        raise InputError(
            f"{file}: a coordinator holds no private records to set apart",
            hint='remove test = "held-out" from [data]; a public test set is test = "public"',
            code="held-out-on-server",
        )
    build(plan.model, plan.schema, seed=0, bindings=binding.models)  # it exists and fits
    members = federation.registry.members()
    if len(members) < plan.cohort.quorum:
        raise InputError(
            f"{len(members)} clients are enrolled, and a round needs {plan.cohort.quorum}",
            hint="invite more with privet server invite NAME",
            code="too-few-clients",
        )
    key = federation.signing_key()
    durable.check_free(out)
    with durable.disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    try:
        envelope = Envelope.sign(PLAN_TYPE, plan.encode(), [key]).encode()
        durable.replace(draft / PLAN_ENVELOPE, envelope)
        ledger = federation.path / LEDGER if operator else None
        if ledger:
            Books.create(ledger, federation.keys)
        ServerHome(
            path=draft,
            run=secrets.token_hex(16),
            plan=plan,
            keys=federation.keys,
            members=members,
            binding=binding,
            seed=None,
            operator=operator,
            ledger=ledger,
            federation=federation.path,
        ).create()
        with durable.disk_errors(out):
            draft.replace(out)
            durable.sync_directory(out.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return ServerHome.read(out)


def _operator(root: Table, plan: Plan) -> Policy:
    """What the operator allows with central trust; nothing bounds a coordinator without it."""
    if not root.has("policy"):
        raise InputError(
            "the plan has central trust, and its file has no [policy] of the operator's",
            hint='add [policy] with unit = "client": what the coordinator may spend in all runs',
            code="no-operator-policy",
        )
    operator = replace(Policy.read(root.table("policy")), approved_plans=())
    operator.check_terms(plan)
    operator.check_budget(plan)
    return operator
