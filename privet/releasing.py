"""From a finished run to a published model: what it takes two parties to do.

The rule: the coordinator proposes, and an independent approver recomputes every epsilon from the
clients' own ledgers before adding the second signature, to the privacy statement and to the TUF
targets. Neither can publish alone. In a simulation both live in this process and the release says
``simulated``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from audit.ledgers import spend
from audit.recompute import accountants, recompute
from audit.verify import Verdict, check, exposure
from common.bundle import Bundle, Trust
from common.canonical import Json
from common.errors import TrustError
from common.inference import KnownAnswers
from common.keys import SigningKey
from common.ledger import Entry, SignedHead
from common.ledger.file import read_federation
from common.models.networks import load_parameters, parameters_of
from common.models.preprocess import ServingModel
from common.models.registry import build
from common.personal import whole
from common.plan import Plan
from common.statement import INTOTO_TYPE, Envelope, privacy_statement
from common.wire import Arrays, pack_arrays
from server.checkpoint import CheckpointStore
from server.heads import note_of
from server.home import COORDINATOR, ServerHome
from server.release.export import to_onnx
from server.release.release import Release, assemble, privacy_predicate, subjects
from server.release.repository import Repository, Roles
from simulations.population import APPROVER, RECOVERY, Run


@dataclass(frozen=True)
class Published:
    """A release that is out: its files by name, its version, and what the approver found."""

    release: Release
    files: Mapping[str, bytes]
    version: int
    verdict: Verdict
    spent: float


@dataclass(frozen=True)
class _Artifacts:
    """What a final model is turned into before anybody signs."""

    weights: bytes
    model: bytes
    answers: KnownAnswers


def publish_run(run: Run) -> Published:
    """Release a simulated run's last checkpoint: bundle, trust file, repository.

    It always says ``simulated``: both signers live in one process, whatever the noise was.

    Raises:
        TrustError: the approver found the proposal wrong; nothing was published.
    """
    home = ServerHome.read(run.path)
    checkpoint = CheckpointStore(home.checkpoints, home.run, home.plan.digest).latest()
    if checkpoint is None:
        raise TrustError("the run has no checkpoint to release", code="no-checkpoint")
    coordinator = run.party(COORDINATOR).load(COORDINATOR)
    approver = run.party(APPROVER).load(APPROVER)
    recovery = run.party(RECOVERY).load(RECOVERY)
    roles = Roles(coordinator.public, approver.public, recovery.public)
    moment = datetime.now(UTC)
    repository = Repository.create(run.path / "repository", [coordinator, approver], roles, moment)
    version = repository.version + 1

    artifacts = _artifacts(home, checkpoint.model)
    chains = _chains(run, home)
    heads = _heads(home, checkpoint.heads, coordinator)
    proposal = _propose(home, artifacts, chains, heads, version, checkpoint.round, coordinator)
    bundle = Bundle(
        plan=run.plan_envelope.read_bytes(),
        statement=proposal.encode(),
        signers={COORDINATOR: coordinator.public, APPROVER: approver.public},
        clients={member.pseudonym: member.key for member in home.members.values()},
        ledgers=chains,
        heads={name: note.encode() for name, note in heads.items()},
    )
    trust = Trust(
        signers={role: key.fingerprint for role, key in bundle.signers.items()},
        clients={name: key.fingerprint for name, key in bundle.clients.items()},
    )
    verdict, spent, statement = _approve(bundle, trust, proposal, approver)
    release = Release(
        name=home.plan.release.name,
        version=version,
        simulated=True,
        task=home.plan.task,
        schema=home.plan.schema,
        plan=home.plan.digest,
        weights=artifacts.weights,
        model=artifacts.model,
        answers=artifacts.answers,
        statement=statement,
    )
    files = assemble(release)
    replace(bundle, statement=statement).write(run.path / "bundle")
    trust.write(run.path / "trust.json")
    repository.publish(files, [coordinator, approver], coordinator, moment)
    return Published(release, files, version, verdict, spent)


def _artifacts(home: ServerHome, arrays: Arrays) -> _Artifacts:
    plan = home.plan
    model = build(plan.model, plan.schema, seed=0, bindings=home.binding.models)
    arrays = whole(plan.personal, parameters_of(model.network), arrays)
    load_parameters(model.network, arrays)
    serving = ServingModel(model, plan.schema).eval()
    with torch.inference_mode():
        answers = KnownAnswers.make(
            plan.schema, lambda inputs: serving(torch.from_numpy(inputs)).numpy()
        )
    return _Artifacts(pack_arrays(arrays), to_onnx(serving, plan.schema), answers)


def _chains(run: Run, home: ServerHome) -> dict[str, list[Entry]]:
    """What each client's ledger says of this federation, by pseudonym."""
    federation = home.signing_key().public.fingerprint
    return {
        member.pseudonym: read_federation(run.ledger(member.name), federation)
        for member in home.members.values()
    }


def _heads(
    home: ServerHome, heads: Mapping[str, Json], coordinator: SigningKey
) -> dict[str, SignedHead]:
    """How far the coordinator saw each client's ledger, by pseudonym, with both signatures."""
    notes = {m.pseudonym: note_of(m, coordinator, heads) for m in home.members.values()}
    return {name: note for name, note in notes.items() if note is not None}


def _propose(
    home: ServerHome,
    artifacts: _Artifacts,
    chains: Mapping[str, list[Entry]],
    heads: Mapping[str, SignedHead],
    version: int,
    rounds: int,
    coordinator: SigningKey,
) -> Envelope:
    """The coordinator's statement: what the ledgers add up to, signed once."""
    plan: Plan = home.plan
    spends = [spend(name, chain, plan) for name, chain in chains.items()]
    event = exposure(plan, spends)
    stated = accountants(event, plan.privacy.delta)
    predicate = privacy_predicate(
        plan,
        version=version,
        event=event,
        epsilon=stated["pld (dp-accounting)"],
        epsilon_filter=max(one.epsilon_filter for one in spends),
        accountants=stated,
        noise={
            entry.body["noise"]
            for chain in chains.values()
            for entry in chain
            if "noise" in entry.body
        },
        simulated=True,
        rounds=rounds,
        ledgers={
            name: (
                chain[-1].digest,
                len(chain),
                heads[name].head.entries if name in heads else 0,
            )
            for name, chain in chains.items()
        },
        clients=len(chains),
    )
    statement = privacy_statement(subjects(artifacts.weights, artifacts.model), predicate)
    return Envelope.sign(INTOTO_TYPE, statement, [coordinator])


def _approve(
    bundle: Bundle, trust: Trust, proposal: Envelope, approver: SigningKey
) -> tuple[Verdict, float, bytes]:
    """The approver's part: verify and recompute everything, then sign. Refuses by raising."""
    verdict = check(bundle, trust, signatures=1)
    recomputed = recompute(verdict)
    return verdict, recomputed.spent, proposal.with_signature(approver).encode()
