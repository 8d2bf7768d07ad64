"""What should somebody know who thinks of using this model? A model card, in Markdown.

The rule: the card is a function of what two parties sign and nothing else, so both write the same
bytes, and no sentence in it can say more than the statement does. What nobody measured is said to
be not stated.

Source: Mitchell et al. 2019 (arXiv 1810.03993), whose headings these are, as far as a release can
fill them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.canonical import parse_number
from common.data.schema import Schema
from common.lineage import SYNTHETIC, Lineage, Step

_NOISE = {
    "cryptographic": "cryptographic randomness",
    "simulated": "repeatable, so it protects nobody",
}
_STEPS = {
    "distill": "distilled into another network",
    "prune": "pruned of whole channels, and fine-tuned",
    "quantize": "quantized to eight bits",
}
_SHOWN = 20  # classes or columns that are named


def model_card(
    name: str, version: int, task: str, schema: Schema, claims: Mapping[str, Any], lineage: Lineage
) -> str:
    """The card of a release.

    Args:
        name, version, task, schema: as in ``release.json``.
        claims: the privacy statement's predicate.
        lineage: what it says of the steps from the exported model to this one.
    """
    parts = [
        f"# {name}, version {version}",
        _simulated(claims),
        "## What it is",
        _details(task, schema, claims),
        "## What it is for",
        _use(schema),
        "## Privacy of those whose records it was trained on",
        _privacy(claims),
        "## How it was made for devices",
        _made(lineage),
        "## How good it is",
        _good(lineage),
        "## What this does not say",
        "\n".join(f"- {limit}" for limit in (*claims["limits"], *_UNSAID)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_UNSAID = (
    "Fairness between groups was not measured: not stated.",
    "A prediction is no diagnosis and no decision; who acts on it answers for that.",
)


def _simulated(claims: Mapping[str, Any]) -> str:
    if not claims["simulated"]:
        return ""
    return (
        "> **Simulated.** Its noise can be repeated, or its data are nobody's: it protects nobody, "
        "and devices refuse it unless told otherwise."
    )


def _details(task: str, schema: Schema, claims: Mapping[str, Any]) -> str:
    took_part = claims.get("clients")
    rows = [
        ("task", task),
        ("input", _input(schema)),
        ("output", f"probabilities of {len(schema.classes)} classes: {_few(schema.classes)}"),
        ("trained", f"{claims['rounds']} rounds of federated training"),
        ("took part", "not stated" if took_part is None else f"{took_part} holders of data"),
        ("plan (SHA-256)", f"`{claims['plan']}`"),
    ]
    return _table(("", ""), rows)


def _input(schema: Schema) -> str:
    if schema.kind == "image":
        channels, height, width = schema.shape
        return (
            f"images of {height} x {width} pixels, {channels} channel(s), values from "
            f"{schema.lower:g} to {schema.upper:g}"
        )
    columns = [f"{c.name} ({c.lower:g} to {c.upper:g})" for c in schema.columns]
    return f"rows of {len(columns)} columns: {_few(columns)}"


def _use(schema: Schema) -> str:
    return (
        f"Records of the kind above, within its bounds; a device refuses a value outside of them. "
        f"It always answers with one of its {len(schema.classes)} classes, also for a record that "
        "belongs to none."
    )


def _privacy(claims: Mapping[str, Any]) -> str:
    epsilon, delta = parse_number(claims["epsilon"]), parse_number(claims["delta"])
    said = sorted(claims["accountants"].items())
    accountants = "; ".join(f"{name}: {parse_number(value):.3f}" for name, value in said)
    server = claims["trust"] == "central"
    noise = "; ".join(_NOISE[kind] for kind in claims["noise"])
    rows = [
        ("epsilon", f"{epsilon:.3f}"),
        ("delta", f"{delta:g}"),
        ("of one", claims["unit"]),
        ("adjacency", claims["adjacency"]),
        (
            "who adds the noise",
            "the server" if server else "each holder of data",
        ),
        ("noise", noise),
        ("by each accountant", accountants),
    ]
    return _table(("", ""), rows)


def _made(lineage: Lineage) -> str:
    if not lineage:
        return "Exported as it was trained; nothing was made smaller."
    lines = [f"{number}. {_step(step)}" for number, step in enumerate(lineage, 1)]
    return "\n".join(lines)


def _step(step: Step) -> str:
    used = step.used
    data = (
        "records made up from the schema's bounds"
        if used.kind == SYNTHETIC
        else f"{used.tuned} records declared public ({_plain(used.name)})"
    )
    settings = ", ".join(f"{_plain(name)} {_plain(value)}" for name, value in step.settings.items())
    return f"{_STEPS[step.method].capitalize()} ({settings}), with {data}."


def _good(lineage: Lineage) -> str:
    if not lineage:
        return "Accuracy: not stated."
    rows = []
    for step in lineage:
        found = step.compared
        accuracy = (
            "not stated"
            if found.accuracy is None
            else f"{100 * found.accuracy[0]:.2f} % to {100 * found.accuracy[1]:.2f} %"
        )
        rows.append(
            (
                step.method,
                accuracy,
                f"{100 * found.agreement:.2f} %",
                f"{found.drift:.3g}",
                f"{found.sizes[0]} to {found.sizes[1]}",
                f"{found.microseconds[0]:.0f} to {found.microseconds[1]:.0f}",
            )
        )
    head = ("step", "accuracy", "agreement", "largest logit drift", "bytes", "us a prediction")
    return (
        _table(head, rows)
        + f"\n\nMeasured on {lineage[-1].used.compared} records that no step worked with, by both "
        f"parties; times (on {_plain(lineage[-1].compared.machine)}) and settings are one's word."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(_plain(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _plain(text: str) -> str:
    """A text that Markdown shows as it is: what others named must not become markup."""
    kept = "".join(char if char.isprintable() else " " for char in text)[:200]
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|&" else char for char in kept)
