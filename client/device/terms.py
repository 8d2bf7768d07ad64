"""Do the owner's terms of now allow a release, whatever they allowed when it was verified?

The rule: they are held against what the release claims and who signed its statement, at an update
and at each start, so that stricter terms hold from the next start on. Who has signed was found when
it was verified in full, and is not found again where those that the owner names now are enough.
"""

from __future__ import annotations

from client.device.home import DeviceHome
from client.device.policy import DevicePolicy
from client.device.release import Claims
from common.errors import TrustError


def check_again(
    home: DeviceHome, claims: Claims, signers: frozenset[str], statement: bytes
) -> None:
    """Hold what was verified before against the policy of now.

    Args:
        claims: of the release, once verified.
        signers: fingerprints of the keys that have signed its statement, as found then.
        statement: its own, unchanged since.

    Raises:
        TrustError: its signers or its claims are not what the owner allows now.
    """
    policy = home.policy
    if len(signers.intersection(policy.signers)) < policy.threshold:
        from client.device import succession  # where somebody else may have to be found
        from common.statement import Envelope

        succession.payload(Envelope.decode(statement), policy, home.keys(), home.successors)
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
