"""How is one of Flower's handlers asked, and what if it does not like the question?

The rule: what comes from a node is hostile, and the code that it goes to is not ours: whatever that
raises becomes a status, and its words go no further.
"""

from __future__ import annotations

import logging
from typing import Any

from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from google.protobuf.message import DecodeError
from sqlalchemy.exc import OperationalError

from common.errors import TrustError
from common.parcel import MOST_PARTS, unpack
from server.link.waking import Barred

log = logging.getLogger("privet.link")


def open_parcel(body: bytes) -> list[bytes]:
    """The parts of a body, at least one; :class:`Barred` 400 if it is no parcel."""
    try:
        parts = unpack(body, MOST_PARTS)
    except TrustError as error:
        raise Barred(400) from error
    if not parts:
        raise Barred(400)
    return parts


def parse(kind: Any, body: bytes) -> Any:
    """A request of this kind; :class:`Barred` 400 if it is none."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise Barred(400) from error


def flower(handler: Any, *arguments: Any) -> Any:
    """What a handler answers; :class:`Barred` with its status if it refuses."""
    try:
        return handler(*arguments)
    except FlowerError as error:
        raise Barred(API_ERROR_MAP[error.code].http_status_code) from error
    except OperationalError as error:
        raise Barred(503) from error
    except Exception as error:  # hostile bytes, in code that is not ours
        log.warning("Flower could not take a request: %s", type(error).__name__)
        raise Barred(400) from error
