"""Who gets in on the loopback address? The coordinator, and Flower's own command.

The rules: Flower's control and runtime interfaces are for whoever knows the executor secret, and
nothing that describes them is there: another user of this machine, or a page in a browser, gets no
further. The token of Flower's command is another value, made from that secret, and opens four
routes (:mod:`server.link.desk`): it takes no run's task, and makes no node and no federation.
Nothing is read of a request before it was found to have one of the two.
"""

from __future__ import annotations

import hmac
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import TrustError
from server.link.desk import refuse
from server.link.listener import CONNECTION, Connection
from server.link.waking import COLLECT, LINK_HEADER, SECRET_HEADER, SEND, Waking

_CONTROL = "/v1/control/"
_INSIDE = (_CONTROL, "/v1/runtime/")
_SCHEME = b"Bearer "  # RFC 6750


_OURS = b"inside"  # whose a connection is that knew the secret


class Inside:
    """An ASGI application for the loopback address.

    Args:
        app: Flower's, for whoever knows the secret.
        desk: for Flower's command.
        secret: the executor secret.
        token: of Flower's command.
    """

    def __init__(self, app: Waking, desk: ASGIApp, secret: bytes, token: str) -> None:
        self._app, self._desk = app, desk
        self._secret, self._token = secret.hex().encode(), token.encode()
        self._mark = (LINK_HEADER.encode(), secrets.token_hex(8).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        connection: Connection | None = scope["state"].pop(CONNECTION, None)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._mark]
            await send(message)

        path = scope["path"]
        if scope["method"] == "GET" and path == "/health":  # is it there? tells nothing else
            await _status(send, 200)
        elif not path.startswith(_INSIDE) and path not in (SEND, COLLECT):
            await _status(send, 404)
        elif self._knows(scope, SECRET_HEADER.encode(), self._secret):
            if connection is not None:
                connection.prove(_OURS)  # others that say nothing push this one out no more
            await self._app.inside(scope, receive, marked)
        elif not path.startswith(_CONTROL) or not _given(scope, b"authorization"):
            await _status(send, 401)
        elif self._knows(scope, b"authorization", _SCHEME + self._token):
            await self._desk(scope, receive, send)
        else:
            wrong = TrustError(
                "that is not the token of this link",
                hint="`privet server flower` gives Flower's command the right one",
                code="wrong-token",
            )
            await refuse(send, 401, wrong)

    @staticmethod
    def _knows(scope: Scope, header: bytes, wanted: bytes) -> bool:
        given = _given(scope, header)
        return len(given) == 1 and hmac.compare_digest(given[0], wanted)


def _given(scope: Scope, header: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == header]


async def _status(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
