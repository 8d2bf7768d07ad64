"""In which precision, and in batches of which sizes, may a network run on this machine?

The rule: a record's gradient must not depend on the records beside it, not by one bit. Kernels
choose their order of summation by the shape of what they are given and by where a row begins in
memory; a rounding of the logits is harmless by itself, but hostile weights can turn it into any
change of the gradient, for every record of a batch at once, and then one record more moves the sum
by far more than C. So float32 is used only where synthetic records were seen to get the same bits
at every place of every batch size in use; else float64, under the same condition; else each record
is computed alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from client.training.per_record import PerRecord, per_record

# Batches are computed in these sizes, the last one padded: kernels treat odd rows differently.
SIZES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 256, 512)
ALONE = (1,)
# Values held at once, gradients and activations, where a batch of 8 allows it (64 MB in float32).
MAX_FLOATS = 2**24


def choose(
    network: nn.Module,
    shape: torch.Size,
    precision: torch.dtype | None = None,
    batch: float = math.inf,
) -> tuple[PerRecord, tuple[int, ...]]:
    """A network's gradients in the fastest safe precision, and its batch sizes.

    Args:
        network: maps features to logits; copied.
        shape: of one record's features.
        precision: None: float32 or float64, as found; or the only one to try.
        batch: about as many records as batches have; sizes far above it are not tried.
    """
    wanted = next((size for size in SIZES if size >= 1.5 * batch), SIZES[-1])
    tried = (precision,) if precision else (torch.float32, torch.float64)
    for dtype in tried:
        gradients = per_record(network, dtype)
        most = min(wanted, MAX_FLOATS // max(1, gradients.floats(_records(shape, 1))))
        sizes = tuple(size for size in SIZES if size <= max(SIZES[0], most))
        if all(_alike(gradients, shape, sizes, positive) for positive in (False, True)):
            return gradients, sizes
    return per_record(network, tried[-1]), ALONE


def _records(shape: torch.Size, records: int) -> Tensor:
    """Synthetic records in [0, 1): what any network takes, also one that reads them as words."""
    return torch.rand((records, *shape), generator=torch.Generator().manual_seed(0))


def _alike(gradients: PerRecord, shape: torch.Size, sizes: tuple[int, ...], positive: bool) -> bool:
    """Whether each record's gradient has the same bits at every place and in every size.

    Args:
        positive: weights above zero, so that no unit is dead; else of either sign, at a scale at
            which nothing saturates.
    """
    generator = torch.Generator().manual_seed(0)
    for values in gradients.parameters():
        fan = values.numel() // len(values) if values.dim() > 1 else 1
        drawn = torch.randn(values.shape, generator=generator) / max(1, fan) ** 0.5
        values.copy_(drawn.abs() if positive else drawn)
    most = sizes[-1]
    features, labels = _records(shape, most), torch.zeros(most, dtype=torch.long)
    reference = [part.pieces() for part in gradients.parts(features, labels)]
    for size in sizes:
        for shift in (3, most - size // 2):
            chosen = (torch.arange(size) + shift) % most
            parts = gradients.parts(features[chosen], labels[chosen])
            for pieces, part in zip(reference, parts, strict=True):
                same = zip(pieces, part.pieces(), strict=True)
                if not all(torch.equal(one[chosen], other) for one, other in same):
                    return False
    return True
