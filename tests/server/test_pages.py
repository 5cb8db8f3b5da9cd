"""What browsers get at /, /graphql and /assets, and what they may do with it."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest
from graphql import build_schema, parse, validate
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.pages import DIST, page_routes
from tests.server.live import live

_ROOT = Path(__file__).parents[2]
_SOURCES = _ROOT / "server/web/src"
_BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
_OUTSIDE = re.compile(r"""(?:src|href|action)\s*=\s*["']?(?:[a-z]+:)?//""")


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """Pages as Vite builds them."""
    (tmp_path / "dist/assets").mkdir(parents=True)
    for name in ("index.html", "graphiql.html", "assets/index-AbC_1-2.js", "assets/.hidden"):
        (tmp_path / "dist" / name).write_text(f"this is {name}")
    (tmp_path / "secret.js").write_text("not for you")
    return tmp_path / "dist"


@asynccontextmanager
async def _client(dist: Path) -> AsyncIterator[httpx.AsyncClient]:
    """``/graphql`` answers POST with ``graphql``, and so what is not for browsers."""
    graphql = PlainTextResponse("graphql")
    app = Starlette(
        routes=[Route("/graphql", lambda _: graphql, methods=["POST"]), *page_routes(graphql, dist)]
    )
    async with live(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


async def test_a_browser_gets_the_pages(dist: Path) -> None:
    async with _client(dist) as client:
        for path, expected in (("/", "this is index.html"), ("/graphql", "this is graphiql.html")):
            response = await client.get(path, headers={"Accept": _BROWSER})
            assert (response.status_code, response.text) == (200, expected)
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert response.headers["cache-control"] == "no-cache"
            assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/event-stream", "text/html;q=0, */*"])
async def test_graphiql_is_for_browsers_only(accept: str, dist: Path) -> None:
    async with _client(dist) as client:
        assert (await client.get("/graphql", headers={"Accept": accept})).text == "graphql"
        assert (await client.post("/graphql", headers={"Accept": _BROWSER})).text == "graphql"


async def test_a_page_loads_from_here_alone(dist: Path) -> None:
    async with _client(dist) as client:
        for path in ("/", "/graphql"):
            response = await client.get(path, headers={"Accept": _BROWSER})
            policy = dict(
                part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
            )
            assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
            assert policy["script-src"] == policy["connect-src"] == "'self'"
            allowed = {source for sources in policy.values() for source in sources.split()}
            assert allowed <= {"'none'", "'self'", "'script'", "data:", "'unsafe-inline'"}
            assert ("'unsafe-inline'" in policy["style-src"]) == (path == "/graphql")


async def test_an_asset_is_kept_for_good(dist: Path) -> None:
    async with _client(dist) as client:
        response = await client.get("/assets/index-AbC_1-2.js")
        assert (response.status_code, response.text) == (200, "this is assets/index-AbC_1-2.js")
        assert response.headers["content-type"].startswith("text/javascript")
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        head = await client.head("/assets/index-AbC_1-2.js")
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/assets/" + "a" * 5000, id="a name longer than files have"),
        "/assets/index-old.js",
        "/assets/",
        "/assets/.hidden",
        "/assets/%2e%2e",
        "/assets/..%2f..%2fsecret.js",
        "/assets/%2e%2e/%2e%2e/secret.js",
        "/assets/a%00b",
        "/index.html",
        "/nowhere",
    ],
)
async def test_what_is_no_asset_is_not_found(path: str, dist: Path) -> None:
    async with _client(dist) as client:
        response = await client.get(path)
    assert response.status_code == 404
    assert "immutable" not in response.headers.get("cache-control", "")


async def test_pages_that_are_not_built_say_how(tmp_path: Path) -> None:
    async with _client(tmp_path / "dist") as client:
        for path in ("/", "/graphql"):
            response = await client.get(path, headers={"Accept": _BROWSER})
            assert response.status_code == 503
            assert "Node" in response.text
            assert "make setup" in response.text
            assert response.headers["cache-control"] == "no-store"
        assert (await client.get("/assets/index.js")).status_code == 404
        (tmp_path / "dist").mkdir()
        (tmp_path / "dist/index.html").write_text("built meanwhile")
        assert (await client.get("/")).text == "built meanwhile"


@pytest.mark.skipif(not DIST.is_dir(), reason="needs the pages: make setup, with Node 20.19 or newer")
@pytest.mark.parametrize("name", ["index.html", "graphiql.html"])
async def test_the_built_pages_find_all_that_they_name(name: str) -> None:
    page = (DIST / name).read_text()
    assert not _OUTSIDE.search(page)
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(named) >= 3
    async with _client(DIST) as client:
        for path in named:
            assert (await client.get(path)).status_code == 200


def _documents() -> list[str]:
    """What the pages send, their fragments put in."""
    source = (_SOURCES / "chat/documents.ts").read_text()
    constants = dict(re.findall(r"const (\w+) = /\* GraphQL \*/ `(.*?)`", source, re.DOTALL))
    filled = [re.sub(r"\$\{(\w+)\}", lambda match: constants[match[1]], text) for text in constants.values()]
    return [*(text for text in filled if not text.strip().startswith("fragment")), _welcome()]


def _welcome() -> str:
    return (_SOURCES / "graphiql/welcome.graphql").read_text()


@pytest.mark.parametrize("document", _documents())
def test_what_the_pages_ask_fits_the_schema(document: str) -> None:
    schema = build_schema((_ROOT / "schema.graphql").read_text())
    assert validate(schema, parse(document)) == []


def test_all_documents_were_found() -> None:
    assert len(_documents()) == 9


def test_no_source_makes_markup_of_text() -> None:
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function")
    sources = [path for path in _SOURCES.rglob("*") if path.suffix in {".ts", ".tsx"}]
    assert len(sources) > 5
    assert [path.name for path in sources if forbidden.search(path.read_text())] == []


@pytest.mark.skipif(not DIST.is_dir(), reason="needs the pages: make setup, with Node 20.19 or newer")
def test_the_wheel_carries_the_pages_and_not_their_sources(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    carried = {name for name in ZipFile(wheel).namelist() if name.startswith("server/web/")}
    assert carried == {path.relative_to(_ROOT).as_posix() for path in DIST.rglob("*") if path.is_file()}
