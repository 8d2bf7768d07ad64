"""No byte of a ledger of fifty entries can be another without the line being named."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import pytest

from common.errors import TrustError
from common.ledger import Kind, Ledger

from .test_ledger import SECRET, A, B, add, approval, disclosure, intent

ENTRIES = 50


def write(path: Path) -> bytes:
    """Fifty entries of two federations."""
    ledger = Ledger.create(path, SECRET)
    for federation in (A, B):
        add(ledger, federation, Kind.APPROVAL, approval())
    for i in range((ENTRIES - 2) // 2):
        federation = (A, B)[i % 2]
        entry = add(ledger, federation, Kind.INTENT, intent(i + 1))
        add(ledger, federation, Kind.DISCLOSURE, disclosure(entry.seq))
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.01, pytest.param(1.0, marks=pytest.mark.figures)])
def test_every_altered_byte_is_detected_and_its_entry_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "patients.jsonl"
    good = write(path)
    ends = list(accumulate(len(line) for line in good.splitlines(keepends=True)))
    assert len(ends) == ENTRIES
    chance, tried = random.Random(1), 0
    wrong: list[tuple[int, str]] = []
    for position in range(len(good)):
        if chance.random() >= share:
            continue
        tried += 1
        altered = bytearray(good)
        altered[position] ^= 1 << chance.randrange(8)
        path.write_bytes(altered)
        try:
            Ledger(path, SECRET)
            wrong.append((position, "undetected"))
        except TrustError as error:
            named = re.search(r"line (\d+)", str(error))
            if named is None or int(named[1]) != bisect_right(ends, position) + 1:
                wrong.append((position, str(error)))
    print(f"{tried} of {len(good)} bytes altered, {len(wrong)} undetected or wrongly named")
    assert tried > 300
    assert wrong == []
