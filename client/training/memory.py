"""May freed memory stay with this process? For training it should.

The rule: it is a wish, made once when a process starts, and where the C library knows nothing of it
nothing happens. By default glibc gives large freed blocks back to the system, and the next
micro-batch gets them again page by page, zeroed: for a small network that took longer than its
arithmetic (measured: 18 ms a step instead of 10).
"""

from __future__ import annotations

import ctypes

# <malloc.h>; both must be set, since setting one ends the library's own adjustment of the other.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT = 256 << 20  # bytes, more than a micro-batch holds
LARGEST = 32 << 20  # bytes of one block; the most that glibc takes


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MB that it has freed, for its own next use."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, LARGEST)
    mallopt(_TRIM_THRESHOLD, KEPT)
