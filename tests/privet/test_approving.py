"""An approver signs what it recomputed, once, and nothing that somebody only claims."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import onnx
import pytest

from common.bundle import Bundle
from common.inference import KnownAnswers
from common.keys import KeyDirectory
from privet import publishing
from privet.proposal import Proposal
from server.release.roots import Expiry, draft_root, roles_in
from tests.privet.two_parties import (
    Out,
    Parties,
    approve,
    drafted,
    proposed,
    published,
    refused,
)

MOMENT = datetime.now(UTC)


def test_an_approver_signs_no_other_release_under_a_version_that_it_signed(
    parties: Parties, capsys: Out
) -> None:
    first = proposed(parties, capsys)
    read = Proposal.read(first)
    claims_1 = replace(read, version=2, root=None)
    assert refused(parties, capsys, claims_1, version=2) == "verification-failed"
    assert approve(parties, capsys, first)[0] == 0
    approval = parties.path("approval")
    # Whoever lost the approval gets it once more; the same release under another root is another.
    again = parties.path("again")
    assert approve(parties, capsys, first, out=again)[0] == 0
    assert (again / "statement.dsse.json").read_bytes() == (
        approval / "statement.dsse.json"
    ).read_bytes()
    assert read.root is not None
    third = KeyDirectory(parties.path("third")).create("approver").public
    root = draft_root(replace(roles_in(read.root), recovery=third), MOMENT)
    crooked = replace(read, root=root)
    assert refused(parties, capsys, crooked, recovery=third.fingerprint) == "signed-before"
    assert published(parties, capsys, first, "again")[0] == 0
    record = parties.path("approver") / "signed.json"
    record.write_bytes(record.read_bytes()[:-1])
    assert refused(parties, capsys, first) == "history-damaged"


@pytest.mark.parametrize("what", ["model.safetensors", "model.onnx"])
def test_an_approver_signs_nothing_that_does_not_hold(
    parties: Parties, capsys: Out, what: str
) -> None:
    proposal = proposed(parties, capsys)
    file = proposal / what
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert refused(parties, capsys, proposal)


def test_answers_that_the_weights_do_not_give_are_not_signed(parties: Parties, capsys: Out) -> None:
    file = proposed(parties, capsys) / "known-answers.json"
    answers = KnownAnswers.decode(file.read_bytes(), parties.home.plan.schema)
    shifted = answers.probabilities + np.float32(2e-4)  # twice the tolerance
    file.write_bytes(replace(answers, probabilities=shifted).encode())
    assert refused(parties, capsys, file.parent) == "verification-failed"


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
    assert refused(parties, capsys, proposal) == "other-model"


def test_an_approver_signs_for_no_other_coordinator_and_under_no_other_root(
    parties: Parties, capsys: Out
) -> None:
    proposal = proposed(parties, capsys)
    assert refused(parties, capsys, proposal, coordinator="0" * 64) == "wrong-root"
    other = drafted(parties)
    assert other.root is not None
    stranger = KeyDirectory(parties.path("stranger")).create("approver").public
    roles = roles_in(other.root)
    wrong = draft_root(replace(roles, approver=stranger), MOMENT)
    assert refused(parties, capsys, replace(other, root=wrong)) == "wrong-root"


def test_an_approver_signs_the_first_root_alone_and_no_recovery_key_that_it_does_not_know(
    parties: Parties, capsys: Out
) -> None:
    """Whoever held two of the three keys would hold all of them: the next root is theirs."""
    made = drafted(parties)
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
        assert refused(parties, capsys, proposal) == "wrong-root", name
    made.write(parties.path("proposal"))
    for recovery, code in ((None, "recovery-unknown"), (mine.fingerprint, "wrong-root")):
        assert refused(parties, capsys, parties.path("proposal"), recovery=recovery) == code
    code, data = approve(parties, capsys, parties.path("proposal"))
    assert (code, data["version"], data["recovery"]) == (0, 1, roles.recovery.fingerprint)
    assert data["simulated"] is made.simulated


def test_a_statement_that_claims_too_little_is_refused(parties: Parties, capsys: Out) -> None:
    made = drafted(parties)
    pseudonym = sorted(made.bundle.ledgers)[0]
    # The coordinator leaves out the client that spent most: its head is signed, and says so.
    lacking = {name: chain for name, chain in made.bundle.ledgers.items() if name != pseudonym}
    keys = {name: key for name, key in made.bundle.clients.items() if name != pseudonym}
    heads = {name: head for name, head in made.bundle.heads.items() if name != pseudonym}
    bundle: Bundle = replace(made.bundle, ledgers=lacking, clients=keys, heads=heads)
    assert refused(parties, capsys, replace(made, bundle=bundle))


def test_a_root_that_ended_or_never_ends_is_not_signed(parties: Parties, capsys: Out) -> None:
    made = drafted(parties)
    assert made.root is not None
    for days in (-1, 3 * 365 + 2):
        root = draft_root(roles_in(made.root), MOMENT, Expiry(root=timedelta(days=days)))
        assert refused(parties, capsys, replace(made, root=root)) == "wrong-expiry"
