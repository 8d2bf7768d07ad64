"""Do the owner's terms of now allow a release, whatever they allowed when it was verified?

The rule: they are held against what the release claims and who signed its statement, at an update
and at each start, so that stricter terms hold from the next start on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from client.device import succession
from client.device.policy import DevicePolicy
from client.device.release import Claims
from common.errors import TrustError
from common.keys import PublicKey
from common.statement import Envelope


def check_again(
    claims: Claims,
    statement: bytes,
    policy: DevicePolicy,
    keys: Iterable[PublicKey],
    successors: Callable[[], Mapping[str, str]],
) -> None:
    """Hold what was verified before against the policy of now.

    Args:
        claims: of the release, once verified.
        statement: its own, unchanged since.
        keys, successors: as of :func:`client.device.verify.verify`.

    Raises:
        TrustError: its signers or its claims are not what the owner allows now.
    """
    succession.payload(Envelope.decode(statement), policy, keys, successors)
    check_claims(claims, policy)


def check_claims(claims: Claims, policy: DevicePolicy) -> None:
    """Version, simulation, epsilon and delta; :class:`TrustError` says which is not allowed."""
    _check_owners_floor(claims, policy)
    _check_policy(claims, policy)


def _check_owners_floor(claims: Claims, policy: DevicePolicy) -> None:
    if claims.version < policy.least_version:
        raise TrustError(
            f"{claims.name} version {claims.version} is older than version "
            f"{policy.least_version}, the oldest that this device's owner lets run",
            hint="the repository shows an old release: find out who put it there; if it is right, "
            "let the device's owner change least_version",
            code="too-old",
        )


def _check_policy(claims: Claims, policy: DevicePolicy) -> None:
    if claims.repeatable and not policy.accept_simulated:
        raise TrustError(
            f"{claims.name} version {claims.version} is a simulated release",
            hint="its noise can be repeated, so it protects nobody; set accept_simulated only on a "
            "test device",
            code="simulated",
        )
    for what, value, greatest in (
        ("epsilon", claims.epsilon, policy.greatest_epsilon),
        ("delta", claims.delta, policy.greatest_delta),
    ):
        if not value <= greatest:
            raise TrustError(
                f"{claims.name} version {claims.version} states {what} {value:g}; this device's "
                f"policy allows {greatest:g}",
                hint=f"keep the model in use, or let the device's owner change greatest_{what}",
                code="policy",
            )
