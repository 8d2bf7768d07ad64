"""What do a plan's names mean on this machine? The data owner's own mapping to files and code.

The rule: paths and imports come from here and nowhere else, never from a plan and never from the
network. A binding that contradicts itself is refused before any data is read. A client's home keeps
it as canonical JSON, so that approval can show, and digest, what a plan was bound to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.canonical import Json, digest, encode, number
from common.config import Table, open_digested
from common.data.records import Records, split
from common.data.schema import Schema
from common.data.source import Digits, FashionMnist, Source, load
from common.data.table import Csv
from common.errors import DataError, PlanError
from common.models.registry import check_bindings

SCHEMA_VERSION = 1
SOURCES = ("digits", "fashion-mnist", "csv")
TESTS = ("held-out", "public")
PARTITIONS = ("equal", "unequal", "dirichlet")
HELD_OUT = 0.2


@dataclass(frozen=True)
class Binding:
    """Where the records are, how they are divided, and what accuracy is measured on.

    Args:
        source: ``digits``, ``fashion-mnist`` or ``csv``.
        path: of the CSV file, or of Fashion-MNIST's folder; absolute.
        columns: the plan's name of a column to its local header, where they differ.
        models: the name of a user's own model to ``package.module:function``.
        test: ``held-out`` (private rows set apart), ``public`` (a test set of its own), or None.
        held_out: share of the records that is set apart, in (0, 1); None unless ``test`` says so.
        test_path: the public test set, for ``csv``; absolute.
        partition_by: a simulation's clients are the values of this column.
        clients: a simulation deals the records out to this many clients.
        partition: how it deals: ``equal``, ``unequal`` or ``dirichlet`` (uneven classes).
        alpha: of the Dirichlet distribution, > 0; smaller is less even.
    """

    source: str
    path: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    test: str | None = None
    held_out: float | None = None
    test_path: str | None = None
    partition_by: str | None = None
    clients: int | None = None
    partition: str | None = None
    alpha: float | None = None

    def encode(self) -> bytes:
        return encode(self.json())

    @property
    def digest(self) -> str:
        return digest(self.encode())

    def json(self) -> Json:
        """Everything that is set; what is not set is absent."""
        values: Json = {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "path": self.path,
            "columns": dict(self.columns) or None,
            "models": dict(self.models) or None,
            "test": self.test,
            "held_out": None if self.held_out is None else number(self.held_out),
            "test_path": self.test_path,
            "partition_by": self.partition_by,
            "clients": self.clients,
            "partition": self.partition,
            "alpha": None if self.alpha is None else number(self.alpha),
        }
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def decode(cls, data: bytes) -> Binding:
        """Read what :meth:`encode` wrote; :class:`PlanError` on anything else."""
        binding = cls.read(open_digested(data, "binding", SCHEMA_VERSION), Path("/"))
        if binding.encode() != data:
            raise PlanError("the binding leaves something to a default, or holds a relative path")
        return binding

    @classmethod
    def read(cls, table: Table, base: Path) -> Binding:
        """Read ``[data]``; relative paths count from ``base``, the experiment file's folder.

        Raises:
            PlanError: with the line of the key that is wrong, or that contradicts another.
        """
        source = table.text("source", choices=SOURCES)
        test = table.text("test", choices=TESTS) if table.has("test") else None
        binding = cls(
            source=source,
            path=_path(table, "path", base),
            columns=_mapping(table, "columns"),
            models=_mapping(table, "models"),
            test=test,
            held_out=_held_out(table, test),
            test_path=_path(table, "test_path", base),
            partition_by=table.text("partition_by") if table.has("partition_by") else None,
            clients=table.integer("clients", low=1, high=10**6) if table.has("clients") else None,
            partition=_partition(table),
            alpha=table.number("alpha", above=0, high=1e6) if table.has("alpha") else None,
        )
        table.done()
        _check_source(binding, table)
        _check_test(binding, table)
        _check_partition(binding, table)
        _check_models(binding, table)
        return binding


def load_training(binding: Binding, schema: Schema, *, strict: bool = True) -> Records:
    """The records to train on: all of them, less those that are held out.

    Args:
        strict: a record that does not fit is an error; otherwise, it is left out.
    """
    records = load(_source(binding), schema, strict=strict)
    return split(records, binding.held_out)[0] if binding.held_out is not None else records


def load_test(binding: Binding, schema: Schema) -> Records:
    """The records to measure accuracy on: held-out ones, or the public test set.

    Raises:
        DataError: also where the binding names no test set.
    """
    if binding.held_out is not None:
        return split(load(_source(binding), schema), binding.held_out)[1]
    if binding.test is None:
        raise DataError(
            "the binding names no test set",
            hint='set test = "held-out" or test = "public" in [data]',
        )
    if binding.source == "fashion-mnist":
        return load(FashionMnist("test", binding.path), schema)
    return load(Csv(str(binding.test_path), binding.columns), schema)


def _source(binding: Binding) -> Source:
    if binding.source == "digits":
        return Digits()
    if binding.source == "fashion-mnist":
        return FashionMnist("train", binding.path)
    return Csv(str(binding.path), binding.columns, binding.partition_by)


# -- reading -------------------------------------------------------------------------------------


def _path(table: Table, key: str, base: Path) -> str | None:
    if not table.has(key):
        return None
    # abspath, not resolve: a link is kept, so that the owner may point it elsewhere.
    return os.path.abspath(base / Path(table.text(key)).expanduser())  # noqa: PTH100


def _mapping(table: Table, key: str) -> dict[str, str]:
    """A sub-table of texts."""
    inner = table.table(key, required=False)
    mapping = {name: inner.text(name) for name in inner.values}
    if len(mapping) > 10_000:
        raise table.error(key, f"{key} has over 10000 entries")
    return mapping


def _held_out(table: Table, test: str | None) -> float | None:
    if test == "held-out":
        return table.number("held_out", HELD_OUT, above=0, below=1)
    if table.has("held_out"):
        raise table.error(
            "held_out",
            "held_out is set, but the test set is not held out",
            hint='set test = "held-out", or remove held_out',
        )
    return None


def _partition(table: Table) -> str | None:
    if table.has("clients"):
        return table.text("partition", "equal", choices=PARTITIONS)
    if table.has("partition"):
        raise table.error(
            "partition",
            "partition says how to deal records out, but not to how many clients",
            hint="add clients = …",
        )
    return None


# -- contradictions ------------------------------------------------------------------------------


def _check_source(binding: Binding, table: Table) -> None:
    if binding.source == "csv" and binding.path is None:
        raise table.error("source", 'source = "csv" needs a path', hint='add path = "…" in [data]')
    if binding.source == "digits" and binding.path is not None:
        raise table.error(
            "path", "the digits come with scikit-learn and have no path", hint="remove path"
        )
    if binding.source != "csv":
        for key, value in (("columns", binding.columns), ("partition_by", binding.partition_by)):
            if value:
                raise table.error(key, f"{key} is for CSV files, but source = {binding.source!r}")


def _check_test(binding: Binding, table: Table) -> None:
    public_csv = binding.source == "csv" and binding.test == "public"
    if public_csv and binding.test_path is None:
        raise table.error(
            "test", 'test = "public" needs the public file', hint='add test_path = "…" in [data]'
        )
    if binding.test_path is not None and not public_csv:
        raise table.error(
            "test_path",
            'test_path is for source = "csv" with test = "public" only',
            hint="remove test_path, or set those two",
        )
    if public_csv and binding.test_path == binding.path:
        raise table.error(
            "test_path",
            "the public test set is the private data itself",
            hint='name another file, or use test = "held-out"',
        )
    if binding.source == "digits" and binding.test == "public":
        raise table.error(
            "test", "the digits have no test set of their own", hint='use test = "held-out"'
        )


def _check_partition(binding: Binding, table: Table) -> None:
    if binding.partition_by is not None and binding.clients is not None:
        raise table.error(
            "clients",
            "clients and partition_by both say who holds which record",
            hint="keep one of the two",
        )
    if (binding.partition == "dirichlet") != (binding.alpha is not None):
        raise table.error(
            "alpha",
            "alpha goes with partition = 'dirichlet', and only with it",
            hint="alpha = 0.1 is very uneven, alpha = 10 is nearly even",
        )


def _check_models(binding: Binding, table: Table) -> None:
    try:
        check_bindings(binding.models)
    except PlanError as error:
        raise table.error("models", error.message, hint=error.hint) from error
