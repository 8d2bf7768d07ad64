"""The owner's signed policy and the ledger lie together; nobody else's policy, and no older one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from client.approval import approve, examine
from client.custody import Custody
from client.home import Home
from client.rounds import Client
from common.canonical import decode, encode
from common.errors import InputError, OperationError, PlanError, PrivetError, Refusal, TrustError
from common.keys import SigningKey
from common.ledger import Kind
from common.ledger.file import LOCAL
from common.policy import Policy
from common.privacy.filter import Budget
from common.statement import PLAN_TYPE, POLICY_TYPE, Envelope
from tests.world import (
    COORDINATOR,
    OWNER,
    PLAN,
    POLICY,
    PRIVACY,
    STRANGER,
    Snapshot,
    ask,
    killed_at,
    make_home,
    model,
    put_in_force,
    seen,
    signed,
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path, plan=None)


def sealed(policy: Policy, *, key: SigningKey = OWNER, kind: str = POLICY_TYPE) -> bytes:
    return Envelope.sign(kind, policy.encode(), [key]).encode()


def refuses(folder: Path, error: type[PrivetError], work: Callable[[], object]) -> PrivetError:
    """The error of what is refused; nothing on disk changed."""
    before = Snapshot.of(folder)
    with pytest.raises(error) as caught:
        work()
    assert Snapshot.of(folder) == before
    assert caught.value.message
    return caught.value


def versions(home: Home) -> list[int]:
    """Which policies the ledger says were in force."""
    chain = home.read_ledger().chain(LOCAL)
    return [entry.body["version"] for entry in chain if entry.kind is Kind.POLICY]


# -- whose policy counts -------------------------------------------------------------------------


def test_an_owners_policy_comes_back_as_it_was_signed(tmp_path: Path) -> None:
    custody = Custody(tmp_path / "custody")
    terms = replace(
        POLICY, columns=("height", "weight", "answer"), valid_from=date(2030, 1, 1), version=77
    )
    policy = custody.sign(terms, OWNER)
    assert policy == replace(terms, version=1, approved_plans=())
    assert custody.policy(OWNER.public) == policy
    assert custody.path.stat().st_mode & 0o077 == 0


BAD: dict[str, Callable[[Policy], bytes]] = {
    "another-owner": lambda policy: sealed(policy, key=STRANGER),
    "signed-as-a-plan": lambda policy: sealed(policy, kind=PLAN_TYPE),
    "not-signed": lambda policy: policy.encode(),
    "changed-after-signing": lambda policy: replace(
        Envelope.decode(sealed(policy)), payload=replace(policy, most_rounds=9).encode()
    ).encode(),
    "cut-off": lambda policy: sealed(policy)[:-20],
    "empty": lambda _: b"",
    "garbage": lambda _: b"\xff\xfe\x00" * 50,
    "deep": lambda _: b'{"a":' * 5000,
    "huge": lambda policy: sealed(policy) + b" " * 2**20,
    "unknown-version": lambda policy: Envelope.sign(
        POLICY_TYPE, encode({**policy.json(), "schema_version": 99}), [OWNER]
    ).encode(),
    "a-field-more": lambda policy: Envelope.sign(
        POLICY_TYPE, encode({**policy.json(), "unlimited": True}), [OWNER]
    ).encode(),
    "a-field-less": lambda policy: Envelope.sign(
        POLICY_TYPE,
        encode({key: value for key, value in policy.json().items() if key != "spare_rounds"}),
        [OWNER],
    ).encode(),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_pinned_owner_did_not_sign_as_a_policy_lets_nothing_happen(
    tmp_path: Path, name: str
) -> None:
    client = Client(make_home(tmp_path))
    home = client.home
    home.custody.policy_file.write_bytes(BAD[name](replace(home.policy, version=9)))
    for work in (
        lambda: Home.read(home.path),
        home.terms,
        home.open_ledger,
        lambda: examine(home, signed(PLAN)),
        lambda: approve(home, signed(PLAN), OWNER),
        lambda: client.answer(ask().sign(COORDINATOR), model()),
        lambda: home.custody.sign(POLICY, OWNER),
    ):
        error = refuses(tmp_path, PrivetError, work)
        assert error.exit_code in (4, 11), error
        assert error.hint


def test_a_policy_that_is_gone_lets_nothing_happen(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    home.custody.policy_file.unlink()
    assert refuses(tmp_path, InputError, lambda: Home.read(home.path)).code == "no-policy"
    assert refuses(tmp_path, InputError, home.terms).code == "no-policy"


def test_another_key_cannot_put_its_terms_in_force(home: Home, tmp_path: Path) -> None:
    error = refuses(tmp_path, TrustError, lambda: home.custody.sign(home.policy, STRANGER))
    assert error.code == "policy-not-the-owners"


# -- versions ------------------------------------------------------------------------------------


def test_a_later_version_holds_while_the_client_runs(tmp_path: Path) -> None:
    client = Client(make_home(tmp_path))
    assert put_in_force(client.home, most_rounds=2).version == 3
    assert client.home.terms().most_rounds == 2
    with pytest.raises(Refusal):
        client.answer(ask().sign(COORDINATOR), model())


def test_an_older_version_than_was_seen_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    file = home.custody.policy_file
    wide = file.read_bytes()
    put_in_force(home, budget=Budget.of(10.0, 1e-5))
    client = Client(home)  # sees version 3
    assert versions(home) == [1, 2, 3]
    file.write_bytes(wide)
    for work in (
        lambda: Home.read(home.path),
        home.terms,
        lambda: Client(home),
        lambda: client.answer(ask().sign(COORDINATOR), model()),
        lambda: approve(home, signed(PLAN), OWNER),
        lambda: home.custody.sign(POLICY, OWNER),
    ):
        error = refuses(tmp_path, TrustError, work)
        assert error.code == "policy-rolled-back" or isinstance(error, Refusal)
        assert "was in force before" in str(error)


def test_a_client_at_work_records_each_version_that_it_sees(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    file = home.custody.policy_file
    wide = file.read_bytes()
    client = Client(home)
    put_in_force(home, most_rounds=2)
    with pytest.raises(Refusal):
        client.answer(ask().sign(COORDINATOR), model())
    assert versions(home) == [1, 2, 3]
    file.write_bytes(wide)
    with pytest.raises(Refusal) as caught:
        client.answer(ask().sign(COORDINATOR), model())
    assert caught.value.code == "policy-unusable"


def test_two_policies_of_one_version_are_not_both_believed(home: Home, tmp_path: Path) -> None:
    other = replace(home.policy, most_rounds=3)
    home.custody.policy_file.write_bytes(sealed(other))
    assert refuses(tmp_path, TrustError, home.terms).code == "policy-rolled-back"


def test_after_a_policy_is_lost_the_owner_starts_above_what_was_seen(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    terms = home.terms()
    home.custody.policy_file.unlink()
    again = home.custody.sign(terms, OWNER)
    assert again.version == 3
    assert again.approved_plans == ()  # nobody knows what was withdrawn since: approve again


def test_every_version_is_recorded_where_only_the_owner_sees_it(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    assert versions(home) == [1, 2]
    kinds = [entry.kind for entry in home.read_ledger().chain(home.federation)]
    assert kinds == [Kind.APPROVAL]


# -- one ledger for one data set -----------------------------------------------------------------


def test_a_home_cannot_name_a_ledger_of_its_own(home: Home) -> None:
    assert Home.read(home.path).ledger == home.custody.path / "ledger.jsonl"
    file = home.path / "client.json"
    file.write_bytes(encode({**decode(file.read_bytes()), "ledger": "elsewhere.jsonl"}))
    with pytest.raises(PlanError, match="unknown key 'ledger'"):
        Home.read(home.path)


def test_a_policy_for_another_data_set_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path, plan=None)
    other = make_home(tmp_path, name="clinic-b", plan=None)
    home.custody.policy_file.write_bytes(sealed(replace(other.policy, version=9)))
    for work in (lambda: Home.read(home.path), home.terms):
        assert refuses(tmp_path, TrustError, work).code == "another-data-set"
    change = replace(other.policy, dataset="something-else")
    error = refuses(tmp_path, PlanError, lambda: other.custody.sign(change, OWNER))
    assert error.code == "another-data-set"


def second_home(home: Home, coordinator: SigningKey, name: str = "clinic-at-another") -> Home:
    """A client of another federation over the same data set."""
    other = replace(
        home,
        path=home.path.parent / name,
        client=name,
        coordinator=coordinator.public,
        policy=home.terms(),
    )
    other.create()
    return other


def work_for(home: Home, coordinator: SigningKey, round_: int) -> None:
    head = seen(name="clinic-a", key=coordinator)
    request = ask(round_, nonce=round_, client=home.client, **head)
    Client(home).answer(request.sign(coordinator), model())


def within(rounds: int) -> Policy:
    """Terms whose budget covers exactly so many rounds of the plan."""
    need = Budget.of(20.0, 1e-5).spent([PRIVACY.event(rounds)])
    budget = Budget(need * 1.0001, 1e-5, POLICY.budget.order)
    return replace(POLICY, budget=budget, spare_rounds=0)


def test_two_federations_over_one_data_set_share_one_budget(tmp_path: Path) -> None:
    one = make_home(tmp_path, policy=within(4))
    other = second_home(one, STRANGER)
    approve(other, signed(PLAN, STRANGER), OWNER)
    assert one.ledger == other.ledger
    for round_ in (1, 2):
        work_for(one, COORDINATOR, round_)
        work_for(other, STRANGER, round_)
    for home, coordinator in ((one, COORDINATOR), (other, STRANGER)):
        with pytest.raises(Refusal) as caught:
            work_for(home, coordinator, 3)
        assert caught.value.code == "budget-exhausted"
    assert len(one.read_ledger().spent()) == 4
    pseudonyms = {home.read_ledger().identity(home.federation).pseudonym for home in (one, other)}
    assert len(pseudonyms) == 2


def test_two_processes_cannot_both_spend_the_last_of_a_budget(tmp_path: Path) -> None:
    """Real processes, let go at the same moment, for two coordinators over one data set."""
    for trial in range(6):
        folder = tmp_path / str(trial)
        one = make_home(folder, policy=within(PLAN.rounds))
        other = second_home(one, STRANGER)
        approve(other, signed(PLAN, STRANGER), OWNER)
        for round_ in (1, 2):
            work_for(one, COORDINATOR, round_)
        clients = [(Client(one), COORDINATOR), (Client(other), STRANGER)]
        gate, opener = os.pipe()
        children = [_spend(client, key, gate, opener) for client, key in clients]
        os.close(gate)
        os.close(opener)  # the end of the pipe lets both go
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        assert codes == [0, 10]
        spent = one.read_ledger().spent()
        assert len(spent) == PLAN.rounds
        assert one.terms().budget.spent(spent) <= one.terms().budget.epsilon


def _spend(client: Client, key: SigningKey, gate: int, opener: int) -> int:
    """A child that waits at the gate, then asks for the last round: 0 served, 10 refused."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        os.close(opener)
        os.read(gate, 1)
        request = ask(3, nonce=9, client=client.home.client, **seen(key=key))
        client.answer(request.sign(key), model())
        code = 0
    except Refusal as refusal:
        code = 10 if refusal.code == "budget-exhausted" else 4
    finally:
        os._exit(code)


# -- making a home -------------------------------------------------------------------------------


def test_a_home_is_never_made_over_something_else(home: Home, tmp_path: Path) -> None:
    assert refuses(tmp_path, OperationError, home.create).code == "home-exists"


def test_a_home_is_only_made_under_the_policy_in_force(home: Home, tmp_path: Path) -> None:
    wider = replace(home, path=tmp_path / "more", policy=replace(home.policy, most_rounds=9))
    refuses(tmp_path, PlanError, wider.create)
    stranger = replace(home, path=tmp_path / "more", owner=STRANGER.public)
    refuses(tmp_path, TrustError, stranger.create)


def test_an_enrolment_killed_at_any_write_is_repeated(tmp_path: Path) -> None:
    for step in range(1, 60):
        folder = tmp_path / str(step)
        custody = Custody(folder / "custody")
        home = replace(
            make_home(tmp_path / "pattern" / str(step), plan=None),
            path=folder / "home",
            custody=custody,
            keys=folder / "keys",
        )
        home = replace(home, policy=custody.sign(home.policy, OWNER))
        if not killed_at(step, home.create):
            break
        if not (home.path / "client.json").exists():  # written last: then it is whole
            home.create()
        approve(Home.read(home.path), signed(PLAN), OWNER)
    assert step > 15


def test_a_lost_ledger_is_not_begun_anew(home: Home, tmp_path: Path) -> None:
    home.ledger.unlink()
    again = replace(home, path=tmp_path / "more")
    assert refuses(tmp_path, OperationError, again.create).code == "key-exists"


def test_a_second_home_without_the_ledgers_secret_is_refused(home: Home, tmp_path: Path) -> None:
    elsewhere = replace(home, path=tmp_path / "more", keys=tmp_path / "other-keys")
    assert refuses(tmp_path, OperationError, elsewhere.create).code == "key-missing"


# -- time ----------------------------------------------------------------------------------------


def test_the_present_is_never_before_what_the_ledger_recorded(home: Home) -> None:
    recorded = max(entry.time for entry in home.open_ledger().entries())
    assert home.open_ledger().now("2000-01-01T00:00:00Z") == recorded
    assert home.open_ledger().now("9999-01-01T00:00:00Z") == "9999-01-01T00:00:00Z"


def test_a_clock_that_is_set_back_revives_no_policy(tmp_path: Path) -> None:
    yesterday = replace(POLICY, valid_until=date(2020, 12, 31))
    home = make_home(tmp_path, plan=None, policy=yesterday)  # the ledger knows the real date
    for now in (None, "2020-06-01T00:00:00Z"):
        error = refuses(tmp_path, PlanError, lambda n=now: examine(home, signed(PLAN), n))
        assert error.code == "outside-period"
        error = refuses(tmp_path, PlanError, lambda n=now: approve(home, signed(PLAN), OWNER, n))
        assert error.code == "outside-period"


def test_a_custody_that_another_process_changes_waits(home: Home, tmp_path: Path) -> None:
    with home.custody.held():
        error = refuses(tmp_path, OperationError, lambda: home.custody.sign(home.policy, OWNER))
    assert error.code == "custody-in-use"
