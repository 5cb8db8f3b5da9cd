"""What a load balancer or a supervisor reads."""

import asyncio

import httpx
import pytest
from starlette.routing import Router

from server.health import Check, health_routes
from tests.server.live import live


async def passes() -> None:
    pass


async def fails() -> None:
    raise ConnectionError("postgresql://user:secret@host")


async def hangs() -> None:
    await asyncio.Event().wait()


async def _get(path: str, checks: dict[str, Check]) -> httpx.Response:
    async with (
        live(Router(health_routes(checks, timeout_seconds=0.05))) as port,
        httpx.AsyncClient() as client,
    ):
        return await client.get(f"http://127.0.0.1:{port}{path}")


async def test_ready_when_every_part_is() -> None:
    response = await _get("/health/ready", {"database": passes, "schema": passes})
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "parts": {"database": "ready", "schema": "ready"}}
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("broken", [fails, hangs])
async def test_not_ready_says_which_part_and_no_more(broken: Check) -> None:
    response = await _get("/health/ready", {"database": broken, "schema": passes})
    assert response.status_code == 503
    assert response.json() == {
        "status": "unavailable",
        "parts": {"database": "unavailable", "schema": "ready"},
    }
    assert "secret" not in response.text


async def test_live_whatever_the_parts_say() -> None:
    response = await _get("/health/live", {"database": fails})
    assert (response.status_code, response.json()) == (200, {"status": "live"})
