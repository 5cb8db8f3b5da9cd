"""Whether the process lives, and whether it can answer requests now."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Check = Callable[[], Awaitable[None]]


def health_routes(checks: Mapping[str, Check], timeout_seconds: float = 1.0) -> list[Route]:
    """``/health/live`` and ``/health/ready``.

    Each check returns when its part can serve, and raises otherwise; what it raises is not shown. They run
    together, and one that takes longer than ``timeout_seconds`` has failed.
    """

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        states = await asyncio.gather(*(_passes(check, timeout_seconds) for check in checks.values()))
        parts = {name: "ready" if ok else "unavailable" for name, ok in zip(checks, states, strict=True)}
        status, code = ("ready", 200) if all(states) else ("unavailable", 503)
        return JSONResponse({"status": status, "parts": parts}, code, headers={"Cache-Control": "no-store"})

    return [Route("/health/live", live), Route("/health/ready", ready)]


async def _passes(check: Check, timeout_seconds: float) -> bool:
    try:
        async with asyncio.timeout(timeout_seconds):
            await check()
    except Exception:
        return False
    return True
