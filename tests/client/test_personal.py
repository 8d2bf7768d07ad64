"""Personal layers stay: trained in one mechanism with the others, kept by the ledger, unsent."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from client.home import Home
from client.personal import part, personal_model
from client.records import engine_of, records_for_round
from client.rounds import Answer, Client
from client.training.conformance import conformance, engine_subject
from client.training.conformance.subject import Replay, Subject
from client.training.engine import Engine
from common.coding import Codec
from common.compression import Compression
from common.errors import InputError, PlanError, Refusal
from common.personal import Personal, check_layers, shared, whole
from common.plan import Plan, Stopping
from common.privacy.noise import Stream
from common.wire import Arrays, digest_arrays
from tests.world import (
    COORDINATOR,
    PLAN,
    POLICY,
    RUN,
    SHAPES,
    ask,
    killed_at,
    make_client,
    make_home,
    model,
)

LONG = replace(PLAN, rounds=20, privacy=replace(PLAN.privacy, noise_multiplier=30.0))
OWN = replace(LONG, personal=Personal(("bias",)))
TOGETHER = {"weight": model(0.25)["weight"]}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "privet.client")


def serve(client: Client, round_: int, plan: Plan = OWN, **changes: Any) -> Answer:
    request = ask(round_, TOGETHER, **{"plan": plan.digest, "nonce": round_, **changes})
    return client.answer(request.sign(COORDINATOR), dict(TOGETHER))


def own_layer(home: Home) -> np.ndarray:
    return personal_model(home, OWN).arrays["bias"]


# -- the plan's table ----------------------------------------------------------------------------


def test_a_layer_is_its_own_name_and_all_below_it() -> None:
    one = Personal(("block.2", "head"))
    names = ("head", "head.weight", "header.weight", "block.2.bias", "block.20.bias", "x.head")
    assert [one.keeps(name) for name in names] == [True, True, False, True, False, False]
    assert shared(None, SHAPES) == SHAPES
    assert whole(one, {"head": 1, "x": 2}, {"x": 3}) == {"head": 1, "x": 3}


def test_a_plan_with_personal_layers_reads_back_and_has_a_digest_of_its_own() -> None:
    assert Plan.decode(OWN.encode()) == OWN
    assert OWN.json()["personal"] == {"layers": ["bias"]}
    assert len({LONG.digest, OWN.digest, replace(OWN, personal=Personal(("weight",))).digest}) == 3
    assert "personal" not in PLAN.json()


@pytest.mark.parametrize(
    "layers", [[], ["b", "a"], ["a", "a"], [""], [1], "bias", ["x"] * 65], ids=str
)
def test_layers_that_name_nothing_or_in_no_order_are_a_plan_error(layers: object) -> None:
    from common.canonical import encode

    with pytest.raises(PlanError):
        Plan.decode(encode({**PLAN.json(), "personal": {"layers": layers}}))


def test_a_plan_that_stops_by_the_score_of_a_global_model_cannot_have_personal_layers() -> None:
    with pytest.raises(PlanError, match="stopping"):
        Plan.decode(replace(OWN, stopping=Stopping(2)).encode())


@pytest.mark.parametrize(
    ("layers", "code"),
    [(("head",), "no-such-layer"), (("bias", "weight"), "nothing-shared")],
)
def test_layers_that_do_not_fit_the_model_are_refused_at_approval(
    tmp_path: Path, layers: tuple[str, ...], code: str
) -> None:
    with pytest.raises(PlanError) as caught:
        make_home(tmp_path, plan=replace(LONG, personal=Personal(layers)))
    assert caught.value.code == code
    with pytest.raises(PlanError):
        check_layers(Personal(layers), SHAPES)


# -- a round -------------------------------------------------------------------------------------


def test_both_parts_are_one_training_and_only_the_shared_one_leaves(tmp_path: Path) -> None:
    """By hand: the engine over the whole model, its result cut in two, round after round."""
    home = make_home(tmp_path, plan=OWN)
    records, engine = records_for_round(home, OWN), engine_of(home, OWN)
    bias = np.zeros(2, np.float32)  # the model's initial one
    for round_ in (1, 2, 3):
        stream = Stream.simulated(7, OWN.digest, "clinic-a", round_)
        start = {"weight": TOGETHER["weight"], "bias": bias}
        both = engine.round(start, records.features, records.labels, stream, round_)
        answer = serve(Client(home), round_)
        assert set(answer.update) == {"weight"}
        assert digest_arrays(answer.update) == digest_arrays({"weight": both["weight"]})
        bias = bias + both["bias"]
        assert np.array_equal(own_layer(home), bias)
    assert bias.all()


def test_a_request_that_brings_the_personal_layer_is_refused(tmp_path: Path) -> None:
    client = make_client(tmp_path, plan=OWN)
    request = ask(1, model(), plan=OWN.digest)
    with pytest.raises(Refusal) as caught:
        client.answer(request.sign(COORDINATOR), model())
    assert caught.value.code == "wrong-model"


def test_what_is_charged_is_what_the_plan_without_personal_layers_costs(tmp_path: Path) -> None:
    client = make_client(tmp_path, plan=OWN)
    serve(client, 1)
    assert client.home.open_ledger().spent() == [LONG.privacy.event()]


@pytest.mark.parametrize(
    "plan",
    [
        OWN,
        pytest.param(replace(OWN, compression=Compression("top-k", 0.3)), marks=pytest.mark.slow),
    ],
    ids=["plain", "top-k"],
)
def test_killed_at_every_step_the_personal_layer_and_the_reply_stay_one(
    tmp_path: Path, plan: Plan
) -> None:
    def state(home: Home) -> str:
        (file,) = home.kept.iterdir()
        return file.read_bytes().hex()

    twin = make_client(tmp_path / "twin", plan=plan)
    expected = [serve(twin, round_, plan) for round_ in (1, 2, 3)]
    step, died = 0, True
    while died:
        step += 1
        home = make_home(tmp_path / str(step), plan=plan)
        serve(Client(home), 1, plan)
        died = killed_at(step, lambda home=home: serve(Client(home), 2, plan))  # type: ignore[misc]
        for round_, wanted in ((2, expected[1]), (2, expected[1]), (3, expected[2])):
            got = serve(Client(home), round_, plan).update
            assert _digest(got) == _digest(wanted.update)
        assert state(home) == state(twin.home)
    assert step == 18 + 1


def _digest(update: Any) -> object:
    return update if isinstance(update, bytes) else digest_arrays(update)


def test_a_forfeited_round_leaves_the_personal_layer_as_it_was(tmp_path: Path) -> None:
    home = make_home(
        tmp_path, plan=OWN, policy=replace(POLICY, simulated=False, spare_rounds=9), seed=None
    )
    serve(Client(home), 1)
    before = own_layer(home)
    assert killed_at(11, lambda: serve(Client(home), 2))
    with pytest.raises(Refusal) as caught:
        serve(Client(home), 2)
    assert caught.value.code == "forfeited"
    assert np.array_equal(own_layer(home), before)
    serve(Client(home), 3)
    assert not np.array_equal(own_layer(home), before)


def test_coding_is_of_the_shared_part_alone(tmp_path: Path) -> None:
    plan = replace(OWN, compression=Compression("fp16"))
    codec = Codec(Compression("fp16"), {"weight": (2, 2)}, 1000.0)
    update = serve(make_client(tmp_path, plan=plan), 1, plan).update
    assert isinstance(update, bytes)
    assert len(update) == codec.size == 8


def test_values_that_could_not_be_trained_from_are_not_kept() -> None:
    start = {"weight": TOGETHER["weight"], "bias": np.zeros(2, np.float32)}
    for bad in (np.nan, np.inf, 2e4):
        update = {"weight": TOGETHER["weight"], "bias": np.array([0, bad], np.float32)}
        leaves, kept = part(OWN, start, update)
        assert set(leaves) == {"weight"}
        assert not kept["personal/bias"].any()


# -- the client's own model ----------------------------------------------------------------------


def test_a_personal_model_is_of_the_run_that_is_asked_for(tmp_path: Path) -> None:
    home = make_home(tmp_path, plan=OWN)
    client, other = Client(home), "f" * 32
    with pytest.raises(InputError) as caught:
        personal_model(home, OWN)
    assert caught.value.code == "no-personal-model"
    serve(client, 1)
    serve(client, 2)
    serve(client, 1, run=other, nonce=9)
    first, second = personal_model(home, OWN, RUN), personal_model(home, OWN)
    assert (first.rounds, second.rounds, second.run) == (2, 1, other)
    assert not np.array_equal(first.arrays["bias"], second.arrays["bias"])
    assert np.array_equal(first.arrays["weight"], TOGETHER["weight"])
    assert first.layers == ("bias",)
    with pytest.raises(InputError) as caught:
        personal_model(home, OWN, "e" * 32)
    assert caught.value.code == "no-personal-model"
    with pytest.raises(InputError) as caught:
        personal_model(home, LONG)
    assert caught.value.code == "not-personal"


# -- the mechanism -------------------------------------------------------------------------------

HEAD = replace(PLAN, personal=Personal(("head",)))


def network() -> nn.Module:
    layers = OrderedDict(body=nn.Linear(5, 4), tanh=nn.Tanh(), head=nn.Linear(4, 3))
    return nn.Sequential(layers)


def twin(stream: Stream) -> Stream:
    """The same draws once more, where a check has them repeated; fresh ones elsewhere."""
    if isinstance(stream, Replay):
        return Replay(stream._seed, present=stream._present, absent=stream._absent)
    return Stream.cryptographic()


def examined(privacy_of_head: Any = None) -> Subject:
    """A client's training of both parts; with a planted bug, another mechanism for the head."""
    right = engine_subject(network, (5,), 3)

    def train(privacy: Any, optimizer: Any, start: Arrays, *rest: Any) -> Arrays:
        features, labels, stream = rest
        both = right.train(privacy, optimizer, start, features, labels, stream)
        if privacy_of_head:
            other = Engine(network(), privacy_of_head(privacy), optimizer)
            again = other.round(start, features, labels, twin(stream))
            both = shared(HEAD.personal, both) | {
                name: value for name, value in again.items() if name.startswith("head")
            }
        leaves, kept = part(HEAD, start, both)
        stays = {n: kept[f"personal/{n}"] - start[n] for n in both if n not in leaves}
        return leaves | stays

    return replace(right, train=train)


def test_shared_and_personal_layers_together_are_the_declared_mechanism() -> None:
    only = ["noise-variance", "noise-with-records", "noise-tensors", "sensitivity", "size"]
    findings = conformance(examined(), only=only)
    assert [f.message for f in findings if not f.ok] == []


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (lambda p: replace(p, noise_multiplier=1e-6), "noise-tensors"),
        (
            lambda p: replace(
                p, clipping_norm=100 * p.clipping_norm, noise_multiplier=p.noise_multiplier / 100
            ),
            "sensitivity",
        ),
    ],
    ids=["head-without-noise", "head-outside-the-clip"],
)
def test_personal_layers_outside_of_the_mechanism_are_found(bug: Any, check: str) -> None:
    findings = conformance(examined(bug), only=[check])
    assert any(not finding.ok for finding in findings)
    # It is the bug that is found, and not how it was planted.
    unchanged = conformance(examined(lambda privacy: privacy), only=[check])
    assert [f.message for f in unchanged if not f.ok] == []
