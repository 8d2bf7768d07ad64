"""One command line begins a run and goes on with it: what a service needs that is started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InputError
from privet.detached import leave
from server.home import ServerHome
from server.link import runs
from tests.privet.test_cli import call
from tests.server.federation import World
from tests.world import Snapshot

Out = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return World.make(tmp_path).home.path


class Link:
    """In the link's place: what would be done with a run, in order."""

    def __init__(self, begins: str = "") -> None:
        self._begins = begins
        self.done: list[str] = []

    def begin(self, *_: object) -> None:
        self.done.append("begin")
        if self._begins:
            raise InputError("no", code=self._begins)

    def resume(self, *_: object) -> bool:
        self.done.append("resume")
        return True


@pytest.mark.parametrize(
    ("option", "begins", "done", "code"),
    [
        ((), "", ["begin"], 0),
        (("--resume",), "", ["begin"], 0),
        ((), "begun-already", ["begin"], 4),
        (("--resume",), "begun-already", ["begin", "resume"], 0),
        (("--resume",), "no-link", ["begin"], 4),
        (("--resume",), "directory-in-use", ["begin"], 4),
    ],
)
def test_a_run_that_was_begun_is_gone_on_with_only_if_that_is_asked_for(
    option: tuple[str, ...],
    begins: str,
    done: list[str],
    code: int,
    run: Path,
    capsys: Out,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = Link(begins)
    monkeypatch.setattr(runs, "begin", link.begin)
    monkeypatch.setattr(runs, "resume", link.resume)
    before = Snapshot.of(run)
    assert call(capsys, "server", "run", *option, run)[0] == code
    assert link.done == done
    assert Snapshot.of(run) == before


def test_a_run_without_a_federation_is_refused_before_it_is_left(run: Path, capsys: Out) -> None:
    code, error = call(capsys, "server", "run", "--resume", "--detach", run)
    assert (code, error["code"]) == (4, "not-in-a-federation")
    assert not (run / "server.log").exists()


def test_a_process_that_is_left_running_runs_nothing_of_the_directory_that_it_was_left_in(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("privet", "server", "typer"):
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "__init__.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path / "here")
    left = leave(("status",), ServerHome.read(run))
    assert left.process.wait(60) == 0
    assert "planted" not in left.log.read_text()
