"""Files that are either as they were or as they should be, whatever is killed and whenever.

The rule: a write is durable when this module returns, not before. Whole files are replaced by
write-temporary, fsync, rename, fsync-directory; logs grow by one write and one fsync. Each of those
steps passes a fault point, so that a test can kill the process at every one of them in turn.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.errors import InputError, OperationError, PrivetError

# A test sets this to N: the process sends itself SIGKILL at its N-th durable step (1-based).
FAULT_VARIABLE = "PRIVET_TEST_KILL_AT_WRITE"
_steps = 0


def fault_point() -> None:
    """Count one durable step; die here if a test asked for it. Costs one comparison otherwise."""
    global _steps
    _steps += 1
    chosen = os.environ.get(FAULT_VARIABLE)
    if chosen is not None and _steps == int(chosen):
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into :class:`OperationError` with a next step."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space on that disk and run the command again",
            errno.EDQUOT: "free some of your disk quota and run the command again",
            errno.EACCES: "check the permissions of that path",
            errno.EROFS: "that file system is read-only; choose another place",
        }
        raise OperationError(
            f"cannot write {path}: {error.strerror or error}",
            hint=hints.get(error.errno or 0, "check that path and run the command again"),
            code="disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot-write",
        ) from error


def replace(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` so that a reader sees all of the old bytes or all of the new.

    Raises:
        OperationError: nothing was changed; the temporary file is gone.
    """
    with replacing(path, mode=mode) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """:func:`replace` with whatever the block writes; nothing is changed if it raises.

    Raises:
        OperationError: nothing was changed; the temporary file is gone.
    """
    with disk_errors(path):
        import tempfile  # not where nothing is written

        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                fault_point()
                yield file
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            fault_point()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fault_point()
        sync_directory(path.parent)


def without_waiting(path: str, flags: int) -> int:
    """For ``open``, as its opener: a pipe in a file's place would wait for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def remove(path: Path) -> None:
    """Remove a file for good; one that is gone already is fine.

    Raises:
        OperationError: the disk refused.
    """
    with disk_errors(path):
        fault_point()
        path.unlink(missing_ok=True)
        fault_point()
        sync_directory(path.parent)


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of ``path`` and fsync it; the file's directory too when it is new.

    A crash may leave a torn tail, which the reader of the format must recognise. A refused write
    (a full disk) leaves the file at its former length.
    """
    with disk_errors(path):
        new = not path.exists()
        with open(path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            fault_point()
            try:
                written = file.write(data)
                if written != len(data):
                    raise OSError(errno.ENOSPC, "short write")
                fault_point()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
        if new:
            sync_directory(path.parent)
        fault_point()


def sync_directory(path: Path) -> None:
    """Make the names in a directory as durable as the files they name."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusively(
    directory: Path, otherwise: PrivetError, *, patience: float = 0.0
) -> Iterator[None]:
    """Hold a directory against every other process; raise ``otherwise`` if one has it.

    Args:
        patience: seconds to wait for whoever has it; more than none outlasts :func:`is_held`.
    """
    handle, until = os.open(directory, os.O_RDONLY | os.O_DIRECTORY), time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise otherwise from None
                time.sleep(0.01)
            else:
                break
        yield
    finally:
        os.close(handle)


def is_held(directory: Path) -> bool:
    """Whether a process holds a directory :func:`exclusively`, at this moment."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def check_free(out: Path) -> None:
    """Refuse a directory that holds something; nothing is overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is in use",
            hint="name another directory with --out, or continue that run with --resume",
            code="directory-in-use",
        )


@contextlib.contextmanager
def in_turn(directory: Path) -> Iterator[None]:
    """Hold a directory against every other process and thread; waits for whoever has it.

    For work of a few milliseconds. It is another lock than :func:`exclusively` takes only if the
    directory is another one.
    """
    with disk_errors(directory):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def leftovers(directory: Path) -> list[Path]:
    """Temporary files that a killed :func:`replace` left behind, or one at work needs."""
    return sorted(directory.glob(".*.tmp"))


def sweep(directory: Path) -> None:
    """Delete temporary files that a killed :func:`replace` left behind."""
    for leftover in leftovers(directory):
        leftover.unlink(missing_ok=True)
