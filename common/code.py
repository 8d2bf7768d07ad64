"""Which code runs here? One digest over the source files of some packages.

The rule: every Python file below the packages counts, by its path and its bytes, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest_of_code(root: Path, packages: Iterable[str]) -> str:
    """SHA-256, hexadecimal.

    Args:
        root: the directory that holds the packages.
        packages: their names, in the order in which they count.
    """
    hasher = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            hasher.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return hasher.hexdigest()
