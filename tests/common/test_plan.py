"""One plan, one digest: whatever two parties must agree on, said once, in one spelling."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from common.aggregation import AGGREGATIONS, SETTINGS, Aggregation
from common.canonical import encode
from common.central import Adaptive, Central
from common.compression import Compression
from common.config import Table, read_toml
from common.data.schema import Column, Schema
from common.errors import PlanError
from common.personal import Personal
from common.plan import Cohort, Optimizer, Plan, Privacy, Release, Stopping

TOML = """\
[plan]
name = "digits"
model = "softmax"
rounds = 5
[plan.schema]
kind = "image"
shape = [1, 8, 8]
upper = 16
classes = ["0", "1"]
[plan.cohort]
clients = 10
quorum = 5
[plan.optimizer]
learning_rate = 4.0
[plan.privacy]
trust = "local"
noise_multiplier = 1.5
delta = 1e-5
clipping_norm = 1.0
sampling_rate = 0.5
steps = 2
divisor = 72
[plan.release]
name = "digits"
"""
ADAM = TOML.replace("learning_rate = 4.0", 'learning_rate = 4.0\nmethod = "adam"')
STEP = TOML.replace(
    "learning_rate = 4.0", 'learning_rate = 4.0\nschedule = "step"\nfinal_learning_rate = 1'
)


@pytest.fixture
def read(tmp_path: Path):
    def from_text(text: str, *overrides: str) -> Plan:
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return Plan.read(read_toml(path, overrides).table("plan"))

    return from_text


@pytest.mark.parametrize(
    "optimizer",
    [
        "momentum = 0.9",
        'method = "sgd"\naveraging = 0.5\nproximal = 0.1',
        'method = "adam"',
        'method = "adam"\nmomentum = 0\nbeta1 = 0.5\nbeta2 = 0.25\nepsilon = 1e-3',
        'schedule = "constant"\nwarmup = 0.1',
        'schedule = "linear"',
        'schedule = "cosine"\nfinal_learning_rate = 0.01',
        'method = "adam"\nschedule = "step"\nfinal_learning_rate = 4.0\nstages = 2',
        'aggregation = "fedprox"\nproximal = 0.1',
        'aggregation = "fedavgm"\nserver_learning_rate = 0.5\nserver_momentum = 0.5',
        'aggregation = "fedadam"\nserver_beta1 = 0.5\nserver_beta2 = 0.25\nserver_tau = 0.1',
        'aggregation = "fedyogi"',
        'aggregation = "norm-bounded"\nnorm_bound = 3.5',
        'aggregation = "fedmedian"',
        'aggregation = "trimmed-mean"\ntrim = 0.25',
        'aggregation = "krum"\nmalicious = 1',
        'aggregation = "multi-krum"\nmalicious = 1\nselected = 2',
        'aggregation = "geometric-median"\nsmoothing = 1e-3\niterations = 5',
    ],
)
def test_toml_and_canonical_json_mean_the_same_plan(read, optimizer: str) -> None:
    plan = read(TOML.replace("learning_rate = 4.0", f"learning_rate = 4.0\n{optimizer}"))
    assert plan != read(TOML)
    again = Plan.decode(plan.encode())
    assert again == plan
    assert again.digest == plan.digest


def test_another_spelling_in_toml_is_the_same_plan(read) -> None:
    plan = read(TOML)
    written_otherwise = TOML.replace("1e-5", "0.00001").replace("4.0", "4").replace("72", "72.0")
    assert read(written_otherwise).digest == plan.digest


def test_every_field_of_the_encoding_is_pinned(read) -> None:
    plan = read(TOML)
    document = {
        "schema_version": 2,
        "name": "digits",
        "task": "classification",
        "model": "softmax",
        "rounds": 5,
        "schema": {
            "kind": "image",
            "shape": [1, 8, 8],
            "lower": "0.0",
            "upper": "16.0",
            "classes": ["0", "1"],
        },
        "cohort": {"clients": 10, "quorum": 5, "deadline": "3600.0"},
        "optimizer": {
            "learning_rate": "4.0",
            "method": "sgd",
            "momentum": "0.0",
            "schedule": "constant",
            "warmup": "0.0",
            "averaging": "0.0",
            "proximal": "0.0",
            "aggregation": "fedavg",
            "update_bound": "1000.0",
        },
        "privacy": {
            "trust": "local",
            "unit": "record",
            "adjacency": "add-or-remove-one",
            "sampling_rate": "0.5",
            "noise_multiplier": "1.5",
            "clipping_norm": "1.0",
            "steps": 2,
            "divisor": "72.0",
            "delta": "1e-05",
            "noise_draws": 1,
        },
        "release": {"name": "digits"},
    }
    assert plan.encode() == json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    sgd = document["optimizer"]
    adam = {"method": "adam", "beta1": "0.9", "beta2": "0.999", "epsilon": "1e-08"}
    assert read(ADAM).json()["optimizer"] == {**sgd, **adam}
    step = {"schedule": "step", "final_learning_rate": "1.0", "stages": 3}
    assert read(STEP).json()["optimizer"] == {**sgd, **step}
    assert read(STEP, "plan.optimizer.schedule=linear").json()["optimizer"] == {
        **sgd, "schedule": "linear", "final_learning_rate": "1.0"
    }  # fmt: skip


def test_an_override_means_the_same_as_the_file(read) -> None:
    assert read(TOML, "plan.rounds=9") == read(TOML.replace("rounds = 5", "rounds = 9"))
    with pytest.raises(PlanError, match="--set"):
        read(TOML, "plan.rounds=0")


def test_the_digest_changes_with_every_field(read) -> None:
    adaptive = Adaptive(0.5, 0.2, 5.0, 0.1, 4.0)
    plan = read(TOML)
    adam, step = read(ADAM).optimizer, read(STEP).optimizer
    table = Schema("table", (1,), ("a", "b"), (Column("x", 0.0, 1.0),), target="y")
    parts = [
        {"name": "other"},
        {"task": "other"},
        {"model": "mlp"},
        {"rounds": 6},
        *({"schema": replace(plan.schema, **c)} for c in (
            {"shape": (1, 8, 9)}, {"upper": 15.0}, {"lower": 1.0}, {"classes": ("1", "0")},
        )),
        {"schema": table},
        {"schema": replace(table, target="z")},
        {"schema": replace(table, columns=(Column("x", 0.0, 2.0),))},
        {"schema": replace(table, columns=(Column("w", 0.0, 1.0),))},
        *({"cohort": replace(plan.cohort, **c)} for c in (
            {"clients": 11}, {"quorum": 4}, {"deadline": 1.0}, {"over_selection": 1},
        )),
        *({"optimizer": replace(plan.optimizer, **c)} for c in (
            {"learning_rate": 1.0}, {"momentum": 0.5}, {"update_bound": 1.0},
            {"aggregation": Aggregation("fedmedian")},
            {"method": "adam"}, {"schedule": "linear"}, {"schedule": "step"}, {"warmup": 0.5},
            {"averaging": 0.5}, {"proximal": 0.5},
        )),
        *({"optimizer": replace(adam, **c)} for c in (
            {"beta1": 0.5}, {"beta2": 0.5}, {"epsilon": 0.5},
        )),
        *({"optimizer": replace(step, **c)} for c in (
            {"final_learning_rate": 0.5}, {"stages": 2},
        )),
        *({"optimizer": replace(plan.optimizer, aggregation=rule)} for rule in (
            Aggregation("fedavgm"), Aggregation("fedavgm", server_momentum=0.5),
            Aggregation("fedadam"), Aggregation("fedyogi"),
            Aggregation("fedadam", server_beta1=0.5), Aggregation("fedadam", server_beta2=0.5),
            Aggregation("fedadam", server_tau=0.5), Aggregation("fedadam", server_learning_rate=2),
            Aggregation("trimmed-mean"), Aggregation("trimmed-mean", trim=0.25),
            Aggregation("krum"), Aggregation("krum", malicious=2),
            Aggregation("multi-krum"), Aggregation("multi-krum", selected=2),
            Aggregation("norm-bounded"), Aggregation("norm-bounded", norm_bound=2.0),
            Aggregation("geometric-median"), Aggregation("geometric-median", smoothing=0.5),
            Aggregation("geometric-median", iterations=3),
        )),
        *({"privacy": replace(plan.privacy, **c)} for c in (
            {"trust": "central"}, {"sampling_rate": 0.4}, {"noise_multiplier": 1.6},
            {"clipping_norm": 2.0}, {"steps": 3}, {"divisor": 71.0}, {"delta": 1e-6},
            {"noise_draws": 4},
        )),
        {"release": Release("other")},
        *({"stopping": s} for s in (Stopping(3), Stopping(4), Stopping(3, 0.01))),
        *({"personal": Personal(p)} for p in (("a",), ("b",))),
        *({"compression": Compression(*c)} for c in (
            ("fp16",), ("int8",), ("top-k", 0.01), ("top-k", 0.02),
        )),
        *({"central": c} for c in (
            Central(1, 1.0), Central(2, 1.0), Central(1, 0.5), Central(1, 1.0, adaptive),
            *(Central(1, 1.0, replace(adaptive, **c)) for c in (
                {"target_quantile": 0.4}, {"learning_rate": 0.3}, {"count_noise": 6.0},
                {"least_norm": 0.2}, {"greatest_norm": 8.0},
            )),
        )),
    ]  # fmt: skip
    digests = {plan.digest, *(replace(plan, **part).digest for part in parts)}
    assert len(digests) == len(parts) + 1
    # Every field of every part is in the list above.
    for kind, count in (
        (Plan, 13),
        (Cohort, 4),
        (Optimizer, 14),
        (Privacy, 8),
        (Release, 1),
        (Stopping, 2),
        (Compression, 2),
        (Personal, 1),
        (Central, 3),
        (Adaptive, 5),
    ):
        assert len(kind.__dataclass_fields__) == count


def test_the_whole_plans_event_has_every_step_of_every_round(read) -> None:
    event = read(TOML).event()
    assert (event.sampling_rate, event.noise_multiplier, event.steps) == (0.5, 1.5, 10)


def test_how_a_noise_value_is_made_up_costs_no_epsilon(read) -> None:
    one, four = read(TOML), read(TOML, "plan.privacy.noise_draws=4")
    assert four.privacy.noise_draws == 4
    assert one.event() == four.event()
    target = TOML.replace("noise_multiplier = 1.5", "epsilon = 6.0")
    calibrated = read(target, "plan.privacy.noise_draws=4").privacy
    assert calibrated.noise_multiplier == read(target).privacy.noise_multiplier


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table", ["plan", "plan.schema", "plan.cohort", "plan.optimizer", "plan.privacy"]
    + ["plan.release"],
)  # fmt: skip
def test_an_unknown_key_in_any_table_is_named_with_its_line(read, table: str) -> None:
    text = TOML.replace(f"[{table}]\n", f"[{table}]\nseed = 1\n")
    line = text.splitlines().index(f"[{table}]") + 2
    with pytest.raises(PlanError, match=rf"plan\.toml, line {line}: unknown key 'seed'"):
        read(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "digits"', 'name = "../digits"'),
        ('name = "digits"', 'name = ""'),
        ('model = "softmax"', "model = 1"),
        ('model = "softmax"', 'model = "os:system"'),
        ("rounds = 5", "rounds = 0"),
        ("rounds = 5", "rounds = 5.0"),
        ("rounds = 5", "rounds = true"),
        ("rounds = 5", "rounds = 10000000"),
        ("rounds = 5", "rounds = 1" + "0" * 400),
        ("shape = [1, 8, 8]", "shape = [8, 8]"),
        ("shape = [1, 8, 8]", "shape = [1, 0, 8]"),
        ("shape = [1, 8, 8]", "shape = [4096, 4096, 4096]"),
        ("upper = 16", "upper = 0"),
        ("upper = 16", "upper = nan"),
        ("upper = 16", "upper = 1e-50"),
        ("upper = 16", "upper = 1e300"),
        ('classes = ["0", "1"]', 'classes = ["0"]'),
        ('classes = ["0", "1"]', 'classes = ["0", "0"]'),
        ("clients = 10", "clients = 0"),
        ("clients = 10", "clients = 65537"),  # more than the exact mean can hold
        ("quorum = 5", "quorum = 11"),
        ("quorum = 5", "quorum = 0"),
        ("quorum = 5", "deadline = 0"),
        ("learning_rate = 4.0", "learning_rate = 0"),
        ("learning_rate = 4.0", "learning_rate = -1.0"),
        ("learning_rate = 4.0", "learning_rate = inf"),
        ("learning_rate = 4.0", 'learning_rate = "4.0"'),
        ("learning_rate = 4.0", "learning_rate = 4.0\nmomentum = 1.0"),
        ("learning_rate = 4.0", 'learning_rate = 4.0\naggregation = "median"'),
        ("learning_rate = 4.0", "learning_rate = 4.0\nupdate_bound = 2048"),
        *(("learning_rate = 4.0", f"learning_rate = 4.0\n{line}") for line in (
            'method = "rmsprop"', 'schedule = "exponential"', "averaging = 1", "averaging = -0.1",
            "proximal = -0.1", "proximal = inf", 'aggregation = "mean"',
            'aggregation = "fedavgm"\nserver_momentum = 1', 'aggregation = "krum"\nmalicious = 0',
            'aggregation = "fedavgm"\nserver_momentum = 0', 'aggregation = "krum"\nmalicious = 1.0',
            'aggregation = "fedadam"\nserver_tau = 0', 'aggregation = "fedyogi"\nserver_beta2 = 1',
            'aggregation = "fedadam"\nserver_learning_rate = 0',
            'aggregation = "trimmed-mean"\ntrim = 0.5', 'aggregation = "trimmed-mean"\ntrim = 0',
            'aggregation = "norm-bounded"\nnorm_bound = 0',
            'aggregation = "norm-bounded"\nnorm_bound = inf',
            'aggregation = "multi-krum"\nselected = 0',
            'aggregation = "geometric-median"\nsmoothing = 0',
            'aggregation = "geometric-median"\niterations = 0', "warmup = 1", "warmup = -0.1",
            # No effect with sgd and a constant rate, whatever the value.
            "beta1 = 0.9", "beta2 = 0.999", "epsilon = 1e-8", "final_learning_rate = 0",
            "final_learning_rate = 4.0", "stages = 3",
            'method = "adam"\nmomentum = 0.9', 'method = "adam"\nbeta1 = 1',
            'method = "adam"\nbeta2 = 1', 'method = "adam"\nbeta2 = -0.1',
            'method = "adam"\nepsilon = 0', 'method = "adam"\nepsilon = 3.0',
            'schedule = "linear"\nstages = 3', 'schedule = "cosine"\nstages = 3',
            'schedule = "cosine"\nfinal_learning_rate = 4.01',
            'schedule = "linear"\nfinal_learning_rate = -1',
            'schedule = "step"\nfinal_learning_rate = 0',
            'final_learning_rate = 1\nschedule = "step"\nstages = 1',
        )),
        ('trust = "local"', 'trust = "local"\nnoise_draws = 0'),
        ('trust = "local"', 'trust = "local"\nnoise_draws = 2'),
        ('trust = "local"', 'trust = "local"\nnoise_draws = 4.0'),
        ('trust = "local"', 'trust = "nobody"'),
        ('trust = "local"', 'trust = "local"\nunit = "client"'),
        ('trust = "local"', 'trust = "local"\nadjacency = "replace-one"'),
        ("noise_multiplier = 1.5", "noise_multiplier = 0"),
        ("noise_multiplier = 1.5", "noise_multiplier = -1"),
        ("noise_multiplier = 1.5", "noise_multiplier = nan"),
        ("noise_multiplier = 1.5", "noise_multiplier = 1" + "0" * 400),
        ("delta = 1e-5", "delta = 0"),
        ("delta = 1e-5", "delta = 0.1"),
        ("clipping_norm = 1.0", "clipping_norm = 0"),
        ("sampling_rate = 0.5", "sampling_rate = 0"),
        ("sampling_rate = 0.5", "sampling_rate = 1.01"),
        ("steps = 2", "steps = 0"),
        ("divisor = 72", "divisor = 0"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_named_with_its_line(read, old: str, new: str) -> None:
    text = TOML.replace(old, new, 1)
    line = text[: text.index(new)].count("\n") + 1 + new.count("\n")
    with pytest.raises(PlanError, match=rf"plan\.toml, line {line}: "):
        read(text)


@pytest.mark.parametrize(
    "line",
    [line for line in TOML.splitlines() if "=" in line and not line.startswith("quorum")],
)
def test_a_missing_key_is_named_with_file_and_table(read, line: str) -> None:
    # Defaults exist only where no promise depends on them.
    text = TOML.replace(line + "\n", "", 1)
    with pytest.raises(PlanError, match=r"plan\.toml, line \d+: ") as caught:
        read(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "said", "advice"),
    [
        ('method = "adam"\nmomentum = 0.9', "momentum = 0.9 has no effect", "beta1"),
        ("beta1 = 0.9", 'beta1 has no effect with method = "sgd"', "leave beta1 out"),
        ("epsilon = 3.0", 'epsilon has no effect with method = "sgd"', "[plan.privacy]"),
        ("stages = 2", 'stages has no effect with schedule = "constant"', "leave stages out"),
        ('schedule = "step"', "needs a final_learning_rate above 0", "last stage"),
        ('schedule = "cosin"', "schedule = 'cosin' is not known", "did you mean 'cosine'"),
    ],
)
def test_a_setting_without_effect_is_refused_with_advice(
    read, line: str, said: str, advice: str
) -> None:
    with pytest.raises(PlanError) as caught:
        read(TOML.replace("learning_rate = 4.0", f"learning_rate = 4.0\n{line}"))
    assert said in str(caught.value)
    assert advice in caught.value.hint


def with_aggregation(name: str, settings: str = "", quorum: int = 5) -> str:
    text = TOML.replace("quorum = 5", f"quorum = {quorum}")
    lines = f'learning_rate = 4.0\naggregation = "{name}"\n{settings}'
    return text.replace("learning_rate = 4.0", lines)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_setting_of_another_aggregation_is_refused(read, name: str) -> None:
    every = {key for keys in SETTINGS.values() for key in keys}
    assert every | {"name"} == set(Aggregation.__dataclass_fields__)
    proximal = "proximal = 0.1\n" if name == "fedprox" else ""
    for key in every - set(SETTINGS[name]):
        with pytest.raises(PlanError, match=rf'{key} has no effect with aggregation = "{name}"'):
            read(with_aggregation(name, f"{proximal}{key} = 1"))
    plan = read(with_aggregation(name, proximal))
    assert set(plan.optimizer.aggregation.json()) == {"aggregation", *SETTINGS[name]}
    for key in SETTINGS[name]:  # and a signed plan leaves none of them to a default
        changed = plan.json()
        del changed["optimizer"][key]
        with pytest.raises(PlanError):
            Plan.decode(encode(changed))


# Of n replies: Krum needs 2 f + 2 < n and Multi-Krum's m <= n - f - 2 besides (Blanchard et al.
# 2017); a trimmed mean needs one value to cut off at either end; a median needs more than two.
LEAST = [
    ("krum", "malicious = 1", 5),
    ("krum", "malicious = 2", 7),
    ("multi-krum", "malicious = 1\nselected = 2", 5),
    ("multi-krum", "malicious = 1\nselected = 6", 9),
    ("trimmed-mean", "trim = 0.2", 5),
    ("trimmed-mean", "trim = 0.25", 4),
    ("trimmed-mean", "trim = 0.49", 3),
    ("fedmedian", "", 3),
    ("geometric-median", "", 3),
    ("fedavg", "", 1),
    ("norm-bounded", "", 1),
]


@pytest.mark.parametrize(("name", "settings", "least"), LEAST)
def test_an_aggregation_is_refused_where_the_quorum_does_not_guarantee_it(
    read, name: str, settings: str, least: int
) -> None:
    assert read(with_aggregation(name, settings, least)).optimizer.aggregation.least == least
    if least > 1:
        with pytest.raises(PlanError, match=rf'"{name}".* needs {least} valid replies') as caught:
            read(with_aggregation(name, settings, least - 1))
        assert f"quorum = {least - 1}" in caught.value.message
        assert f"quorum = {least} or more" in caught.value.hint
        assert "line" in caught.value.message


def test_a_trimmed_mean_always_leaves_a_value_and_never_trims_none() -> None:
    for trim in (0.001, 0.1, 0.2, 0.29, 0.3, 1 / 3, 0.49):
        rule = Aggregation("trimmed-mean", trim=trim)
        for replies in range(rule.least, rule.least + 2000):
            assert 1 <= rule.trimmed(replies) < replies / 2


def test_fedprox_without_its_proximal_term_is_refused(read) -> None:
    with pytest.raises(PlanError, match="without proximal") as caught:
        read(with_aggregation("fedprox"))
    assert "proximal = mu" in caught.value.hint


def test_a_trust_mode_that_is_not_built_is_refused_and_says_so(read) -> None:
    with pytest.raises(PlanError, match="not built yet") as caught:
        read(TOML.replace('"local"', '"distributed"'))
    assert "local" in caught.value.hint


def test_epsilon_and_noise_are_never_both_nor_neither(read) -> None:
    with pytest.raises(PlanError, match=r"line \d+: .*not both"):
        read(TOML.replace("delta", "epsilon = 3.0\ndelta"))
    with pytest.raises(PlanError, match=r"line \d+: give either epsilon or noise_multiplier"):
        read(TOML.replace("noise_multiplier = 1.5\n", ""))


def test_more_steps_than_can_be_accounted_for_are_a_plan_error(read) -> None:
    text = TOML.replace("rounds = 5", "rounds = 1000000").replace("steps = 2", "steps = 1000000")
    with pytest.raises(PlanError, match=r"line \d+: 1000000 steps in each of 1000000 rounds"):
        read(text)


def test_a_target_epsilon_becomes_a_noise_multiplier_in_the_plan(read) -> None:
    plan = read(TOML.replace("noise_multiplier = 1.5", "epsilon = 6.0"))
    assert b'"epsilon"' not in plan.encode()
    # The exact Gaussian at rate 1 and the same steps needs more noise; half of it is too little.
    assert 1.0 < plan.privacy.noise_multiplier < 2.5
    assert Plan.decode(plan.encode()) == plan


@pytest.mark.parametrize("value", ["0.001", "1000", "nan", "true"])
def test_an_impossible_target_is_refused(read, value: str) -> None:
    with pytest.raises(PlanError, match="epsilon"):
        read(TOML.replace("noise_multiplier = 1.5", f"epsilon = {value}"))


# -- canonical JSON from anywhere ------------------------------------------------------------------


def document(text: str = TOML) -> dict:
    return Plan.read(Table(tomllib.loads(text)["plan"])).json()


def paths(value: dict, prefix=()):
    for key, item in value.items():
        yield (*prefix, key)
        if isinstance(item, dict):
            yield from paths(item, (*prefix, key))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        *((TOML, path) for path in paths(document())),
        *((ADAM, ("optimizer", key)) for key in ("beta1", "beta2", "epsilon")),
        *((STEP, ("optimizer", key)) for key in ("final_learning_rate", "stages")),
    ],
)
def test_a_signed_plan_leaves_nothing_to_a_default(text: str, path: tuple[str, ...]) -> None:
    changed = document(text)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(PlanError):
        Plan.decode(encode(changed))


def test_a_signed_plan_with_one_key_more_is_refused() -> None:
    for path in [("x",), ("privacy", "x"), ("schema", "x"), ("cohort", "x"), ("release", "x")]:
        changed = document()
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = 1
        with pytest.raises(PlanError, match="unknown key"):
            Plan.decode(encode(changed))


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 1},
        {"schema_version": 3},
        {"schema_version": True},
        {"rounds": "5"},
        {"privacy": {**document()["privacy"], "delta": "0.00001"}},
        {"privacy": {**document()["privacy"], "delta": 1}},
        {"privacy": {**document()["privacy"], "divisor": 72}},
        {"privacy": {**document()["privacy"], "unit": "client"}},
        {"privacy": {**document()["privacy"], "noise_draws": "1"}},
        {"optimizer": {**document()["optimizer"], "beta1": "0.9"}},
        {"optimizer": {**document()["optimizer"], "stages": 3}},
    ],
)
def test_another_spelling_of_a_signed_plan_is_refused(changes) -> None:
    with pytest.raises(PlanError):
        Plan.decode(encode({**document(), **changes}))


def test_a_signed_plan_cannot_ask_its_reader_to_calibrate() -> None:
    privacy = {k: v for k, v in document()["privacy"].items() if k != "noise_multiplier"}
    hostile = {**document(), "privacy": {**privacy, "epsilon": "3.0"}}
    with pytest.raises(PlanError, match="states its noise"):
        Plan.decode(encode(hostile))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"name": "x"}', b"{" * 9999])
def test_bytes_that_are_no_plan_are_a_plan_error(data: bytes) -> None:
    with pytest.raises(PlanError):
        Plan.decode(data)


def test_what_a_plan_does_not_ask_for_is_not_in_its_json(
    read,
) -> None:
    document = read(TOML).json()
    assert "stopping" not in document
    assert "over_selection" not in document["cohort"]
    asking = read(
        TOML.replace("quorum = 5", "quorum = 5\nover_selection = 2")
        + "\n[plan.stopping]\npatience = 3\nleast_improvement = 0.01\n"
    )
    assert asking.cohort.asked == 12
    assert asking.json()["stopping"] == {"patience": 3, "least_improvement": "0.01"}
    assert Plan.decode(asking.encode()) == asking


@pytest.mark.parametrize(
    ("improvements", "waited"),
    [
        ([0.5], 0),
        ([0.5, 0.5], 1),
        ([0.5, 0.52], 0),
        ([0.5, 0.505, 0.509, 0.511], 0),
        ([0.5, 0.505, 0.509], 2),
        ([0.5, 0.6, 0.2, 0.3], 2),
    ],
)
def test_patience_counts_rounds_that_were_not_better_by_enough(
    improvements: list[float], waited: int
) -> None:
    best, count = None, 0
    for score in improvements:
        best, count = Stopping(5, 0.01).judge(best, count, score)
    assert count == waited
