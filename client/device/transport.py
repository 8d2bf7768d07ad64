"""Where do a release's bytes come from, and for how long are they waited for?

The rules: a directory or a web server, and whatever it answers is hostile. Below a directory no
symbolic link is followed and only plain files are read. One deadline holds for everything that an
update fetches, headers and all: a server that drips cannot hold a device for longer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api import exceptions
from tuf.ngclient import FetcherInterface, Urllib3Fetcher  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

CHUNK_BYTES = 64 * 2**10
DEADLINE = 600.0  # seconds for all that one update fetches

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")


class UnsafePathError(exceptions.DownloadError):
    """A name in a repository directory leads elsewhere, or to something that is not a file."""


class DirectoryFetcher(FetcherInterface):
    """Read a repository from a directory, and nothing outside of it.

    Args:
        root: the repository; below it no symbolic link is followed, and only plain files are read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _fetch(self, url: str) -> Iterator[bytes]:
        parts = url.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise UnsafePathError(f"{url!r} is not a path inside of a repository")
        try:
            return _chunks(self._open(parts))
        except FileNotFoundError as error:
            raise exceptions.DownloadHTTPError(f"{self.root} has no {url}", 404) from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnsafePathError(f"{url} is a symbolic link in {self.root}") from error
            raise

    def _open(self, parts: list[str]) -> int:
        *folders, name = parts
        with contextlib.ExitStack() as stack:
            handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            for folder in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                handle = os.open(folder, flags, dir_fd=handle)
                stack.callback(os.close, handle)
            # Not blocking: a named pipe would otherwise hold the device for ever.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise UnsafePathError(f"{name} in {self.root} is not a file")
        return file


def _chunks(handle: int) -> Iterator[bytes]:
    with os.fdopen(handle, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class WebFetcher(Urllib3Fetcher):
    """TUF's own fetcher for https and http: hands on what has come, without waiting for more."""

    def __init__(self) -> None:
        super().__init__(app_user_agent="privet")

    def _chunks(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        try:
            while chunk := response.read1(CHUNK_BYTES):
                yield chunk
        except Exception as error:  # urllib3 has kinds of its own for a connection that breaks
            raise exceptions.DownloadError("the connection broke") from error
        finally:
            response.close()


class Recording(FetcherInterface):
    """Another fetcher, which remembers what one of its files was.

    Args:
        url: of the file to remember.
    """

    def __init__(self, fetcher: FetcherInterface, url: str) -> None:
        self._fetcher, self._url = fetcher, url
        self.data = b""

    def _fetch(self, url: str) -> Iterator[bytes]:
        chunks = self._fetcher.fetch(url)
        return self._recorded(chunks) if url == self._url else chunks

    def _recorded(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        self.data = b""
        for chunk in chunks:
            self.data += chunk
            yield chunk


class Bounded(FetcherInterface):
    """Another fetcher, given up on when its time is over, wherever it is waiting.

    It works in a thread that nobody waits for: what a server can drag out (a connection, a header
    byte by byte) blocks in places that take no deadline.

    Args:
        fetcher: asked one file at a time.
        seconds: for everything that is fetched through this one object, from now on.
    """

    def __init__(self, fetcher: FetcherInterface, seconds: float) -> None:
        self._fetcher, self._seconds = fetcher, seconds
        self._end = time.monotonic() + seconds

    def _fetch(self, url: str) -> Iterator[bytes]:
        pump = _Pump(self._fetcher, url)
        threading.Thread(target=pump.run, daemon=True, name="privet-fetch").start()
        return self._received(pump)

    def _received(self, pump: _Pump) -> Iterator[bytes]:
        try:
            while True:
                got = self._next(pump)
                if isinstance(got, Exception):
                    raise got
                if got is None:
                    return
                yield got
        finally:
            pump.stopped.set()

    def _next(self, pump: _Pump) -> bytes | Exception | None:
        left = self._end - time.monotonic()
        if left > 0:
            with contextlib.suppress(queue.Empty):
                return pump.queue.get(timeout=left)
        raise exceptions.SlowRetrievalError(f"not done in {self._seconds:g} seconds")


class _Pump:
    """One file's way from the thread that fetches it: bytes, then None; or what went wrong."""

    def __init__(self, fetcher: FetcherInterface, url: str) -> None:
        self._fetcher, self._url = fetcher, url
        self.queue: queue.Queue[bytes | Exception | None] = queue.Queue(4)
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            for chunk in self._fetcher.fetch(self._url):
                if not self._put(chunk):
                    return
            self._put(None)
        except exceptions.DownloadError as error:  # raised again where the file is read
            self._put(error)
        except Exception as error:  # noqa: BLE001
            broken = exceptions.DownloadError(f"cannot fetch {self._url}")
            broken.__cause__ = error
            self._put(broken)

    def _put(self, item: bytes | Exception | None) -> bool:
        """Hand over; False once nobody reads any more."""
        while not self.stopped.is_set():
            try:
                self.queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
