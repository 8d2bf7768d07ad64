"""In which precision, and in batches of which sizes, may a network run on this machine?

The rule: a record's gradient must not depend on the records beside it, not by one bit. Kernels
choose their order of summation by the shape of what they are given and by where a row begins in
memory, and a vector loop leaves the last values of a tensor to a scalar formula that rounds
otherwise. A rounding of the logits is harmless by itself, but hostile weights can turn it into any
change of the gradient, for every record of a batch at once, and then one record more moves the sum
by far more than C. So batch sizes are whole vector loops (:mod:`client.training.loops`), one thread
computes them, and float32 is used only where synthetic records were seen to get the same bits at
every place of every size; else float64, under the same condition; else each record is computed
alone.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from client.training.loops import LOOP, step
from client.training.per_record import PerRecord, per_record

log = logging.getLogger("privet.client")

# Batches are computed in these sizes, the last one padded; and in finer ones up to FINE, where they
# are whole loops too.
FINE = 128
SIZES = (*range(LOOP, FINE + 1, LOOP), 256, 512)
ALONE = (1,)
# Values held at once, gradients and activations, where the least size allows it (64 MB in float32).
MAX_FLOATS = 2**24
WORDS = (2, 8, 64)  # vocabularies that are tried


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
        most = min(wanted, MAX_FLOATS // max(1, _floats(gradients, shape)))
        finer = {*SIZES, *range(LOOP, FINE, step(network, gradients, shape))}
        for offered in dict.fromkeys((tuple(sorted(finer)), SIZES)):
            sizes = tuple(size for size in offered if size <= max(SIZES[0], most))
            if _alike(gradients, shape, sizes):
                log.debug("trains in %s, in batches of up to %d", dtype, sizes[-1])
                return gradients, sizes
    log.warning("kernels round by place for this network: each record is computed alone, slowly")
    return per_record(network, tried[-1]), ALONE


def synthetic(shape: torch.Size, records: int) -> Iterator[Tensor]:
    """Records of several kinds, (records, *shape) float32: in [-1, 1), in [0, 1), and words.

    A network need not take them all: what reads words takes no others.
    """
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand((records, *shape), generator=generator)
    yield 2 * unit - 1
    yield unit
    for words in WORDS:
        yield (words * torch.rand((records, *shape), generator=generator)).floor()


def randomise(parameters: list[Tensor], *, positive: bool) -> None:
    """Weights of either sign at a scale where nothing saturates, or above zero: no unit is dead."""
    generator = torch.Generator().manual_seed(0)
    for values in parameters:
        fan = values.numel() // len(values) if values.dim() > 1 else 1
        drawn = torch.randn(values.shape, generator=generator) / max(1, fan) ** 0.5
        values.copy_(drawn.abs() if positive else drawn)


def _floats(gradients: PerRecord, shape: torch.Size) -> int:
    """Of one record, of the first kind that the network takes."""
    for features in synthetic(shape, 1):
        with contextlib.suppress(Exception):
            return gradients.floats(features)
    return gradients.floats(torch.zeros(1, *shape))  # let the network say why


def _alike(gradients: PerRecord, shape: torch.Size, sizes: tuple[int, ...]) -> bool:
    """Whether each record's gradient has the same bits at every place and in every size.

    Tried with the first kind of records that the network takes and tells apart. Where it tells none
    apart nothing was tried, and the answer is no.
    """
    for positive in (False, True):
        randomise(gradients.parameters(), positive=positive)
        for features in synthetic(shape, sizes[-1]):
            reference: list[tuple[Tensor, ...]] = []
            with contextlib.suppress(Exception):
                labels = torch.zeros(len(features), dtype=torch.long)
                reference = [part.pieces() for part in gradients.parts(features, labels)]
            if _differ(reference):
                break
        else:
            return False
        if not all(_same(gradients, features, reference, size) for size in sizes):
            return False
    return True


def _differ(reference: list[tuple[Tensor, ...]]) -> bool:
    return any(bool((piece != piece[:1]).any()) for pieces in reference for piece in pieces)


def _same(
    gradients: PerRecord, features: Tensor, reference: list[tuple[Tensor, ...]], size: int
) -> bool:
    """In a smaller batch, and at other places of it."""
    most, labels = len(features), torch.zeros(size, dtype=torch.long)
    for shift in (3, most - size // 2):
        chosen = (torch.arange(size) + shift) % most
        parts = gradients.parts(features[chosen], labels)
        for pieces, part in zip(reference, parts, strict=True):
            same = zip(pieces, part.pieces(), strict=True)
            if not all(torch.equal(one[chosen], other) for one, other in same):
                return False
    return True
