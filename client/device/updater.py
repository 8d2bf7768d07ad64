"""Get a newer release, if there is one, from a repository that nobody has to trust.

The rule: bytes reach a slot only after TUF (who signed, how new, how long valid) and :mod:`verify`
(what it is, what it cost in privacy) have both passed on them in memory, and they are never read
again from a place where others could change them. A refusal changes nothing but the log of
decisions; TUF metadata is kept only if all of it verified (a new root: if it did).

How far back a replay can reach: never behind what this device has seen, even if its directory was
wiped meanwhile, because the floor lies elsewhere. Two signed things under one version are refused
and both digests logged: a release, and a TUF timestamp, whose contradiction TUF alone passes over.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]
from tuf.ngclient import FetcherInterface  # type: ignore[attr-defined]

from client.device import log, slots, verify
from client.device.floor import Floor
from client.device.home import DeviceHome
from client.device.log import Accepted, Decision, Kind
from client.device.metadata import Equivocation, Seen, Source, refresh, typed_errors
from client.device.preparing import prepare
from client.device.release import Candidate, Claims
from client.device.transport import DEADLINE
from common import durable
from common.errors import OperationError, TrustError
from common.release import RELEASE, WEIGHTS

SEEN_EVERY = 86_400  # seconds; how often an update that finds nothing new writes to the disk
CLOCK_BEHIND = 3600  # seconds behind the last contact, from which on it is told


@dataclass(frozen=True)
class Outcome:
    """What an update did.

    Args:
        installed: a release was installed; otherwise this one was current already.
        name, version: of the release that is current now.
        notice: what the owner should know besides; empty: nothing.
    """

    installed: bool
    name: str
    version: int
    notice: str = ""


def update(
    home: DeviceHome,
    now: datetime,
    fetcher: FetcherInterface | None = None,
    *,
    deadline: float = DEADLINE,
    again: bool = False,
) -> Outcome:
    """Bring a device up to date with its repository.

    Args:
        now: the device's clock, aware; a time before what was last seen counts as that.
        fetcher: for another transport than the policy's location implies; it is asked for
            ``metadata/NAME`` and ``targets/NAME``.
        deadline: seconds for everything that is fetched.
        again: also install a release that the owner went back from.

    Raises:
        NetworkError: the repository did not answer, or not in full or in time. Nothing was decided.
        TrustError: what it offers is refused; the model in use stays in use.
        OperationError: the disk refused, or another update is running.
    """
    with home.lock():
        offered: dict[str, bytes] = {}
        try:
            return _update(home, now, Source.of(home, fetcher, deadline), offered, again)
        except TrustError as error:
            name, version = verify.label(offered.get(RELEASE, b""))
            refuse(home, now, name, version, error)
            raise


def refuse(
    home: DeviceHome, now: datetime, name: str | None, version: int | None, error: TrustError
) -> None:
    """Log a refusal, as far as this device's own keys and floor allow; only with the lock held."""
    evidence = error.evidence if isinstance(error, Equivocation) else {}
    decision = Decision(now, Kind.REFUSED, name, version, None, error.code, error.message, evidence)
    with contextlib.suppress(TrustError):  # its own floor is damaged: that is the error
        floor = home.floor
        home.raise_floor(log.append(home.decisions, decision, home.identity.key, floor))


def _digests(targets: dict[str, TargetFile]) -> dict[str, str]:
    return {name: target.hashes["sha256"] for name, target in targets.items()}


def _update(
    home: DeviceHome, now: datetime, source: Source, offered: dict[str, bytes], again: bool
) -> Outcome:
    pointer, healthy = _installed(home)
    floor = home.floor
    reference = max(now, datetime.fromtimestamp(floor.seen, UTC))
    notice = _clock(now, floor)
    with typed_errors(), durable.disk_errors(home.path):
        targets, seen = refresh(home, source, reference, floor)
        floor = _raised(floor, seen, int(reference.timestamp()))
        if pointer and healthy:  # the last switch may have been killed before it was noted
            floor = replace(floor, running=pointer.version)
        if pointer and healthy and _digests(targets) == pointer.digests:
            home.raise_floor(floor)
            _prepare_again(home, pointer.release)
            return Outcome(False, pointer.name, pointer.version, notice)
        if pointer and not again and _digests(targets)[RELEASE] == pointer.declined:
            home.raise_floor(floor)
            if healthy:
                _prepare_again(home, pointer.release)
            return _declined(pointer, healthy)
        for name, target in targets.items():
            offered[name] = source.download(target)
    past = _past(home, floor)
    candidate = verify.verify(
        offered,
        home.policy,
        home.keys(),
        successors=home.successors,
        floor=max((one.version for one in past), default=0),
        name=past[-1].name if past else None,
    )
    release = candidate.digests[RELEASE]
    _check_same(past, candidate.claims.version, release)
    prepared = prepare(candidate)
    accept(home, now, candidate, floor, Kind.ACCEPTED, _praise(candidate.claims))
    slots.install(home, candidate, prepared, pointer, keep=healthy)
    home.raise_floor(replace(home.floor, running=candidate.claims.version))
    return Outcome(True, candidate.claims.name, candidate.claims.version, notice)


def _prepare_again(home: DeviceHome, installed: slots.Installed) -> None:
    """What is current, for the runtime and the processor of now, unless that is there."""
    if slots.is_ready(home, installed):
        return
    with contextlib.suppress(TrustError):  # the owner's policy of now refuses it, as a start will
        candidate = verify.verify(
            slots.read(home, installed),
            home.policy,
            home.keys(),
            successors=home.successors,
            floor=installed.version,
            name=installed.name,
        )
        slots.put_ready(home, installed, prepare(candidate))


def accept(
    home: DeviceHome,
    now: datetime,
    candidate: Candidate,
    floor: Floor,
    kind: Kind,
    reason: str,
) -> None:
    """Log that a release will be used and raise the floor, before anything is switched."""
    release, claims = candidate.digests[RELEASE], candidate.claims
    decision = Decision(now, kind, claims.name, claims.version, release, kind.value, reason)
    decided = log.append(home.decisions, decision, home.identity.key, floor)
    home.raise_floor(decided.accept(claims.name, claims.version, release))


def _past(home: DeviceHome, floor: Floor) -> list[Accepted]:
    """Every release that this device accepted, as far as what it signed goes."""
    past = log.accepted(home.decisions, home.identity.key.public)
    if floor.version:
        past.append(Accepted(floor.name, floor.version, floor.digest))
    return past


def _installed(home: DeviceHome) -> tuple[slots.Current | None, bool]:
    """What is current as far as it can be read, and whether it is whole."""
    try:
        pointer, _ = slots.load(home)
        slots.read(home, pointer.release, [WEIGHTS])
    except OperationError:
        return None, False
    except TrustError as error:
        if error.code in ("another-device", "floor-damaged", "key-exposed"):
            raise
        with contextlib.suppress(TrustError):  # damaged: this update will repair it
            return slots.current(home), False
        return None, False
    return pointer, True


def _check_same(past: list[Accepted], version: int, release: str) -> None:
    """A version is one release for ever: TUF alone would not notice two under one number."""
    for one in past:
        if one.version == version and one.digest != release:
            raise Equivocation("release", version, one.digest, release)


def _declined(pointer: slots.Current, healthy: bool) -> Outcome:
    if not healthy:
        raise TrustError(
            "the installed model is damaged, and the repository offers the release that this "
            "device's owner went back from",
            hint="update with --again to install it all the same, or wait for the next release",
            code="declined",
        )
    return Outcome(
        False,
        pointer.name,
        pointer.version,
        "the owner went back from what the repository offers; --again installs it",
    )


def _clock(now: datetime, floor: Floor) -> str:
    behind = floor.seen - now.timestamp()
    if behind < CLOCK_BEHIND:
        return ""
    last = datetime.fromtimestamp(floor.seen, UTC).isoformat(timespec="seconds")
    return f"this device's clock is behind its last contact of {last}: that time was used instead"


def _raised(floor: Floor, seen: Seen, now: int) -> Floor:
    """The floor with what was seen; the same if that is not worth a write."""
    newer = replace(
        floor,
        root=seen.root,
        timestamp=seen.timestamp,
        timestamp_digest=seen.digest,
        timestamp_keys=seen.keys,
    )
    if newer == floor and now - floor.seen < SEEN_EVERY:
        return floor
    return replace(newer, seen=now)


def _praise(claims: Claims) -> str:
    return claims.privacy + (", simulated" if claims.simulated else "")
