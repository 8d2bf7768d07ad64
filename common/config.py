"""Read configuration so that a mistake is told with its place: file, line, key, and what was meant.

The rule: every key is taken exactly once; what nobody took is unknown and refused. TOML files and
canonical JSON (where numbers are strings) are read by the same code, so a plan means the same in
both.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from common.canonical import CanonicalError, decode, parse_number
from common.errors import InputError, PlanError

MAX_FILE_BYTES = 2**20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Compiled when they are first used, which is never where a device only starts.
_DATE = r"(?a:\d{4}-\d{2}-\d{2})"
_HEADER = r"\s*\[+\s*([^\]#]+?)\s*\]+"
_KEY = r"\s*([A-Za-z0-9_\-.\"' ]+?)\s*="
_MISSING: Any = object()


@dataclass
class Table:
    """One table of a configuration, consumed key by key.

    Args:
        values: what the file holds.
        where: dotted name of this table, ``""`` for the root.
        source: what to call the file in messages.
        lines: dotted key to line number, where known.
        json_numbers: floats are written as canonical strings (digested JSON).
    """

    values: dict[str, Any]
    where: str = ""
    source: str = ""
    lines: dict[str, int] = field(default_factory=dict)
    json_numbers: bool = False
    _taken: set[str] = field(default_factory=set)

    # -- taking values -------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        return key in self.values

    def table(self, key: str, *, required: bool = True) -> Table:
        """A sub-table; an absent optional one is empty."""
        value = self._take(key, _MISSING if required else {})
        if not isinstance(value, dict):
            raise self.error(key, f"{key} must be a table, not {_kind(value)}")
        return Table(value, self._path(key), self.source, self.lines, self.json_numbers)

    def tables(self, key: str) -> list[Table]:
        """A list of tables (``[[...]]`` or inline)."""
        value = self._take(key, _MISSING)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(key, f"{key} must be a list of tables")
        path = self._path(key)
        return [Table(item, path, self.source, self.lines, self.json_numbers) for item in value]

    def text(self, key: str, default: str = _MISSING, *, choices: Collection[str] = ()) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or not value or len(value) > 4096:
            raise self.error(key, f"{key} must be a text, not {_kind(value)}")
        if choices and value not in choices:
            raise self.error(key, f"{key} = {value!r} is not known", hint=_one_of(value, choices))
        return value

    def name(self, key: str, default: str = _MISSING) -> str:
        """A text that is safe as a file name: letters, digits, dot, underscore, hyphen."""
        value = self.text(key, default)
        if not NAME.fullmatch(value):
            raise self.error(
                key,
                f"{key} = {value!r} is not a plain name",
                hint="use 1 to 64 letters, digits, dots, underscores or hyphens",
            )
        return value

    def texts(self, key: str, *, least: int = 0, most: int = 10_000) -> tuple[str, ...]:
        value = self._take(key, _MISSING)
        if not isinstance(value, list) or not all(isinstance(i, str) and i for i in value):
            raise self.error(key, f"{key} must be a list of texts")
        if not least <= len(value) <= most:
            raise self.error(key, f"{key} must have {least} to {most} entries, not {len(value)}")
        if len(set(value)) != len(value):
            raise self.error(key, f"{key} names the same thing twice")
        return tuple(value)

    def day(self, key: str) -> date | None:
        """A day, as TOML writes it or as a text ``YYYY-MM-DD``; None if absent."""
        value = self._take(key, None)
        if isinstance(value, str) and re.fullmatch(_DATE, value):
            with contextlib.suppress(ValueError):
                value = date.fromisoformat(value)
        if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
            return value
        raise self.error(key, f"{key} must be a day", hint=f"write {key} = 2030-12-31")

    def integers(self, key: str, *, low: int, high: int) -> tuple[int, ...]:
        value = self._take(key, _MISSING)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(key, f"{key} must be a list of whole numbers")
        for item in value:
            self._in_range(key, item, low, high)
        return tuple(value)

    def flag(self, key: str, default: bool = _MISSING) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{key} must be true or false, not {_kind(value)}")
        return value

    def integer(self, key: str, default: int = _MISSING, *, low: int, high: int) -> int:
        value = self._take(key, default)
        if type(value) is not int:
            raise self.error(key, f"{key} must be a whole number, not {_kind(value)}")
        self._in_range(key, value, low, high)
        return value

    def number(
        self,
        key: str,
        default: float = _MISSING,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> float:
        """A finite number with low <= value <= high and above < value < below."""
        value = self._take(key, default)
        if self.json_numbers and isinstance(value, str):
            try:
                value = parse_number(value)
            except CanonicalError as error:
                raise self.error(key, f"{key}: {error}") from error
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"{key} must be a number, not {_kind(value)}")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.error(key, f"{key} must be finite, not {value}")
        self._in_range(key, value, low, high)
        if not above < value < below:
            bounds = [f"above {above:g}"] if above > -math.inf else []
            bounds += [f"below {below:g}"] if below < math.inf else []
            raise self.error(key, f"{key} = {value:g} must be {' and '.join(bounds)}")
        return value

    def done(self) -> None:
        """Refuse what nobody asked for: a misspelt key must not be silently ignored."""
        for key in self.values:
            if key not in self._taken:
                raise self.error(
                    key,
                    f"unknown key {key!r}" + (f" in [{self.where}]" if self.where else ""),
                    hint=_one_of(key, self._taken),
                )

    # -- saying what is wrong ------------------------------------------------------------------

    def error(self, key: str, message: str, *, hint: str = "") -> PlanError:
        """An error that names the file and, where known, the line of ``key``."""
        path = self._path(key)
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        place = self.source
        if path in self.lines:
            line = self.lines[path]
            place = f"{place}, line {line}" if line else "--set"
        return PlanError(f"{place}: {message}" if place else message, hint=hint)

    def _path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _take(self, key: str, default: Any) -> Any:
        self._taken.add(key)
        value = self.values.get(key, default)
        if value is _MISSING:
            table = f" in [{self.where}]" if self.where else ""
            raise self.error(key, f"{key} is missing{table}", hint=f"add {key} = …{table}")
        return value

    def _in_range(self, key: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            shown = f"{value:g}" if abs(value) <= sys.maxsize else "a number of that size"
            raise self.error(key, f"{key} = {shown} must be from {low:g} to {high:g}")


def open_digested(data: bytes, what: str, version: int) -> Table:
    """The root :class:`Table` of canonical JSON that has a digest: a plan, a policy, a binding.

    Raises:
        PlanError: not canonical JSON, or of another schema version.
    """
    try:
        table = Table(decode(data), source=what, json_numbers=True)
    except CanonicalError as error:
        raise PlanError(f"not a {what}: {error}") from error
    if table.integer("schema_version", low=1, high=10**6) != version:
        raise PlanError(
            f"the {what} is of another schema version", hint="use the Privet that wrote it"
        )
    return table


def read_toml(path: Path, overrides: Sequence[str] = ()) -> Table:
    """Read a TOML file into a root :class:`Table`, with ``KEY=VALUE`` overrides applied.

    Raises:
        InputError: no such file, not readable, not TOML, or an override that is not ``KEY=VALUE``.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PlanError(f"{path} is over {MAX_FILE_BYTES} bytes: not a Privet file")
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"there is no file {path}",
            hint="name an experiment file, such as examples/digits.toml",
            code="no-such-file",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", code="unreadable-file") from error
    try:
        values = _loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise PlanError(
            f"{path} is not valid TOML: {error}",
            hint="mend that line; strings need quotes, tables look like [plan]",
            code="malformed-toml",
        ) from error
    lines = _line_index(text)
    for override in overrides:
        _apply(values, lines, override)
    return Table(values, source=str(path), lines=lines)


def _loads(text: str) -> dict[str, Any]:
    import tomllib  # not where JSON alone is read

    return tomllib.loads(text)


def _apply(values: dict[str, Any], lines: dict[str, int], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(
            f"--set {override!r} is not KEY=VALUE", hint="for example --set policy.budget=4.0"
        )
    try:
        value = _loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # a bare word is a text
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {path}: {key!r} is not a table")
    table[keys[-1]] = value
    lines[path.strip()] = 0  # line 0 stands for the command line


def _line_index(text: str) -> dict[str, int]:
    """Dotted key to line number, for the layout that people write; a miss costs a number."""
    index: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(_HEADER, line):
            table = re.sub(r"[\s\"']", "", header.group(1))
            index.setdefault(table, number)
        elif key := re.match(_KEY, line):
            name = re.sub(r"[\s\"']", "", key.group(1))
            index.setdefault(f"{table}.{name}" if table else name, number)
    return index


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)


def _one_of(value: str, choices: Collection[str]) -> str:
    import difflib  # where something was misspelt

    close = difflib.get_close_matches(value, choices, n=1)
    known = ", ".join(sorted(choices))
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {known}"
