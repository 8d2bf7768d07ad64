"""How results and errors reach whoever asked: a person at a terminal, or a script.

The rule: with ``json``, standard output is one object and nothing else, whatever happens, and the
exit code says the same as the object. Progress and remarks go to standard error, and are silent
when that is not a terminal or ``--quiet`` was given.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from common.errors import EXIT_BUG, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, PrivetError

SCHEMA_VERSION = 1
DEBUG_VARIABLE = "PRIVET_DEBUG"

Update = Callable[[str, int, int], None]


class Format(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


def show(format_: Format, data: dict[str, Any], text: Callable[[], None]) -> None:
    """Print a command's result: ``data`` as the JSON envelope, or whatever ``text`` prints."""
    if format_ is Format.json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "status": "ok", "data": data}))
    else:
        text()


def show_wrong(
    format_: Format, data: dict[str, Any], text: Callable[[], None], error: dict[str, str]
) -> None:
    """Print a result that found something wrong: ``data`` beside an ``error``, or ``text``.

    Args:
        error: ``code``, ``message`` and ``hint``.
    """
    if format_ is Format.json:
        document = {"schema_version": SCHEMA_VERSION, "status": "error", "error": error}
        print(json.dumps({**document, "data": data}))
    else:
        text()


def fail(json_wanted: bool, code: str, message: str, hint: str, exit_code: int) -> int:
    """Print an error the way that was asked for; returns the exit code."""
    if json_wanted:
        error = {"code": code, "message": message, "hint": hint}
        print(json.dumps({"schema_version": SCHEMA_VERSION, "status": "error", "error": error}))
    else:
        print(f"error: {message}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
    return exit_code


def guarded(work: Callable[[], None], json_wanted: bool) -> int:
    """Run a command; every way it can end becomes an exit code, never a traceback."""
    import click

    try:
        work()
    except PrivetError as error:
        return fail(json_wanted, error.code, error.message, error.hint, error.exit_code)
    except click.exceptions.Exit as error:
        # Typer turns an interrupt into this before we can see it.
        if error.exit_code == EXIT_INTERRUPTED:
            return _interrupted(json_wanted)
        return int(error.exit_code)
    except click.ClickException as error:
        hint = "privet --help lists the commands, and each has a --help of its own"
        return fail(json_wanted, "usage", error.format_message(), hint, EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(json_wanted)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        return _missing(json_wanted, error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space and run the command again"
            return fail(json_wanted, "disk-full", f"no space left: {error}", hint, EXIT_FAILED)
        return _bug(json_wanted, error)
    except Exception as error:  # noqa: BLE001  (the last line of defence: exit code 5)
        return _bug(json_wanted, error)
    return 0


def _interrupted(json_wanted: bool) -> int:
    hint = "a simulation continues with the same command and --resume --out DIR"
    return fail(json_wanted, "interrupted", "interrupted", hint, EXIT_INTERRUPTED)


def _missing(json_wanted: bool, error: ModuleNotFoundError) -> int:
    """A part that this installation was made without."""
    ours = {"audit", "client", "common", "privet", "server", "simulations"}
    if error.name and error.name.split(".")[0] in ours:
        return _bug(json_wanted, error)
    hint = "install the extra that this command needs: simulation, device or audit"
    return fail(json_wanted, "not-installed", f"{error.name} is not installed", hint, EXIT_FAILED)


def _bug(json_wanted: bool, error: Exception) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    hint = f"please report it; {DEBUG_VARIABLE}=1 prints where it happened"
    message = f"a bug in Privet: {type(error).__name__}: {error}"
    return fail(json_wanted, "bug", message, hint, EXIT_BUG)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Update]:
    """A live progress bar on standard error: call it with (what, done, of); of 0: unknown."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of or None)
            bar.update(tasks[what], completed=done, total=of or None)

        yield update
