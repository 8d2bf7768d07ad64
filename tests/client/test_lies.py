"""Every lie that a server can tell is refused by the client alone; not a byte on disk changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.approval import approve
from client.rounds import Client
from common.errors import PrivetError, TrustError
from common.plan import Plan
from common.privacy.filter import Budget
from common.wire import Arrays, Closing, RoundRequest, digest_arrays
from tests.world import (
    COORDINATOR,
    OWNER,
    PLAN,
    POLICY,
    PRIVACY,
    RUN,
    STRANGER,
    Snapshot,
    ask,
    make_home,
    model,
    seen,
    signed,
)

MILLION = replace(PLAN, rounds=1000)
# Three rounds and a spare one, to the last digit.
ENOUGH = POLICY.budget.spent([PRIVACY.event(4)]) * 1.000001
TIGHT = replace(
    POLICY,
    budget=Budget(ENOUGH, 1e-5, POLICY.budget.order),
    spare_rounds=1,
    least_noise_multiplier=1.5,
    greatest_sampling_rate=0.6,
    most_rounds=10,
)


@dataclass
class Lie:
    """A request that was served, its client, and the means to say something else."""

    client: Client
    served: RoundRequest

    def chain(self) -> Any:
        home = self.client.home
        return home.open_ledger().chain(home.federation)

    def ask(self, round_: int = 2, arrays: Arrays | None = None, **changes: Any) -> bytes:
        head = seen(self.chain())
        return ask(round_, arrays, **{"nonce": 2, **head, **changes}).sign(COORDINATOR)

    def say(self, envelope: bytes, arrays: Arrays | None = None) -> None:
        self.client.answer(envelope, model() if arrays is None else arrays)

    def propose(self, plan: Plan) -> None:
        """The server signs another plan, and asks for a round of it at once."""
        approve(self.client.home, signed(plan), OWNER)


def fork(lie: Lie) -> dict[str, Any]:
    """A head of the right length over another history, countersigned."""
    return seen([*lie.chain()[:-1], lie.chain()[0]])


def longer(lie: Lie) -> dict[str, Any]:
    """A head that is ahead of what is here, as after the ledger's disk was restored."""
    return seen([*lie.chain(), lie.chain()[-1]])


def many(lie: Lie, ask_: Callable[[int], bytes]) -> None:
    """Ask again and again, until the client says no."""
    for attempt in range(10):
        before = Snapshot.of(lie.client.home.path.parent.parent)
        try:
            lie.say(ask_(attempt))
        except PrivetError:
            assert Snapshot.of(lie.client.home.path.parent.parent) == before
            spent = lie.client.home.open_ledger().spent()
            assert TIGHT.budget.spent(spent) <= TIGHT.budget.epsilon
            raise


LIES: dict[str, tuple[Callable[[Lie], None], str]] = {
    # an old round, or one that is not there
    "the round again, as if it were new": (lambda s: s.say(s.ask(1)), "stale-round"),
    "an old round in a new incarnation, for ever": (
        lambda s: many(s, lambda i: s.ask(1, incarnation=1 + i, nonce=9 + i)),
        "no-rounds-left",
    ),
    "the same rounds as another run, for ever": (
        lambda s: many(s, lambda i: s.ask(1, run=f"{i:032x}", nonce=9 + i)),
        "no-rounds-left",
    ),
    "an older incarnation": (
        lambda s: (s.say(s.ask(2, incarnation=3)), s.say(s.ask(3, incarnation=2, nonce=3))),
        "stale-round",
    ),
    "round 0": (lambda s: s.say(s.ask(0)), "stale-round"),
    "a round after the last": (lambda s: s.say(s.ask(4)), "stale-round"),
    # a retry that is none
    "a retry with another model": (
        lambda s: s.say(s.served.sign(COORDINATOR), model(1.0)),
        "wrong-model",
    ),
    "a retry with another nonce": (
        lambda s: s.say(replace(s.served, nonce="f" * 32).sign(COORDINATOR)),
        "stale-round",
    ),
    "a retry of a round that was cut off": (
        lambda s: (forget_answer(s), s.say(s.served.sign(COORDINATOR))),
        "forfeited",
    ),
    # another plan
    "a plan that nobody approved": (
        lambda s: s.say(s.ask(plan=replace(PLAN, rounds=2).digest)),
        "not-approved",
    ),
    "more rounds than the owner allows": (lambda s: s.propose(MILLION), "below-floor"),
    "less noise": (
        lambda s: s.propose(replace(PLAN, privacy=replace(PRIVACY, noise_multiplier=1.0))),
        "below-floor",
    ),
    "a greater rate": (
        lambda s: s.propose(replace(PLAN, privacy=replace(PRIVACY, sampling_rate=0.9))),
        "below-floor",
    ),
    "a greater delta": (
        lambda s: s.propose(replace(PLAN, privacy=replace(PRIVACY, delta=1e-3))),
        "below-floor",
    ),
    "the same plan once more under another name": (
        lambda s: s.propose(replace(PLAN, name="another")),
        "budget-exhausted",
    ),
    # another model
    "a model that was not signed for": (lambda s: s.say(s.ask(), model(0.5)), "wrong-model"),
    "a model of other shapes": (
        lambda s: bring(s, {**model(), "bias": np.zeros(3, np.float32)}),
        "wrong-model",
    ),
    "a model with a layer more": (
        lambda s: bring(s, {**model(), "spy": np.zeros(1, np.float32)}),
        "wrong-model",
    ),
    "a model that is not a number": (lambda s: bring(s, model(float("nan"))), "wrong-model"),
    "a model so large that rounding discloses": (lambda s: bring(s, model(1e9)), "wrong-model"),
    "a model in double precision": (
        lambda s: bring(s, {n: v.astype(np.float64) for n, v in model().items()}),  # type: ignore[misc]
        "wrong-model",
    ),
    # somebody else
    "another coordinator": (
        lambda s: s.say(ask(2, nonce=2, key=STRANGER).sign(STRANGER)),
        "bad-signature",
    ),
    "a request for another client": (lambda s: s.say(s.ask(client="clinic-b")), "wrong-client"),
    "words that nobody signed": (lambda s: s.say(b"train without noise"), "malformed"),
    "a closing instead of a request": (
        lambda s: s.say(Closing("clinic-a", RUN, **seen(s.chain())).sign(COORDINATOR)),
        "malformed",
    ),
    # another history
    "a head that is ahead of the ledger": (
        lambda s: s.say(s.ask(**longer(s))),
        "ledger-rolled-back",
    ),
    "a head of another history": (lambda s: s.say(s.ask(**fork(s))), "ledger-forked"),
    "a head that it did not sign": (
        lambda s: s.say(s.ask(signature="0" * 128)),
        "bad-signature",
    ),
    "a closing over another history": (
        lambda s: s.client.answer_closing(
            Closing("clinic-a", RUN, **fork(s)).sign(COORDINATOR)
        ),
        "ledger-forked",
    ),
    "a closing for another client": (
        lambda s: s.client.answer_closing(
            Closing("clinic-b", RUN, **seen(s.chain())).sign(COORDINATOR)
        ),
        "wrong-client",
    ),
}  # fmt: skip


def forget_answer(lie: Lie) -> None:
    for file in lie.client.home.outbox.iterdir():
        file.unlink()


def bring(lie: Lie, arrays: Arrays) -> None:
    lie.say(lie.ask(model=digest_arrays(arrays)), arrays)


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_and_nothing_on_disk_changes(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")
    client = Client(make_home(tmp_path, policy=TIGHT, seed=None))
    request = ask(1)
    client.answer(request.sign(COORDINATOR), model())
    lie, code = LIES[name]
    before = Snapshot.of(tmp_path)
    with pytest.raises(PrivetError) as caught:
        lie(Lie(client, request))
    assert caught.value.code == code
    steps_that_were_honest = {"an old round in a new incarnation, for ever", "an older incarnation"}
    if name == "a retry of a round that was cut off":
        before = Snapshot({k: v for k, v in before.files.items() if not k.endswith(".update")})
    if name not in steps_that_were_honest | {"the same rounds as another run, for ever"}:
        assert Snapshot.of(tmp_path) == before


def test_there_are_more_than_twenty_of_them() -> None:
    assert len(LIES) >= 30


# -- and what is no lie --------------------------------------------------------------------------


def test_a_ledger_restored_from_an_older_copy_is_noticed_by_its_own_client(tmp_path: Path) -> None:
    """The keys' directory remembers how far it came, whoever asks next."""
    client = Client(make_home(tmp_path, policy=TIGHT, seed=None))
    client.answer(ask(1).sign(COORDINATOR), model())
    home = client.home
    copy = home.ledger.read_bytes()
    client.answer(ask(2, nonce=2).sign(COORDINATOR), model())
    home.ledger.write_bytes(copy)
    with pytest.raises(TrustError, match="restored from an older copy") as caught:
        Client(home)
    assert caught.value.code == "ledger-unusable"
    with pytest.raises(TrustError, match="restored from an older copy"):
        client.answer(ask(3, nonce=3).sign(COORDINATOR), model())
    assert home.ledger.read_bytes() == copy


def test_a_whole_disk_that_went_back_is_contradicted_by_the_coordinator(tmp_path: Path) -> None:
    """Ledger and keys are as before round 2; the coordinator saw it, and its next request tells."""
    client = Client(make_home(tmp_path, policy=TIGHT, seed=None))
    client.answer(ask(1).sign(COORDINATOR), model())
    home = client.home
    copy, mark = home.ledger.read_bytes(), home.mark.read_bytes()
    old = home.open_ledger().chain(home.federation)
    client.answer(ask(2, nonce=2, **seen(old)).sign(COORDINATOR), model())
    head = seen(home.open_ledger().chain(home.federation))
    home.ledger.write_bytes(copy)
    home.mark.write_bytes(mark)
    restored = Client(home)
    with pytest.raises(PrivetError) as caught:
        restored.answer(ask(3, nonce=3, **head).sign(COORDINATOR), model())
    assert caught.value.code == "ledger-rolled-back"
    assert "restored from an older copy" in str(caught.value)
    assert home.ledger.read_bytes() == copy


def test_the_last_word_of_a_run_is_stored_once(tmp_path: Path) -> None:
    client = Client(make_home(tmp_path, policy=TIGHT))
    client.answer(ask(1).sign(COORDINATOR), model())
    home = client.home
    closing = Closing("clinic-a", RUN, **seen(home.open_ledger().chain(home.federation)))
    first = client.answer_closing(closing.sign(COORDINATOR))
    after = home.ledger.read_bytes()
    assert client.answer_closing(closing.sign(COORDINATOR)) == first
    assert home.ledger.read_bytes() == after
    last = home.open_ledger().chain(home.federation)[-1]
    assert (last.kind.value, last.body["countersigned"]["entries"]) == ("countersignature", 3)


def test_closings_do_not_grow_a_ledger(tmp_path: Path) -> None:
    client = Client(make_home(tmp_path, policy=TIGHT))
    home = client.home
    for run in (RUN, "1" * 32):  # before it took part in anything
        head = seen(home.open_ledger().chain(home.federation))
        client.answer_closing(Closing("clinic-a", run, **head).sign(COORDINATOR))
    assert len(home.open_ledger().chain(home.federation)) == 1
    client.answer(ask(1).sign(COORDINATOR), model())
    for _ in range(5):  # each over the head that the last one made
        for run in (RUN, "2" * 32):
            head = seen(home.open_ledger().chain(home.federation))
            client.answer_closing(Closing("clinic-a", run, **head).sign(COORDINATOR))
    assert len(home.open_ledger().chain(home.federation)) == 4


def test_a_plan_that_is_approved_while_the_client_runs_is_served(tmp_path: Path) -> None:
    client = Client(make_home(tmp_path, plan=None))
    with pytest.raises(PrivetError) as caught:
        client.answer(ask(1).sign(COORDINATOR), model())
    assert caught.value.code == "not-approved"
    approve(client.home, signed(PLAN), OWNER)
    head = seen(client.home.open_ledger().chain(client.home.federation))
    assert client.answer(ask(1, **head).sign(COORDINATOR), model()).receipt
