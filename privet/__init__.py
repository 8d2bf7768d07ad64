"""Privet: one model over many holders of data, under a privacy budget that anyone can check.

    privet simulate            a whole federation on this machine, from records to a verified model
    privet plan check          what a plan will cost before anything runs
    privet audit verify        check, offline, what privacy was spent
    privet device update       receive a signed model, or refuse it

In Python, ``from privet import simulate, Experiment, Predictor`` gives the same. Importing this
package imports neither torch nor Flower.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# No module here may have one of these names: importing it would hide what is named.
_NAMES = {
    "simulate": "privet.running",
    "Experiment": "simulations.experiment",
    "Predictor": "client.device.runtime",
    "PrivetError": "common.errors",
    "Thresholds": "client.device.answers",
}

__all__ = ["Experiment", "Predictor", "PrivetError", "Thresholds", "__version__", "simulate"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'privet' has no attribute {name!r}")
