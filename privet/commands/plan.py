"""``privet plan``: look at plans before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from privet import output
from privet.commands.options import ChangesOption, FormatOption, QuietOption
from privet.output import Format

app = typer.Typer(help="Look at plans before anything runs.", no_args_is_help=True)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="An experiment in TOML.", metavar="FILE")],
    changes: ChangesOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """What a plan will cost: three numbers called epsilon, and the least budget."""
    from privet.plancheck import check_plan
    from simulations.experiment import Experiment

    experiment = Experiment.read(file, overrides=changes or ())
    data = check_plan(experiment.plan, experiment.policy)
    output.show(format_, data, lambda: _print_plan(data))


def _print_plan(data: dict[str, Any]) -> None:
    privacy = data["privacy"]
    print(f"plan                {data['name']} ({data['plan'][:16]}…), model {data['model']}")
    print(
        f"mechanism           {privacy['steps']} steps in {data['rounds']} rounds, sampling rate "
        f"{privacy['sampling_rate']:g}, noise multiplier {privacy['noise_multiplier']:g}"
    )
    print(
        f"protects            each {privacy['unit']}, {privacy['adjacency']}, "
        f"trust {privacy['trust']}, delta {privacy['delta']:g}"
    )
    print(f"epsilon             {privacy['epsilon']:.4f}   the whole plan, by PLD: the headline")
    print(
        f"epsilon_filter      {privacy['epsilon_filter']:.4f}   what the filter will charge, "
        f"at order {privacy['order']}"
    )
    print(
        f"policy.budget       {privacy['budget']:.4f}   what the owner allows; with "
        f"{privacy['spare_rounds']} spare rounds {privacy['epsilon_with_spare']:.4f} is needed"
    )
    print(
        f"least budget        {privacy['least_budget']:.4f}   that admits it, spare rounds "
        f"included, at order {privacy['least_budget_order']}"
    )
    for name, value in privacy["accountants"].items():
        print(f"  {name:<20}{value:.6f}")
    print("admitted" if data["admitted"] else "NOT ADMITTED: the budget does not cover this plan")
