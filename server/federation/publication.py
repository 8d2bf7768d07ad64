"""How do devices go on believing what a federation published? Its timestamp is renewed in time.

The rule: the coordinator's key alone keeps a release believed, for a week at a time, and can
publish none. A link does it when half of that is over; a timer or a person may, at any time.
"""

from __future__ import annotations

from datetime import datetime

from server.federation.directory import Federation
from server.release.repository import Repository
from server.release.roots import roles_in


def renew(federation: Federation, now: datetime) -> int:
    """Sign snapshot and timestamp anew; the version of what is published.

    Raises:
        OperationError: ``no-repository``, or nothing is published yet.
        TrustError: what is there does not verify, or the key that counts is not here.
    """
    repository = Repository(federation.repository)
    repository.renew(federation.release_key(roles_in(repository.root).coordinator), now)
    return repository.version


def renew_if_due(federation: Federation, now: datetime) -> bool:
    """The same when less than half of the timestamp's life is left; whether it was done.

    Raises:
        TrustError, OperationError: as :func:`renew`; a federation without a release is fine.
    """
    if not Repository.is_at(federation.repository):
        return False
    if not Repository(federation.repository).is_due(now):
        return False
    renew(federation, now)
    return True
