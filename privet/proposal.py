"""What travels between the two parties of a release? Two directories, each read as hostile.

The rule: a directory is whole once its last file is there, and no key is in it. What is read is
bounded and well-formed; whether it is true is for :mod:`privet.publishing`.

    PROPOSAL/  bundle/  the plan, the statement with one signature, ledgers and heads
               model.safetensors, model.onnx, known-answers.json
               parents/SHA256.onnx, of a model that was made smaller
               root.json, before the first release; proposal.json, written last
    APPROVAL/  statement.dsse.json, targets.json, root.json; with the approver's signatures
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from audit.verify import Verdict
from common import durable
from common.bundle import Bundle
from common.canonical import CanonicalError, decode, digest, encode
from common.carried import Carried
from common.config import Table
from common.errors import InputError
from common.inference import KnownAnswers
from common.lineage import MOST_STEPS
from common.release import ANSWERS, MODEL, STATEMENT, WEIGHTS
from privet.releasing import Artifacts, release_of
from server.release.release import Release

SCHEMA_VERSION = 1
MAX_BYTES, MAX_APPROVAL = 2**30, 20_000_000  # of a proposal without its bundle; of an approval
PROPOSAL, ROOT, TARGETS, BUNDLE = "proposal.json", "root.json", "targets.json", "bundle"
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
        answers = KnownAnswers.decode(self.answers, verdict.plan.schema)
        artifacts = Artifacts(self.weights, self.model, answers)
        return release_of(
            verdict.plan, artifacts, self.version, statement, simulated=self.simulated
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
        carried = Carried(path, MAX_BYTES)
        try:
            table = Table(decode(carried.read(PROPOSAL)), source=str(path / PROPOSAL))
            weights, model, answers = map(carried.read, (WEIGHTS, MODEL, ANSWERS))
            root = carried.read(ROOT) if carried.has(ROOT) else None
            parents = _parents(carried)
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
        carried = Carried(path, MAX_APPROVAL)
        try:
            root = carried.read(ROOT) if carried.has(ROOT) else None
            return cls(carried.read(STATEMENT), carried.read(TARGETS), root)
        except OSError as error:
            raise InputError(
                f"{path} is not an approval: {error}",
                hint="privet approver approve makes one of a proposal",
                code="no-approval",
            ) from error


def _parents(carried: Carried) -> dict[str, bytes]:
    """Model files by digest: which they ought to be is checked later."""
    if not carried.has(PARENTS):
        return {}
    names = [file.name for file in islice((carried.path / PARENTS).iterdir(), MOST_STEPS + 1)]
    if len(names) > MOST_STEPS:
        raise InputError(
            f"{carried.path / PARENTS} holds more files than a lineage has steps", code="too-large"
        )
    return {digest(data): data for data in (carried.read(f"{PARENTS}/{name}") for name in names)}
