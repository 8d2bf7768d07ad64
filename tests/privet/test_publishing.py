"""A deployed model is published by two parties, and by neither alone."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root

from client.home import Home
from common.bundle import Bundle, Trust
from common.errors import InputError
from common.keys import KeyDirectory
from privet.proposal import Approval, Proposal
from privet.publishing import publish
from server.release.ledgers import kept
from server.release.repository import Repository
from server.release.roots import draft_root, roles_in, sign_root
from tests.privet.test_cli import call
from tests.privet.two_parties import (
    Out,
    Parties,
    approve,
    enrolled,
    propose,
    proposed,
    published,
    refused,
)
from tests.world import Snapshot, killed_at

MOMENT = datetime.now(UTC)


def test_a_release_goes_from_the_coordinator_to_the_approver_and_back_to_a_device(
    parties: Parties, capsys: Out
) -> None:
    proposal = proposed(parties, capsys)
    code, data = approve(parties, capsys, proposal)
    assert code == 0
    assert data["clients"] == 3
    code, data = published(parties, capsys, proposal)
    assert (code, "model.onnx" in data["files"]) == (0, True)
    verify = ("audit", "verify", data["bundle"], "--trust", data["trust"])
    assert call(capsys, *verify)[0] == 0
    device = enrolled(parties, capsys, data, "1.root.json")
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
    assert published(parties, capsys, first)[0] == 0
    second, out = parties.path("second"), parties.path("second-approval")
    # Some versions are left out, as the approver is told by another way.
    assert propose(parties, capsys, "second", version=1)[1]["code"] == "wrong-version"
    assert propose(parties, capsys, "second", version=7)[1]["version"] == 7
    assert refused(parties, capsys, second) == "version-jump"
    assert refused(parties, capsys, second, version=2) == "wrong-version"
    assert not (second / "root.json").exists()
    assert approve(parties, capsys, second, out=out, version=7)[0] == 0
    assert published(parties, capsys, second, "second-approval")[0] == 0
    before = Snapshot.of(parties.network.federation.path)
    assert published(parties, capsys, first)[1]["code"] == "release-rollback"
    assert Snapshot.of(parties.network.federation.path) == before


def test_after_a_rotation_the_new_approver_releases_and_what_was_proposed_before_does_not(
    parties: Parties, capsys: Out
) -> None:
    first = proposed(parties, capsys)
    assert approve(parties, capsys, first)[0] == 0
    approval = parties.path("approval")
    assert published(parties, capsys, first)[0] == 0
    early, late = parties.path("early"), parties.path("late")
    assert propose(parties, capsys, "early")[0] == 0
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
    code, data = published(parties, capsys, early, "early-approval")
    assert (code, Snapshot.of(where)) == (11, before)
    code, data = propose(parties, capsys, "late")
    assert (code, data["code"]) == (4, "wrong-approver")
    assert propose(parties, capsys, "late", approver=new.text())[1]["version"] == 3
    out, keys = parties.path("late-approval"), parties.path("second")
    assert approve(parties, capsys, late, keys=keys, out=out)[0] == 0
    code, data = published(parties, capsys, late, "late-approval")
    assert code == 0
    assert call(capsys, "audit", "verify", data["bundle"], "--trust", data["trust"])[0] == 0
    device = enrolled(parties, capsys, data, "2.root.json")
    assert call(capsys, "device", "update", device)[1]["version"] == 3


def test_neither_party_publishes_alone(parties: Parties, capsys: Out) -> None:
    proposal = proposed(parties, capsys)
    assert approve(parties, capsys, proposal)[0] == 0
    good = Approval.read(parties.path("approval"))
    # The coordinator signs in the approver's stead, with a key of its own making.
    mine = KeyDirectory(parties.path("mine")).create("approver")
    draft = Repository.draft_targets({"model.onnx": b"mine"}, 1, MOMENT)
    before = Snapshot.of(parties.network.federation.path)
    for number, forged in enumerate((
        replace(good, statement=Proposal.read(proposal).bundle.statement),
        replace(good, targets=Repository.sign(draft, mine)),
    )):  # fmt: skip
        forged.write(parties.path(f"forged-{number}"))
        assert published(parties, capsys, proposal, f"forged-{number}")[0] == 11
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
        assert published(parties, capsys, proposal, name)[0] == 11, name
        assert Snapshot.of(parties.network.federation.path) == before


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.figures)])
def test_killed_at_any_write_the_same_publication_finishes_what_it_began(
    parties: Parties, capsys: Out, every: int
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


def test_what_is_not_ready_is_not_proposed(parties: Parties, capsys: Out) -> None:
    def not_ready(**changes: Any) -> tuple[int, str]:
        code, data = propose(parties, capsys, "p", **changes)
        return code, data["code"]

    assert not_ready() == (4, "no-recovery-key")
    assert not_ready(approver=parties.recovery) == (4, "wrong-approver")
    (ledger, *_) = sorted((parties.run / "ledgers").iterdir())
    lines = ledger.read_bytes()
    ledger.unlink()
    assert not_ready(recovery=parties.recovery) == (4, "ledgers-missing")
    ledger.write_bytes(lines[: lines.rindex(b"\n", 0, -1) + 1])  # its last entry is cut off
    assert not_ready(recovery=parties.recovery) == (11, "ledger-forked")
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


def test_a_clients_ledger_is_kept_as_the_client_has_it(ended: Parties) -> None:
    chains = kept(ended.home, ended.heads())
    for name, chain in chains.items():
        home = Home.read(ended.network.home(name).path)
        assert [entry.line for entry in chain] == [
            entry.line for entry in home.read_ledger().chain(home.federation)
        ]
