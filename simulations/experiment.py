"""What is in an experiment file? Four tables, three owners, one laptop.

The rule: a simulation plays every part, so one file may hold the federation's ``[plan]``, the data
owners' ``[policy]`` and ``[data]``, and the researcher's ``[simulation]``. They stay separate
tables: only ``[plan]`` is signed and digested. The whole file is read and checked before anything
is made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import Table, read_toml
from common.data.binding import Binding
from common.errors import PlanError
from common.plan import Plan
from common.policy import Policy

BACKENDS = ("in-process", "flower")
MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class Settings:
    """The researcher's table.

    Args:
        seed: repeats initial weights, partition, cohorts, sampling and noise; None: nothing
        repeats. workers: processes that play clients, >= 1. backend: ``in-process``, or ``flower``:
        the same apps under ``flwr run`` with Ray.
    """

    seed: int | None
    workers: int
    backend: str


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read and checked. ``policy`` holds for every simulated data owner."""

    plan: Plan
    policy: Policy
    binding: Binding
    settings: Settings

    @classmethod
    def read(
        cls,
        path: Path,
        *,
        overrides: Sequence[str] = (),
        seed: int | None = None,
        rounds: int | None = None,
        workers: int | None = None,
    ) -> Experiment:
        """Read a TOML file, with the command line's changes applied on top.

        Args:
            rounds: instead of the file's. Fewer keep the file's noise, so they cost less than its
                target; more are calibrated to the target anew.

        Raises:
            InputError: no such file, malformed, unknown keys, impossible values or contradictions,
                with the line and a hint.
        """
        changes = {"simulation.seed": seed, "simulation.workers": workers}
        more = [f"{key}={value}" for key, value in changes.items() if value is not None]
        root = read_toml(path, [*overrides, *more])
        plan_table, policy_table = root.table("plan"), root.table("policy")
        data_table = root.table("data")
        simulation = root.table("simulation", required=False)
        root.done()
        policy = Policy.read(policy_table)
        settings = _read_settings(simulation, policy)
        binding = Binding.read(data_table, path.parent)
        if binding.clients is None and binding.partition_by is None:
            raise data_table.error(
                "clients",
                "nothing says who holds which record",
                hint='add clients = 10, or partition_by = "column", in [data]',
            )
        plan = Plan.read(plan_table)
        if rounds is not None and rounds <= plan.rounds:
            plan = replace(plan, rounds=rounds)
        elif rounds is not None:
            table = read_toml(path, [*overrides, f"plan.rounds={rounds}"]).table("plan")
            plan = Plan.read(table)
        return cls(plan, policy, binding, settings)


def _read_settings(table: Table, policy: Policy) -> Settings:
    settings = Settings(
        seed=table.integer("seed", low=0, high=MAX_SEED) if table.has("seed") else None,
        workers=table.integer("workers", 1, low=1, high=4 * (os.cpu_count() or 1)),
        backend=table.text("backend", "in-process", choices=BACKENDS),
    )
    table.done()
    if settings.seed is not None and not policy.simulated:
        raise PlanError(
            f"{table.source}: a seed makes noise repeatable, and [policy] does not say "
            "simulated = true",
            hint="set policy.simulated = true if this data needs no protection, or remove the seed",
            code="seed-without-simulation",
        )
    return settings
