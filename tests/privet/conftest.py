"""One run that has ended is enough for every test of what two parties release of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.privet.two_parties import Parties


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    from tests.privet.two_parties import ended_run

    with ended_run(tmp_path_factory.mktemp("release")) as parties:
        yield parties


@pytest.fixture
def parties(ended: Parties, tmp_path: Path) -> Parties:
    """The same, in a directory of its own."""
    return ended.copy(tmp_path / "all")
