"""What does reading records give, whatever they are read from? Batches of a bounded size.

The rules: memory does not depend on how many records there are. Each record that is given is within
the schema's shape and public bounds; one that is not is an error that names the file and the place
and repeats no value. Nothing is guessed, repaired, scaled or run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.data.schema import Schema
from common.errors import DataError, InputError
from common.inference import Array


@dataclass(frozen=True, eq=False)
class Batch:
    """Records that were checked.

    Args:
        records: (b, *schema.shape) float32, b >= 1.
        done: how far the source is read with this batch, of its ``size``.
        names: of the records, where they have any; else empty.
    """

    records: Array
    done: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Source:
    """Records to be read, batch by batch; iterating opens, reads and closes.

    Args:
        name: for errors.
        unit: what ``size`` counts: records or bytes.
        size: of the whole; 0 if nobody knows.
        batches: reads them all, from the first one on.
    """

    name: str
    unit: str
    size: int
    batches: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self.batches()
        except OSError as error:
            raise DataError(f"cannot read {self.name}: {error.strerror or 'damaged'}") from error


def check_table(schema: Schema, where: object) -> None:
    """Refuse to read rows for a model that takes images."""
    if schema.kind != "table":
        raise DataError(
            f"{where}: this model takes images of shape {schema.shape}, not rows of a table",
            hint="name a folder of images, or save them as a .npy file",
        )


def missing(what: str, extra: str) -> InputError:
    """The error where a format's package is not installed."""
    return InputError(
        f"this installation does not read {what}",
        hint=f"pip install 'privet[{extra}]', or convert them to .csv or .npy",
        code="not-installed",
    )
