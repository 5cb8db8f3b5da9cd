"""The chat page, GraphiQL, and what they load, all from this server."""

import re
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from server.api.accept import preferred

DIST = Path(__file__).parent / "web/dist"

_ASSET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_FOREVER = "public, max-age=31536000, immutable"  # an asset's name has a hash of its content

_COMMON = {
    "base-uri": "'none'",
    "connect-src": "'self'",
    "default-src": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "script-src": "'self'",
}
_CHAT = _COMMON | {
    "img-src": "'self'",
    "require-trusted-types-for": "'script'",
    "style-src": "'self'",
    "trusted-types": "'none'",
}
# Its editor writes style elements, has an icon font and images inside its style sheet, and runs workers.
_GRAPHIQL = _COMMON | {
    "font-src": "'self' data:",
    "img-src": "'self' data:",
    "style-src": "'self' 'unsafe-inline'",
    "worker-src": "'self'",
}

_UNBUILT = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Parley</title>
<h1>The pages are not built</h1>
<p>Parley runs, and answers GraphQL at <code>/graphql</code>. Its pages are built with Node 20.19 or newer:
install it, run <code>make setup</code>, and reload this page.</p>
</html>
"""


def page_routes(graphql: ASGIApp, dist: Path = DIST) -> list[Route]:
    """``/``, ``/assets``, and ``GET /graphql``, which only a browser gets a page for; others get what
    ``graphql`` says. ``dist`` is where Vite builds the pages; they may come later."""

    async def chat(_: Request) -> Response:
        return _page(dist / "index.html", _CHAT)

    async def graphiql(request: Request) -> ASGIApp:
        accept = ",".join(request.headers.getlist("accept"))
        if preferred(accept, ("application/json", "text/html")) == "text/html":
            return _page(dist / "graphiql.html", _GRAPHIQL)
        return graphql

    async def asset(request: Request) -> Response:
        name: str = request.path_params["name"]
        if not _ASSET.fullmatch(name) or not (dist / "assets" / name).is_file():
            raise HTTPException(404, headers={"Cache-Control": "no-store"})
        headers = {"Cache-Control": _FOREVER, "X-Content-Type-Options": "nosniff"}
        return FileResponse(dist / "assets" / name, headers=headers)

    return [Route("/", chat), Route("/graphql", graphiql), Route("/assets/{name}", asset)]


def _page(file: Path, policy: dict[str, str]) -> Response:
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    try:
        return HTMLResponse(file.read_bytes(), headers=headers)
    except FileNotFoundError:
        return HTMLResponse(_UNBUILT, 503, headers=headers | {"Cache-Control": "no-store"})
