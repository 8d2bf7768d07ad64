"""A process that may do what its unit lets it do, without systemd: for tests.

    python -m tests.deploy.confinement UNIT STATE COMMAND...

The rules: what is tried here is what the unit says: its system call filter and address families,
its umask, no new privileges. Where the tests run as root, the process gets nobody's account, and
every file system is read-only to it but the state directory and an empty one for temporary files,
as ProtectSystem=strict and a read-only container have it. Control groups are not tried.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import socket
import sys
from pathlib import Path

from tests.deploy.units import ROOT, read, system_calls

NOBODY = 65534
TEMPORARY = "/var/tmp"
_ALLOW, _EPERM, _EQUAL = 0x7FFF0000, 0x00050001, 4  # libseccomp's seccomp.h
_NO_NEW_PRIVS, _SET_MDWE, _GET_MDWE = 38, 65, 66  # linux/prctl.h
_NEW_NAMESPACE = 0x20000  # linux/sched.h
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
_SETATTR, _HERE, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def can_filter() -> bool:
    """Whether this machine can say what a unit's system call filter means, and apply it."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return shutil.which("systemd-analyze") is not None


def can_mount() -> bool:
    """Whether this process could have file systems of its own; tried in a child."""
    child = os.fork()
    if child == 0:
        os._exit(os.geteuid() != 0 or _libc.unshare(_NEW_NAMESPACE) != 0)
    return os.waitpid(child, 0)[1] == 0


def can_deny_execution() -> bool:
    """Whether the kernel (6.3) can refuse memory that is both written and executed."""
    return bool(_libc.prctl(_GET_MDWE, 0, 0, 0, 0) >= 0)


def confined(unit: Path, state: Path, *command: str) -> list[str]:
    """The words that start a command as this unit would, which may write to ``state`` alone."""
    return [sys.executable, "-m", "tests.deploy.confinement", str(unit), str(state), *command]


def confine(unit: Path, state: Path) -> None:
    """Become what the unit lets its process be."""
    found = read(unit)
    calls = system_calls(unit) if can_filter() else set()
    if os.geteuid() == 0:
        if can_mount():
            _own_file_systems(state)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    os.umask(int(found["Service.UMask"][0], 8))
    os.chdir("/")
    _done(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    if found.get("Service.MemoryDenyWriteExecute") == ["yes"] and can_deny_execution():
        _done(_libc.prctl(_SET_MDWE, 1, 0, 0, 0))
    if calls:
        _filter_calls(calls, found["Service.RestrictAddressFamilies"][0].split())


def _done(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# -- file systems --------------------------------------------------------------------------------


def _own_file_systems(state: Path) -> None:
    """Read-only but for ``state``; and this interpreter within reach, wherever that is kept."""
    _done(_libc.unshare(_NEW_NAMESPACE))
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    needed = {Path(place).resolve() for place in (sys.base_prefix, sys.prefix, ROOT)}
    hidden = {place: top for place in needed if (top := _closed(place)) is not None}
    handles = {place: os.open(place, os.O_PATH) for place in hidden}
    for top in set(hidden.values()):
        _mount("none", str(top), "tmpfs", 0, "mode=755")
    for place, handle in handles.items():
        place.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{handle}", str(place), None, _BIND | _RECURSIVE)
        os.close(handle)
    _mount("none", TEMPORARY, "tmpfs", 0, "mode=1777")
    _mount(str(state), str(state), None, _BIND)
    _set_read_only("/", True)
    _set_read_only(str(state), False)
    _set_read_only(TEMPORARY, False)


def _closed(place: Path) -> Path | None:
    """The uppermost directory on the way there that others may not pass."""
    for one in (*reversed(place.parents), place):
        if not one.stat().st_mode & 0o001:
            return one
    return None


def _mount(source: str | None, to: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [None if word is None else word.encode() for word in (source, to, kind)]
    _done(_libc.mount(*words, ctypes.c_ulong(flags), options.encode()))


def _set_read_only(path: str, yes: bool) -> None:
    """``mount_setattr(2)``: of everything that is mounted there and below."""
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY if yes else 0, 0 if yes else _READ_ONLY, 0, 0)
    size = ctypes.sizeof(attributes)
    flags = _AT_RECURSIVE if yes else 0
    _done(_libc.syscall(_SETATTR, _HERE, path.encode(), flags, ctypes.byref(attributes), size))


# -- system calls --------------------------------------------------------------------------------


class _Compare(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def _filter_calls(allowed: set[str], families: list[str]) -> None:
    """From here on this process may make these system calls, and sockets of these families."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    ]
    rules = library.seccomp_init(_EPERM)
    for name in sorted(allowed):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # not on this kind of machine
        chosen = [getattr(socket, family) for family in families] if name == "socket" else [None]
        for family in chosen:
            compare = _Compare(0, _EQUAL, family or 0, 0)
            count = 0 if family is None else 1
            assert not library.seccomp_rule_add_array(
                rules, _ALLOW, number, count, ctypes.byref(compare)
            )
    assert not library.seccomp_load(rules)


if __name__ == "__main__":
    confine(Path(sys.argv[1]), Path(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
