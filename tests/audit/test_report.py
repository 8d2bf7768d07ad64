"""The report page: what comes first, what it may contain, and that its numbers are right."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from audit.checklist import checklist
from audit.findings import LIMITS, bundle_json
from audit.ledgers import Spend
from audit.recompute import Recomputed, accountants, recompute_all
from audit.report import render_bundle, render_run
from audit.verify import Verdict
from common.canonical import number
from common.data.schema import Schema
from common.errors import TrustError
from common.plan import Cohort, Optimizer, Plan, Privacy, Release
from common.privacy.accountant import epsilon
from common.privacy.filter import Budget

PRIVACY = Privacy(
    trust="local",
    sampling_rate=0.5,
    noise_multiplier=3.0,
    clipping_norm=2.0,
    steps=2,
    divisor=72.0,
    delta=1e-5,
)
PLAN = Plan(
    name="clinics",
    task="classification",
    model="softmax",
    rounds=4,
    schema=Schema(kind="image", shape=(1, 2, 2), classes=("no", "yes")),
    cohort=Cohort(clients=3, quorum=1, deadline=60.0),
    optimizer=Optimizer(learning_rate=1.0),
    privacy=PRIVACY,
    release=Release("clinics"),
)
SHA = "ab" * 32
HEAD = "5a" * 32
HOSTILE = '<script>alert("1")</script><img src=https://evil.example/x onerror=alert(1)>\u202e'


def client(name: str, rounds: int, *, noise: str = "cryptographic", order: int = 8) -> Spend:
    events = (PRIVACY.event(rounds),)
    return Spend(
        pseudonym=name * 32,
        rounds=rounds,
        disclosed=rounds - 1,
        other_rounds=0,
        epsilon_filter=Budget(8.0, 1e-5, order).spent(events),
        epsilon_rdp=epsilon(events, 1e-5),
        budget=8.0,
        delta=1e-5,
        order=order,
        noise=(noise,),
        entries=2 * rounds + 1,
        countersigned=2 * rounds,
        events=events,
    )


CLIENTS = (client("a", 2), client("b", 4), client("c", 3))
STATED = accountants(PLAN.event(), PRIVACY.delta)


def verdict(
    *, authenticated: bool = True, clients: tuple[Spend, ...] = CLIENTS, **claims: Any
) -> Verdict:
    return Verdict(
        authenticated=authenticated,
        plan=PLAN,
        subjects={"model.onnx": SHA, "model.safetensors": SHA[::-1]},
        claims={
            "version": 3,
            "delta": number(PRIVACY.delta),
            "epsilon": number(STATED["pld (dp-accounting)"]),
            "accountants": {name: number(value) for name, value in STATED.items()},
            "simulated": any("simulated" in spend.noise for spend in clients),
            "limits": ["It says nothing about accuracy."],
            "ledgers": {spend.pseudonym: {"head": HEAD, "entries": 7} for spend in clients},
            **claims,
        },
        clients=clients,
        checks=["every file is the one that the manifest lists"],
    )


SUMMARY: dict[str, Any] = {
    "run_dir": "/somewhere/private/run",
    "rounds": 4,
    "clients": 3,
    "seed": 7,
    "metrics": {"accuracy": 0.75, "test": "held-out", "rounds_changed": 3, "replies_dropped": 3},
    "device": {
        "latency_p50_us": 25.1,
        "latency_p99_us": 50.9,
        "accuracy": 0.74,
        "verified": True,
        "version": 3,
    },
    "traffic": {
        "compression": "int8",
        "update_bytes": 6_000,
        "uncompressed_bytes": 24_000,
        "bytes_per_reply": 2_000.0,
        "uncompressed_per_reply": 8_000.0,
        "ratio": 4.0,
    },
    "model": {"architecture": "softmax", "safetensors_bytes": 2736, "onnx_bytes": 3344},
    "timing": {"prepare_s": 1.0, "rounds_s": 2.0, "release_s": 3.0, "total_s": 6.0},
}
METRICS: list[dict[str, Any]] = [
    {"round": k, "asked": 3, "valid": 3, "changed": True, "dropped": {}, "accuracy": 0.2 * k}
    for k in (1, 2, 4)
] + [
    {
        "round": 3,
        "asked": 3,
        "valid": 0,
        "changed": False,
        "dropped": {"client-x": "silent", "client-y": "silent", "client-z": "bad-signature"},
        "accuracy": 0.4,
    }
]


class Page(HTMLParser):
    """A page as a browser takes it: elements with attributes, and the text of each heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.text = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self._open in ("h1", "h2", "h3") and data.strip():
            self.headings[-1] = (self._open, self.headings[-1][1] + data)
        if self._open != "style":
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def attributes(self, name: str) -> list[str]:
        return [values[name] or "" for _, values in self.elements if name in values]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", Page(text).text)


@pytest.fixture(scope="module")
def run_page() -> str:
    return render_run(verdict(), SUMMARY, METRICS)


PAGES = {
    "verified": verdict(),
    "unauthenticated": verdict(authenticated=False),
    "simulated": verdict(clients=(client("a", 4, noise="simulated"),)),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_verdict_comes_first(name: str) -> None:
    page = Page(render_bundle(PAGES[name]))
    level, words = page.headings[0]
    assert level == "h1"
    assert words == (
        "Self-consistent, unauthenticated" if name == "unauthenticated" else "Verified"
    )
    body = page.text[page.text.index(words, page.text.index("Privacy audit of")) :]
    assert body.index(words) < body.index("ε = ")
    assert [level for level, _ in page.headings].count("h1") == 1


def test_without_outside_fingerprints_no_page_says_verified() -> None:
    text = squeezed(render_bundle(verdict(authenticated=False)))
    assert "nobody vouched for them" in text
    assert "Do not rely on it yet" in text
    assert not re.search(r"\bVerified\b", text)


def test_what_a_signer_wrote_is_text_and_never_markup() -> None:
    hostile = replace(
        verdict(
            limits=[HOSTILE],
            version=HOSTILE,
            accountants={HOSTILE: "1.0", "rdp (privet)": number(STATED["rdp (privet)"])},
        ),
        subjects={HOSTILE: HOSTILE},
    )
    html = render_bundle(hostile)
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not page.attributes("onerror")
    assert page.text.count('<script>alert("1")</script>') == 5  # shown, as it was written
    assert "\u202e" not in html  # nor may it turn the line around


def test_a_hostile_file_name_stays_text_in_the_checklist_too() -> None:
    hostile = replace(verdict(), subjects={HOSTILE: SHA}, checks=[HOSTILE])
    html = render_bundle(hostile, None, checklist(hostile, codes=[HOSTILE]))
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert page.text.count('<script>alert("1")</script>') == 5  # twice as a file, check, code
    assert "\u202e" not in html.split('id="checklist"')[1]


def test_a_talkative_signer_cannot_swell_the_page() -> None:
    long = "x" * 100_000
    talkative = replace(
        verdict(limits=[long] * 1000, version=long),
        subjects={f"{k}{long}": long for k in range(100)},
    )
    html = render_bundle(talkative, None, checklist(talkative, codes=[long] * 100))
    assert len(html.encode()) < 200_000


def test_a_malformed_claim_is_a_verdict_and_not_a_crash() -> None:
    with pytest.raises(TrustError, match="malformed"):
        render_bundle(verdict(accountants={"rdp (privet)": "six"}))


def test_the_page_fetches_nothing_and_runs_nothing(run_page: str) -> None:
    for html in (run_page, *map(render_bundle, PAGES.values())):
        page = Page(html)
        links = [value for name in ("src", "href", "xlink:href") for value in page.attributes(name)]
        assert links  # the plots' own parts
        assert all(link.startswith("#") for link in links)
        assert not {tag for tag, _ in page.elements} & {
            "script",
            "link",
            "iframe",
            "object",
            "form",
        }
        assert not [name for _, values in page.elements for name in values if name.startswith("on")]
        assert "http:" not in html
        assert "https:" not in html
        assert not re.search(r"url\((?!#)|@import|@font-face", html)


def test_a_page_is_small_also_for_many_clients_and_rounds() -> None:
    many = tuple(replace(client("a", 4), pseudonym=f"{k:032x}") for k in range(3000))
    lines = [{**METRICS[3], "round": k + 1} for k in range(5000)]
    html = render_run(verdict(clients=many), SUMMARY, lines)
    assert len(html.encode()) < 200_000
    assert "2900 more clients are not listed" in html
    assert "4900 more such rounds are not listed" in html


@pytest.mark.parametrize("noise", ["cryptographic", "simulated"])
def test_the_banner_is_there_if_and_only_if_noise_is_simulated(noise: str) -> None:
    text = squeezed(render_bundle(verdict(clients=(client("a", 4, noise=noise), CLIENTS[0]))))
    simulated = noise == "simulated"
    assert ("Protects nobody: made with repeatable noise" in text) is simulated
    assert ("What this plan would guarantee" in text) is simulated
    assert ("What the plan guarantees" in text) is not simulated
    if simulated:
        assert text.index("Protects nobody") < text.index("ε = ")


@pytest.mark.parametrize("claim", [True, None, "no"])
def test_only_a_plain_no_keeps_the_simulation_banner_away(claim: object) -> None:
    text = squeezed(render_bundle(verdict(simulated=claim)))
    assert "Protects nobody: made from data marked as simulated" in text
    assert "repeatable" not in text


def test_the_same_input_gives_the_same_bytes(run_page: str) -> None:
    assert render_run(verdict(), SUMMARY, METRICS) == run_page
    assert render_bundle(verdict()) == render_bundle(verdict())


def test_ids_are_unique_and_headings_in_order(run_page: str) -> None:
    page = Page(run_page)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(page.attributes("aria-labelledby")) <= set(ids)
    assert {href[1:] for href in page.attributes("href")} <= set(ids)
    levels = [int(level[1]) for level, _ in page.headings]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(values.get("scope") for tag, values in page.elements if tag == "th")
    assert all(
        values.get("aria-label") for _, values in page.elements if values.get("role") == "img"
    )
    assert ("html", {"lang": "en"}) in page.elements


def test_bounds_on_the_page_are_rounded_up() -> None:
    stated = STATED["pld (dp-accounting)"]
    shown = re.search(r"ε = ([0-9.]+)", squeezed(render_bundle(verdict())))
    assert shown is not None
    assert stated <= float(shown.group(1)) < stated + 0.01
    # Of the pair (6, 1e-5) alone: 1 - 0.98999 / e^6 = 0.99754606, (e^6 + 1e-5) / (1 + e^6) =
    # 0.99752738; in percent with one decimal.
    six = verdict(epsilon="6.0", accountants={"rdp (privet)": "7.0"})
    text = squeezed(render_bundle(six))
    assert "The stated pair alone would allow 99.8 % and 99.8 %." in text


def test_a_ledger_beyond_the_plan_is_pointed_out() -> None:
    beyond = verdict(clients=(client("a", 9), CLIENTS[0]))
    assert "More than the plan was spent" in squeezed(render_bundle(beyond))
    assert bundle_json(beyond)["within_plan"] is False
    assert "More than the plan was spent" not in squeezed(render_bundle(verdict()))


def test_the_page_says_what_was_computed_again_and_what_was_not() -> None:
    without = squeezed(render_bundle(verdict()))
    assert "not computed again by privacy loss distributions" in without
    assert without.count("not here") == 2  # both of dp-accounting's; our own is always computed
    again = recompute_all(verdict())
    with_ = squeezed(render_bundle(verdict(), again))
    assert "not here" not in with_
    assert "Computed again for this page" in with_


@pytest.mark.parametrize("order", [4, 8, 23])
def test_the_filter_s_order_is_found_from_what_it_charged(order: int) -> None:
    text = squeezed(render_bundle(verdict(clients=(client("a", 4, order=order),))))
    assert f"{order}, fixed by the owner" in text


def test_the_clients_are_listed_the_most_exposed_first() -> None:
    text = squeezed(render_bundle(verdict()))
    table = text.index("the most exposed first")
    rows = [text.index(name * 12, table) for name in "bca"]  # 4, 3 and 2 rounds
    assert rows == sorted(rows)


def test_what_the_page_does_not_show_is_always_said() -> None:
    text = squeezed(render_bundle(verdict(limits=[])))
    assert all(limit in text for limit in LIMITS)
    assert "It says nothing about accuracy." in squeezed(render_bundle(verdict()))
    assert "Who made this bundle" in squeezed(render_bundle(verdict(authenticated=False)))
    assert "That two parties agreed" not in text


def test_a_run_s_page_tells_how_good_the_model_is_and_that_nobody_signed_it(run_page: str) -> None:
    text = squeezed(run_page)
    assert "75.0 %accuracy of the global model" in text
    assert "74.0 %accuracy of the model as the device runs it" in text
    assert (
        "held-out private rows. That is for simulation only, and not part of what is signed" in text
    )
    assert "2.7 kB of weights" in text
    assert "silent × 2, bad-signature × 1" in text
    assert "unchanged: no quorum" in text
    assert "privet audit verify bundle --trust trust.json" in text
    assert "this run itself made, on one machine" in text


def test_a_run_s_page_names_neither_clients_nor_places(run_page: str) -> None:
    assert "/somewhere" not in run_page
    assert "client-x" not in run_page


def test_a_run_s_page_is_refused_if_its_headline_is_not_what_pld_gives() -> None:
    with pytest.raises(TrustError, match="headline"):
        render_run(verdict(epsilon="0.5"), SUMMARY, METRICS)


def test_a_run_without_a_test_set_claims_no_accuracy() -> None:
    summary = {
        **SUMMARY,
        "metrics": {**SUMMARY["metrics"], "accuracy": None, "test": None},
        "device": {**SUMMARY["device"], "accuracy": None},
    }
    text = squeezed(render_run(verdict(), summary, [{**METRICS[0], "accuracy": None}]))
    assert "Accuracy was not measured" in text
    assert "Accuracy after each round" not in text
    assert "No reply" not in text
    assert "every answer was valid" in text


def test_the_json_says_the_same_as_the_page() -> None:
    data = bundle_json(verdict(authenticated=False), Recomputed(STATED, 1.0))
    assert data["verdict"] == "self-consistent, unauthenticated"
    assert data["recomputed"]["epsilon_spent"] == 1.0
    assert data["meaning"]["whole_curve"]["false_positive_rate"] == 0.01
    assert data["ledgers"]["a" * 32] == {"head": HEAD, "entries": 5, "countersigned": 4}
    assert set(LIMITS) < set(data["limits"])


def test_every_ledger_s_head_is_named_and_the_most_exposed_in_full() -> None:
    text = squeezed(render_bundle(verdict()))
    assert text.count(f"{HEAD[:12]}…") == len(CLIENTS)
    assert HEAD in text


def test_the_checklist_shows_what_is_not_stated() -> None:
    items = checklist(verdict(), recompute_all(verdict()), codes=[SHA])
    html = render_bundle(verdict(), recompute_all(verdict()), items)
    text = squeezed(html)
    for item in items:
        assert item.title in text
        for answer in item.answers:
            assert answer.field in text
            assert answer.source in text
    missing = [a for item in items for a in item.answers if a.value is None]
    assert html.count('<b class="absent">not stated</b>') == len(missing) > 0
    assert len(html.encode()) < 200_000
    assert "What a privacy claim should state" not in squeezed(render_bundle(verdict()))
