"""Which compiled parts does a client need on an aarch64 board, and is there a wheel for each?

    python deploy/check_wheels.py [--machine aarch64] [--python 3.11] [--glibc 2.28] [EXTRA ...]

The rules: what is asked for is what these extras (``client`` and ``device`` if none is named) bring
here, at the versions of ``constraints.txt``. Whether a package has compiled parts is what its own
installed wheel says. The answer is pip's, from the index that pip uses: the very file that a
machine of that kind would get. Nothing is downloaded but metadata where the index serves it apart.

Prints a Markdown table. Exit code 1: a package has no such wheel; 3: the index did not answer.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
OLDEST_GLIBC = 17  # the oldest that PEP 600 names for aarch64
PURE, NO_WHEEL, NO_ANSWER = 0, 1, 3


class NoAnswerError(Exception):
    """The index could not be asked."""


def needed(extras: list[str], machine: str) -> set[str]:
    """Everything that these extras of Privet bring on such a machine, by normalised name.

    Args:
        extras: of Privet.
        machine: as ``platform.machine()`` says it there: markers are read for that machine.
    """
    found: dict[str, set[str]] = {}
    waiting = [("privet", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if extra in found.setdefault(name, set()):
            continue
        found[name].add(extra)
        for line in distribution(name).requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate(
                {"platform_machine": machine, "extra": extra}
            ):
                waiting += [(normal(wanted.name), one) for one in ("", *wanted.extras)]
    return set(found) - {"privet"}


def is_compiled(package: Distribution) -> bool:
    """Whether an installed package's wheel was for one kind of machine."""
    tags = re.findall(r"^Tag: \S+-(\S+)$", package.read_text("WHEEL") or "", re.MULTILINE)
    return not tags or any(tag != "any" for tag in tags)


def normal(name: str) -> str:
    """A name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Versions by normalised name, from ``constraints.txt``."""
    lines = (ROOT / "constraints.txt").read_text().split()
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def wheel_for(name: str, version: str, machine: str, python: str, glibc: str) -> str | None:
    """The file that pip would install there; None if there is none.

    Raises:
        NoAnswerError: no index answered.
    """
    newest = int(glibc.split(".")[1])
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"),
        *("--ignore-installed", "--no-deps", "--only-binary=:all:", "--target", "unused"),
        *("--implementation", "cp", "--python-version", python),
        *(word for one in (*platforms, f"manylinux2014_{machine}") for word in ("--platform", one)),
        f"{name}=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        (item,) = json.loads(done.stdout)["install"]
        return str(item["download_info"]["url"]).rpartition("/")[2]
    if "No matching distribution" not in done.stderr or "from versions: none" in done.stderr:
        raise NoAnswerError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "")
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA")
    parser.add_argument("--machine", default="aarch64")
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--glibc", default="2.28")
    chosen = parser.parse_args(arguments)
    extras = chosen.extras or ["client", "device"]
    versions, missing = pinned(), 0
    names = sorted(needed(extras, chosen.machine))
    print(f"| package of {', '.join(extras)} | wheel, Python {chosen.python}, {chosen.machine} |")
    print("| --- | --- |")
    compiled = [name for name in names if is_compiled(distribution(name))]
    for name in compiled:
        version = versions[name]
        try:
            file = wheel_for(name, version, chosen.machine, chosen.python, chosen.glibc)
        except NoAnswerError as error:
            print(f"{name} {version} could not be checked: {error}", file=sys.stderr)
            return NO_ANSWER
        missing += file is None
        print(f"| {name} {version} | {f'`{file}`' if file else '**none**'} |", flush=True)
    print(f"\n{len(names) - len(compiled)} more are pure Python.")
    return NO_WHEEL if missing else 0


if __name__ == "__main__":
    sys.exit(main())
