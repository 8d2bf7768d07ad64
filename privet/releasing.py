"""From a finished run to a published model: what it takes two parties to do.

The rule: the coordinator proposes, and an independent approver recomputes every epsilon from the
clients' own ledgers (with central trust from the coordinator's) before adding the second signature,
to the privacy statement and to the TUF targets. Neither can publish alone. In a simulation both
live in this process and the release says ``simulated``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import torch

from audit.ledgers import spend
from audit.recompute import accountants, recompute
from audit.verify import Verdict, check, exposure
from common.bundle import Bundle, Trust
from common.canonical import Json, digest
from common.data.schema import Schema
from common.errors import TrustError
from common.inference import KnownAnswers
from common.keys import PublicKey, SigningKey
from common.ledger import Entry, SignedHead
from common.ledger.file import read_federation
from common.lineage import Lineage, origin
from common.models.model import Model
from common.models.networks import load_parameters, parameters_of
from common.models.preprocess import ServingModel
from common.models.registry import build
from common.personal import whole
from common.plan import Plan
from common.statement import INTOTO_TYPE, Envelope, privacy_statement
from common.wire import Arrays, pack_arrays
from server.central.books import open_books
from server.checkpoint import CheckpointStore
from server.heads import note_of
from server.home import COORDINATOR, ServerHome
from server.release.export import to_onnx
from server.release.release import (
    CENTRAL_LIMITS,
    LIMITS,
    Release,
    assemble,
    privacy_predicate,
    subjects,
)
from server.release.repository import Repository
from server.release.roots import Roles
from server.release.smaller.shrink import SHRUNK, Shrunk
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
class Artifacts:
    """What a final model is turned into before anybody signs.

    Args:
        weights: the trained parameters, safetensors.
        model: what devices run, ONNX.
        answers: known answers of that.
        lineage: from the exported model to that; none: it is the exported one.
        parents: the files in between, the exported one first, by SHA-256.
    """

    weights: bytes
    model: bytes
    answers: KnownAnswers
    lineage: Lineage = ()
    parents: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledgers:
    """By pseudonym: the key that signed a ledger, its entries, and how far it was countersigned."""

    keys: Mapping[str, PublicKey]
    chains: Mapping[str, list[Entry]]
    heads: Mapping[str, SignedHead]


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
    place = run.path / "repository"
    if Repository.is_at(place):
        repository = Repository(place)
    else:
        repository = Repository.create(place, [coordinator, approver], roles, moment)
    version = repository.version + 1

    artifacts = artifacts_of(home, checkpoint.model)
    ledgers = _ledgers(run, home, checkpoint.heads, coordinator)
    proposal = propose(
        home, artifacts, ledgers, version, checkpoint.round, coordinator, simulated=True
    )
    bundle = Bundle(
        plan=run.plan_envelope.read_bytes(),
        statement=proposal.encode(),
        signers={COORDINATOR: coordinator.public, APPROVER: approver.public},
        clients=ledgers.keys,
        ledgers=ledgers.chains,
        heads={name: note.encode() for name, note in ledgers.heads.items()},
    )
    trust = Trust(
        signers={role: key.fingerprint for role, key in bundle.signers.items()},
        clients={name: key.fingerprint for name, key in bundle.clients.items()},
    )
    verdict, spent, statement = _approve(bundle, trust, proposal, approver)
    release = release_of(home.plan, artifacts, version, statement, simulated=True)
    files = assemble(release)
    replace(bundle, statement=statement).write(run.path / "bundle")
    trust.write(run.path / "trust.json")
    repository.publish(files, [coordinator, approver], coordinator, moment)
    return Published(release, files, version, verdict, spent)


def release_of(
    plan: Plan, artifacts: Artifacts, version: int, statement: bytes, *, simulated: bool
) -> Release:
    """The release of a plan's model, under a statement that both parties signed."""
    return Release(
        name=plan.release.name,
        version=version,
        simulated=simulated,
        task=plan.task,
        schema=plan.schema,
        plan=plan.digest,
        weights=artifacts.weights,
        model=artifacts.model,
        answers=artifacts.answers,
        statement=statement,
    )


def artifacts_of(home: ServerHome, arrays: Arrays) -> Artifacts:
    """What is released of a final model: exported, or what it was made smaller to.

    Raises:
        TrustError: ``bad-lineage``: what was made smaller is another model.
    """
    model = trained(home, arrays)
    data, answers = exported(model, home.plan.schema)
    weights = pack_arrays(parameters_of(model.network))
    place = home.path / SHRUNK
    if not place.exists():
        return Artifacts(weights, data, answers)
    smaller = Shrunk.read(place, home.plan.schema)
    if origin(smaller.lineage, digest(smaller.model)) != digest(data):
        raise TrustError(
            f"{place} was made from another model than this run's last",
            hint="make it anew with privet release shrink, or remove it",
            code="bad-lineage",
        )
    return Artifacts(weights, smaller.model, smaller.answers, smaller.lineage, smaller.parents)


def trained(home: ServerHome, arrays: Arrays) -> Model:
    """A run's model with these parameters."""
    plan = home.plan
    model = build(plan.model, plan.schema, seed=0, bindings=home.binding.models)
    load_parameters(model.network, whole(plan.personal, parameters_of(model.network), arrays))
    return model


def exported(model: Model, schema: Schema) -> tuple[bytes, KnownAnswers]:
    """A model as ONNX, and what torch answers where devices will be asked."""
    serving = ServingModel(model, schema).eval()
    with torch.inference_mode():
        answers = KnownAnswers.make(
            schema, lambda inputs: serving(torch.from_numpy(inputs)).numpy()
        )
    return to_onnx(serving, schema), answers


def _ledgers(
    run: Run, home: ServerHome, heads: Mapping[str, Json], coordinator: SigningKey
) -> Ledgers:
    """What is published of ledgers: each client's chain of this federation, or one ledger alone."""
    if home.plan.central:
        return own_ledger(home)
    federation, members = coordinator.public.fingerprint, home.members.values()
    notes = {member.pseudonym: note_of(member, coordinator, heads) for member in members}
    return Ledgers(
        {member.pseudonym: member.key for member in members},
        {
            member.pseudonym: read_federation(run.ledger(member.name), federation)
            for member in members
        },
        {name: note for name, note in notes.items() if note is not None},
    )


def own_ledger(home: ServerHome) -> Ledgers:
    """With central trust: the coordinator's, which holds nothing of who took part."""
    books = open_books(home)
    who = books.identity
    return Ledgers(
        {who.pseudonym: who.key.public},
        {who.pseudonym: list(books.chain())},
        {who.pseudonym: books.note()},
    )


def propose(
    home: ServerHome,
    artifacts: Artifacts,
    ledgers: Ledgers,
    version: int,
    rounds: int,
    coordinator: SigningKey,
    *,
    simulated: bool,
) -> Envelope:
    """The coordinator's statement: what the ledgers add up to, signed once."""
    plan, chains, heads = home.plan, ledgers.chains, ledgers.heads
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
        simulated=simulated,
        rounds=rounds,
        ledgers={
            name: (
                chain[-1].digest,
                len(chain),
                heads[name].head.entries if name in heads else 0,
            )
            for name, chain in chains.items()
        },
        lineage=artifacts.lineage,
        clients=None if plan.central else len(chains),
        limits=CENTRAL_LIMITS if plan.central else LIMITS,
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
