"""What does the owner of a device let run on it? Terms that a person may read and edit.

The rule: every term has a range, an unknown one is refused, and an omitted one is the stricter one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.canonical import CanonicalError, Json, decode_lenient, encode, number
from common.config import Table
from common.errors import PlanError

SCHEMA_VERSION = 1
GREATEST_EPSILON = 1000.0

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class DevicePolicy:
    """What the owner of a device lets run on it.

    Args:
        greatest_epsilon: of the headline epsilon that a release states, in (0, 1000].
        greatest_delta: of its delta, in (0, 1).
        signers: fingerprints of the keys that may sign a privacy statement.
        repository: ``https://…``, ``http://…`` or a directory; a relative one starts at the
            device's own directory.
        threshold: how many different ``signers`` a statement needs, >= 1.
        accept_simulated: also run models whose noise was repeatable or whose data were nobody's.
        follow_root: let a root that two of three parties signed say whose key replaces a signer's.
        least_version: the oldest version to run, >= 1: what still holds where everything that this
            device knew is gone.

    Raises:
        PlanError: a value is out of range.
    """

    greatest_epsilon: float
    greatest_delta: float
    signers: tuple[str, ...]
    repository: str
    threshold: int = 2
    accept_simulated: bool = False
    follow_root: bool = False
    least_version: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.greatest_epsilon <= GREATEST_EPSILON and 0 < self.greatest_delta < 1):
            raise PlanError(
                f"greatest_epsilon = {self.greatest_epsilon:g} and greatest_delta = "
                f"{self.greatest_delta:g} must be in (0, {GREATEST_EPSILON:g}] and (0, 1)"
            )
        for fingerprint in self.signers:
            if not _FINGERPRINT.fullmatch(fingerprint):
                raise PlanError(
                    f"a fingerprint is 64 hexadecimal digits, not {fingerprint!r:.80}",
                    hint="it is the SHA-256 of a public key; ask its holder to read it out",
                )
        if not 1 <= self.threshold <= len(set(self.signers)):
            raise PlanError(
                f"{self.threshold} signatures cannot come from {len(set(self.signers))} signers"
            )
        if not 1 <= self.least_version < 2**53:
            raise PlanError(f"least_version = {self.least_version} is not a version from 1 on")
        if "://" in self.repository and not self.repository.startswith(("https://", "http://")):
            raise PlanError(
                f"repository = {self.repository!r} is not https, http or a directory",
                hint="name an address such as https://models.example.org or a directory",
            )

    def encode(self) -> bytes:
        return encode(self.json())

    def json(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "greatest_epsilon": number(self.greatest_epsilon),
            "greatest_delta": number(self.greatest_delta),
            "signers": list(self.signers),
            "repository": self.repository,
            "threshold": self.threshold,
            "accept_simulated": self.accept_simulated,
            "follow_root": self.follow_root,
            "least_version": self.least_version,
        }

    @classmethod
    def read(cls, table: Table) -> DevicePolicy:
        """Read a device's policy; :class:`PlanError` names the key that is wrong."""
        policy = cls(
            greatest_epsilon=table.number("greatest_epsilon", above=0, high=GREATEST_EPSILON),
            greatest_delta=table.number("greatest_delta", above=0, below=1),
            signers=table.texts("signers", least=1, most=16),
            repository=table.text("repository"),
            threshold=table.integer("threshold", 2, low=1, high=16),
            accept_simulated=table.flag("accept_simulated", False),
            follow_root=table.flag("follow_root", False),
            least_version=table.integer("least_version", 1, low=1, high=2**53 - 1),
        )
        table.done()
        return policy

    @classmethod
    def decode(cls, data: bytes, source: str = "policy.json") -> DevicePolicy:
        """Read ``policy.json``, which a person may have edited."""
        try:
            table = Table(decode_lenient(data), source=source, json_numbers=True)
        except CanonicalError as error:
            raise PlanError(f"{source} is not a device policy: {error}") from error
        if table.integer("schema_version", low=1, high=10**6) != SCHEMA_VERSION:
            raise PlanError(f"{source} is of another schema version")
        return cls.read(table)
