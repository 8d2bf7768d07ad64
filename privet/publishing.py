"""How is a deployed model published by two parties who need not trust one another?

The rule: the coordinator proposes, an approver elsewhere recomputes and signs, the coordinator
publishes; files travel between them and no key does. The approver believes the proposal nothing
that it can compute: every epsilon comes from the clients' signed ledgers, the model that devices
run has to answer as the weights do, and the repository's root has to name the approver's own key.
What is published is assembled from what both signed, on either side, to the same bytes.

    PROPOSAL/  bundle/  the plan, the statement with one signature, ledgers and heads
               model.safetensors, model.onnx, known-answers.json
               parents/SHA256.onnx, of a model that was made smaller
               root.json, before the first release; proposal.json, written last
    APPROVAL/  statement.dsse.json, targets.json, root.json; with the approver's signatures
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from audit.recompute import recompute
from audit.verify import Verdict, check
from common import durable
from common.bundle import Bundle, Trust
from common.canonical import CanonicalError, decode, digest, encode
from common.config import Table
from common.data.schema import Schema
from common.errors import InputError, TrustError
from common.inference import KnownAnswers, Session
from common.keys import PublicKey, SigningKey
from common.lineage import MOST_STEPS, SYNTHETIC
from common.lineage import read as read_lineage
from common.models.networks import load_parameters
from common.models.registry import build
from common.plan import Plan
from common.statement import Envelope
from common.wire import unpack_arrays
from privet.releasing import Ledgers, artifacts_of, exported, propose
from server.central.books import open_books
from server.checkpoint import Checkpoint, CheckpointStore
from server.federation.directory import Federation
from server.federation.founding import PLAN_ENVELOPE
from server.heads import note_of
from server.home import COORDINATOR, ServerHome
from server.release.ledgers import kept, missing
from server.release.release import (
    ANSWERS,
    MODEL,
    STATEMENT,
    WEIGHTS,
    Release,
    assemble,
    subjects,
)
from server.release.repository import Repository, Roles
from server.release.smaller.compare import Rule
from server.release.smaller.data import Tuning, synthetic
from server.release.smaller.shrink import Shrunk, measured_again
from simulations.population import APPROVER

Records = Callable[[Schema], Tuning | None]
SCHEMA_VERSION = 1
REPOSITORY = "repository"  # in a federation's directory
PROPOSAL, ROOT, TARGETS, BUNDLE, TRUST = (
    "proposal.json",
    "root.json",
    "targets.json",
    "bundle",
    "trust.json",
)
PARENTS = "parents"


@dataclass(frozen=True)
class Proposal:
    """What a coordinator proposes, as an approver reads it from a directory.

    Args:
        version: of the release.
        simulated: whether devices are to be told that nobody's privacy was at stake.
        bundle: with one signature on its statement.
        weights, model, answers: the files, as they are released.
        root: root metadata to sign; None: the repository is there.
        parents: what the model was made from, step by step, by SHA-256.
    """

    version: int
    simulated: bool
    bundle: Bundle
    weights: bytes
    model: bytes
    answers: bytes
    root: bytes | None
    parents: Mapping[str, bytes] = field(default_factory=dict)

    def release(self, verdict: Verdict, statement: bytes) -> Release:
        """The release that these values are, under a statement that both have signed."""
        plan = verdict.plan
        return Release(
            name=plan.release.name,
            version=self.version,
            simulated=self.simulated,
            task=plan.task,
            schema=plan.schema,
            plan=plan.digest,
            weights=self.weights,
            model=self.model,
            answers=KnownAnswers.decode(self.answers, plan.schema),
            statement=statement,
        )

    def write(self, path: Path) -> None:
        self.bundle.write(path / BUNDLE)
        files = {WEIGHTS: self.weights, MODEL: self.model, ANSWERS: self.answers}
        if self.root is not None:
            files[ROOT] = self.root
        if self.parents:
            files.update({f"{PARENTS}/{name}.onnx": data for name, data in self.parents.items()})
            with durable.disk_errors(path):
                (path / PARENTS).mkdir(exist_ok=True)
        for name, data in files.items():
            durable.replace(path / name, data)
        document = {
            "schema_version": SCHEMA_VERSION,
            "version": self.version,
            "simulated": self.simulated,
        }
        durable.replace(path / PROPOSAL, encode(document))

    @classmethod
    def read(cls, path: Path) -> Proposal:
        """Read a proposal from an untrusted directory.

        Raises:
            InputError: ``no-proposal``.
            TrustError: the bundle or a file is malformed.
        """
        try:
            table = Table(decode(_read(path, PROPOSAL)), source=str(path / PROPOSAL))
            weights, model, answers = (_read(path, name) for name in (WEIGHTS, MODEL, ANSWERS))
            root = _read(path, ROOT) if (path / ROOT).exists() else None
            parents = _parents(path / PARENTS)
        except (OSError, CanonicalError) as error:
            raise InputError(
                f"{path} is not a proposal: {error}",
                hint="privet server propose makes one",
                code="no-proposal",
            ) from error
        table.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
        version, simulated = table.integer("version", low=1, high=2**31), table.flag("simulated")
        table.done()
        bundle = Bundle.read(path / BUNDLE)
        return cls(version, simulated, bundle, weights, model, answers, root, parents)


@dataclass(frozen=True)
class Approval:
    """What an approver signed."""

    statement: bytes
    targets: bytes
    root: bytes | None

    def write(self, path: Path) -> None:
        with durable.disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        if self.root is not None:
            durable.replace(path / ROOT, self.root)
        durable.replace(path / STATEMENT, self.statement)
        durable.replace(path / TARGETS, self.targets)

    @classmethod
    def read(cls, path: Path) -> Approval:
        try:
            root = _read(path, ROOT) if (path / ROOT).exists() else None
            return cls(_read(path, STATEMENT), _read(path, TARGETS), root)
        except OSError as error:
            raise InputError(
                f"{path} is not an approval: {error.strerror}",
                hint="privet approver approve makes one of a proposal",
                code="no-approval",
            ) from error


# -- the coordinator proposes ----------------------------------------------------------------------


def make_proposal(run: Path, approver: PublicKey, recovery: PublicKey | None) -> Proposal:
    """Propose the release of a run that has ended.

    Args:
        run: the run's directory, with every ledger that it needs (:mod:`server.release.ledgers`).
        approver: the approver's public key, whose fingerprint the federation knows.
        recovery: a third party's, for a repository that is yet to be made.

    Raises:
        InputError: ``not-ended``; ``ledgers-missing``; ``wrong-approver``; ``no-recovery-key``.
        TrustError: what the clients signed does not add up.
    """
    home = ServerHome.read(run)
    federation = Federation.read(home.deployed())
    checkpoint = _ended(home)
    if federation.approver != approver.fingerprint:
        raise InputError(
            "this is not the approver that the federation names",
            hint="privet server approver FINGERPRINT names one",
            code="wrong-approver",
        )
    coordinator = home.signing_key()
    place, root = federation.path / REPOSITORY, None
    if (place / "metadata").exists():
        version = Repository(place).version + 1
    else:
        if recovery is None:
            raise InputError(
                "the first release of a federation makes its repository, which needs a third key",
                hint="--recovery KEY: made with privet approver init, by a third party",
                code="no-recovery-key",
            )
        roles = Roles(coordinator.public, approver, recovery)
        root = Repository.sign_root(Repository.draft_root(roles, datetime.now(UTC)), coordinator)
        version = 1
    artifacts = artifacts_of(home, checkpoint.model)
    ledgers = _ledgers(home, checkpoint, coordinator)
    simulated = _simulated(ledgers)
    statement = propose(
        home, artifacts, ledgers, version, checkpoint.round, coordinator, simulated=simulated
    )
    bundle = Bundle(
        plan=(run / PLAN_ENVELOPE).read_bytes(),
        statement=statement.encode(),
        signers={COORDINATOR: coordinator.public, APPROVER: approver},
        clients=ledgers.keys,
        ledgers=ledgers.chains,
        heads={name: note.encode() for name, note in ledgers.heads.items()},
    )
    return Proposal(
        version,
        simulated,
        bundle,
        artifacts.weights,
        artifacts.model,
        artifacts.answers.encode(),
        root,
        artifacts.parents,
    )


def _ended(home: ServerHome) -> Checkpoint:
    checkpoint = CheckpointStore(home.checkpoints, home.run, home.plan.digest).peek()
    if checkpoint is None or not checkpoint.ended or not checkpoint.closed:
        raise InputError(
            f"{home.path} has not ended",
            hint=f"go on with privet server resume {home.path}",
            code="not-ended",
        )
    return checkpoint


def _ledgers(home: ServerHome, checkpoint: Checkpoint, coordinator: SigningKey) -> Ledgers:
    if home.plan.central:
        books = open_books(home)
        who = books.identity
        return Ledgers(
            {who.pseudonym: who.key.public},
            {who.pseudonym: list(books.chain())},
            {who.pseudonym: books.note()},
        )
    if away := missing(home, checkpoint.heads):
        raise InputError(
            f"the ledgers of {', '.join(away)} are not here",
            hint=f"privet server collect {home.path} asks for them while those clients are there",
            code="ledgers-missing",
        )
    members = [home.members[name] for name in sorted(checkpoint.heads)]
    chains = kept(home, checkpoint.heads)
    notes = {member.pseudonym: note_of(member, coordinator, checkpoint.heads) for member in members}
    return Ledgers(
        {member.pseudonym: member.key for member in members},
        {member.pseudonym: chains[member.name] for member in members},
        {name: note for name, note in notes.items() if note is not None},
    )


def _simulated(ledgers: Ledgers) -> bool:
    """Whether any client's noise could be repeated: then nobody's privacy is promised."""
    return any(
        entry.body.get("noise") == "simulated"
        for chain in ledgers.chains.values()
        for entry in chain
    )


# -- the approver recomputes, and signs ------------------------------------------------------------


def approve(
    proposal: Proposal,
    coordinator: str,
    approver: SigningKey,
    records: Records = lambda _: None,
    rule: Rule | None = None,
) -> tuple[Approval, Verdict]:
    """Check a proposal from end to end, then sign it.

    Args:
        proposal: from an untrusted directory.
        coordinator: fingerprint of the coordinator's key, got by another way.
        approver: this party's key.
        records: gives the public records that a smaller model was made with, got by another way,
            for the plan's schema; or None.
        rule: what a step of its lineage may lose at most.

    Raises:
        InputError: ``needs-records``: there are none, and its lineage names some.
        TrustError: something does not hold; nothing was signed.
    """
    trust = Trust(
        signers={COORDINATOR: coordinator, APPROVER: approver.public.fingerprint},
        clients={name: key.fingerprint for name, key in proposal.bundle.clients.items()},
    )
    verdict = check(proposal.bundle, trust, signatures=1)
    recompute(verdict)
    _check_model(proposal, verdict, records, rule or Rule())
    statement = Envelope.decode(proposal.bundle.statement).with_signature(approver).encode()
    files = assemble(proposal.release(verdict, statement))
    root = None
    if proposal.root is not None:
        roles = Repository.roles_in(proposal.root)
        named = (roles.coordinator.fingerprint, roles.approver.fingerprint)
        if named != (coordinator, approver.public.fingerprint):
            raise TrustError(
                "the repository's root names other keys than the coordinator's and yours",
                code="wrong-root",
            )
        root = Repository.sign_root(proposal.root, approver)
    draft = Repository.draft_targets(files, proposal.version, datetime.now(UTC))
    return Approval(statement, Repository.sign(draft, approver), root), verdict


def _check_model(proposal: Proposal, verdict: Verdict, records: Records, rule: Rule) -> None:
    """The statement is about these files, the weights answer as the exported model does, and what
    that was made smaller to is as good as its lineage says."""
    plan = verdict.plan
    if dict(verdict.subjects) != subjects(proposal.weights, proposal.model):
        raise TrustError("the statement is about another model than the proposal's")
    if verdict.claims["simulated"] is not proposal.simulated:
        raise TrustError("the proposal and its statement differ in whether it is simulated")
    try:
        model = build(plan.model, plan.schema, seed=0)
    except InputError as error:
        raise TrustError(
            f"the model {plan.model!r} is not known here, so its weights cannot be tried: {error}",
            hint="bind it as the coordinator does",
            code="unknown-model",
        ) from error
    load_parameters(model.network, unpack_arrays(proposal.weights))
    again = exported(model, plan.schema)[1]
    said = KnownAnswers.decode(proposal.answers, plan.schema)
    lineage = read_lineage(verdict.claims["lineage"], digest(proposal.model))
    if set(proposal.parents) != {step.parent for step in lineage}:
        raise TrustError("the proposal holds other files than its lineage names")
    if lineage:
        first = Session(proposal.parents[lineage[0].parent], plan.schema)
        answers = first.predict(again.inputs)
        _measure_again(Shrunk(proposal.model, said, lineage, proposal.parents), plan, records, rule)
    else:
        answers = said.probabilities
    if not np.array_equal(said.inputs, again.inputs) or not np.allclose(
        answers, again.probabilities, rtol=0, atol=again.tolerance
    ):
        raise TrustError("the weights give other answers than the proposal says")


def _measure_again(shrunk: Shrunk, plan: Plan, records: Records, rule: Rule) -> None:
    lineage = shrunk.lineage
    if all(step.used.kind == SYNTHETIC for step in lineage):
        tuning: Tuning | None = synthetic(plan.schema)
    else:
        tuning = records(plan.schema)
    if tuning is None:
        raise InputError(
            f"the model was made smaller with {lineage[0].used.name!r}, and nothing is signed that "
            "was not measured again",
            hint="get those records from whoever published them: --data FILE, or fashion-mnist",
            code="needs-records",
        )
    measured_again(shrunk, plan.schema, tuning, rule)


# -- the coordinator publishes ---------------------------------------------------------------------


def publish(run: Path, proposal: Proposal, approval: Approval) -> Mapping[str, bytes]:
    """Publish what both have signed: into the federation's repository, and the run's bundle.

    Returns:
        The release's files, by name.

    Raises:
        TrustError: the approver's signatures are missing, or are of other files. Nothing changed.
    """
    home = ServerHome.read(run)
    federation = Federation.read(home.deployed())
    coordinator = home.signing_key()
    trust = Trust(
        signers={COORDINATOR: coordinator.public.fingerprint, APPROVER: federation.approver},
        clients={name: key.fingerprint for name, key in proposal.bundle.clients.items()},
    )
    bundle = replace(proposal.bundle, statement=approval.statement)
    verdict = check(bundle, trust, signatures=2)
    files = assemble(proposal.release(verdict, approval.statement))
    place, moment = federation.path / REPOSITORY, datetime.now(UTC)
    targets = Repository.sign(approval.targets, coordinator)
    if (place / "metadata").exists():
        repository = Repository(place)
        if repository.version + 1 != proposal.version:
            raise TrustError(
                f"release {repository.version} was published since this was proposed",
                hint="propose the run again, and have that approved",
                code="release-rollback",
            )
    else:
        if approval.root is None:
            raise TrustError("the approver signed no root, and there is no repository")
        Repository.check_first(approval.root, targets, files)
        repository = Repository.found(place, approval.root)
    repository.commit(files, targets, coordinator, moment)
    bundle.write(run / BUNDLE)
    trust.write(run / TRUST)
    return files


def _parents(path: Path) -> dict[str, bytes]:
    """Model files by digest: which they ought to be is checked later."""
    if not path.exists():
        return {}
    names = [file.name for file in path.iterdir()]
    if len(names) > MOST_STEPS:
        raise InputError(f"{path} holds more files than a lineage has steps", code="too-large")
    return {digest(data): data for data in (_read(path, name) for name in names)}


def _read(path: Path, name: str) -> bytes:
    """A file of a carried directory, at most 1 GiB."""
    with open(path / name, "rb") as file:
        data = file.read(2**30 + 1)
    if len(data) > 2**30:
        raise InputError(f"{path / name} is larger than 1 GiB", code="too-large")
    return data
