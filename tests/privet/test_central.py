"""A whole run with central trust: what is published verifies, and tells nobody who took part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit.explain import explain
from audit.recompute import recompute_all
from audit.report import render_bundle
from audit.verify import check, verify
from common.bundle import Bundle, Trust
from common.canonical import decode
from common.errors import TrustError
from common.keys import KeyDirectory
from common.ledger import Kind
from common.statement import INTOTO_TYPE, Envelope, privacy_statement, read_privacy_statement
from privet.cli import run as command
from privet.running import simulate
from simulations.experiment import Experiment
from tests.world import EXPERIMENT, write_experiment

TOML = (
    EXPERIMENT.replace('trust = "local"', 'trust = "central"')
    .replace("steps = 2\n", "")
    .replace("quorum = 2\n", "")
    .replace("clients = 3\n", "clients = 5\n")
    .replace("divisor = 200", "divisor = 2.5")
    .replace("[plan.release]", "[plan.central]\nlocal_steps = 2\n[plan.release]")
    .replace("simulated = true", 'simulated = true\nunit = "client"')
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    path = tmp_path_factory.mktemp("central")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIVET_STATE_HOME", str(path / "state"))
        yield path / "run", simulate(write_experiment(path, TOML), out=path / "run")


def opened(run: Path) -> tuple[Bundle, Trust]:
    return Bundle.read(run / "bundle"), Trust.read(run / "trust.json")


def test_the_bundle_verifies_and_says_whom_it_protects_from_whom(finished) -> None:
    run, summary = finished
    verdict = verify(run / "bundle", Trust.read(run / "trust.json"))
    assert (verdict.claims["trust"], verdict.claims["unit"]) == ("central", "client")
    assert verdict.most_exposed.rounds == 2
    assert verdict.most_exposed.events == (verdict.plan.event(),)
    assert summary["audit"] == "verified"
    assert recompute_all(verdict).worst < 1e-9


def test_nothing_published_names_a_client_or_counts_them(finished) -> None:
    run, summary = finished
    members = decode((run / "server.json").read_bytes())["members"]
    secrets = {*members, *(m["pseudonym"] for m in members.values())}
    secrets |= {m["key"] for m in members.values()}
    published = [run / "summary.json", run / "report.html", run / "trust.json"]
    for folder in ("bundle", "repository", "device"):
        published += [file for file in (run / folder).rglob("*") if file.is_file()]
    assert len(published) > 15
    for file in published:
        data = file.read_bytes().decode(errors="replace") + file.name
        assert not [secret for secret in secrets if secret in data], file
    assert summary["clients"] is None
    assert summary["metrics"]["replies_dropped"] is summary["metrics"]["rounds_changed"] is None
    bundle, _ = opened(run)
    assert len(bundle.ledgers) == len(bundle.clients) == 1
    _, claims = read_privacy_statement(Envelope.decode(bundle.statement).payload)
    assert "clients" not in claims
    (chain,) = bundle.ledgers.values()
    assert {entry.kind for entry in chain} == {Kind.APPROVAL, Kind.INTENT, Kind.DISCLOSURE}


def test_what_an_owner_spent_covers_what_the_coordinator_charged(finished) -> None:
    run, _ = finished
    for ledger in (run / "custody").glob("*/ledger.jsonl"):
        entries = [json.loads(line)["entry"] for line in ledger.read_bytes().splitlines()]
        spent = [e["body"]["event"] for e in entries if e["body"].get("event")]
        assert [event["steps"] for event in spent] == [3]  # two rounds and a spare one


def test_the_words_of_the_audit_are_about_clients_and_the_coordinator(finished) -> None:
    verdict = verify(finished[0] / "bundle")
    page = " ".join(explain(verdict).text().split())
    assert "for each client" in page
    assert "nothing here limits what it could learn" in page
    report = render_bundle(verdict)
    assert "The coordinator’s own ledger" in report
    assert "most exposed client" not in report.lower()
    assert "It saw every drawn client’s update" in report


def test_the_commands_of_the_audit_work_on_it(finished, tmp_path: Path) -> None:
    run, _ = finished
    bundle, trust = str(run / "bundle"), ["--trust", str(run / "trust.json")]
    for name in ("verify", "recompute", "explain"):
        assert command(["audit", name, bundle, *trust]) == 0
    (pseudonym,) = opened(run)[0].ledgers
    receipt = str(tmp_path / "spend.receipt")
    assert (
        command(["audit", "receipt", bundle, "--client", pseudonym, "--out", receipt, *trust]) == 0
    )
    assert command(["audit", "check-receipt", receipt, *trust]) == 0
    assert command(["audit", "report", bundle, "--out", str(tmp_path / "r.html"), *trust]) == 0
    assert command(["audit", "test", str(run), "--out", str(tmp_path / "t")]) != 0


def resigned(run: Path, **claims: object) -> Bundle:
    """The bundle with other claims, signed by both as if they agreed."""
    bundle, _ = opened(run)
    subjects, before = read_privacy_statement(Envelope.decode(bundle.statement).payload)
    keys = Path(decode((run / "server.json").read_bytes())["keys"]).parent
    signers = [KeyDirectory(keys / name).load(name) for name in ("coordinator", "approver")]
    statement = privacy_statement(subjects, {**before, **claims})
    return replace(bundle, statement=Envelope.sign(INTOTO_TYPE, statement, signers).encode())


def test_a_statement_that_counts_clients_or_claims_another_unit_is_refused(finished) -> None:
    run, _ = finished
    trust = Trust.read(run / "trust.json")
    assert check(resigned(run), trust, signatures=2).authenticated
    for claims in ({"clients": 5}, {"clients": 1}, {"unit": "record"}, {"trust": "local"}):
        with pytest.raises(TrustError):
            check(resigned(run, **claims), trust, signatures=2)


def test_the_same_seed_gives_the_same_model(finished, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PRIVET_STATE_HOME", str(tmp_path / "state"))
    again = simulate(write_experiment(tmp_path, TOML), out=tmp_path / "run")
    assert again["model"]["sha256"] == finished[1]["model"]["sha256"]


def test_the_example_is_admitted_and_its_policy_allows_central_trust() -> None:
    example = Path(__file__).parents[2] / "examples" / "central.toml"
    experiment = Experiment.read(example)
    assert experiment.plan.central
    assert experiment.policy.unit == "client"
    experiment.policy.check_terms(experiment.plan)
    experiment.policy.check_budget(experiment.plan)
