"""A run that has ended, three parties with a key directory each, and what they tell one another."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from client.home import HOME_VARIABLE
from common.keys import KeyDirectory, PublicKey
from privet.proposal import Proposal
from privet.publishing import make_proposal
from server.app import coordinate
from server.checkpoint import CheckpointStore
from server.home import ServerHome
from server.release.ledgers import collect, missing
from simulations.grid import InProcessGrid
from simulations.processes import Network
from tests.privet.test_cli import call
from tests.world import Snapshot

Out = pytest.CaptureFixture[str]


@dataclass
class Parties:
    """A run that has ended, and three parties with a key directory each."""

    network: Network
    run: Path
    approver: str
    recovery: str

    @property
    def home(self) -> ServerHome:
        return ServerHome.read(self.run)

    @property
    def coordinator(self) -> str:
        return self.network.federation.signing_key().public.fingerprint

    def path(self, name: str) -> Path:
        return self.network.path / name

    def copy(self, path: Path) -> Parties:
        """The same in another directory."""
        shutil.copytree(self.network.path, path, symlinks=True)
        federation = replace(self.network.federation, path=path / "federation")
        run = path / "run"
        replace(ServerHome.read(run), federation=federation.path).create()
        return replace(self, network=Network(path, federation, []), run=run)

    def heads(self) -> dict[str, Any]:
        home = self.home
        latest = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
        assert latest is not None
        return dict(latest.heads)


@contextlib.contextmanager
def ended_run(path: Path) -> Iterator[Parties]:
    """Three clients trained for two rounds, and all that a release needs was collected."""
    with Network.made(path, clients=3) as network:
        keys = [KeyDirectory(network.path / name) for name in ("approver", "recovery")]
        approver, recovery = (directory.create("approver").public for directory in keys)
        network.federation = network.federation.with_approver(approver.fingerprint)
        run = network.create(rounds=2)
        clients = network.path / "homes"  # as the in-process grid wants them: side by side
        clients.mkdir()
        for name in network.names:
            (clients / name).symlink_to(network.home(name).path)
        with pytest.MonkeyPatch.context() as patch, InProcessGrid("client.app:app", 3) as grid:
            patch.setenv(HOME_VARIABLE, str(clients))
            coordinate(grid, run)
            parties = Parties(network, run, approver.text(), recovery.text())
            assert missing(parties.home, parties.heads()) == network.names
            assert collect(parties.home, grid, parties.heads()) == {}
        yield parties


def propose(
    parties: Parties, capsys: Out, name: str = "proposal", **changes: Any
) -> tuple[int, Any]:
    """The coordinator's command; it writes to a directory of that name."""
    options = {"out": parties.path(name), "approver": parties.approver, **changes}
    words = [word for option, value in options.items() for word in (f"--{option}", value)]
    return call(capsys, "server", "propose", parties.run, *words)


def proposed(parties: Parties, capsys: Out) -> Path:
    """The first proposal."""
    code, data = propose(parties, capsys, recovery=parties.recovery)
    assert (code, data["version"], data["clients"]) == (0, 1, 3)
    return parties.path("proposal")


def drafted(parties: Parties) -> Proposal:
    """The same in memory, for whoever changes it before it is written."""
    approver, recovery = map(PublicKey.from_text, (parties.approver, parties.recovery))
    return make_proposal(parties.run, approver, recovery)


def approve(parties: Parties, capsys: Out, proposal: Path, **changes: Any) -> tuple[int, Any]:
    """The approver's command, with other options where ``changes`` says so; None: without it."""
    options = {
        "keys": parties.path("approver"),
        "coordinator": parties.coordinator,
        "recovery": PublicKey.from_text(parties.recovery).fingerprint,
        "out": parties.path("approval"),
        **changes,
    }
    given = {name: value for name, value in options.items() if value is not None}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    return call(capsys, "approver", "approve", proposal, *words)


def published(
    parties: Parties, capsys: Out, proposal: Path, approval: str = "approval"
) -> tuple[int, Any]:
    """The command that publishes what both signed."""
    words = (parties.run, proposal, parties.path(approval))
    return call(capsys, "release", "publish", *words)


def refused(parties: Parties, capsys: Out, proposal: Path | Proposal, **changes: Any) -> str:
    """The code of an approver's refusal; nothing was signed, and nothing noted as signed."""
    if isinstance(proposal, Proposal):
        number = len(list(parties.path("").glob("crooked-*")))
        place = parties.path(f"crooked-{number}")
        proposal.write(place)
        return refused(parties, capsys, place, **changes)
    before, out = Snapshot.of(parties.path("approver")), parties.path("refused")
    code, data = approve(parties, capsys, proposal, **{"out": out, **changes})
    unusable = data["code"] in ("recovery-unknown", "wrong-version")
    assert (code, out.exists()) == (4 if unusable else 11, False)
    assert Snapshot.of(parties.path("approver")) == before
    return str(data["code"])


def enrolled(parties: Parties, capsys: Out, release: dict[str, Any], root: str) -> Path:
    """A device that was given this root of what was published."""
    device, repository = parties.path("device"), release["repository"]
    code, _ = call(
        capsys, "device", "init", device, "--root", Path(repository) / "metadata" / root,
        "--trust", release["trust"], "--repository", repository,
        "--greatest-epsilon", "100", "--accept-simulated",
    )  # fmt: skip
    assert code == 0
    return device
