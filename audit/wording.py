"""How an audit writes its values down, on a page or a terminal.

The rule: a bound is rounded up, never down, and a signer's words are text that cannot disturb the
line that they stand in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_CHARACTERS = 400


def called(authenticated: bool) -> str:
    """What a bundle or receipt whose every check passed may be called."""
    return "verified" if authenticated else "self-consistent, unauthenticated"


def up(value: float, places: int = 2) -> str:
    """An upper bound in decimals, rounded up.

    >>> up(5.99963), up(6.6491, 3)
    ('6.00', '6.650')
    """
    scale = 10**places
    # What is a hair above a written decimal is that decimal: 0.1 + 0.2 is 0.30, not 0.31.
    return f"{math.ceil(value * scale - 1e-9) / scale:.{places}f}"


def share(value: float, places: int = 1) -> str:
    """A greatest share in percent, rounded up."""
    return f"{up(100 * value, places)} %"


def plain(value: float) -> str:
    """A small number as people write it.

    >>> plain(1e-05), plain(0.5)
    ('1e-5', '0.5')
    """
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e+")


def size(count: int) -> str:
    """Bytes in the unit that keeps the number small.

    >>> size(999), size(2736)
    ('999 B', '2.7 kB')
    """
    if count < 1000:
        return f"{count} B"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, runs of three or more as first–last.

    >>> ranges([2, 3, 4, 6])
    '2–4, 6'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def shown(text: object, *, most: int = MOST_CHARACTERS) -> str:
    """A signer's words, without what could disturb the line: control and direction characters."""
    cut = str(text)
    cut = cut if len(cut) <= most else cut[:most] + "…"
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in cut)
