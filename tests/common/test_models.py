"""Claims about the registry of models, preprocessing, fixed features and parameters."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.data.schema import Column, Schema
from common.errors import InputError, PlanError
from common.models import preprocess, registry
from common.models.model import Model
from common.models.networks import load_parameters, parameters_of
from common.models.preprocess import Preprocess, ServingModel, fixed_features
from common.models.registry import build

TEN = tuple("0123456789")
DIGITS = Schema("image", (1, 8, 8), TEN, upper=16.0)
FASHION = Schema("image", (1, 28, 28), TEN, upper=255.0)
COLOUR = Schema("image", (3, 12, 16), ("cat", "dog"), upper=255.0)
TABLE = Schema(
    "table",
    (2,),
    ("no", "yes"),
    (Column("age", 0.0, 120.0), Column("change", -5.0, 5.0)),
    target="ill",
)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIVET_CACHE_HOME", str(tmp_path))
    return tmp_path / "features"


@pytest.fixture
def user_code(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module as a user would install it, importable as ``their_models``."""
    module = types.ModuleType("their_models")
    monkeypatch.setitem(sys.modules, "their_models", module)
    return module


def records(schema: Schema, count: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    lower, upper = (np.array(bound).reshape(schema.shape) for bound in schema.bounds())
    return random.uniform(lower, upper, (count, *schema.shape)).astype(np.float32)


# -- built-in models -----------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [DIGITS, FASHION, COLOUR], ids=["8x8", "28x28", "3x12x16"])
@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_built_in_model_maps_images_to_one_logit_per_class(name: str, schema: Schema) -> None:
    model = build(name, schema, seed=1)
    logits = model.network(model.features(torch.rand(5, *schema.shape)))
    assert logits.shape == (5, len(schema.classes))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("softmax", 784 * 10 + 10),
        ("mlp", 784 * 32 + 32 + 32 * 10 + 10),
        ("cnn", (25 * 16 + 16) + (16 * 9 * 32 + 32) + (32 * 7 * 7 * 10 + 10)),
        ("scattering", 81 * 7 * 7 * 10 + 10),
    ],
)
def test_built_in_models_have_the_sizes_that_their_layers_add_up_to(name: str, count: int) -> None:
    parameters = parameters_of(build(name, FASHION, seed=1).network)
    assert sum(array.size for array in parameters.values()) == count


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_initial_parameters_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    one = parameters_of(build(name, DIGITS, seed=1).network)
    torch.manual_seed(6)
    same = parameters_of(build(name, DIGITS, seed=1).network)
    other = parameters_of(build(name, DIGITS, seed=2).network)
    assert list(one) == list(same)
    assert all((one[key] == same[key]).all() for key in one)
    linear = name in ("softmax", "scattering")  # they start at zero, whatever the seed
    assert all((one[key] == other[key]).all() for key in one) == linear
    assert all(not array.any() for array in one.values()) == linear


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_building_a_model_leaves_the_global_random_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    build(name, DIGITS, seed=1)
    assert (torch.get_rng_state() == before).all()


def test_tables_train_softmax_and_mlp_but_not_image_models() -> None:
    for name in ("softmax", "mlp"):
        model = build(name, TABLE, seed=1)
        assert model.network(model.features(torch.zeros(4, 2))).shape == (4, 2)
    for name in ("cnn", "scattering"):
        with pytest.raises(PlanError, match="reads images") as caught:
            build(name, TABLE, seed=1)
        assert "softmax" in caught.value.hint


@pytest.mark.parametrize("name", ["cnn", "scattering"])
def test_an_image_of_under_eight_pixels_a_side_is_refused(name: str) -> None:
    small = Schema("image", (1, 28, 7), TEN)
    with pytest.raises(PlanError, match="28 x 7"):
        build(name, small, seed=1)


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(PlanError, match="no model 'scatering'") as caught:
        build("scatering", FASHION, seed=1)
    assert "did you mean 'scattering'?" in caught.value.hint


def test_importing_the_registry_imports_no_torch() -> None:
    code = (
        "import sys, common.models.registry, common.data.binding; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- a user's own models -------------------------------------------------------------------------

BOUND = {"mynet": "their_models:make"}


def test_a_user_adds_a_model_by_naming_a_function(user_code: types.ModuleType) -> None:
    user_code.make = lambda schema: nn.Sequential(nn.Flatten(), nn.Linear(schema.size, 10))  # type: ignore[attr-defined]
    one = parameters_of(build("mynet", DIGITS, seed=1, bindings=BOUND).network)
    same = parameters_of(build("mynet", DIGITS, seed=1, bindings=BOUND).network)
    other = parameters_of(build("mynet", DIGITS, seed=2, bindings=BOUND).network)
    assert (one["1.weight"] == same["1.weight"]).all()
    assert (one["1.weight"] != other["1.weight"]).any()
    assert registry.names(BOUND)[-1] == "mynet"


def test_a_user_may_give_fixed_features_too(user_code: types.ModuleType) -> None:
    user_code.make = lambda schema: Model(nn.Flatten(), nn.Linear(64, 10))  # type: ignore[attr-defined]
    assert isinstance(build("mynet", DIGITS, seed=1, bindings=BOUND).features, nn.Flatten)


class Mixing(nn.Module):
    """Takes the batch's mean off: a record's gradient then depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, batch: Tensor) -> Tensor:
        flat = batch.flatten(1)
        logits: Tensor = self.linear(flat - flat.mean(0))
        return logits


class Constant(nn.Module):
    """Keeps a value that is not a parameter in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.linear(batch.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (
            lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)),
            "mixes the records",
            "GroupNorm",
        ),
        (
            lambda: nn.Sequential(
                nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(64, 10)
            ),
            "mixes the records",
            "track_running_stats=False",
        ),
        (Mixing, "another answer when other records are beside it", "records apart"),
        (lambda: Model(nn.Linear(8, 8), nn.Flatten()), "features of model", "buffers"),
        (Constant, "scale of model", "persistent=False"),
        (nn.Flatten, "no parameters", ""),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "gives", "one output per class"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), "does not run", "schema.shape"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double()),
            "not a float32",
            "float32",
        ),
        (lambda: "a string", "returned str", "nn.Module"),
        (
            lambda: Model(nn.Flatten(), nn.Linear(64, 10), cache="../x"),
            "cache name",
            "",
        ),
    ],
)
def test_a_model_that_breaks_per_record_privacy_or_the_schema_is_refused(
    user_code: types.ModuleType, make: object, message: str, hint: str
) -> None:
    user_code.make = lambda schema: make()  # type: ignore[attr-defined,operator]
    with pytest.raises(PlanError, match=message) as caught:
        build("mynet", DIGITS, seed=1, bindings=BOUND)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package_here:make", "cannot be imported"),
        ("their_models:made", "no function 'made'"),
        ("their_models", "names no function"),
        ("their_models:make()", "names no function"),
        ("../their_models:make", "names no function"),
    ],
)
def test_a_binding_that_leads_nowhere_is_refused(
    user_code: types.ModuleType, target: str, message: str
) -> None:
    user_code.make = lambda schema: nn.Flatten()  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=message):
        build("mynet", DIGITS, seed=1, bindings={"mynet": target})


def test_a_binding_cannot_change_what_a_built_in_name_means(user_code: types.ModuleType) -> None:
    with pytest.raises(PlanError, match="built in"):
        build("softmax", DIGITS, seed=1, bindings={"softmax": "their_models:make"})


# -- preprocessing and serving -------------------------------------------------------------------


def test_images_are_clamped_and_scaled_to_zero_and_one() -> None:
    raw = torch.tensor([-3.0, 0.0, 8.0, 16.0, 99.0] + [0.0] * 59).reshape(1, 1, 8, 8)
    scaled = Preprocess(DIGITS)(raw).flatten()[:5]
    torch.testing.assert_close(scaled, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_columns_of_a_table_are_clamped_and_scaled_to_minus_one_and_one() -> None:
    raw = torch.tensor([[0.0, -5.0], [60.0, 0.0], [120.0, 5.0], [500.0, -70.0]])
    expected = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(Preprocess(TABLE)(raw), expected)


def test_a_serving_model_gives_probabilities_from_raw_values() -> None:
    model = build("softmax", TABLE, seed=1)
    load_parameters(
        model.network,
        {"weight": np.array([[1, 0], [0, 0]], np.float32), "bias": np.zeros(2, np.float32)},
    )
    served = ServingModel(model, TABLE)(torch.tensor([[120.0, 0.0], [60.0, 3.0]]))
    # An age of 120 scales to 1, so logits are (1, 0); an age of 60 scales to 0.
    e = np.e
    np.testing.assert_allclose(
        served.detach().numpy(), [[e / (e + 1), 1 / (e + 1)], [0.5, 0.5]], rtol=1e-6
    )


# -- fixed features ------------------------------------------------------------------------------


def test_features_are_those_of_the_preprocessed_records() -> None:
    model, raw = build("scattering", DIGITS, seed=1), records(DIGITS, 5)
    expected = model.features(torch.from_numpy(raw / 16))
    np.testing.assert_allclose(fixed_features(model, DIGITS, raw), expected, atol=1e-5)


def test_a_record_has_the_same_features_whatever_is_computed_beside_it() -> None:
    model = build("scattering", FASHION, seed=1)
    raw = records(FASHION, preprocess.BLOCK + 9)
    together = fixed_features(model, FASHION, raw)
    apart = fixed_features(model, FASHION, raw[preprocess.BLOCK - 3 :])
    assert (together[preprocess.BLOCK - 3 :] == apart).all()


def test_asking_again_reads_the_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, raw = build("scattering", DIGITS, seed=1), records(DIGITS, 20)
    first = np.array(fixed_features(model, DIGITS, raw))

    def never(*_: object) -> Iterator[NDArray[np.float32]]:
        raise AssertionError("computed again")

    monkeypatch.setattr(preprocess, "_blocks", never)
    again = fixed_features(model, DIGITS, raw)
    assert (first == again).all()
    again[:] = 0  # a private mapping: the file stays as it was
    assert (fixed_features(model, DIGITS, raw) == first).all()
    assert len(list(cache_folder.iterdir())) == 1
    with pytest.raises(AssertionError, match="computed again"):
        fixed_features(model, DIGITS, raw[:19])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cache_is_computed_again_and_mended(cache_folder: Path, damage: str) -> None:
    model, raw = build("scattering", DIGITS, seed=1), records(DIGITS, 20)
    first = np.array(fixed_features(model, DIGITS, raw))
    (file,) = cache_folder.iterdir()
    good = file.read_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    file.write_bytes({"flip": flipped, "cut": good[:-9], "empty": b""}[damage])
    assert (fixed_features(model, DIGITS, raw) == first).all()
    assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, raw = build("scattering", DIGITS, seed=1), records(DIGITS, 20)
    first = np.array(fixed_features(model, DIGITS, raw))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRIVET_CACHE_HOME", str(tmp_path / "file"))
    assert (fixed_features(model, DIGITS, raw) == first).all()


def test_features_without_a_version_are_never_kept(cache_folder: Path) -> None:
    model = build("softmax", DIGITS, seed=1)
    assert fixed_features(model, DIGITS, records(DIGITS, 3)).shape == (3, 64)
    assert fixed_features(model, DIGITS, records(DIGITS, 0)).shape == (0, 64)
    assert not cache_folder.exists()


# -- parameters ----------------------------------------------------------------------------------


def test_parameters_come_back_as_they_were_put() -> None:
    one, other = build("cnn", DIGITS, seed=1).network, build("cnn", DIGITS, seed=2).network
    load_parameters(other, parameters_of(one))
    after = parameters_of(other)
    assert all((array == after[name]).all() for name, array in parameters_of(one).items())


def test_parameters_are_copies() -> None:
    network = build("softmax", DIGITS, seed=1).network
    parameters_of(network)["bias"][:] = 7
    assert not parameters_of(network)["bias"].any()


@pytest.mark.parametrize(
    "change",
    [
        {"weight": None},
        {"extra": np.zeros(1, np.float32)},
        {"bias": np.zeros(9, np.float32)},
        {"bias": np.zeros(10, np.float64)},
    ],
    ids=["missing", "unknown", "wrong shape", "wrong type"],
)
def test_parameters_of_another_network_are_refused_and_change_nothing(
    change: dict[str, NDArray[np.float32] | None],
) -> None:
    network = build("softmax", DIGITS, seed=1).network
    offered = {name: array + 1 for name, array in parameters_of(network).items()} | change
    with pytest.raises(InputError):
        load_parameters(network, {k: v for k, v in offered.items() if v is not None})
    assert not any(array.any() for array in parameters_of(network).values())


def recurrent(schema: Schema) -> nn.Module:
    from opacus.layers import DPLSTM

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = DPLSTM(8, 6, batch_first=True)
            self.output = nn.Linear(6, len(schema.classes))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.output(self.lstm(images[:, 0])[0][:, -1])
            return result

    return Rows()


def test_a_layer_of_opacus_whose_state_has_other_names_is_a_model_like_any_other() -> None:
    schema = Schema(kind="image", shape=(1, 8, 8), classes=tuple("0123456789"))
    model = build("mine", schema, seed=1, bindings={"mine": f"{__name__}:recurrent"})
    names = [name for name, _ in model.network.named_parameters()]
    parameters = parameters_of(model.network)
    assert list(parameters) == names
    load_parameters(model.network, {name: value + 1 for name, value in parameters.items()})
    changed = parameters_of(model.network)
    assert all((changed[name] == parameters[name] + 1).all() for name in names)
