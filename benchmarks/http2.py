"""How is a gRPC server asked at next to no cost? One connection, one call at a time.

The rules: the server gets what gRPC's own clients send (HTTP/2, RFC 9113; HPACK, RFC 7541): a
connection's first call spells its header fields out, later ones name them by their numbers. What is
sent is made once, what comes is looked at: frames must be those of the call, flow control is kept,
pings are answered, and an answer counts only with ``grpc-status`` 0 and one whole message. Whatever
else comes is an error. Unix sockets and short messages are all that it is for.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW = 0, 1, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4  # the setting
_WINDOW_AT_FIRST, _WIDEST_WINDOW = 2**16 - 1, 2**31 - 1
_LARGEST_FRAME = 2**14  # without a setting that says otherwise
_FRAME = struct.Struct(">HBBBI")  # length in 16 and 8 bits, type, flags, stream
_PREFIX = struct.Struct(">BI")  # of a gRPC message: compressed or not, length
_STATIC = 61  # entries of HPACK's static table
_TABLE_BYTES, _ENTRY_BYTES = 4096, 32  # of the other one: in all, and of an entry besides its text
PATIENCE = 20  # seconds, for an answer


class Connection:
    """A connection to a server.

    Args:
        path: of the server's Unix socket.
        method: ``/package.Service/Method``.
        message: that every call sends, less than 16 KiB.

    Raises:
        ValueError: the message is too long.
        OSError: nobody listens there.
    """

    def __init__(self, path: str, method: str, message: bytes) -> None:
        self._body = _PREFIX.pack(0, len(message)) + message
        if len(self._body) > _LARGEST_FRAME:
            raise ValueError(f"a message of {len(message)} bytes takes more than one frame")
        self._fields, self._later = _request(method)
        self._stream = -1
        self._answer = b""
        self._rest = b""  # of a frame that has not come whole
        self._window = _WINDOW_AT_FIRST
        self._held = False  # a call, until the window is wide enough
        self._table = Table()
        self._known: dict[bytes, dict[bytes, bytes]] = {}  # header blocks that change no table
        self._socket = socket.socket(socket.AF_UNIX)
        patience = struct.pack("ll", PATIENCE, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        self._socket.connect(path)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WIDEST_WINDOW)
        wider = struct.pack(">I", _WIDEST_WINDOW - _WINDOW_AT_FIRST)
        frames = _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, wider)
        self._socket.sendall(_PREFACE + frames)

    def fileno(self) -> int:
        """For ``select``: it can be read when :meth:`read` has something to do."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def call(self) -> bytes:
        """Ask, and wait for the answer."""
        self.ask()
        while (answer := self.read()) is None:
            continue
        return answer

    def ask(self) -> None:
        """Begin a call; the one before must have been answered."""
        self._held = len(self._body) > self._window
        if self._held:
            return
        self._window -= len(self._body)
        self._stream += 2
        self._answer = b""
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._fields)
            + _frame(_DATA, _END_STREAM, self._stream, self._body)
        )
        self._fields = self._later

    def read(self) -> bytes | None:
        """Take what has come, or wait for it; gives the message once the call has ended.

        Raises:
            RuntimeError: the call failed, or what came is no answer to it.
        """
        try:
            data = self._socket.recv(2**16)
        except BlockingIOError:
            raise RuntimeError(f"nothing has come in {PATIENCE} seconds") from None
        if not data:
            raise RuntimeError("the server has hung up")
        data = self._rest + data
        at, ended = 0, False
        while len(data) - at >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            begin = at + _FRAME.size
            end = begin + (high << 8 | low)
            if end > len(data):
                break
            ended |= self._take(kind, flags, stream, data[begin:end])
            at = end
        self._rest = data[at:]
        return self._message() if ended else None

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> bool:
        """One frame; whether the call has ended with it."""
        if kind == _DATA and stream == self._stream:
            self._answer += payload
        elif kind == _HEADERS and stream == self._stream and flags & _END_HEADERS:
            fields = self._read_fields(payload)
            if not flags & _END_STREAM:
                return False
            if fields.get(b"grpc-status") != b"0":
                raise RuntimeError(f"the call has failed: {fields}")
            return True
        elif kind == _WINDOW:
            if not stream:
                self._window += int.from_bytes(payload, "big")
                if self._held:
                    self.ask()
        elif kind in (_PING, _SETTINGS):
            if not flags & _ACK:
                answer = payload if kind == _PING else b""
                self._socket.sendall(_frame(kind, _ACK, 0, answer))
        else:
            raise RuntimeError(f"a frame of type {kind} and stream {stream}: {payload!r}")
        return False

    def _read_fields(self, block: bytes) -> dict[bytes, bytes]:
        fields = self._known.get(block)
        if fields is None:
            fields, changed = self._table.read(block)
            if not changed:
                self._known[block] = fields
        return fields

    def _message(self) -> bytes:
        answer = self._answer
        if len(answer) < _PREFIX.size or _PREFIX.unpack_from(answer) != (
            0,
            len(answer) - _PREFIX.size,
        ):
            raise RuntimeError("the answer is not one message, uncompressed")
        return answer[_PREFIX.size :]


class Table:
    """HPACK's table of one direction: reads header blocks as gRPC writes them, without Huffman.

    Names of the static table are given as their numbers: nothing that is looked for is among them.
    """

    def __init__(self) -> None:
        self._entries: deque[tuple[bytes, bytes]] = deque()
        self._bytes = 0

    def read(self, block: bytes) -> tuple[dict[bytes, bytes], bool]:
        """The fields of a block, and whether the table is another one after it.

        Raises:
            RuntimeError: it is written in a way that gRPC does not use.

        >>> Table().read(bytes([0x88]) + b"\\x40\\x0bgrpc-status\\x010")
        ({b'8': b'', b'grpc-status': b'0'}, True)
        """
        fields: dict[bytes, bytes] = {}
        before, at = len(self._entries), 0
        while at < len(block):
            first = block[at]
            if first & 0x80:  # a field of a table
                index, at = _integer(block, at, 7)
                name, value = self._entry(index)
            elif first & 0x20 and not first & 0x40:
                raise RuntimeError("the table changes its size")
            else:  # a field that is spelt out, to be kept or not
                kept = first & 0x40
                index, at = _integer(block, at, 6 if kept else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                if kept:
                    self._keep(name, value)
            fields[name] = value
        return fields, len(self._entries) != before

    def _keep(self, name: bytes, value: bytes) -> None:
        self._bytes += len(name) + len(value) + _ENTRY_BYTES
        if self._bytes > _TABLE_BYTES:
            raise RuntimeError("the table is full")
        self._entries.appendleft((name, value))

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if index <= _STATIC:
            return str(index).encode(), b""
        return self._entries[index - _STATIC - 1]


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """RFC 7541, 5.1: a number that begins in the low bits of a byte; and where it ends."""
    most = (1 << bits) - 1
    value, at, shift = block[at] & most, at + 1, 0
    if value < most:
        return value, at
    while True:
        byte, at = block[at], at + 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    if block[at] & 0x80:
        raise RuntimeError("a string in Huffman's code")
    size, at = _integer(block, at, 7)
    return block[at : at + size], at + size


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _request(method: str) -> tuple[bytes, bytes]:
    """The header fields of a connection's first call, which the server keeps, and of later ones."""
    kept = (
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"privet-benchmark"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    )
    always = b"\x83\x86"  # :method POST, :scheme http
    spelt = b"".join(
        bytes([0x40, len(name)]) + name + bytes([len(value)]) + value for name, value in kept
    )
    numbers = range(_STATIC + len(kept), _STATIC, -1)
    return always + spelt, always + bytes(0x80 | number for number in numbers)
