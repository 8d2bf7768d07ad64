"""What is a model here? Fixed features, and a network on top of them that is trained.

The rule: only the network ever sees a gradient, so only the network costs privacy. Importing this
module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Model:
    """A network in two parts.

    Args:
        features: fixed, without parameters, never trained: preprocessed input (B, *schema.shape)
            float32 in, features (B, F...) float32 out.
        network: trainable: features in, logits (B, classes) out.
        cache: names the features' code and version, so that their values may be kept on disk and
            found again; empty: they are computed each time. Change it whenever the features change.
    """

    features: nn.Module
    network: nn.Module
    cache: str = ""
