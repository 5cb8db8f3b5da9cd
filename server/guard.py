"""Turns away requests that a page elsewhere made a browser send to this server."""

import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.settings import is_loopback

_log = logging.getLogger("parley.guard")


class Guard:
    """ASGI middleware for every path and every transport.

    A ``Host`` that is neither this machine nor configured is how DNS rebinding looks; an ``Origin`` that is
    neither is a page of somebody else's, which browsers let open any WebSocket. ``allowed_hosts`` are names
    without port, ``allowed_origins`` are ``scheme://host[:port]``.
    """

    def __init__(
        self, app: ASGIApp, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (objection := self._objection(scope)) is None:
            await self._app(scope, receive, send)
            return
        _log.warning("refused %s %r: %s", scope["type"], scope["path"], objection)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})  # before accept: a 403
        else:
            await PlainTextResponse(f"refused: {objection}\n", 403)(scope, receive, send)

    def _objection(self, scope: Scope) -> str | None:
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._is_known(_hostname(f"//{hosts[0]}")):
            return f"Host {', '.join(hosts)!r} is not in PARLEY_ALLOWED_HOSTS"
        origins = _values(scope, b"origin")
        if any(not self._is_known_origin(origin) for origin in origins):
            return f"Origin {', '.join(origins)!r} is not in PARLEY_ALLOWED_ORIGINS"
        if not origins and _is_embedded_elsewhere(scope):
            return "another site's page may link here, but not load from here"
        return None

    def _is_known(self, hostname: str | None) -> bool:
        return hostname is not None and (is_loopback(hostname) or hostname in self._hosts)

    def _is_known_origin(self, origin: str) -> bool:
        return origin.lower() in self._origins or self._is_known(_hostname(origin))


def _hostname(url: str) -> str | None:
    """Lower-case and without port; None for what is no ``//host[:port]``, an opaque ``null`` among it."""
    try:
        parts = urlsplit(url)
        if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            return None
        parts.port  # noqa: B018 - raises ValueError for a port that is none
    except ValueError:
        return None
    return parts.hostname


def _is_embedded_elsewhere(scope: Scope) -> bool:
    """A script, image or form of another site; browsers send no ``Origin`` with all of them."""
    if _values(scope, b"sec-fetch-site") != ["cross-site"]:
        return False
    return scope.get("method") != "GET" or _values(scope, b"sec-fetch-mode") != ["navigate"]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
