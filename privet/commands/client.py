"""``privet client``: take part; what a data owner allows, what they agreed to, what is left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet import output
from privet.commands.options import ChangesOption, FormatOption, QuietOption
from privet.output import Format

if TYPE_CHECKING:
    from client.home import Home
    from common.policy import Policy

app = typer.Typer(help="What a data owner allows, agreed to, and has left.", no_args_is_help=True)
policy_app = typer.Typer(help="The owner's terms, signed.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")

HomeOption = Annotated[
    Path | None,
    typer.Option(help="The client's directory; PRIVET_CLIENT_HOME if omitted.", metavar="DIR"),
]
OwnerOption = Annotated[
    Path | None, typer.Option(help="The data owner's key directory.", metavar="DIR")
]
CustodyOption = Annotated[
    Path, typer.Option(help="The data set's directory of policy and ledger.", metavar="DIR")
]


@app.command("start")
def start(
    server: Annotated[str, typer.Option(help="The federation's server.", metavar="HOST:PORT")],
    home: HomeOption = None,
    ca: Annotated[
        Path | None,
        typer.Option(help="Certificate of the federation's authority.", metavar="FILE"),
    ] = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Take part in a federation until SIGTERM; comes back by itself whatever the network does."""
    import logging

    from client.home import locate
    from client.serving import serve

    logging.getLogger("privet").setLevel(logging.ERROR if quiet else logging.INFO)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    serve(home or locate(None), server, ca, told=lambda word: _tell(format_, word))
    output.show(format_, {"ended": True}, lambda: print("ended, as asked"))


def _tell(format_: Format, word: str) -> None:
    """A node's standing, on standard error: standard output is for the result."""
    if format_ is Format.text:
        print(word, file=sys.stderr, flush=True)


@app.command("owner")
def owner(
    directory: Annotated[Path, typer.Argument(help="A key directory.", metavar="DIR")],
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Make the data owner's key, if there is none; print its fingerprint."""
    from client.custody import OWNER
    from common.keys import KeyDirectory

    keys = KeyDirectory(directory)
    made = not (directory / OWNER).exists()
    key = (keys.create if made else keys.load)(OWNER).public
    data = {"owner": key.fingerprint, "public_key": key.text(), "made": made}
    output.show(format_, data, lambda: print(f"{key.fingerprint}{'  (new)' if made else ''}"))


@policy_app.command("sign")
def sign(
    file: Annotated[Path, typer.Argument(help="TOML with a [policy] table.", metavar="FILE")],
    custody: CustodyOption,
    owner_keys: OwnerOption = None,
    changes: ChangesOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Put terms in force, as the next version; approved plans are carried over."""
    from client.custody import Custody
    from privet.owning import owner_key, read_policy

    terms, key = read_policy(file, changes or []), owner_key(owner_keys)
    policy = Custody(custody).sign(terms, key)
    data = {**policy.json(), "owner": key.public.fingerprint}
    output.show(format_, data, lambda: _print_policy(policy, key.public.fingerprint))


@policy_app.command("show")
def show(
    home: HomeOption = None, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """The terms in force, in words, after their signature was checked."""
    here = _home(home)
    fingerprint = here.owner.fingerprint
    data = {**here.policy.json(), "owner": fingerprint}
    output.show(format_, data, lambda: _print_policy(here.policy, fingerprint))


@app.command("approve")
def approve(
    plan: Annotated[Path, typer.Argument(help="A plan as its coordinator signed it.")],
    home: HomeOption = None,
    owner_keys: OwnerOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Approve without being asked.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show; needs no key.")] = False,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """Show what an approval of a plan would mean, ask, and record it."""
    from client.approval import approve as work
    from client.approval import examine
    from common.errors import InputError
    from privet.owning import owner_key, proposal_json, read_envelope

    here, envelope = _home(home), read_envelope(plan)
    key = None if dry_run else owner_key(owner_keys)
    proposal = examine(here, envelope)
    data = {**proposal_json(here, proposal), "approved": proposal.approved}
    if format_ is Format.text:
        _print_proposal(data)
    if key is not None and not proposal.approved:
        if not yes and not _agreed(format_, data):
            raise InputError(
                "not approved, and nothing was changed",
                hint="answer yes at a terminal, or pass --yes; --dry-run only shows",
                code="not-confirmed",
            )
        work(here, envelope, key, shown=proposal)
        data["approved"] = True
    output.show(format_, data, lambda: _print_outcome(data))


@app.command("withdraw")
def withdraw(
    plan: Annotated[str, typer.Argument(help="The plan's digest, or how it begins.")],
    home: HomeOption = None,
    owner_keys: OwnerOption = None,
    format_: FormatOption = Format.text,
    quiet: QuietOption = False,
) -> None:
    """End the approval of a plan; what was spent stays spent."""
    from common.errors import InputError
    from privet.owning import owner_key

    here, key = _home(home), owner_key(owner_keys)
    terms = here.terms()
    found = [digest for digest in terms.approved_plans if plan and digest.startswith(plan)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} approved plans begin with {plan!r}",
            hint="privet client policy show lists them",
            code="no-such-plan",
        )
    policy = here.custody.sign(terms, key, withdraw=found)
    data = {"withdrawn": found[0], "policy_version": policy.version}
    output.show(format_, data, lambda: print(f"withdrawn: plan {found[0][:16]}…"))


@app.command("budget")
def budget(
    home: HomeOption = None, format_: FormatOption = Format.text, quiet: QuietOption = False
) -> None:
    """What is left of the budget, and for how many rounds of which plan."""
    from privet.owning import budget_of

    report = budget_of(_home(home))
    data = report.json()
    output.show(format_, data, lambda: _print_budget(data))


def _home(path: Path | None) -> Home:
    from client.home import Home, locate

    return Home.read(path or locate(None))


def _agreed(format_: Format, data: dict[str, Any]) -> bool:
    """Ask, where there is somebody to ask."""
    if format_ is not Format.text or not sys.stdin.isatty():
        return False
    return typer.confirm(f"Approve this plan for data set {data['dataset']}?")


# -- in words ------------------------------------------------------------------------------------


def _line(name: str, text: str) -> None:
    print(f"{name:<20}{text}")


def _print_policy(policy: Policy, owner_fingerprint: str) -> None:
    budget_ = policy.budget
    _line("data set", f"{policy.dataset}, policy version {policy.version}")
    _line("owner", f"{owner_fingerprint[:16]}…, whose signature is valid")
    _line(
        "budget",
        f"epsilon {budget_.epsilon:g} at delta {budget_.delta:g} (order {budget_.order}), for good",
    )
    _line("spare rounds", f"{policy.spare_rounds} a plan, for rounds that are cut off")
    _line("period", _period(policy.json()))
    _line("noise multiplier", f"at least {policy.least_noise_multiplier:g}")
    _line("sampling rate", f"at most {policy.greatest_sampling_rate:g}")
    _line("rounds", f"at most {policy.most_rounds:,} a plan")
    columns = policy.columns
    _line("columns", "any" if columns is None else ", ".join(columns) or "none")
    if policy.simulated:
        _line("simulated", "this is nobody's data: repeatable noise is allowed")
    plans = policy.approved_plans
    _line("approved plans", ", ".join(f"{plan[:16]}…" for plan in plans) or "none")


def _period(terms: dict[str, Any]) -> str:
    first, last = terms.get("valid_from"), terms.get("valid_until")
    parts = [f"from {first}"] if first else []
    parts += [f"until the end of {last}, UTC"] if last else []
    return " ".join(parts) or "no bounds"


def _print_proposal(data: dict[str, Any]) -> None:
    from audit.wording import up

    privacy = data["privacy"]
    _line("plan", f"{data['name']} ({data['plan'][:16]}…), {data['rounds']} rounds")
    _line("coordinator", f"{data['federation'][:16]}…")
    _line("data set", f"{data['dataset']}, policy version {data['policy_version']}")
    _line("data", data["data"])
    target = f"; target {data['target']}" if data["target"] else ""
    _line("columns", ", ".join(data["columns"]) + target)
    own = f", here {data['model_is']}" if data["model"] != data["model_is"] else ""
    _line("model", data["model"] + own)
    _line("code", f"{data['code'][:16]}…")
    _line(
        "protects",
        f"each {privacy['unit']}, {privacy['adjacency']}, trust {privacy['trust']}",
    )
    _line("epsilon", f"{privacy['epsilon']:.4f} at delta {privacy['delta']:g}: the whole plan")
    _line(
        "epsilon_filter",
        f"{privacy['epsilon_filter']:.4f}; {privacy['epsilon_with_spare']:.4f} with "
        f"{privacy['spare_rounds']} spare rounds",
    )
    before, after = data["epsilon_filter_before"], data["epsilon_filter_after"]
    _line("so far", f"epsilon_filter {up(before, 4)} of policy.budget {privacy['budget']:g}")
    _line("afterwards", f"epsilon_filter {up(after, 4)}, if every round is used, spare ones too")
    if data["previous"] is None:
        print("this is the first plan of this coordinator")
        return
    print(f"compared with the last approval, of plan {data['previous'][:16]}…:")
    for change in data["changes"]:
        remark = f"   ({change['remark']})" if change["remark"] else ""
        print(f"  {change['field']}: {change['was']} -> {change['now']}{remark}")
    if not data["changes"]:
        print("  nothing differs")


def _print_outcome(data: dict[str, Any]) -> None:
    if data["already_approved"]:
        print("approved already: nothing was changed")
    else:
        print("approved" if data["approved"] else "not approved: this only shows what would be")


def _print_budget(data: dict[str, Any]) -> None:
    from audit.wording import up

    _line("data set", f"{data['dataset']}, policy version {data['policy_version']}")
    _line(
        "spent",
        f"epsilon_filter {up(data['epsilon_filter'], 4)} of policy.budget {data['budget']:g} at "
        f"delta {data['delta']:g}",
    )
    _line("used", f"{data['share_spent']:.1%} of what the budget holds, for good")
    _line("period", _period(data))
    for plan in data["plans"]:
        print(f"plan {plan['name']} ({plan['plan'][:16]}…): {plan['standing']}")
        _line("  rounds begun", f"{plan['begun']} of {plan['rounds']} and {plan['spare']} spare")
        if plan["unanswered"]:
            _line("  without answer", f"{plan['unanswered']}: cut off and spent, or under way")
        _line("  rounds left", f"{plan['left']}; the budget covers {plan['covered']} like them")
        if plan["forbidden"]:
            _line("  not now", plan["forbidden"])
    for one in data["federations"]:
        print(
            f"coordinator {one['federation'][:16]}…: {one['rounds']} rounds, {one['share']:.1%} of "
            f"the budget" + (f", {one['unanswered']} without answer" if one["unanswered"] else "")
        )
