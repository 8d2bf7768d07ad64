"""The order of events in one round: intent, noise, bytes, disclosure, reply; killed anywhere."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client import home as home_module
from client import rounds
from client.home import Home, locate
from client.rounds import Answer, Client, open_client
from client.training import engine
from common import durable
from common.errors import InputError, OperationError, Refusal, TrustError
from common.ledger import Entry, Head, Kind
from common.privacy.filter import Budget
from common.privacy.noise import Stream
from common.wire import Arrays, Hello, Receipt, RollCall, digest_arrays, head_in
from tests.world import (
    COORDINATOR,
    OWNER,
    PLAN,
    POLICY,
    PRIVACY,
    ROWS,
    RUN,
    SHAPES,
    STRANGER,
    Snapshot,
    ask,
    identity,
    killed_at,
    make_client,
    make_home,
    model,
    write_rows,
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return make_client(tmp_path)


def serve(client: Client, round_: int = 1, *, nonce: int = 1, **changes: Any) -> Answer:
    changes = {"client": client.home.client, **changes}
    return client.answer(ask(round_, nonce=nonce, **changes).sign(COORDINATOR), model())


def refusal(client: Client, *arguments: Any, **changes: Any) -> str:
    """The code of a refusal, after which nothing on disk is different."""
    before = Snapshot.of(client.home.path.parent.parent)
    with pytest.raises(Refusal) as caught:
        serve(client, *arguments, **changes)
    assert Snapshot.of(client.home.path.parent.parent) == before
    return caught.value.code


def chain(home: Home) -> tuple[Entry, ...]:
    """The federation's entries, as a fresh reader finds them on disk."""
    return home.open_ledger().chain(home.federation)


def kinds(home: Home) -> str:
    """``a``pproval, ``i``ntent, ``d``isclosure: a chain in a word."""
    return "".join(entry.kind.value[0] for entry in chain(home))


def check_receipt(home: Home, answer: Answer, **changes: Any) -> Receipt:
    """A receipt vouches for exactly this update, this request and this ledger."""
    receipt = Receipt.verify(answer.receipt, identity(home).key.public)
    entries = chain(home)[: receipt.entries]
    request = ask(**changes)
    assert receipt.client == home.client
    assert (receipt.plan, receipt.round, receipt.request) == (
        PLAN.digest,
        request.round,
        request.digest,
    )
    assert receipt.update == digest_arrays(answer.update)
    head = head_in(receipt, home.federation, identity(home).pseudonym)
    assert head == Head.of(head.federation, head.client, entries)
    assert head.signed_by(identity(home).key.public, receipt.signature)
    (intent,) = [entry for entry in entries if entry.digest == receipt.intent]
    assert intent.kind is Kind.INTENT
    assert intent.body["request"] == request.digest
    return receipt


def same_bits(one: Arrays, other: Arrays) -> bool:
    return digest_arrays(one) == digest_arrays(other)


# -- a round -------------------------------------------------------------------------------------


def test_a_round_leaves_an_intent_a_disclosure_and_the_bytes(client: Client) -> None:
    answer = serve(client)
    assert {name: value.shape for name, value in answer.update.items()} == SHAPES
    assert kinds(client.home) == "aid"
    check_receipt(client.home, answer)
    (stored,) = client.home.outbox.iterdir()
    assert stored.name == f"{ask().digest}.update"
    disclosure = chain(client.home)[-1]
    assert disclosure.body == {
        "intent": 1,
        "update": digest_arrays(answer.update),
        "spent": chain(client.home)[1].body["spent"],
    }


def test_the_intent_states_what_is_charged(client: Client) -> None:
    serve(client)
    intent = chain(client.home)[1]
    assert intent.event() == PRIVACY.event()
    assert intent.body["noise"] == "simulated"
    assert client.home.open_ledger().spent() == [PRIVACY.event()]


def test_an_answer_carries_an_update_and_a_receipt_and_no_count_or_loss(client: Client) -> None:
    assert set(Answer.__dataclass_fields__) == {"update", "receipt"}
    assert set(Receipt.__dataclass_fields__) == {
        "client",
        "plan",
        "round",
        "request",
        "intent",
        "update",
        "entries",
        "root",
        "signature",
        "consistency",
    }
    serve(client)
    assert not {"records", "count", "loss", "batch"} & set(chain(client.home)[1].body)


def test_the_same_request_gets_the_same_bytes_at_no_cost(client: Client) -> None:
    first = serve(client)
    before = Snapshot.of(client.home.path.parent.parent)
    for again in (serve(client), serve(Client(client.home))):
        assert same_bits(again.update, first.update)
        check_receipt(client.home, again)
        assert again.receipt == first.receipt
    assert Snapshot.of(client.home.path.parent.parent) == before


def test_the_same_bytes_go_out_even_with_cryptographic_noise(tmp_path: Path) -> None:
    client = make_client(tmp_path, seed=None)
    first = serve(client)
    assert same_bits(first.update, serve(Client(client.home)).update)
    assert chain(client.home)[1].body["noise"] == "cryptographic"


def test_rounds_differ_and_seeds_repeat(tmp_path: Path) -> None:
    one, twin = make_client(tmp_path / "one"), make_client(tmp_path / "twin")
    other_seed = make_client(tmp_path / "seed", seed=8)
    other_name = make_client(tmp_path / "name", name="clinic-b")
    secret = make_client(tmp_path / "secret", seed=None)
    first = serve(one)
    assert same_bits(first.update, serve(twin).update)
    for different in (
        serve(one, 2, nonce=2),
        serve(other_seed),
        serve(other_name),
        serve(secret),
    ):
        assert not same_bits(first.update, different.update)


def test_a_plan_that_keeps_nothing_does_not_say_that_it_is_gone(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "privet.client"):
        serve(client, 1)
        serve(client, 2, nonce=2)
    assert not caplog.records


def test_only_the_last_answer_is_kept(client: Client) -> None:
    serve(client, 1)
    serve(client, 2, nonce=2)
    assert [file.name for file in client.home.outbox.iterdir()] == [
        f"{ask(2, nonce=2).digest}.update"
    ]
    assert refusal(client, 1) == "forfeited"


def test_an_answer_that_was_altered_on_disk_is_not_sent(client: Client) -> None:
    answer = serve(client)
    (stored,) = client.home.outbox.iterdir()
    other = {name: value + 1 for name, value in answer.update.items()}
    stored.write_bytes(rounds.pack_arrays(other))
    assert refusal(client) == "ledger-unusable"


# -- lying servers -------------------------------------------------------------------------------


def test_every_attack_is_refused_and_leaves_no_trace(client: Client) -> None:
    serve(client, 2)
    for expected, changes in {
        "stale-round": {"round_": 1, "nonce": 2},
        "not-approved": {"round_": 3, "nonce": 3, "plan": "a" * 64},
        "wrong-model": {"round_": 3, "nonce": 4, "model": "b" * 64},
    }.items():
        assert refusal(client, **changes) == expected
    assert refusal(client, 2, nonce=5) == "stale-round"
    assert refusal(client, 0, nonce=6) == "stale-round"
    assert refusal(client, 4, nonce=7) == "stale-round"
    before = Snapshot.of(client.home.path.parent.parent)
    for envelope in (ask(3, nonce=8).sign(STRANGER), b"", b"{}", ask(3).sign(COORDINATOR)[:-1]):
        with pytest.raises(Refusal) as caught:
            client.answer(envelope, model())
        assert caught.value.code in ("bad-signature", "malformed")
    assert Snapshot.of(client.home.path.parent.parent) == before
    serve(client, 3, nonce=9)  # and the honest server is still served


def test_a_policy_narrowed_while_the_client_runs_holds_for_the_next_request(
    client: Client,
) -> None:
    serve(client, 1)
    terms = client.home.terms()
    least = Budget.of(POLICY.budget.spent([PRIVACY.event()]) * 1.01, 1e-5, POLICY.budget.order)
    for changes in (
        {"least_noise_multiplier": 3.0},
        {"budget": least},
        {"simulated": False},
        {"valid_until": date(2001, 12, 31)},
    ):
        client.home.custody.sign(replace(terms, **changes), OWNER)
        client.home.open_ledger()  # which records that this version was seen
        assert refusal(client, 2, nonce=2) == "not-approved"
    client.home.custody.sign(terms, OWNER)
    serve(client, 2, nonce=3)


def test_a_plan_that_the_owner_withdrew_is_refused_at_once(client: Client) -> None:
    serve(client, 1)
    client.home.custody.sign(client.home.terms(), OWNER, withdraw=[PLAN.digest])
    client.home.open_ledger()
    assert refusal(client, 2, nonce=2) == "not-approved"


def test_a_ledger_that_is_gone_or_damaged_serves_nobody(client: Client) -> None:
    serve(client)
    ledger = client.home.ledger
    whole = ledger.read_bytes()
    ledger.write_bytes(whole.replace(b'"round":1', b'"round":2'))
    with pytest.raises(TrustError) as caught:
        Client(client.home)
    assert caught.value.code == "ledger-unusable"
    ledger.unlink()
    with pytest.raises(TrustError) as caught:
        serve(client, 2, nonce=2)
    assert caught.value.code == "ledger-unusable"


# -- spend before release ------------------------------------------------------------------------


class Failing(Stream):
    """Looks at the ledger when noise is drawn, then fails."""

    seen: list[str] = []  # noqa: RUF012
    home: Home

    def gaussian(self, count: int) -> NDArray[np.float64]:
        self.seen.append(kinds(self.home))
        raise RuntimeError("no noise today")


@pytest.mark.parametrize("seed", [7, None])
def test_the_intent_is_on_disk_before_noise_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    home = make_home(tmp_path, seed=seed)
    client = Client(home)
    Failing.seen, Failing.home = [], home
    monkeypatch.setattr(rounds, "Stream", Failing)
    with pytest.raises(RuntimeError):
        serve(client)
    assert set(Failing.seen) == {"ai"}
    assert kinds(home) == "ai"  # charged, and nothing disclosed
    assert not list(home.outbox.iterdir())
    assert home.open_ledger().spent() == [PRIVACY.event()]

    monkeypatch.undo()
    for again in (client, Client(home)):
        if seed is None:
            assert refusal(again) == "forfeited"
        assert refusal(again, nonce=2) == "stale-round"
    serve(client, 2, nonce=3)


def test_no_noise_is_drawn_where_the_intent_cannot_be_written(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        with durable.disk_errors(path):
            raise OSError(28, "No space left on device")

    Failing.seen, Failing.home = [], client.home
    monkeypatch.setattr(rounds, "Stream", Failing)
    monkeypatch.setattr(durable, "append", full)
    before = Snapshot.of(client.home.path.parent.parent)
    with pytest.raises(OperationError) as caught:
        serve(client)
    assert caught.value.code == "disk-full"
    assert not Failing.seen
    assert Snapshot.of(client.home.path.parent.parent) == before
    monkeypatch.undo()
    serve(client)  # the same request, once there is room


def test_a_seeded_round_that_was_cut_off_is_finished_under_its_own_entry_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = serve(make_client(tmp_path / "undisturbed")).update
    client = make_client(tmp_path / "cut")
    Failing.seen, Failing.home = [], client.home
    monkeypatch.setattr(rounds, "Stream", Failing)
    with pytest.raises(RuntimeError):
        serve(client)
    monkeypatch.undo()
    assert same_bits(serve(Client(client.home)).update, undisturbed)
    assert kinds(client.home) == "aid"  # one charge, one disclosure


def test_a_disk_that_fills_up_before_the_disclosure_forfeits_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(tmp_path, seed=None)

    def full(path: Path, data: bytes, **_: Any) -> None:
        raise OperationError("full", code="disk-full")

    monkeypatch.setattr(durable, "replace", full)
    with pytest.raises(OperationError):
        serve(client)
    monkeypatch.undo()
    assert kinds(client.home) == "ai"
    assert refusal(client) == "forfeited"


def test_training_that_fails_all_the_same_is_answered_as_if_there_were_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record can cause it; the server must not learn from the error even so."""
    right = engine.ClippedSum.__call__

    def touchy(self: Any, features: Any, *rest: Any) -> Any:
        if bool((features == 1.0).any()):
            raise IndexError("a record that the code cannot take")
        return right(self, features, *rest)

    everything = replace(PLAN, privacy=replace(PRIVACY, sampling_rate=1.0))
    request = ask(plan=everything.digest).sign(COORDINATOR)
    client = make_client(tmp_path / "some", plan=everything)
    nobody = make_client(tmp_path / "none", plan=everything)
    monkeypatch.setattr(engine.ClippedSum, "__call__", touchy)
    np.save(nobody.home.rows, np.zeros(0, np.int64))
    answer = client.answer(request, model())
    assert kinds(client.home) == "aid"
    assert same_bits(answer.update, nobody.answer(request, model()).update)


# -- what the server can see ---------------------------------------------------------------------

DATA = {
    "ordinary": ROWS,
    "one-class": ["0.5,0.5,yes"] * 6,
    "single-record": ROWS[:1],
    "extreme": ["1,1,yes", "-1,-1,no"] * 3,
    "many": ROWS * 40,
}


def seen_by_the_server(home: Home, answer: Answer) -> Any:
    """All of an answer but its random and its identifying parts."""
    receipt = check_receipt(home, answer)
    arrays = {
        name: (value.shape, value.dtype.name, bool(np.isfinite(value).all()))
        for name, value in answer.update.items()
    }
    return arrays, receipt.entries, len(answer.receipt)


@pytest.mark.parametrize("name", DATA)
def test_every_data_set_is_answered_alike(tmp_path: Path, name: str) -> None:
    usual = make_client(tmp_path / "usual")
    other = make_client(tmp_path / "other", rows=DATA[name])
    assert seen_by_the_server(usual.home, serve(usual)) == seen_by_the_server(
        other.home, serve(other)
    )


def spoil(home: Home, how: str) -> None:
    file = Path(str(home.binding.path))
    match how:
        case "no-rows":
            np.save(home.rows, np.zeros(0, np.int64))
        case "not-finite":
            write_rows(file, ["nan,inf,yes", "0,0,no"])
        case "stray-quote":
            write_rows(file, [ROWS[0], '"', *ROWS[1:]])
        case "not-text":
            file.write_bytes(b"\xff\xfe\x00" * 50)
        case "unknown-class":
            write_rows(file, ["0,0,perhaps"])
        case "deleted":
            file.unlink()
        case "damaged-rows":
            home.rows.write_bytes(b"\x93NUMPY\x01")


@pytest.mark.parametrize(
    "how",
    [
        "no-rows",
        "not-finite",
        "stray-quote",
        "not-text",
        "unknown-class",
        "deleted",
        "damaged-rows",
    ],
)
def test_data_that_stops_fitting_after_approval_is_answered_alike(tmp_path: Path, how: str) -> None:
    usual, other = make_client(tmp_path / "usual"), make_client(tmp_path / "other")
    spoil(other.home, how)
    assert seen_by_the_server(usual.home, serve(usual)) == seen_by_the_server(
        other.home, serve(other)
    )
    assert kinds(usual.home) == kinds(other.home) == "aid"


# -- the outbox ----------------------------------------------------------------------------------


def test_bytes_without_a_disclosure_are_deleted_on_start(client: Client) -> None:
    serve(client, 1)
    begun = client.home.outbox / f"{'e' * 64}.update"
    begun.write_bytes(b"never disclosed")
    (client.home.outbox / ".x.update.1.tmp").write_bytes(b"half")
    Client(client.home)
    assert [file.name for file in client.home.outbox.iterdir()] == [f"{ask().digest}.update"]


def test_bytes_under_an_intent_that_was_never_disclosed_are_deleted_on_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(tmp_path, seed=None)
    right = client._ledger.append

    def refuse(federation: str, kind: Kind, body: Any) -> Entry:
        if kind is Kind.DISCLOSURE:
            raise OperationError("full", code="disk-full")
        return right(federation, kind, body)

    monkeypatch.setattr(client._ledger, "append", refuse)
    with pytest.raises(OperationError):
        serve(client)
    assert len(list(client.home.outbox.iterdir())) == 1
    again = Client(client.home)
    assert not list(client.home.outbox.iterdir())
    assert refusal(again) == "forfeited"


# -- killed anywhere -----------------------------------------------------------------------------


def test_a_round_killed_at_any_write_never_discloses_more_than_it_recorded(tmp_path: Path) -> None:
    undisturbed = serve(make_client(tmp_path / "undisturbed")).update
    outcomes = set()
    for step in range(1, 100):
        home = make_home(tmp_path / f"step-{step}")
        client = Client(home)
        if not killed_at(step, lambda client=client: serve(client)):  # type: ignore[misc]
            break
        recorded = kinds(home)
        outcomes.add(recorded)
        restarted = Client(home)
        names = {file.name for file in home.outbox.iterdir()}
        # What could have left is named by a disclosure, and a disclosure by an intent.
        assert len(names) <= recorded.count("d") <= recorded.count("i") <= 1
        answer = serve(restarted)  # seeded, so that the bits can be compared
        assert same_bits(answer.update, undisturbed)
        check_receipt(home, answer)
        assert kinds(home) == "aid"
        # At most this one round is lost: the next one is served.
        serve(restarted, 2, nonce=2)
        spent = home.open_ledger().spent()
        assert len(spent) == kinds(home).count("i") <= 2
    assert outcomes == {"a", "ai", "aid"}
    assert step > 8


def test_killed_again_and_again_a_client_stays_within_its_budget(tmp_path: Path) -> None:
    epsilon = POLICY.budget.spent([PRIVACY.event(PLAN.rounds)]) * 1.0001
    budget = Budget(epsilon, 1e-5, POLICY.budget.order)
    home = make_home(tmp_path, policy=replace(POLICY, budget=budget, spare_rounds=0))
    for attempt in range(6):
        envelope = ask(1, nonce=attempt + 1, incarnation=attempt).sign(COORDINATOR)
        killed_at(4, lambda envelope=envelope: _try(Client(home), envelope))  # type: ignore[misc]
    assert kinds(home) == "aiii"
    assert budget.spent(home.open_ledger().spent()) <= epsilon


def _try(client: Client, envelope: bytes) -> None:
    try:
        client.answer(envelope, model())
    except Refusal as error:
        assert error.code == "no-rounds-left"


# -- who it is -----------------------------------------------------------------------------------


def test_a_client_says_its_name_to_its_coordinator_alone(client: Client) -> None:
    nonce = "ab" * 16
    hello = client.answer_roll_call(RollCall(RUN, nonce).sign(COORDINATOR))
    assert Hello.verify(hello, identity(client.home).key.public) == Hello("clinic-a", nonce)
    with pytest.raises(TrustError) as caught:
        client.answer_roll_call(RollCall(RUN, nonce).sign(STRANGER))
    assert caught.value.code == "bad-signature"
    with pytest.raises(TrustError):  # a request is not a roll call
        client.answer_roll_call(ask().sign(COORDINATOR))


def test_two_federations_see_two_pseudonyms_and_two_keys(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    elsewhere = replace(home, coordinator=STRANGER.public)
    assert identity(home).pseudonym != identity(elsewhere).pseudonym
    assert identity(home).key.public != identity(elsewhere).key.public


# -- where it lives ------------------------------------------------------------------------------


def test_no_environment_variable_chooses_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path, seed=None)
    for name in ("PRIVET_SEED", "PRIVET_CLIENT_SEED", "PRIVET_SIMULATED", "PYTHONHASHSEED", "SEED"):
        monkeypatch.setenv(name, "7")
    np.random.seed(7)
    first = serve(Client(home))
    np.random.seed(7)
    twin = serve(make_client(tmp_path / "twin", seed=None))
    assert not same_bits(first.update, twin.update)
    assert chain(home)[1].body["noise"] == "cryptographic"
    # The only variables that the client's code reads say where things are, or kill it in a test.
    for module in (home_module, rounds, engine):
        source = inspect.getsource(module)
        assert source.count("os.environ") == (1 if module is home_module else 0)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("clinic-b", "clinic-a"):
        make_home(tmp_path, name=name)
    monkeypatch.setenv("PRIVET_CLIENT_HOME", str(tmp_path / "clients"))
    return tmp_path / "clients"


def test_a_partition_is_a_place_in_the_order_of_names(two: Path) -> None:
    assert [locate(0).name, locate(1).name] == ["clinic-a", "clinic-b"]
    for wrong in (None, -1, 2):
        with pytest.raises(InputError):
            locate(wrong)


def test_a_device_is_its_own_client_whatever_partition_it_is_told(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVET_CLIENT_HOME", str(two / "clinic-b"))
    assert locate(0) == locate(None) == two / "clinic-b"
    monkeypatch.delenv("PRIVET_CLIENT_HOME")
    with pytest.raises(InputError) as caught:
        locate(0)
    assert caught.value.code == "no-client-home"


def test_a_client_is_opened_once_and_again_when_its_directory_was_replaced(tmp_path: Path) -> None:
    home = make_home(tmp_path / "first")
    assert open_client(home.path) is open_client(home.path)
    stale = open_client(home.path)
    (tmp_path / "first").rename(tmp_path / "old")
    make_home(tmp_path / "first")
    fresh = open_client(home.path)
    assert fresh is not stale
    serve(fresh)


def test_two_processes_of_one_client_share_its_ledger(client: Client) -> None:
    twin = Client(client.home)
    serve(client, 1)
    serve(twin, 2, nonce=2)
    serve(client, 3, nonce=3)
    assert kinds(client.home) == "aididid"
    assert refusal(twin, 3, nonce=4) == "stale-round"


def test_two_processes_that_finish_one_seeded_round_disclose_it_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Client(client.home)
    right, answers = Client._train, list[Answer]()

    def slow(self: Client, *arguments: Any) -> Arrays:
        if self is client:  # the request comes again, to the other process, before this one is done
            answers.append(serve(twin))
        return right(self, *arguments)

    monkeypatch.setattr(Client, "_train", slow)
    answers.append(serve(client))
    assert kinds(client.home) == "aid"
    assert same_bits(answers[0].update, answers[1].update)
    assert answers[0].receipt == answers[1].receipt
    assert kinds(Client(client.home).home) == "aid"  # and the chain is whole


def test_a_home_never_holds_a_private_key(tmp_path: Path) -> None:
    client = make_client(tmp_path)
    serve(client)
    secret = (tmp_path / "keys" / client.home.policy.dataset).read_bytes()
    for file in (tmp_path / "clients").rglob("*"):
        if file.is_file():
            assert secret not in file.read_bytes()
            assert secret.hex().encode() not in file.read_bytes()
    assert secret not in client.home.ledger.read_bytes()
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0
