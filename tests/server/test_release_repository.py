"""A repository is only ever whole, signed by those who must sign, and never signed over blindly."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

from client.device.runtime import Predictor
from client.device.updater import update
from common.canonical import decode, digest, encode
from common.errors import InputError, OperationError, TrustError
from common.inference import KnownAnswers, Session
from common.statement import INTOTO_TYPE, Envelope, read_privacy_statement
from server.release.release import Release, assemble, privacy_predicate, subjects
from server.release.repository import Repository
from server.release.roots import Expiry, Roles, tuf_key
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    DAY,
    NOW,
    PLAN,
    RECORDS,
    RECOVERY,
    ROLES,
    SCHEMA,
    STRANGER,
    Recipe,
    World,
    contents,
    kill_at_every_write,
)

BOTH = [COORDINATOR, APPROVER]
FIRST, SECOND = Recipe(version=1), Recipe(version=2)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repository", BOTH, ROLES, NOW)


def expiry_of(repository: Repository, name: str) -> datetime:
    document = json.loads((repository.path / "metadata" / name).read_bytes())
    return datetime.strptime(document["signed"]["expires"], "%Y-%m-%dT%H:%M:%SZ").replace(
        tzinfo=UTC
    )


# -- publishing ------------------------------------------------------------------------------------


def test_versions_count_from_one(repository: Repository) -> None:
    assert repository.version == 0
    assert repository.publish({"a": b"1"}, BOTH, COORDINATOR, NOW) == 1
    assert repository.publish({"a": b"2"}, BOTH, COORDINATOR, NOW) == 2
    assert Repository(repository.path).version == 2


def test_a_version_may_be_left_out_and_none_comes_again(repository: Repository) -> None:
    """An approver signs each version once: where that was lost, the next one is published."""

    def signed(version: int) -> bytes:
        draft = Repository.draft_targets({"a": b"1"}, version, NOW)
        return Repository.sign(Repository.sign(draft, APPROVER), COORDINATOR)

    assert repository.commit({"a": b"1"}, signed(1), COORDINATOR, NOW) == 1
    assert repository.commit({"a": b"1"}, signed(3), COORDINATOR, NOW) == 3
    before = contents(repository.path)
    for version in (1, 2, 3):
        with pytest.raises(TrustError, match=f"signed was version {version}"):
            repository.commit({"a": b"1"}, signed(version), COORDINATOR, NOW)
    assert contents(repository.path) == before


def test_the_layout_is_the_one_that_the_module_shows(repository: Repository) -> None:
    repository.publish({"a.txt": b"hello"}, BOTH, COORDINATOR, NOW)
    assert set(contents(repository.path)) == {
        "metadata/1.root.json",
        "metadata/1.targets.json",
        "metadata/1.snapshot.json",
        "metadata/timestamp.json",
        f"targets/{digest(b'hello')}.a.txt",
    }


def test_a_timestamp_is_believed_for_a_week_and_the_rest_for_longer(repository: Repository) -> None:
    repository.publish({"a": b"1"}, BOTH, COORDINATOR, NOW)
    assert expiry_of(repository, "timestamp.json") == NOW + 7 * DAY
    assert expiry_of(repository, "1.snapshot.json") == NOW + 30 * DAY
    assert expiry_of(repository, "1.targets.json") == NOW + 365 * DAY
    assert expiry_of(repository, "1.root.json") == NOW + 3 * 365 * DAY


def test_renewing_extends_the_same_release(repository: Repository) -> None:
    repository.publish({"a": b"1"}, BOTH, COORDINATOR, NOW)
    repository.renew(COORDINATOR, NOW + 5 * DAY)
    assert expiry_of(repository, "timestamp.json") == NOW + 12 * DAY
    assert repository.version == 1


def test_two_parties_can_sign_in_two_places(repository: Repository) -> None:
    files = {"a": b"1"}
    draft = repository.draft(files, NOW)
    both = Repository.sign(Repository.sign(draft, APPROVER), COORDINATOR)
    assert repository.commit(files, both, COORDINATOR, NOW) == 1


def test_other_lifetimes_can_be_asked_for(tmp_path: Path) -> None:
    repository = Repository.create(
        tmp_path / "r", BOTH, ROLES, NOW, Expiry(timestamp=timedelta(hours=1))
    )
    repository.publish({"a": b"1"}, BOTH, COORDINATOR, NOW)
    assert expiry_of(repository, "timestamp.json") == NOW + timedelta(hours=1)


# -- refusing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signers", "online"),
    [
        ([], COORDINATOR),
        ([COORDINATOR], COORDINATOR),
        ([COORDINATOR, COORDINATOR], COORDINATOR),
        ([COORDINATOR, RECOVERY], COORDINATOR),
        ([COORDINATOR, STRANGER], COORDINATOR),
        (BOTH, APPROVER),
        (BOTH, STRANGER),
    ],
)
def test_a_release_without_the_right_signatures_is_not_written(
    repository: Repository, signers, online
) -> None:
    before = contents(repository.path)
    with pytest.raises(TrustError, match="not signed as the root requires"):
        repository.publish({"a": b"1"}, signers, online, NOW)
    assert contents(repository.path) == before


def test_files_that_are_not_the_signed_ones_are_not_written(repository: Repository) -> None:
    draft = repository.draft({"a": b"1"}, NOW)
    for key in BOTH:
        draft = repository.sign(draft, key)
    before = contents(repository.path)
    for files in ({"a": b"2"}, {"b": b"1"}, {"a": b"1", "b": b"1"}, {}):
        with pytest.raises(TrustError):
            repository.commit(files, draft, COORDINATOR, NOW)
    assert contents(repository.path) == before


TARGETS_WITH_MORE = ["delegations", "another digest", "a digest more", "a field more"]


def add_to(targets: Metadata[Targets], what: str) -> None:
    """Something that a party would sign unread, if nobody compared."""
    if what == "delegations":
        key = tuf_key(STRANGER.public)
        role = DelegatedRole("mine", [key.keyid], 1, False, paths=["*"])
        targets.signed.delegations = Delegations({key.keyid: key}, {"mine": role})
    elif what == "a field more":
        targets.signed.unrecognized_fields["x"] = "y"
    else:
        file = next(iter(targets.signed.targets.values()))
        sha512 = {"sha512": hashlib.sha512(b"1").hexdigest()}
        file.hashes = sha512 if what == "another digest" else {**file.hashes, **sha512}


def refusal_of(repository: Repository, draft: bytes) -> str:
    """The code that refuses to publish targets that both parties signed; nothing is written."""
    for key in BOTH:
        draft = repository.sign(draft, key)
    before = contents(repository.path)
    with pytest.raises(TrustError) as caught:
        repository.commit({"a": b"1"}, draft, COORDINATOR, NOW)
    assert contents(repository.path) == before
    return caught.value.code


@pytest.mark.parametrize("what", TARGETS_WITH_MORE)
def test_targets_that_say_more_than_their_files_are_not_published(
    repository: Repository, what: str
) -> None:
    targets = Metadata[Targets].from_bytes(repository.draft({"a": b"1"}, NOW))
    add_to(targets, what)
    assert refusal_of(repository, targets.to_bytes()) == "crooked-targets"


@pytest.mark.parametrize("days", [-1, 0, 365 + 2])
def test_targets_that_end_too_early_or_too_late_are_not_published(
    repository: Repository, days: int
) -> None:
    draft = Repository.draft_targets({"a": b"1"}, 1, NOW, Expiry(targets=timedelta(days=days)))
    assert refusal_of(repository, draft) == "wrong-expiry"


def test_a_draft_cannot_be_published_twice(repository: Repository) -> None:
    draft = repository.draft({"a": b"1"}, NOW)
    for key in BOTH:
        draft = repository.sign(draft, key)
    repository.commit({"a": b"1"}, draft, COORDINATOR, NOW)
    with pytest.raises(TrustError, match="signed was version 1"):
        repository.commit({"a": b"1"}, draft, COORDINATOR, NOW)


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "a b", "ä", "a" * 65])
def test_a_target_is_a_plain_file_name(repository: Repository, name: str) -> None:
    before = contents(repository.path)
    with pytest.raises(InputError, match="plain file name"):
        repository.publish({name: b"1"}, BOTH, COORDINATOR, NOW)
    assert contents(repository.path) == before


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_a_repository_that_somebody_changed_is_not_signed_over(
    repository: Repository, name: str
) -> None:
    repository.publish({"a": b"1"}, BOTH, COORDINATOR, NOW)
    file = repository.path / "metadata" / name
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":7'))
    before = contents(repository.path)
    with pytest.raises(TrustError):
        repository.publish({"a": b"2"}, BOTH, COORDINATOR, NOW)
    with pytest.raises(TrustError):
        repository.renew(COORDINATOR, NOW)
    assert contents(repository.path) == before


def test_a_root_needs_two_of_the_three_keys(tmp_path: Path) -> None:
    for signers in ([COORDINATOR], [STRANGER, COORDINATOR], []):
        with pytest.raises(TrustError):
            Repository.create(tmp_path / "r", signers, ROLES, NOW)
    assert not (tmp_path / "r").exists()
    assert Repository.create(tmp_path / "r", [APPROVER, RECOVERY], ROLES, NOW).version == 0


def test_three_roles_are_three_keys() -> None:
    with pytest.raises(InputError, match="three different keys"):
        Roles(COORDINATOR.public, COORDINATOR.public, RECOVERY.public)


def test_an_existing_repository_is_not_made_anew(repository: Repository) -> None:
    before = contents(repository.path)
    with pytest.raises(OperationError, match="already a repository"):
        Repository.create(repository.path, BOTH, ROLES, NOW)
    assert contents(repository.path) == before


def test_a_directory_without_a_repository_says_so(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="no repository"):
        Repository(tmp_path)


# -- killed ----------------------------------------------------------------------------------------


def publish_in_a_copy(number: int, folder: Path) -> None:
    """In a child: copy the repository and publish version 2 in the copy."""
    copy = folder / f"killed-{number}" / "repository"
    shutil.copytree(folder / "repository", copy)
    Repository(copy).publish(SECOND.files(), BOTH, COORDINATOR, NOW)


def test_killed_at_any_write_of_a_publish_devices_get_the_old_or_the_new_release(
    tmp_path: Path,
) -> None:
    world = World.make(tmp_path)
    world.publish(FIRST)
    steps = kill_at_every_write(__name__, "publish_in_a_copy", tmp_path)
    assert steps == 3 * (6 + 3)  # three steps for each of six targets and three metadata files
    versions = []
    for number in range(1, steps + 1):
        folder = tmp_path / f"killed-{number}"
        repository = Repository(folder / "repository")
        home = world.device(f"killed-{number}/device")
        update(home, NOW)
        predictor = Predictor.load(home)
        expected = {1: FIRST, 2: SECOND}[predictor.version].model.answer(RECORDS)
        np.testing.assert_allclose(predictor.probabilities(RECORDS), expected, atol=1e-6)
        versions.append(predictor.version)
        if predictor.version == 1:
            assert repository.publish(SECOND.files(), BOTH, COORDINATOR, NOW) == 2
            assert update(home, NOW).version == 2
    assert versions == [1] * (steps - 1) + [2]


# -- a release -------------------------------------------------------------------------------------


def test_a_release_names_the_digest_of_every_other_file() -> None:
    files = FIRST.files()
    document = decode(files["release.json"])
    assert document["files"] == {
        name: {"sha256": digest(data), "length": len(data)}
        for name, data in files.items()
        if name != "release.json"
    }
    assert document["schema"] == SCHEMA.json()
    assert document["plan"] == PLAN.digest


def test_the_same_release_is_the_same_bytes() -> None:
    assert FIRST.files() == FIRST.files()


def test_the_statement_is_about_the_two_model_files() -> None:
    files = FIRST.files()
    envelope = Envelope.decode(files["statement.dsse.json"])
    payload = envelope.verify(INTOTO_TYPE, [COORDINATOR.public, APPROVER.public], 2)
    named, predicate = read_privacy_statement(payload)
    assert named == subjects(files["model.safetensors"], files["model.onnx"])
    ledger = {"head": "ab" * 32, "entries": 12, "countersigned": 12}
    assert predicate["ledgers"] == {"5e" * 16: ledger}
    assert encode(predicate)


GOOD = Release(
    name="m",
    version=1,
    simulated=False,
    task="classification",
    schema=SCHEMA,
    plan=PLAN.digest,
    weights=FIRST.model.safetensors(),
    model=FIRST.model.onnx().SerializeToString(),
    answers=KnownAnswers.make(SCHEMA, FIRST.model.answer),
    statement=FIRST.files()["statement.dsse.json"],
)


def test_a_release_whose_model_devices_would_refuse_is_not_assembled() -> None:
    assert set(assemble(GOOD)) == set(FIRST.files())
    wrong = KnownAnswers.make(SCHEMA, Recipe(version=5).model.answer)
    for bad in (replace(GOOD, model=b"nothing"), replace(GOOD, answers=wrong)):
        with pytest.raises(TrustError):
            assemble(bad)
    with pytest.raises(InputError):
        assemble(replace(GOOD, version=0))


def test_a_release_with_an_operator_that_no_device_runs_is_not_assembled() -> None:
    model = FIRST.model.onnx()
    node = model.graph.node.add(op_type="RunCommand", domain="com.example")
    node.output.append("x")
    with pytest.raises(TrustError) as caught:
        assemble(replace(GOOD, model=model.SerializeToString()))
    assert caught.value.code == "unknown-operator"
    assert "com.example.RunCommand" in caught.value.message
    with pytest.raises(TrustError, match="weights"):
        assemble(replace(GOOD, weights=GOOD.weights + b"\0"))


def test_known_answers_can_come_from_the_session_itself() -> None:
    session = Session(FIRST.model.onnx().SerializeToString(), SCHEMA)
    assert KnownAnswers.make(SCHEMA, session.predict).check(session) == 0


PREDICATE = {
    "version": 1,
    "event": PLAN.event(),
    "epsilon": 1.0,
    "epsilon_filter": 1.1,
    "accountants": {"pld": 1.0},
    "noise": ["cryptographic"],
    "simulated": False,
    "rounds": 5,
    "ledgers": {},
}


def test_a_predicate_states_the_plans_privacy_in_strings() -> None:
    predicate = privacy_predicate(PLAN, **PREDICATE, clients=4)
    assert (predicate["trust"], predicate["unit"], predicate["delta"]) == (
        "local",
        "record",
        "1e-05",
    )
    assert predicate["event"]["steps"] == 50  # 10 a round, 5 rounds
    assert predicate["clients"] == 4
    assert encode(predicate)


def test_central_trust_never_says_how_many_took_part() -> None:
    central = replace(PLAN, privacy=replace(PLAN.privacy, trust="central"))
    assert "clients" not in privacy_predicate(central, **PREDICATE)
    with pytest.raises(InputError, match="how many"):
        privacy_predicate(central, **PREDICATE, clients=4)


@pytest.mark.parametrize("noise", [[], ["loud"], ["simulated"]])
def test_noise_that_contradicts_the_release_is_not_stated(noise) -> None:
    with pytest.raises(InputError):
        privacy_predicate(PLAN, **{**PREDICATE, "noise": noise})
