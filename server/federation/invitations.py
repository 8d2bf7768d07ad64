"""Who was invited, and until when? Public halves of invitations, in one file.

The rules: an invitation is for one name and one client, and ends. Nothing here lets anybody in: the
file holds public keys. Whether an invitation was used is the registry's to say, so using one is a
single durable write there. The clock that counts is the latest that was ever written here or in the
registry.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from common import durable
from common.canonical import CanonicalError, decode, encode
from common.config import NAME
from common.errors import InputError, TrustError
from common.invitation import Invitation
from common.keys import PublicKey
from server.federation.directory import Federation

SCHEMA_VERSION = 1
LEAST_SECONDS, MOST_SECONDS = 60, 30 * 86400
MAX_OPEN = 10_000
KEPT_SECONDS = 7 * 86400  # an invitation is forgotten so long after its end


@dataclass(frozen=True)
class Invited:
    """One open invitation: for whom, its public key, and when it ends (seconds since 1970)."""

    name: str
    key: PublicKey
    expires: int


class Invitations:
    """The invitations of a federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._file = federation.path / "invitations.json"

    def invite(self, name: str, seconds: int, now: int | None = None) -> Invitation:
        """Make an invitation; its token is in the result, and nowhere else.

        Args:
            name: what the client will be called.
            seconds: how long the token may be used, 60 to 30 days.
            now: the clock, seconds since 1970.

        Raises:
            InputError: a bad name or duration, or ``already-enrolled``.
            OperationError: the disk refused; there is no invitation.
        """
        if not NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is not a plain name",
                hint="use 1 to 64 letters, digits, dots, underscores or hyphens",
            )
        if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
            raise InputError(
                f"an invitation of {seconds} s",
                hint="from 1m to 30d; a day is usual",
                code="bad-duration",
            )
        federation = self._federation
        if name in federation.registry.active():
            raise InputError(
                f"{name} is enrolled already",
                hint="revoke it first, or choose another name",
                code="already-enrolled",
            )
        with self._changing() as (latest, invited):
            moment = max(_clock(now), latest)
            kept = {id_: one for id_, one in invited.items() if one.expires + KEPT_SECONDS > moment}
            if len(kept) >= MAX_OPEN:
                raise InputError(f"{MAX_OPEN} invitations are open, the most there can be")
            invitation = Invitation(
                name=name,
                address=federation.address,
                authority=federation.authority().fingerprint,
                federation=federation.signing_key().public.fingerprint,
                expires=moment + seconds,
                seed=os.urandom(32),
            )
            kept[invitation.id] = Invited(name, invitation.key.public, invitation.expires)
            self._write(moment, kept)
            return invitation

    def find(self, invitation: str, now: int | None = None) -> Invited:
        """An invitation that may be used, or was and is asked for again.

        Raises:
            TrustError: ``unknown-invitation`` or ``invitation-expired``.
        """
        latest, invited = self._read()
        found = invited.get(invitation)
        if found is None:
            raise TrustError("this server knows no such invitation", code="unknown-invitation")
        # Whoever was enrolled in time may hear so again, after a kill on its side.
        if max(_clock(now), latest) >= found.expires and not self._used(invitation):
            raise TrustError("the invitation has expired", code="invitation-expired")
        return found

    def open(self, now: int | None = None) -> dict[str, Invited]:
        """Invitations that may still be used, by id."""
        latest, invited = self._read()
        moment = max(_clock(now), latest)
        return {
            id_: one for id_, one in invited.items() if one.expires > moment and not self._used(id_)
        }

    def note(self, now: int | None = None) -> None:
        """Remember how late it is, so that a clock that is set back brings nothing back."""
        with self._changing() as (latest, invited):
            if _clock(now) > latest:
                self._write(_clock(now), invited)

    def withdraw(self, name: str) -> int:
        """Forget the open invitations of a name; how many there were."""
        with self._changing() as (latest, invited):
            kept = {id_: one for id_, one in invited.items() if one.name != name or self._used(id_)}
            if len(kept) != len(invited):
                self._write(latest, kept)
            return len(invited) - len(kept)

    def _used(self, invitation: str) -> bool:
        return self._federation.registry.used(invitation) is not None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[int, dict[str, Invited]]]:
        with durable.in_turn(self._federation.path):
            yield self._read()

    def _write(self, latest: int, invited: dict[str, Invited]) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "latest": latest,
            "invitations": {
                id_: {"name": one.name, "key": one.key.text(), "expires": one.expires}
                for id_, one in invited.items()
            },
        }
        durable.replace(self._file, encode(document), mode=0o600)

    def _read(self) -> tuple[int, dict[str, Invited]]:
        try:
            document = decode(self._file.read_bytes())
            if document["schema_version"] != SCHEMA_VERSION:
                raise ValueError("of another version")
            invited = {
                id_: Invited(one["name"], PublicKey.from_text(one["key"]), int(one["expires"]))
                for id_, one in document["invitations"].items()
            }
            return int(document["latest"]), invited
        except FileNotFoundError:
            return 0, {}
        except (CanonicalError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise TrustError(
                f"{self._file} is damaged: {error}",
                hint="remove it: invitations that are open are then void, and nothing else is",
                code="bad-invitations",
            ) from error


def _clock(now: int | None) -> int:
    return int(datetime.now(UTC).timestamp()) if now is None else now
