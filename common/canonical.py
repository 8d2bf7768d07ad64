"""One value, one sequence of bytes: what is signed or digested is always this encoding.

The rule: canonical JSON here is RFC 8785 restricted to objects, arrays, strings, integers of at
most 53 bits, booleans and null. Floats are refused (write them with :func:`number`), so that no two
JSON libraries can disagree about a digest. Reading is strict too: a duplicate key, a float, an
oversized or deeply nested document, or bytes that are not already canonical are errors, never
repaired.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

MAX_INTEGER = 2**53 - 1
MAX_DOCUMENT_BYTES = 16 * 2**20
MAX_DEPTH = 32

Json = dict[str, Any]


class CanonicalError(ValueError):
    """A value has no canonical form, or bytes are not canonical JSON."""


def number(value: float) -> str:
    """Write a float so that it comes back to the same bits: the shortest round-trip decimal.

    >>> number(0.1), number(2.0)
    ('0.1', '2.0')
    """
    if not math.isfinite(value):
        raise CanonicalError(f"only finite numbers have a canonical form, not {value!r}")
    return repr(float(value))


def parse_number(text: object) -> float:
    """Read what :func:`number` wrote; any other spelling of the same value is refused."""
    if not isinstance(text, str) or len(text) > 32:
        raise CanonicalError(f"a number is written as a short string, not {text!r:.40}")
    try:
        value = float(text)
    except ValueError as error:
        raise CanonicalError(f"not a number: {text!r}") from error
    if not math.isfinite(value) or repr(value) != text:
        raise CanonicalError(f"not the canonical spelling of a finite number: {text!r}")
    return value


def encode(value: object) -> bytes:
    """The canonical bytes of a value: sorted keys, no spaces, UTF-8, integers only."""
    _check(value, 0)
    text = _ENCODER.encode(value)
    if not text.isascii():  # then there may be keys that the encoder puts in another order
        text = _ENCODER_AS_GIVEN.encode(_sorted(value))
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CanonicalError("a string holds half of a surrogate pair") from error


def decode(data: bytes) -> Json:
    """Read one canonical JSON object; :class:`CanonicalError` unless it encodes to ``data``."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise CanonicalError(f"document of {len(data)} bytes is over {MAX_DOCUMENT_BYTES}")
    value = _loads(data)
    if encode(value) != data:
        raise CanonicalError("bytes are not in canonical form")
    return value


def decode_lenient(data: bytes) -> Json:
    """Read one JSON object that a person may have re-indented; still no duplicates or floats."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise CanonicalError(f"document of {len(data)} bytes is over {MAX_DOCUMENT_BYTES}")
    value = _loads(data)
    encode(value)  # what has no canonical form (a float, half of a surrogate pair) is refused
    return value


def digest(data: bytes) -> str:
    """SHA-256 as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _loads(data: bytes) -> Json:
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CanonicalError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CanonicalError("the document is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CanonicalError("an object holds the same key twice")
    return result


def _no_constant(name: str) -> float:
    raise CanonicalError(f"{name} is not JSON")


# Made once: what json's own functions make anew at each call takes longer than a small document.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_ENCODER_AS_GIVEN = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def _sorted(value: Any) -> Any:
    """The same value with its keys in the order of RFC 8785, section 3.2.3: by UTF-16 units."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=_utf16)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _check(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise CanonicalError(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise CanonicalError(f"integer {value} needs more than 53 bits: write it as a string")
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str and not isinstance(key, str):
                raise CanonicalError(f"object key {key!r} is not a string")
            if type(item) is not str or depth == MAX_DEPTH:  # most are texts
                _check(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if type(item) is not str or depth == MAX_DEPTH:
                _check(item, depth + 1)
    else:
        raise CanonicalError(f"{type(value).__name__} has no canonical form: {value!r:.60}")
