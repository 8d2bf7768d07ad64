"""Every way Privet can fail, as a tree that follows what the caller should do next.

    PrivetError                      exit  the caller's next step
    ├── OperationError                 1   mend the machine (disk full, permissions), run again
    ├── NetworkError                   3   check the connection or the credentials, try again
    ├── InputError                     4   mend the file or the option that is named
    │   ├── PlanError                  4   … the plan or the experiment file
    │   └── DataError                  4   … the data, its path or its schema
    ├── BudgetError                   10   ask for less, or ask the data owner for more
    ├── TrustError                    11   do not use this; find out who changed it
    │   └── UnauthenticatedError      12   consistent, but nobody vouched for it: bring fingerprints
    └── Refusal                       11   a client declined a request; `code` says why

The rule this module keeps: an error says what, where, what was found and what was expected; its
``hint`` says the next step. An error that crosses the network carries its ``code`` alone, never a
value taken from data. Anything else that escapes is a bug in Privet (exit 5).
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NETWORK = 3
EXIT_INPUT = 4
EXIT_BUG = 5
EXIT_BUDGET = 10
EXIT_TRUST = 11
EXIT_UNAUTHENTICATED = 12
EXIT_INTERRUPTED = 130


class PrivetError(Exception):
    """The root: a failure with a stable ``code``, a ``hint`` for a person, and an exit code.

    Args:
        message: what happened, where, what was found, what was expected.
        hint: the next step, as a sentence.
        code: a stable, lower-case, hyphenated word; the class's own ``code`` if omitted.
    """

    exit_code: ClassVar[int] = EXIT_FAILED
    code: str = "failed"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class OperationError(PrivetError):
    """The machine did not do what was asked: a full disk, a missing permission, a locked file."""

    code = "operation-failed"


class NetworkError(PrivetError):
    """A peer did not answer, or would not let us in."""

    exit_code = EXIT_NETWORK
    code = "network"


class InputError(PrivetError):
    """Something the caller gave is unusable; nothing was changed on disk."""

    exit_code = EXIT_INPUT
    code = "bad-input"


class PlanError(InputError):
    """A plan, policy or experiment file is malformed, impossible or contradicts itself."""

    code = "bad-plan"


class DataError(InputError):
    """Data is missing, unreadable, or does not fit its schema."""

    code = "bad-data"


class BudgetError(PrivetError):
    """The data owner's privacy budget does not cover what was asked. Nothing was spent."""

    exit_code = EXIT_BUDGET
    code = "budget-exhausted"


class TrustError(PrivetError):
    """A signature, digest, chain or policy check failed: the thing must not be used."""

    exit_code = EXIT_TRUST
    code = "verification-failed"


class UnauthenticatedError(TrustError):
    """Consistent in itself, but no outside fingerprint vouches for the signers."""

    exit_code = EXIT_UNAUTHENTICATED
    code = "unauthenticated"


class Refusal(TrustError):
    """A client's guard declined a request. Only ``code`` leaves the client.

    Codes: ``malformed``, ``bad-signature``, ``wrong-client``, ``not-approved``, ``wrong-model``,
    ``below-floor``, ``outside-period``, ``other-columns``, ``other-unit``, ``policy-unusable``,
    ``stale-round``, ``forfeited``, ``no-rounds-left``, ``budget-exhausted``, ``ledger-unusable``,
    ``ledger-rolled-back``, ``ledger-forked``.
    """

    code = "refused"
