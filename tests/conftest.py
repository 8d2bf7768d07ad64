"""What every test shares: state and caches of its own, and arithmetic that does not race."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before anything imports torch or numpy: the bits of a sum depend on how many threads make it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; these are said by a library about another library, on import."""
    config.addinivalue_line("filterwarnings", "ignore:'click.utils:DeprecationWarning")


@pytest.fixture(scope="session", autouse=True)
def own_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the state or the cache of whoever runs it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PRIVET_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    patch.setenv("PRIVET_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in ("PRIVET_CLIENT_HOME", "PRIVET_DEBUG", "PRIVET_TEST_KILL_AT_WRITE"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()
