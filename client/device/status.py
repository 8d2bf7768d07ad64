"""What does this device run, since when, what does that claim, and what was refused?

The rule: nothing is told that was not just checked: the installed model is verified in full, as at
an update, and every line of the log is held against its signature, the line before and the floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from client.device import log, slots
from client.device.floor import Floor
from client.device.home import DeviceHome
from client.device.log import History, Kind
from client.device.policy import DevicePolicy
from client.device.release import Candidate
from client.device.verify import verify
from common.canonical import Json
from common.errors import PrivetError
from common.release import WEIGHTS

SHOWN = 20  # decisions
SLOWLY = (
    "starts    in full each time: nothing is prepared for this runtime and processor; an update "
    "prepares it, where the system can"
)


@dataclass(frozen=True, eq=False)
class Status:
    """A device as it stands.

    Args:
        current: what ``current.json`` names; None before the first release, or if it is unreadable.
        model: that release, verified just now; None if it does not verify.
        prepared: it is ready for a start with this runtime and processor.
        damage: why it does not; empty: it does, or there is none.
        since: when the device took it, as its log says; empty if that does not say.
        edited: what the policy says otherwise than what was last set, in plain words.
    """

    device: str
    policy: DevicePolicy
    floor: Floor
    current: slots.Current | None
    model: Candidate | None
    prepared: bool
    damage: str
    since: str
    history: History
    edited: tuple[str, ...]

    @classmethod
    def of(cls, home: DeviceHome) -> Status:
        """Check everything.

        Raises:
            PlanError: the policy is unreadable.
            OperationError, TrustError: the device's keys or floor are.
        """
        policy, floor, key = home.policy, home.floor, home.identity.key.public
        history = log.read(home.decisions, key, floor)
        current = model = None
        prepared = False
        damage = ""
        try:
            if (current := slots.current(home)) is not None:
                pointer, files = slots.load(home)
                prepared = slots.is_ready(home, pointer.release)
                files |= slots.read(home, pointer.release, [WEIGHTS])
                model = verify(
                    files,
                    policy,
                    home.keys(),
                    successors=home.successors,
                    floor=pointer.version,
                    name=pointer.name,
                )
        except PrivetError as error:
            damage = error.message
        since = [
            str(line["at"])
            for line in history.lines
            if current
            and line["version"] == current.version
            and line["decision"] in (Kind.ACCEPTED, Kind.WENT_BACK)
        ]
        return cls(
            device=key.fingerprint,
            policy=policy,
            floor=floor,
            current=current,
            model=model,
            prepared=prepared,
            damage=damage,
            since=since[-1] if since else "",
            history=history,
            edited=home.policy_changes(),
        )

    @property
    def wrong(self) -> tuple[str, ...]:
        """What its owner should look into, in plain words; empty: nothing."""
        about_log = [f"the log was changed: {what}" for what in self.history.wrong]
        about_policy = [f"the policy was changed since it was set: {what}" for what in self.edited]
        return (*([self.damage] if self.damage else []), *about_log, *about_policy)

    @property
    def contact(self) -> str:
        """When a repository was last believed, to a day; empty: never."""
        if not self.floor.seen:
            return ""
        return datetime.fromtimestamp(self.floor.seen, UTC).isoformat(timespec="seconds")

    def json(self) -> Json:
        return {
            "device": self.device,
            "model": self._model(),
            "policy": self.policy.json(),
            "policy_changes": list(self.edited),
            "floor": self.floor.version or None,
            "last_contact": self.contact or None,
            "log": {
                "whole": not self.history.wrong,
                "decisions": self.history.count,
                "before": self.history.before,
                "wrong": list(self.history.wrong),
            },
            "decisions": list(self.history.lines[-SHOWN:]),
        }

    def _model(self) -> Json | None:
        if self.current is None:
            return None
        claims: Json = {}
        if self.model:
            claims = {
                "epsilon": self.model.claims.epsilon,
                "delta": self.model.claims.delta,
                "unit": self.model.claims.unit,
                "simulated": self.model.claims.simulated,
            }
        return {
            "name": self.current.name,
            "version": self.current.version,
            "since": self.since or None,
            "verified": self.model is not None,
            "prepared": self.prepared,
            "claims": claims,
            "previous": self.current.previous.version if self.current.previous else None,
        }

    def lines(self) -> list[str]:
        """The same in plain words, one fact a line."""
        return [
            self._runs(),
            *self._claims(),
            *(f"DAMAGED   {self.damage}" for _ in (1,) if self.damage),
            *(SLOWLY for _ in (1,) if self.model and not self.prepared),
            self._accepts(),
            *(f"POLICY    was changed since it was set: {what}" for what in self.edited),
            self._floor(),
            f"contact   {self.contact or 'no repository was believed yet'}",
            *self._log(),
            *self._refused(),
        ]

    def _runs(self) -> str:
        if self.current is None:
            return "runs      no model yet"
        since = f", since {self.since}" if self.since else ""
        return f"runs      {self.current.name} version {self.current.version}{since}"

    def _claims(self) -> list[str]:
        if self.model is None:
            return []
        claims = self.model.claims
        signed = f"{self.policy.threshold} of the {len(self.policy.signers)} signers that you trust"
        simulated = "; SIMULATED: its noise can be repeated" if claims.simulated else ""
        return [f"claims    {claims.privacy}, signed by {signed}{simulated}"]

    def _accepts(self) -> str:
        policy = self.policy
        simulated = "simulated models too" if policy.accept_simulated else "no simulated models"
        return (
            f"accepts   epsilon up to {policy.greatest_epsilon:g}, delta up to "
            f"{policy.greatest_delta:g}, version {policy.least_version} or newer, {simulated}"
        )

    def _floor(self) -> str:
        least = max(self.floor.version, self.policy.least_version)
        text = f"floor     from a repository, nothing older than version {least}"
        if self.current and self.current.previous:
            text += f"; version {self.current.previous.version} is kept, to roll back to"
        return text

    def _log(self) -> list[str]:
        history = self.history
        if history.wrong:
            return [f"LOG       was changed: {what}" for what in history.wrong]
        text = f"log       whole: {history.count} decisions, signed by device {self.device[:16]}…"
        if history.before:
            text += f"; the first {history.before} were in a directory that is gone"
        return [text]

    def _refused(self) -> list[str]:
        refused = [line for line in self.history.lines if line["decision"] == Kind.REFUSED]
        return [
            f"refused   {line['at']}  {line['code']}: {line['reason']}" for line in refused[-5:]
        ]
