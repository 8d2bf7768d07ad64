"""The report's plots, as SVG that lives inside a page.

The rule: a plot is a pure function of its numbers. It refers to nothing outside itself, runs no
script, carries no date, and gives the same bytes for the same numbers, whatever the user's own
matplotlib settings are. Colours are CSS variables of the page, so that a plot follows it into the
dark and onto paper; words stay words, in the page's own font, so that they can be searched.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Drawn in these colours, then named by their use; the page gives each name a value per theme.
_INK, _FAINT, _LINE, _LIMIT = "#000001", "#000002", "#000003", "#000004"
_ROLES = {
    _INK: "var(--ink-2)",
    _FAINT: "var(--rule)",
    _LINE: "var(--series)",
    _LIMIT: "var(--limit)",
}
_MOST_DOTS = 40
_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def budget_plot(
    curve: Sequence[tuple[int, float]], rounds: int, charged: float, budget: float
) -> str:
    """Epsilon that the filter has charged after each round, under the line of the budget.

    Args:
        curve: (round, epsilon_filter after it), in order, from round 0 on, ``rounds`` included.
        rounds: how many were charged; the curve beyond is what the plan would still cost.
        charged: epsilon_filter after those.
        budget: epsilon > 0 that the owner allows.
    """

    def draw(axes: Axes) -> None:
        axes.set_ylim(0, 1.18 * max(budget, *(value for _, value in curve)))
        axes.axhline(budget, color=_LIMIT, linewidth=1.6, dashes=(5, 3))
        axes.annotate(
            f"budget {budget:g}",
            (0, budget),
            xytext=(2, 4),
            textcoords="offset points",
            color=_LIMIT,
            weight="bold",
        )
        done = [point for point in curve if point[0] <= rounds]
        axes.set_xlim(-0.02 * curve[-1][0], 1.11 * curve[-1][0])
        # Steps: a round is charged as a whole, when it begins.
        _line(axes, [point for point in curve if point[0] >= rounds], ":", "steps-post")
        _line(axes, done, "-", "steps-post")
        axes.plot([rounds], [charged], "o", color=_LINE, markersize=6.5)
        axes.annotate(
            f"{math.ceil(100 * charged - 1e-9) / 100:.2f}",  # a bound is rounded up
            (rounds, charged),
            xytext=(6, -12),
            textcoords="offset points",
            color=_LINE,
            weight="bold",
        )

    return _svg("budget", "rounds charged", draw)


def accuracy_plot(points: Sequence[tuple[int, float]]) -> str:
    """Accuracy of the global model after each round.

    Args:
        points: (round, accuracy in [0, 1]), in order; at least one.
    """

    def draw(axes: Axes) -> None:
        axes.set_ylim(0, 1.08)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        _line(axes, points, "o-" if len(points) <= _MOST_DOTS else "-")
        axes.annotate(
            f"{100 * points[-1][1]:.1f} %",
            points[-1],
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=_LINE,
            weight="bold",
        )

    return _svg("accuracy", "round", draw)


def _line(
    axes: Axes, points: Sequence[tuple[int, float]], look: str, between: str = "default"
) -> None:
    across, up = [point[0] for point in points], [point[1] for point in points]
    axes.plot(
        across,
        up,
        look,
        drawstyle=between,
        color=_LINE,
        linewidth=2,
        markersize=4,
        clip_on=False,
    )


def _svg(name: str, across: str, draw: Callable[[Axes], None]) -> str:
    """Lay out one plot and turn it into markup for the middle of an HTML page."""
    with style.context(["default", {**_SETTINGS, "svg.hashsalt": name}]):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True, axis="y")
        axes.margins(x=0.04)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(across)
        draw(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_html(buffer.getvalue(), name)


def _for_html(svg: str, name: str) -> str:
    """Leave out what only a file needs, and keep the ids of two plots in one page apart."""
    svg = svg[svg.index("<svg") :]
    size = re.search(r'viewBox="[^"]+"', svg)
    assert size is not None
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r' id="(?:[a-zA-Z.]+\d?[a-z]*_\d+)"', "", body)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, role in _ROLES.items():
        body = body.replace(colour, role)
    return f'<svg {size.group()} aria-hidden="true" focusable="false">{body.strip()}'
