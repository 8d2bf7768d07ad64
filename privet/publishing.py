"""How is a deployed model published by two parties who need not trust one another?

The rule: the coordinator proposes, an approver elsewhere recomputes and signs, the coordinator
publishes; files travel between them and no key does. The approver believes the proposal nothing
that it can compute: every epsilon comes from the clients' signed ledgers, the model that devices
run is the weights' own export, or was made smaller from that in steps that are measured again, and
a first root names the keys that the approver was told. What is published is assembled from what
both signed, on either side, to the same bytes. What travels is in :mod:`privet.proposal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]

from audit.recompute import recompute
from audit.verify import Verdict, check
from common.bundle import Bundle, Trust
from common.canonical import digest
from common.data.schema import Schema
from common.errors import InputError, TrustError
from common.inference import KnownAnswers, Session
from common.keys import PublicKey, SigningKey
from common.lineage import SYNTHETIC, origin
from common.lineage import read as read_lineage
from common.models.networks import load_parameters
from common.models.registry import build
from common.plan import Plan
from common.statement import Envelope
from common.wire import unpack_arrays
from privet.firstroot import agreed_root, check_root, is_first
from privet.proposal import BUNDLE, Approval, Proposal
from privet.releasing import Ledgers, artifacts_of, exported, own_ledger, propose
from server.checkpoint import Checkpoint, CheckpointStore
from server.federation.directory import Federation, federation_of
from server.federation.founding import PLAN_ENVELOPE
from server.heads import note_of
from server.home import COORDINATOR, ServerHome
from server.release.history import STATEMENT, Content, History
from server.release.ledgers import kept, missing
from server.release.release import assemble, subjects
from server.release.repository import Repository
from server.release.roots import Roles, draft_root, parse, roles_in, sign_root
from server.release.smaller.compare import Rule
from server.release.smaller.data import Tuning, synthetic
from server.release.smaller.shrink import Shrunk, measured_again
from simulations.population import APPROVER

Records = Callable[[Schema], Tuning | None]
TRUST = "trust.json"  # in a run's directory, beside the bundle


# -- the coordinator proposes ----------------------------------------------------------------------


def make_proposal(
    run: Path, approver: PublicKey, recovery: PublicKey | None, named: int | None = None
) -> Proposal:
    """Propose the release of a run that has ended.

    Args:
        run: the run's directory, with every ledger that it needs (:mod:`server.release.ledgers`).
        approver: the approver's public key, whose fingerprint the federation knows.
        recovery: a third party's, for a repository that is yet to be made.
        named: the version, where an approver signed the next one and that is lost; None: the next.

    Raises:
        InputError: ``not-ended``; ``ledgers-missing``; ``wrong-approver``; ``no-recovery-key``;
            ``wrong-version``.
        TrustError: what the clients signed does not add up.
    """
    home = ServerHome.read(run)
    federation = federation_of(home)
    checkpoint = _ended(home)
    coordinator, root = home.signing_key(), None
    there = _repository(federation)
    if _approver(federation, there) != approver.fingerprint:
        raise InputError(
            "this is not the approver that is named",
            hint="privet server approver FINGERPRINT names the first one, privet release rotate "
            "approver the next",
            code="wrong-approver",
        )
    if there is not None:
        version = there.version + 1
        root = there.root if version == 1 else None  # made by a publication that was killed
    else:
        if recovery is None:
            raise InputError(
                "the first release of a federation makes its repository, which needs a third key",
                hint="--recovery KEY: made with privet approver init, by a third party",
                code="no-recovery-key",
            )
        roles = Roles(coordinator.public, approver, recovery)
        root = sign_root(draft_root(roles, datetime.now(UTC)), coordinator)
        version = 1
    version = _named(version, named)
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


def _named(following: int, named: int | None) -> int:
    """The version of a release: the one that follows, or a later one that was named."""
    if named is not None and (named < following or (following == 1 and named != 1)):
        raise InputError(
            f"the next version is {following}, and you named version {named}",
            hint="a first release is version 1, and versions only grow",
            code="wrong-version",
        )
    return named or following


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
        return own_ledger(home)
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
    history: History,
    records: Records = lambda _: None,
    rule: Rule | None = None,
    recovery: str | None = None,
    named: int | None = None,
) -> tuple[Approval, Verdict]:
    """Check a proposal from end to end, note what will be signed, then sign it.

    Args:
        proposal: from an untrusted directory.
        coordinator: fingerprint of the coordinator's key, got by another way.
        approver: this party's key.
        history: what it has signed so far.
        records: gives the public records that a smaller model was made with, got by another way,
            for the plan's schema; or None.
        rule: what a step of its lineage may lose at most.
        recovery: fingerprint of the recovery key, got by another way; for a first release.
        named: the version, where it does not follow the last one that was signed.

    Raises:
        InputError: ``needs-records``: there are none, and its lineage names some;
            ``recovery-unknown``: the first release needs that fingerprint; ``wrong-version``.
        TrustError: something does not hold, or another release has this version
            (:meth:`History.release`); nothing was signed.
    """
    envelope, now = Envelope.decode(proposal.bundle.statement), datetime.now(UTC)
    contents = [Content(STATEMENT, proposal.version, digest(envelope.payload))]
    if is_first(proposal.version, proposal.root):
        root = proposal.root or b""
        check_root(root, coordinator, approver.public.fingerprint, recovery, now)
        contents.append(Content.of(parse(root, Root)))
    history.check(coordinator, proposal.version, contents, named)
    trust = Trust(
        signers={COORDINATOR: coordinator, APPROVER: approver.public.fingerprint},
        clients={name: key.fingerprint for name, key in proposal.bundle.clients.items()},
    )
    verdict = check(proposal.bundle, trust, signatures=1)
    recompute(verdict)
    _check_model(proposal, verdict, records, rule or Rule())
    statement = envelope.with_signature(approver).encode()
    draft = Repository.draft_targets(
        assemble(proposal.release(verdict, statement)), proposal.version, now
    )
    contents.append(Content.of(parse(draft, Targets)))
    history.release(coordinator, contents, now, named)  # before a signature leaves
    signed = sign_root(proposal.root, approver) if proposal.root is not None else None
    return Approval(statement, Repository.sign(draft, approver), signed), verdict


def _check_model(proposal: Proposal, verdict: Verdict, records: Records, rule: Rule) -> None:
    """The statement is about these files, the weights export to the first of them, and what that
    was made smaller to is as good as its lineage says."""
    plan = verdict.plan
    if dict(verdict.subjects) != subjects(proposal.weights, proposal.model):
        raise TrustError("the statement is about another model than the proposal's")
    if verdict.claims["simulated"] is not proposal.simulated:
        raise TrustError("the proposal and its statement differ in whether it is simulated")
    if verdict.claims["version"] != proposal.version:
        raise TrustError("the proposal and its statement differ in the version of the release")
    try:
        model = build(plan.model, plan.schema, seed=0)
    except InputError as error:
        raise TrustError(
            f"the model {plan.model!r} is not known here, so its weights cannot be tried: {error}",
            hint="bind it as the coordinator does",
            code="unknown-model",
        ) from error
    load_parameters(model.network, unpack_arrays(proposal.weights))
    whole, again = exported(model, plan.schema)
    said = KnownAnswers.decode(proposal.answers, plan.schema)
    lineage = read_lineage(verdict.claims["lineage"], digest(proposal.model))
    if set(proposal.parents) != {step.parent for step in lineage}:
        raise TrustError("the proposal holds other files than its lineage names")
    # Answers to a few records would not tell one model from another that was made to give them.
    if origin(lineage, digest(proposal.model)) != digest(whole):
        raise TrustError(
            "the weights, exported here, are another ONNX file than the proposal's",
            hint="torch, onnx and onnxscript have to be the coordinator's; if they are, sign "
            "nothing, and ask who made that file",
            code="other-model",
        )
    if lineage:
        answers = Session(proposal.parents[lineage[0].parent], plan.schema).predict(again.inputs)
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

    After a kill the same call finishes what it began.

    Returns:
        The release's files, by name.

    Raises:
        TrustError: the approver's signatures are missing, or are of other files or another root.
            Nothing changed.
    """
    home = ServerHome.read(run)
    federation = federation_of(home)
    coordinator = home.signing_key()
    repository = _repository(federation)
    approver = _approver(federation, repository)
    root = None
    if is_first(proposal.version, proposal.root):
        root = agreed_root(proposal.root, approval.root, coordinator.public, approver)
    trust = Trust(
        signers={COORDINATOR: coordinator.public.fingerprint, APPROVER: approver},
        clients={name: key.fingerprint for name, key in proposal.bundle.clients.items()},
    )
    bundle = replace(proposal.bundle, statement=approval.statement)
    verdict = check(bundle, trust, signatures=2)
    files = assemble(proposal.release(verdict, approval.statement))
    if repository is not None:
        coordinator = federation.release_key(roles_in(repository.root).coordinator)
    if repository is None or not repository.holds(files, approval.targets):
        _check_next(repository, proposal.version, root)
        targets = Repository.sign(approval.targets, coordinator)
        if repository is None:
            Repository.check_first(root or b"", targets, files, datetime.now(UTC))
            repository = Repository.found(federation.repository, root or b"")
        repository.commit(files, targets, coordinator, datetime.now(UTC))
    bundle.write(run / BUNDLE)
    trust.write(run / TRUST)
    return files


def _check_next(repository: Repository | None, version: int, root: bytes | None) -> None:
    """What is proposed comes after what is published, under the root that is in force."""
    there = 0 if repository is None else repository.version
    if version <= there:
        raise TrustError(
            f"version {there} is published now, so {version} is not a later one",
            hint="propose the run again, and have that approved",
            code="release-rollback",
        )
    if repository is None or root is None:
        return
    if parse(repository.root, Root).signed != parse(root, Root).signed:
        raise TrustError(
            "the repository was made under another root than this one",
            hint="propose the run again, and have that approved",
            code="wrong-root",
        )


def _repository(federation: Federation) -> Repository | None:
    """What this federation publishes to; None before its first release.

    Raises:
        TrustError: ``other-federation``: its root names another one's key for statements.
    """
    if not Repository.is_at(federation.repository):
        return None
    repository = Repository(federation.repository)
    if roles_in(repository.root).speaker != federation.signing_key().public:
        raise TrustError(
            f"{repository.path} is another federation's: its root names another key for statements",
            hint="privet release revoke coordinator --key hands a repository over",
            code="other-federation",
        )
    return repository


def _approver(federation: Federation, repository: Repository | None) -> str:
    """Fingerprint of whoever approves: what a root says, which two of three signed, comes first."""
    if repository is None:
        return federation.approver
    return roles_in(repository.root).approver.fingerprint
