"""May this device go back to the release before? Its owner's own decision, never a repository's.

The rule: there is one release to go back to, the one that ran before and still lies in the other
slot. It is verified again, against the owner's policy of today, so never below ``least_version``.
The floor stays where it was: what a repository offers has to be as new as ever. The release that
was gone back from is not installed again unless the owner says so; the next one is.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from client.device import slots, verify
from client.device.home import DeviceHome
from client.device.log import Kind
from client.device.updater import Outcome, accept, refuse
from common.errors import OperationError, TrustError


def roll_back(home: DeviceHome, now: datetime) -> Outcome:
    """Put the release before in the place of the current one.

    Args:
        now: the device's clock, aware, for the log.

    Raises:
        OperationError: there is none, or an update is running.
        TrustError: it is damaged, or the owner's policy of today does not allow it. What runs now
            stays.
    """
    with home.lock():
        pointer = slots.current(home)
        if pointer is None or pointer.previous is None:
            raise OperationError(
                "there is no release to go back to",
                hint="a device keeps the one that it ran before, once it was updated",
                code="no-previous",
            )
        before = pointer.previous
        try:
            files = slots.read(home, before)
            candidate = verify.verify(
                files,
                home.policy,
                home.keys(),
                successors=home.successors,
                floor=before.version,
                name=pointer.name,
            )
        except TrustError as error:
            refuse(home, now, before.name, before.version, error)
            raise
        reason = f"the owner went back from version {pointer.version}"
        accept(home, now, candidate, home.floor, Kind.WENT_BACK, reason)
        home.raise_floor(replace(home.floor, running=before.version))
        slots.go_back(home, pointer, before)
        return Outcome(True, before.name, before.version)
