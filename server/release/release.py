"""What is in a release: the model twice, what it is, what it cost in privacy, and how to check it.

The rule: a release is a function of values, and says nothing that is not public. Every file's
length and SHA-256 is in ``release.json``; the two model files are the subjects of the privacy
statement, which two parties sign; whoever publishes it signs all of it once more as TUF targets.

    model.safetensors      the weights, for training on
    model.onnx             the model that devices run
    known-answers.json     synthetic inputs and the probabilities that they must give
    statement.dsse.json    the privacy statement: in-toto in a DSSE envelope
    model-card.md          what to know before using it, in words; says what the statement says
    release.json           name, version, schema, plan digest, the weights' tensors, and a digest of
                           each of the others
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from common import weights
from common.canonical import Json, digest, encode, number
from common.data.schema import Schema
from common.errors import InputError, TrustError
from common.inference import INPUT, OUTPUT, KnownAnswers, Session
from common.lineage import Step, write
from common.lineage import read as read_lineage
from common.plan import Plan
from common.privacy.events import ADJACENCY, Event
from common.release import ANSWERS, CARD, MODEL, RELEASE, STATEMENT, WEIGHTS
from common.statement import Envelope, read_privacy_statement
from server.release.card import model_card

SCHEMA_VERSION = 1

NOISE_KINDS = ("cryptographic", "simulated")

LIMITS = (
    "It is stated for each record of one client's data set, as the trust mode says; the same "
    "person's records elsewhere are not counted.",
    "It holds if every client ran the stated mechanism; the ledgers show what clients signed, not "
    "what their machines did.",
    "It says nothing about accuracy, fairness, or attacks that do not depend on a single record.",
)

CENTRAL_LIMITS = (
    "It is stated for each client with all of its records, against everybody who sees the model; "
    "not against the coordinator, which saw each client's clipped update.",
    "It holds if the coordinator drew clients by chance, clipped, added the stated noise and let "
    "nothing else out; its ledger shows what it signed, not what its machine did.",
    "It says nothing about accuracy, fairness, or attacks that do not depend on a single client.",
)


@dataclass(frozen=True)
class Release:
    """One published model.

    Args:
        name: the model's name in its repository.
        version: >= 1; devices never go back.
        simulated: made with repeatable noise or nobody's data: real devices refuse it by default.
        task: of the plan.
        schema: what a record and an answer look like.
        plan: SHA-256 of the plan, hexadecimal.
        weights: bytes of the safetensors file.
        model: bytes of the ONNX file.
        answers: what the model must answer.
        statement: bytes of the signed DSSE envelope around the privacy statement.
    """

    name: str
    version: int
    simulated: bool
    task: str
    schema: Schema
    plan: str
    weights: bytes
    model: bytes
    answers: KnownAnswers
    statement: bytes


def subjects(weights: bytes, model: bytes) -> dict[str, str]:
    """The subjects of a privacy statement about these two files: file name to SHA-256."""
    return {WEIGHTS: digest(weights), MODEL: digest(model)}


def assemble(release: Release) -> dict[str, bytes]:
    """The files of a release, by name.

    Raises:
        TrustError: devices would refuse it: the ONNX model holds an operator that they do not run
            (``unknown-operator``), does not load, does not fit the schema, or fails its known
            answers; or the weights are not sound, or the statement is malformed.
        InputError: the version is not a positive number.
    """
    if release.version < 1:
        raise InputError(f"a release has a version from 1, not {release.version}")
    release.answers.check(Session(release.model, release.schema))
    files = {
        WEIGHTS: release.weights,
        MODEL: release.model,
        ANSWERS: release.answers.encode(),
        STATEMENT: release.statement,
        CARD: _card(release).encode(),
    }
    return {**files, RELEASE: encode(_manifest(release, files))}


def _card(release: Release) -> str:
    _, claims = read_privacy_statement(Envelope.decode(release.statement).payload)
    try:
        lineage = read_lineage(claims["lineage"], digest(release.model))
        return model_card(
            release.name, release.version, release.task, release.schema, claims, lineage
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError(f"malformed privacy statement: {error!r:.200}") from error


def _manifest(release: Release, files: Mapping[str, bytes]) -> Json:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": release.name,
        "version": release.version,
        "simulated": release.simulated,
        "task": release.task,
        "schema": release.schema.json(),
        "plan": release.plan,
        "input": INPUT,
        "output": OUTPUT,
        "tensors": {
            name: {"dtype": dtype, "shape": list(shape)}
            for name, (dtype, shape) in weights.check(release.weights).items()
        },
        "files": {
            name: {"sha256": digest(data), "length": len(data)} for name, data in files.items()
        },
    }


def schema_digest(schema: Schema) -> str:
    """SHA-256 of a schema's canonical JSON: binds column and class names to the statement."""
    return digest(encode(schema.json()))


def privacy_predicate(
    plan: Plan,
    *,
    version: int,
    event: Event,
    epsilon: float,
    epsilon_filter: float,
    accountants: Mapping[str, float],
    noise: Collection[str],
    simulated: bool,
    rounds: int,
    ledgers: Mapping[str, tuple[str, int, int]],
    clients: int | None = None,
    limits: Sequence[str] = LIMITS,
    lineage: Sequence[Step] = (),
) -> Json:
    """What the privacy statement claims, for :func:`common.statement.privacy_statement`.

    Args:
        version: of the release.
        event: the plan's exposure: what it declares, or what was spent where that is more.
        epsilon: PLD value of ``event`` at the plan's delta: the headline, >= 0.
        epsilon_filter: what the filter has charged, by Rényi cost at the policy's order, >= 0.
        accountants: accountant's name to its epsilon for ``event`` at the plan's delta.
        noise: kinds that the ledgers name, of ``NOISE_KINDS``.
        simulated: see :class:`Release`; must be true if any noise was.
        rounds: rounds that were completed, >= 0.
        ledgers: pseudonym to (head of its ledger as hexadecimal, number of its entries, how many of
            them the coordinator countersigned).
        clients: how many took part; None for central trust, where nobody may learn it.
        limits: plain sentences: what this does not prove.
        lineage: what became of the exported model; none: devices run that.

    Raises:
        InputError: an unknown kind of noise, or one that contradicts ``simulated``; a number of
            clients where central trust hides it.
    """
    if not noise or not set(noise) <= set(NOISE_KINDS):
        raise InputError(f"noise is of the kinds {NOISE_KINDS}, not {sorted(noise)}")
    if "simulated" in noise and not simulated:
        raise InputError("a release with simulated noise is a simulated release")
    privacy = plan.privacy
    if clients is not None and privacy.trust == "central":
        raise InputError("with central trust a statement does not say how many took part")
    predicate: Json = {
        "plan": plan.digest,
        "schema": schema_digest(plan.schema),
        "name": plan.release.name,
        "version": version,
        "trust": privacy.trust,
        "unit": privacy.unit,
        "adjacency": ADJACENCY,
        "delta": number(privacy.delta),
        "epsilon": number(epsilon),
        "epsilon_filter": number(epsilon_filter),
        "accountants": {name: number(value) for name, value in accountants.items()},
        "event": event.json(),
        "noise": sorted(set(noise)),
        "simulated": simulated,
        "rounds": rounds,
        "ledgers": {
            name: {"head": head, "entries": entries, "countersigned": seen}
            for name, (head, entries, seen) in ledgers.items()
        },
        "limits": list(limits),
        "lineage": write(lineage),
    }
    return predicate if clients is None else {**predicate, "clients": clients}
