"""Write a made-up table of four clinics, to show how your own table is used: clinics.csv.

The rule: these patients do not exist. Each row is drawn from a fixed random stream, the outcome
from a known logistic rule with noise, so the example is the same everywhere and protects nobody.

    python examples/make_clinics.py clinics.csv
"""

from __future__ import annotations

import csv
import math
import random
import sys
from pathlib import Path

ROWS = 3000
SITES = {"north": 0.4, "south": 0.3, "east": 0.2, "west": 0.1}  # share of the rows
COLUMNS = ("site", "age", "systolic", "bmi", "glucose", "prior_stays", "readmitted")


def patient(draw: random.Random) -> list[str]:
    """One row. Values stay within the bounds that clinics.toml states."""
    site = draw.choices(list(SITES), weights=list(SITES.values()))[0]
    age = min(100.0, max(18.0, draw.gauss(58, 17)))
    systolic = min(220.0, max(80.0, draw.gauss(118 + 0.35 * (age - 40), 15)))
    bmi = min(60.0, max(12.0, draw.gauss(27, 5)))
    glucose = min(20.0, max(2.0, draw.gauss(5.4 + 0.08 * (bmi - 25), 1.2)))
    stays = min(10, int(draw.expovariate(0.9)))
    score = 0.06 * (age - 58) + 0.03 * (systolic - 124) + 0.5 * (glucose - 5.5) + 0.9 * (stays - 1)
    readmitted = draw.random() < 1 / (1 + math.exp(-1.6 * score))
    row = [site, f"{age:.0f}", f"{systolic:.0f}", f"{bmi:.1f}", f"{glucose:.1f}", str(stays)]
    return [*row, "yes" if readmitted else "no"]


def main() -> None:
    """Write the table to the file that the command line names."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "clinics.csv")
    draw = random.Random(2026)  # noqa: S311  (made-up patients need no secrecy)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(patient(draw) for _ in range(ROWS))
    print(f"{ROWS} rows of {len(SITES)} made-up clinics in {path}")


if __name__ == "__main__":
    main()
