"""Which networks exist? Built-in ones by name, and a user's own by naming a function.

The rule: a plan holds a *name*. A built-in name means the same code everywhere; any other name
means what the data owner's local bindings say, a function in code that is installed on that
machine. A path or an import never comes from a plan. A model that would let one record touch
another, or that keeps statistics of a batch, is refused here, before it can meet data: per-record
clipping would be a fiction.

    build("softmax", schema, seed=1)
    build("mynet", schema, seed=1, bindings={"mynet": "my_package.models:mynet"})

Importing this module imports no torch.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from common.config import NAME
from common.data.schema import Schema
from common.errors import PlanError
from common.models.model import Model

BUILT_IN = ("softmax", "mlp", "cnn", "scattering")
BINDING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
NO_BINDINGS: Mapping[str, str] = {}


def names(bindings: Mapping[str, str] = NO_BINDINGS) -> tuple[str, ...]:
    """Every name that :func:`build` knows, built-in ones first."""
    return BUILT_IN + tuple(sorted(set(bindings) - set(BUILT_IN)))


def build(
    name: str, schema: Schema, *, seed: int, bindings: Mapping[str, str] = NO_BINDINGS
) -> Model:
    """The model that ``name`` means, with initial parameters that depend on ``seed`` alone.

    Torch's global random state is left as it was.

    Args:
        name: as in ``plan.model``.
        schema: fixes the input's shape and the number of classes.
        seed: any integer from 0 to 2^63 - 1.
        bindings: a user's own models, name to ``package.module:function``; the function takes the
            schema and returns an ``nn.Module`` (input to logits) or a :class:`Model`.

    Raises:
        PlanError: no such name, a model that does not fit the schema, or one that is not safe to
            train on private records; the message says which and what to do.
    """
    check_bindings(bindings)
    if name in BUILT_IN:
        model = _build_in(name, schema, seed)
    elif name in bindings:
        model = _build_bound(name, bindings[name], schema, seed)
    else:
        raise _unknown(name, names(bindings))
    _check(name, model, schema)
    return model


def check_bindings(bindings: Mapping[str, str]) -> None:
    """Refuse a binding that is not ``package.module:function`` or that hides a built-in name."""
    for name, target in bindings.items():
        if name in BUILT_IN:
            raise PlanError(
                f"model {name!r} is built in and cannot be bound to {target!r}",
                hint="bind your model to another name, and use that name in plan.model",
            )
        if not BINDING.fullmatch(target):
            raise PlanError(
                f"model {name!r} is bound to {target!r:.120}, which names no function",
                hint='write "package.module:function"',
            )


# -- finding -------------------------------------------------------------------------------------


def _build_in(name: str, schema: Schema, seed: int) -> Model:
    import torch

    from common.models import networks

    generator = torch.Generator().manual_seed(seed)
    builders: dict[str, Callable[[], Model]] = {
        "softmax": lambda: networks.softmax(schema),
        "mlp": lambda: networks.mlp(schema, generator),
        "cnn": lambda: networks.cnn(schema, generator),
        "scattering": lambda: networks.scattering(schema),
    }
    return builders[name]()


def _build_bound(name: str, target: str, schema: Schema, seed: int) -> Model:
    import torch
    from torch import nn

    function = _import(name, target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        result = function(schema)
    if isinstance(result, Model):
        return result
    if isinstance(result, nn.Module):
        return Model(nn.Identity(), result)
    raise PlanError(
        f"{target} (model {name!r}) returned {type(result).__name__}, not a model",
        hint="return an nn.Module that maps the input to logits, or a common.models.model.Model",
    )


def _import(name: str, target: str) -> Callable[[Schema], Any]:
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PlanError(
            f"model {name!r} is bound to {target}, but {module_name} cannot be imported: {error}",
            hint="install that package beside Privet, or mend the binding in [data.models]",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        near = difflib.get_close_matches(function_name, dir(module), n=1)
        raise PlanError(
            f"model {name!r} is bound to {target}, but {module_name} has no function "
            f"{function_name!r}",
            hint=f"did you mean {near[0]!r}?" if near else "mend the binding in [data.models]",
        )
    return function  # type: ignore[no-any-return]


def _unknown(name: str, known: tuple[str, ...]) -> PlanError:
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return PlanError(
        f"there is no model {name!r}",
        hint=f"{guess}known: {', '.join(known)}; bind your own under [data.models]",
        code="unknown-model",
    )


# -- checking ------------------------------------------------------------------------------------


def _check(name: str, model: Model, schema: Schema) -> None:
    """Everything that per-record privacy needs of a model, tried on synthetic records."""
    _check_parts(name, model)
    _check_records(name, model, schema)


def _check_parts(name: str, model: Model) -> None:
    import torch
    from torch import nn

    from common.models.fixes import instead_of

    parts = (*model.features.named_modules(), *model.network.named_modules())
    for layer, module in parts:
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if mixes or isinstance(getattr(module, "running_mean", None), torch.Tensor):
            raise PlanError(
                f"layer {layer!r} of model {name!r} is {type(module).__name__}, which mixes the "
                "records of a batch",
                hint=instead_of(module) if mixes else "give it track_running_stats=False",
            )
    if any(True for _ in model.features.parameters()):
        raise PlanError(
            f"the features of model {name!r} have parameters, but features are never trained",
            hint="move that part into the network, or make its values buffers",
        )
    if model.cache and not NAME.fullmatch(model.cache):
        raise PlanError(f"the cache name {model.cache!r:.80} of model {name!r} is no plain name")
    parameters = dict(model.network.named_parameters())
    if not parameters:
        raise PlanError(f"the network of model {name!r} has no parameters to train")
    constants = [
        f"{layer}.{key}".lstrip(".")
        for layer, module in model.network.named_modules()
        for key in module._buffers.keys() - module._non_persistent_buffers_set
    ]
    wrong = [key for key, value in parameters.items() if value.dtype != torch.float32]
    if wrong or constants:
        raise PlanError(
            f"{(*wrong, *constants)[0]} of model {name!r} is not a float32 parameter",
            hint="train float32 parameters only; register a constant with persistent=False",
        )


def _check_records(name: str, model: Model, schema: Schema) -> None:
    """Logits must have the right shape and each record's must be its own."""
    import torch

    count = math.prod((3, *schema.shape))
    inputs = torch.linspace(0, 1, count).reshape((*schema.shape, 3)).movedim(-1, 0).contiguous()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            together = _logits(model, inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise PlanError(
                f"model {name!r} does not run on records of shape {schema.shape}: {error!s:.200}",
                hint="make its first layer fit plan.schema.shape",
            ) from error
        expected = (3, len(schema.classes))
        if tuple(together.shape) != expected:
            raise PlanError(
                f"model {name!r} gives {tuple(together.shape)} for 3 records, not {expected}",
                hint="its last layer must have one output per class of plan.schema",
            )
        alone = torch.cat([_logits(model, inputs[i : i + 1]) for i in range(3)])
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4):
        raise PlanError(
            f"model {name!r} gives a record another answer when other records are beside it",
            hint="remove what looks across the batch; per-record clipping needs records apart",
        )


def _logits(model: Model, inputs: Any) -> Any:
    """Logits with dropout and the like at rest; the network's mode is put back."""
    was_training = model.network.training
    model.network.eval()
    try:
        return model.network(model.features(inputs))
    finally:
        model.network.train(was_training)
