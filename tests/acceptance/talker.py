"""An Ollama on the loopback that never stops talking, and notes when it has sent each token."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.providers.replay import ndjson
from tests.server.live import live

MODEL = "ollama:fox:1b"
_TAG = {"name": "fox:1b", "digest": "f0", "details": {"family": "fox", "parameter_size": "1B"}}
_PACE_SECONDS = 0.02


@dataclass
class Talker:
    """``sent`` has each token and the loop's time at which it had left. ``hung_up`` is set when whoever
    asked has closed the connection."""

    url: str = ""
    sent: list[tuple[float, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def talk(self) -> AsyncGenerator[bytes]:
        clock = asyncio.get_running_loop().time
        try:
            for number in itertools.count(1):
                token = f" t{number}"
                yield ndjson({"message": {"role": "assistant", "content": token}, "done": False})
                self.sent.append((clock(), token))
                await asyncio.sleep(_PACE_SECONDS)
        finally:
            self.hung_up.set()

    def sent_until(self, time: float) -> str:
        return "".join(token for at, token in self.sent if at <= time)


@asynccontextmanager
async def talker() -> AsyncIterator[Talker]:
    talking = Talker()

    async def tags(_: Request) -> JSONResponse:
        return JSONResponse({"models": [_TAG]})

    async def running(_: Request) -> JSONResponse:
        return JSONResponse({"models": []})

    async def show(_: Request) -> JSONResponse:
        return JSONResponse({"capabilities": ["completion"]})

    async def chat(_: Request) -> StreamingResponse:
        return StreamingResponse(talking.talk(), media_type="application/x-ndjson")

    app = Starlette(
        routes=[
            Route("/api/tags", tags),
            Route("/api/ps", running),
            Route("/api/show", show, methods=["POST"]),
            Route("/api/chat", chat, methods=["POST"]),
        ]
    )
    async with live(app) as port:
        talking.url = f"http://127.0.0.1:{port}"
        yield talking
