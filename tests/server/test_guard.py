"""A page elsewhere cannot reach a server on somebody's laptop, on any transport."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router, WebSocketRoute
from starlette.websockets import WebSocket

from server.guard import Guard
from tests.server.live import live

Headers = Mapping[str, str]


class Reached:
    """Counts what came through."""

    def __init__(self) -> None:
        self.requests = 0
        self.router = Router(
            [Route("/any", self.http, methods=["GET", "POST"]), WebSocketRoute("/any", self.websocket)]
        )

    async def http(self, _: Request) -> Response:
        self.requests += 1
        return PlainTextResponse("reached")

    async def websocket(self, socket: WebSocket) -> None:
        self.requests += 1
        await socket.accept()
        await socket.send_text("reached")
        await socket.close()


@pytest.fixture(scope="module")
def reached() -> Reached:
    return Reached()


@pytest.fixture(scope="module")
async def port(reached: Reached) -> AsyncIterator[int]:
    guard = Guard(reached.router, ["parley.example"], ["https://chat.example", "https://odd.example:8443"])
    async with live(guard) as port:
        yield port


ALLOWED: list[Headers] = [
    {},
    {"Host": "localhost"},
    {"Host": "LocalHost:8000"},
    {"Host": "[::1]:8000"},
    {"Host": "127.0.0.2:1"},
    {"Host": "parley.example"},
    {"Host": "PARLEY.example:8000"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://127.0.0.1:8000"},
    {"Origin": "http://[::1]:8000"},
    {"Origin": "https://chat.example"},
    {"Origin": "https://odd.example:8443"},
    {"Host": "parley.example", "Origin": "https://parley.example"},
    {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": "https://chat.example"},
]

REFUSED: list[Headers] = [
    {"Host": "evil.example"},
    {"Host": "evil.example:8000"},
    {"Host": "localhost.evil.example"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "192.168.1.7:8000"},
    {"Host": "0.0.0.0"},
    {"Host": "localhost:port"},
    {"Host": "evil.example@localhost"},
    {"Host": "localhost/evil.example"},
    {"Host": ""},
    {"Origin": "https://evil.example"},
    {"Origin": "http://evil.example:8000"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "https://evil.example#localhost"},
    {"Origin": "null"},
    {"Origin": "file://"},
    {"Origin": ""},
    {"Origin": "https://chat.example:8443"},
    {"Origin": "http://odd.example:8443"},
    {"Host": "evil.example", "Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
]


def _id(headers: Headers) -> str:
    return " ".join(f"{name}={value!r}" for name, value in headers.items()) or "plain"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("headers", ALLOWED, ids=_id)
async def test_http_from_here_is_answered(method: str, headers: Headers, port: int) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.request(method, f"http://127.0.0.1:{port}/any", headers=headers)
    assert (response.status_code, response.text) == (200, "reached")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/any", "/elsewhere"])
@pytest.mark.parametrize("headers", REFUSED, ids=_id)
async def test_http_from_elsewhere_reaches_nothing(
    method: str, path: str, headers: Headers, port: int, reached: Reached
) -> None:
    before = reached.requests
    async with httpx.AsyncClient() as client:
        response = await client.request(method, f"http://127.0.0.1:{port}{path}", headers=headers)
    assert response.status_code == 403
    assert reached.requests == before


@pytest.mark.parametrize("headers", ALLOWED, ids=_id)
async def test_a_websocket_from_here_is_accepted(headers: Headers, port: int, reached: Reached) -> None:
    before = reached.requests
    assert await _handshake(headers, port) == 101
    assert reached.requests == before + 1


@pytest.mark.parametrize("headers", REFUSED, ids=_id)
async def test_a_websocket_from_elsewhere_is_refused_before_it_opens(
    headers: Headers, port: int, reached: Reached
) -> None:
    before = reached.requests
    assert await _handshake(headers, port) == 403
    assert reached.requests == before


async def test_a_link_on_another_site_opens_the_page_but_sends_no_form(port: int) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/any", headers=link)).status_code == 200
        assert (await client.post(f"http://127.0.0.1:{port}/any", headers=link)).status_code == 403


@pytest.mark.parametrize("hosts", [[], ["localhost", "evil.example"], ["evil.example", "localhost"]])
async def test_a_request_names_one_host(hosts: list[str], port: int, reached: Reached) -> None:
    before = reached.requests
    lines = [f"Host: {host}" for host in hosts]
    assert await _status("GET /any HTTP/1.1", lines, port) in (400, 403)
    assert reached.requests == before


async def _handshake(headers: Headers, port: int) -> int:
    """By hand, since client libraries do not send a Host that is wrong."""
    upgrade = {
        "Host": "127.0.0.1",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    lines = [f"{name}: {value}" for name, value in (upgrade | dict(headers)).items()]
    return await _status("GET /any HTTP/1.1", lines, port)


async def _status(request: str, headers: list[str], port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join([request, *headers, "", ""]).encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        await writer.wait_closed()
