"""A deployed model is published by two parties, and by neither alone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tuf.api.metadata import Metadata, Root

from client.home import HOME_VARIABLE, Home
from common.bundle import Bundle, Trust
from common.errors import InputError
from common.inference import KnownAnswers
from common.keys import KeyDirectory, PublicKey
from privet import publishing
from privet.proposal import Approval, Proposal
from privet.publishing import make_proposal, publish
from server.app import coordinate
from server.checkpoint import CheckpointStore
from server.home import ServerHome
from server.release.ledgers import collect, kept, missing
from server.release.repository import Repository
from server.release.roots import Expiry, draft_root, roles_in, sign_root
from simulations.grid import InProcessGrid
from simulations.processes import Network
from tests.privet.test_cli import call
from tests.world import Snapshot, killed_at

MOMENT = datetime.now(UTC)
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

    def heads(self) -> dict[str, Any]:
        home = self.home
        latest = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
        assert latest is not None
        return dict(latest.heads)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    patch = pytest.MonkeyPatch()
    with Network.made(tmp_path_factory.mktemp("release"), clients=3) as network:
        keys = [KeyDirectory(network.path / name) for name in ("approver", "recovery")]
        approver, recovery = (directory.create("approver").public for directory in keys)
        network.federation = network.federation.with_approver(approver.fingerprint)
        run = network.create(rounds=2)
        clients = network.path / "homes"  # as the in-process grid wants them: side by side
        clients.mkdir()
        for name in network.names:
            (clients / name).symlink_to(network.home(name).path)
        patch.setenv(HOME_VARIABLE, str(clients))
        with InProcessGrid("client.app:app", 3) as grid:
            coordinate(grid, run)
            parties = Parties(network, run, approver.text(), recovery.text())
            assert missing(parties.home, parties.heads()) == network.names
            assert collect(parties.home, grid, parties.heads()) == {}
        yield parties
    patch.undo()


@pytest.fixture
def parties(ended: Parties, tmp_path: Path) -> Parties:
    """The same, in a directory of its own."""
    shutil.copytree(ended.network.path, tmp_path / "all", symlinks=True)
    path = tmp_path / "all"
    network = Network(path, replace(ended.network.federation, path=path / "federation"), [])
    run = path / "run"
    replace(ServerHome.read(run), federation=path / "federation").create()
    return Parties(network, run, ended.approver, ended.recovery)


def proposed(parties: Parties, capsys: Out) -> Path:
    out = parties.path("proposal")
    words = ("--approver", parties.approver, "--recovery", parties.recovery)
    code, data = call(capsys, "server", "propose", parties.run, "--out", out, *words)
    assert (code, data["version"], data["clients"]) == (0, 1, 3)
    return out


def approve(parties: Parties, capsys: Out, proposal: Path, **changes: Any) -> tuple[int, Any]:
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


def test_a_release_goes_from_the_coordinator_to_the_approver_and_back_to_a_device(
    parties: Parties, capsys: Out
) -> None:
    proposal = proposed(parties, capsys)
    code, data = approve(parties, capsys, proposal)
    assert code == 0
    assert data["clients"] == 3
    approval = parties.path("approval")
    code, data = call(capsys, "release", "publish", parties.run, proposal, approval)
    assert (code, "model.onnx" in data["files"]) == (0, True)
    verify = ("audit", "verify", data["bundle"], "--trust", data["trust"])
    assert call(capsys, *verify)[0] == 0
    device = parties.path("device")
    root = Path(data["repository"]) / "metadata" / "1.root.json"
    code, _ = call(
        capsys, "device", "init", device, "--root", root, "--trust", data["trust"],
        "--repository", data["repository"], "--greatest-epsilon", "100", "--accept-simulated",
    )  # fmt: skip
    assert code == 0
    assert call(capsys, "device", "update", device)[1]["version"] == 1
    # The repository is signed anew without a second party, and with nothing else in it.
    before = Repository(Path(data["repository"])).version
    where = parties.network.federation.path
    assert call(capsys, "release", "renew", where)[1]["version"] == before


def test_a_second_release_needs_no_new_root_and_an_old_proposal_is_refused(
    parties: Parties, capsys: Out
) -> None:
    first = proposed(parties, capsys)
    assert approve(parties, capsys, first)[0] == 0
    approval = parties.path("approval")
    assert call(capsys, "release", "publish", parties.run, first, approval)[0] == 0
    second, out = parties.path("second"), parties.path("second-approval")
    words = ("--out", second, "--approver", parties.approver)
    assert call(capsys, "server", "propose", parties.run, *words)[1]["version"] == 2
    assert not (second / "root.json").exists()
    assert approve(parties, capsys, second, out=out)[0] == 0
    assert call(capsys, "release", "publish", parties.run, second, out)[0] == 0
    before = Snapshot.of(parties.network.federation.path)
    assert call(capsys, "release", "publish", parties.run, first, approval)[1]["code"] == (
        "release-rollback"
    )
    assert Snapshot.of(parties.network.federation.path) == before


def test_after_a_rotation_the_new_approver_releases_and_what_was_proposed_before_does_not(
    parties: Parties, capsys: Out
) -> None:
    first = proposed(parties, capsys)
    assert approve(parties, capsys, first)[0] == 0
    approval = parties.path("approval")
    assert call(capsys, "release", "publish", parties.run, first, approval)[0] == 0
    early, late = parties.path("early"), parties.path("late")
    old = ("--approver", parties.approver)
    assert call(capsys, "server", "propose", parties.run, "--out", early, *old)[0] == 0
    assert approve(parties, capsys, early, out=parties.path("early-approval"))[0] == 0
    # Whoever approves from now on: its key, signed in by the former one and the coordinator.
    new = KeyDirectory(parties.path("second")).create("approver").public
    where, change = parties.network.federation.path, parties.path("change")
    words = ("rotate", "approver", where, "--key", new.text(), "--out", change)
    assert call(capsys, "release", *words)[0] == 0
    copies = []
    for name in ("approver", "second"):
        copies.append(parties.path(f"change-{name}"))
        words = ("--keys", parties.path(name), "--new", new.fingerprint, "--out", copies[-1])
        words = (*words, "--root", approval / "root.json")  # the one that this approver signed
        code, data = call(capsys, "release", "sign", change, *words)
        if name == "approver":  # it signed the early release as version 2
            assert (code, data["code"], copies[-1].exists()) == (11, "signed-before", False)
            (void, _) = re.findall("[0-9a-f]{64}", data["message"])
            code, _ = call(capsys, "release", "sign", change, *words, "--instead", void)
        assert code == 0
    assert call(capsys, "release", "commit", where, *copies)[0] == 0
    before = Snapshot.of(where)
    code, data = call(
        capsys, "release", "publish", parties.run, early, parties.path("early-approval")
    )
    assert (code, Snapshot.of(where)) == (11, before)
    words = ("--out", late, "--approver")
    code, data = call(capsys, "server", "propose", parties.run, *words, parties.approver)
    assert (code, data["code"]) == (4, "wrong-approver")
    assert call(capsys, "server", "propose", parties.run, *words, new.text())[1]["version"] == 3
    out, keys = parties.path("late-approval"), parties.path("second")
    assert approve(parties, capsys, late, keys=keys, out=out)[0] == 0
    code, data = call(capsys, "release", "publish", parties.run, late, out)
    assert code == 0
    assert call(capsys, "audit", "verify", data["bundle"], "--trust", data["trust"])[0] == 0
    device = parties.path("device")
    root = Path(data["repository"]) / "metadata" / "2.root.json"
    code, _ = call(
        capsys, "device", "init", device, "--root", root, "--trust", data["trust"],
        "--repository", data["repository"], "--greatest-epsilon", "100", "--accept-simulated",
    )  # fmt: skip
    assert code == 0
    assert call(capsys, "device", "update", device)[1]["version"] == 3


def test_an_approver_signs_no_version_twice_and_jumps_to_none(
    parties: Parties, capsys: Out
) -> None:
    first = proposed(parties, capsys)
    read = Proposal.read(first)
    replace(read, version=2, root=None).write(parties.path("claims-1"))
    code, data = approve(parties, capsys, parties.path("claims-1"), version=2)
    assert (code, "differ in the version" in data["message"]) == (11, True)
    assert not (parties.path("approver") / "signed.json").exists()
    assert approve(parties, capsys, first)[0] == 0
    record, approval = parties.path("approver") / "signed.json", parties.path("approval")
    before = record.read_bytes()
    # Whoever lost the approval gets it once more; the same release under another root is another.
    again = parties.path("again")
    assert approve(parties, capsys, first, out=again)[0] == 0
    assert (again / "statement.dsse.json").read_bytes() == (
        approval / "statement.dsse.json"
    ).read_bytes()
    assert read.root is not None
    third = KeyDirectory(parties.path("third")).create("approver").public
    root = draft_root(replace(roles_in(read.root), recovery=third), MOMENT)
    replace(read, root=root).write(parties.path("crooked"))
    out = parties.path("out")
    changes = {"recovery": third.fingerprint, "out": out}
    code, data = approve(parties, capsys, parties.path("crooked"), **changes)
    assert (code, data["code"], out.exists()) == (11, "signed-before", False)
    assert call(capsys, "release", "publish", parties.run, first, again)[0] == 0
    far = ("--out", parties.path("far"), "--approver", parties.approver, "--version")
    assert call(capsys, "server", "propose", parties.run, *far, 1)[1]["code"] == "wrong-version"
    assert call(capsys, "server", "propose", parties.run, *far, 7)[1]["version"] == 7
    code, data = approve(parties, capsys, parties.path("far"), out=out)
    assert (code, data["code"], out.exists()) == (11, "version-jump", False)
    assert record.read_bytes() == before
    assert approve(parties, capsys, parties.path("far"), out=out, version=7)[0] == 0
    code, data = call(capsys, "release", "publish", parties.run, parties.path("far"), out)
    assert (code, Repository(Path(data["repository"])).version) == (0, 7)


def test_neither_party_publishes_alone(parties: Parties, capsys: Out, tmp_path: Path) -> None:
    proposal = proposed(parties, capsys)
    assert approve(parties, capsys, proposal)[0] == 0
    good = parties.path("approval")
    # The coordinator signs in the approver's stead, with a key of its own making.
    forged, mine = tmp_path / "forged", KeyDirectory(tmp_path / "mine").create("approver")
    read = Proposal.read(proposal)
    for name in ("statement.dsse.json", "targets.json", "root.json"):
        forged.mkdir(exist_ok=True)
        shutil.copy(good / name, forged / name)
    (forged / "statement.dsse.json").write_bytes(read.bundle.statement)
    before = Snapshot.of(parties.network.federation.path)
    assert call(capsys, "release", "publish", parties.run, proposal, forged)[0] == 11
    (forged / "statement.dsse.json").write_bytes((good / "statement.dsse.json").read_bytes())
    draft = Repository.draft_targets({"model.onnx": b"mine"}, 1, MOMENT)
    (forged / "targets.json").write_bytes(Repository.sign(draft, mine))
    assert call(capsys, "release", "publish", parties.run, proposal, forged)[0] == 11
    assert Snapshot.of(parties.network.federation.path) == before


def test_a_coordinator_makes_its_repository_under_the_root_that_it_proposed_and_no_other(
    parties: Parties, capsys: Out
) -> None:
    """An approver with a second key of its own would hold two of the three."""
    proposal = proposed(parties, capsys)
    assert approve(parties, capsys, proposal)[0] == 0
    approver = KeyDirectory(parties.path("approver")).load("approver")
    mine = KeyDirectory(parties.path("mine")).create("approver")
    good, proposed_root = Approval.read(parties.path("approval")), Proposal.read(proposal).root
    assert proposed_root is not None
    crooked = draft_root(replace(roles_in(proposed_root), recovery=mine.public), MOMENT)
    unsigned = Metadata[Root].from_bytes(proposed_root)
    unsigned.signatures.clear()
    recovery = KeyDirectory(parties.path("recovery")).load("approver")
    roots = {
        "crooked": sign_root(sign_root(crooked, approver), mine),
        "unsigned": sign_root(sign_root(unsigned.to_bytes(), approver), recovery),
        "none": None,
    }
    before = Snapshot.of(parties.network.federation.path)
    for name, root in roots.items():
        replace(good, root=root).write(parties.path(name))
        words = ("release", "publish", parties.run, proposal, parties.path(name))
        assert call(capsys, *words)[0] == 11, name
        assert Snapshot.of(parties.network.federation.path) == before


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.figures)])
def test_killed_at_any_write_the_same_publication_finishes_what_it_began(
    parties: Parties, capsys: Out, tmp_path: Path, every: int
) -> None:
    proposal = proposed(parties, capsys)
    assert approve(parties, capsys, proposal)[0] == 0
    read, approval = Proposal.read(proposal), Approval.read(parties.path("approval"))
    repository, step, died = parties.network.federation.repository, 1, True
    while died:
        shutil.rmtree(repository, ignore_errors=True)
        shutil.rmtree(parties.run / "bundle", ignore_errors=True)
        (parties.run / "trust.json").unlink(missing_ok=True)
        died = killed_at(step, lambda: publish(parties.run, read, approval))
        files = publish(parties.run, read, approval)
        there = Repository(repository)
        assert (there.version, set(there.files())) == (1, set(files)), step
        assert Bundle.read(parties.run / "bundle").statement == approval.statement
        assert set(Trust.read(parties.run / "trust.json").clients) == set(read.bundle.clients)
        step += every
    assert step > 50  # it died in the repository, and in the bundle


@pytest.mark.parametrize("what", ["model.safetensors", "model.onnx"])
def test_an_approver_signs_nothing_that_does_not_hold(
    parties: Parties, capsys: Out, what: str
) -> None:
    proposal = proposed(parties, capsys)
    file = proposal / what
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    code, _ = approve(parties, capsys, proposal)
    assert code == 11
    assert not parties.path("approval").exists()


def test_answers_that_the_weights_do_not_give_are_not_signed(parties: Parties, capsys: Out) -> None:
    file = proposed(parties, capsys) / "known-answers.json"
    answers = KnownAnswers.decode(file.read_bytes(), parties.home.plan.schema)
    shifted = answers.probabilities + np.float32(2e-4)  # twice the tolerance
    file.write_bytes(replace(answers, probabilities=shifted).encode())
    assert approve(parties, capsys, file.parent)[0] == 11


def test_a_model_that_is_not_what_the_weights_export_to_is_not_signed(
    parties: Parties, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer is right, and still it is another file: one that could answer otherwise."""
    honest = publishing.artifacts_of

    def other(*words: Any) -> Any:
        made = honest(*words)
        model = onnx.load_from_string(made.model)
        (last,) = (node for node in model.graph.node if node.op_type == "Softmax")
        first = onnx.helper.make_node("Identity", [last.input[0]], ["same"])
        last.input[0] = "same"
        model.graph.node.insert(len(model.graph.node) - 1, first)
        return replace(made, model=model.SerializeToString())

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "artifacts_of", other)
        proposal = proposed(parties, capsys)
    code, data = approve(parties, capsys, proposal)
    assert (code, data["code"]) == (11, "other-model")
    assert not parties.path("approval").exists()


def test_an_approver_signs_for_no_other_coordinator_and_under_no_other_root(
    parties: Parties, capsys: Out
) -> None:
    proposal = proposed(parties, capsys)
    assert approve(parties, capsys, proposal, coordinator="0" * 64)[0] == 11
    other = make_proposal(
        parties.run, PublicKey.from_text(parties.approver), PublicKey.from_text(parties.recovery)
    )
    assert other.root is not None
    stranger = KeyDirectory(parties.path("stranger")).create("approver").public
    roles = roles_in(other.root)
    wrong = draft_root(replace(roles, approver=stranger), MOMENT)
    replace(other, root=wrong).write(parties.path("wrong"))
    code, data = approve(parties, capsys, parties.path("wrong"))
    assert (code, data["code"]) == (11, "wrong-root")


def test_an_approver_signs_the_first_root_alone_and_no_recovery_key_that_it_does_not_know(
    parties: Parties, capsys: Out
) -> None:
    """Whoever held two of the three keys would hold all of them: the next root is theirs."""
    recovery = PublicKey.from_text(parties.recovery)
    made = make_proposal(parties.run, PublicKey.from_text(parties.approver), recovery)
    assert made.root is not None
    roles = roles_in(made.root)
    mine = KeyDirectory(parties.path("mine")).create("approver").public
    root = draft_root(replace(roles, recovery=mine), MOMENT)
    crooked = {
        "recovery": replace(made, root=root),
        "federation": replace(made, root=draft_root(replace(roles, federation=mine), MOMENT)),
        "root-2": replace(made, root=draft_root(roles, MOMENT, version=2)),
        "version-2": replace(made, root=root, version=2),
        "no-root": replace(made, root=None),
    }
    for name, proposal in crooked.items():
        proposal.write(parties.path(name))
        code, data = approve(parties, capsys, parties.path(name))
        assert (code, data["code"]) == (11, "wrong-root"), name
    made.write(parties.path("proposal"))
    code, data = approve(parties, capsys, parties.path("proposal"), recovery=None)
    assert (code, data["code"]) == (4, "recovery-unknown")
    code, data = approve(parties, capsys, parties.path("proposal"), recovery=mine.fingerprint)
    assert (code, data["code"]) == (11, "wrong-root")
    assert not parties.path("approval").exists()
    code, data = approve(parties, capsys, parties.path("proposal"))
    assert (code, data["version"], data["recovery"]) == (0, 1, recovery.fingerprint)
    assert data["simulated"] is made.simulated


def test_a_statement_that_claims_too_little_is_refused(parties: Parties, capsys: Out) -> None:
    made = make_proposal(
        parties.run, PublicKey.from_text(parties.approver), PublicKey.from_text(parties.recovery)
    )
    pseudonym = sorted(made.bundle.ledgers)[0]
    # The coordinator leaves out the client that spent most: its head is signed, and says so.
    lacking = {name: chain for name, chain in made.bundle.ledgers.items() if name != pseudonym}
    keys = {name: key for name, key in made.bundle.clients.items() if name != pseudonym}
    heads = {name: head for name, head in made.bundle.heads.items() if name != pseudonym}
    bundle: Bundle = replace(made.bundle, ledgers=lacking, clients=keys, heads=heads)
    replace(made, bundle=bundle).write(parties.path("lacking"))
    assert approve(parties, capsys, parties.path("lacking"))[0] == 11


def test_what_is_not_ready_is_not_proposed(parties: Parties, capsys: Out) -> None:
    words = ("--out", parties.path("p"), "--approver", parties.approver)
    code, data = call(capsys, "server", "propose", parties.run, *words)
    assert (code, data["code"]) == (4, "no-recovery-key")
    wrong = ("--out", parties.path("p"), "--approver", parties.recovery)
    assert call(capsys, "server", "propose", parties.run, *wrong)[1]["code"] == "wrong-approver"
    (ledger, *_) = sorted((parties.run / "ledgers").iterdir())
    lines = ledger.read_bytes()
    ledger.unlink()
    recovery = ("--recovery", parties.recovery)
    code, data = call(capsys, "server", "propose", parties.run, *words, *recovery)
    assert (code, data["code"]) == (4, "ledgers-missing")
    ledger.write_bytes(lines[: lines.rindex(b"\n", 0, -1) + 1])  # its last entry is cut off
    code, data = call(capsys, "server", "propose", parties.run, *words, *recovery)
    assert (code, data["code"]) == (11, "ledger-forked")
    assert not parties.path("p").exists()


def test_a_pipe_in_what_was_carried_holds_nobody(tmp_path: Path) -> None:
    for name in ("proposal.json", "root.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError) as caught:
        Proposal.read(tmp_path)
    assert caught.value.code == "no-proposal"
    with pytest.raises(InputError) as caught:
        Approval.read(tmp_path)
    assert caught.value.code == "no-approval"


def test_a_root_that_ended_or_never_ends_is_not_signed(parties: Parties, capsys: Out) -> None:
    recovery = PublicKey.from_text(parties.recovery)
    made = make_proposal(parties.run, PublicKey.from_text(parties.approver), recovery)
    assert made.root is not None
    for days in (-1, 3 * 365 + 2):
        root = draft_root(roles_in(made.root), MOMENT, Expiry(root=timedelta(days=days)))
        replace(made, root=root).write(parties.path(f"ends-{days}"))
        code, data = approve(parties, capsys, parties.path(f"ends-{days}"))
        assert (code, data["code"]) == (11, "wrong-expiry")
    assert not parties.path("approval").exists()


def test_a_clients_ledger_is_kept_as_the_client_has_it(ended: Parties) -> None:
    chains = kept(ended.home, ended.heads())
    for name, chain in chains.items():
        home = Home.read(ended.network.home(name).path)
        assert [entry.line for entry in chain] == [
            entry.line for entry in home.read_ledger().chain(home.federation)
        ]
