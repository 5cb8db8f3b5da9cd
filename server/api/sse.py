"""GraphQL over Server-Sent Events, each operation on a connection of its own.

The distinct connections mode of https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send
from strawberry.http import process_result
from strawberry.types import ExecutionResult

from server.api.cursor import Cursor

EVENT_STREAM = "text/event-stream"

_HEADERS = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # or nginx would keep events back until its buffer is full
}
_COMMENT = b":\n\n"
_COMPLETE = b"event: complete\ndata:\n\n"  # browsers pass on no event without data


class EventStream:
    """The answer to one operation, an ASGI application: its results, each as it comes, then ``complete``.

    Results are asked for one by one, as the client takes them; when it is gone, or when the server ends
    (``closing``), they are closed at once, whatever they or the connection wait for.
    """

    def __init__(
        self,
        results: AsyncGenerator[Any],
        cursor: Cursor,
        *,
        keep_alive_seconds: float,
        closing: asyncio.Event,
    ) -> None:
        self._results = results
        self._cursor = cursor
        self._keep_alive_seconds = keep_alive_seconds
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._run(receive, send)
            # Only now, when nobody else can send any more.
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            return  # by a server that ends: it has waited long enough for who does not read

    async def _run(self, receive: Receive, send: Send) -> None:
        """Return when the last event is sent, the client is gone or the server ends."""
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep_alive(send))
            ends = [
                tasks.create_task(self._write(send)),
                tasks.create_task(_disconnected(receive)),
                tasks.create_task(_set(self._closing)),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in (keeping, *ends):
                task.cancel()

    async def _write(self, send: Send) -> None:
        async with aclosing(self._results) as results:
            async for result in results:
                await _send(send, self._next(result))
        await _send(send, _COMPLETE)

    def _next(self, result: ExecutionResult) -> bytes:
        position = self._cursor.take()
        id_ = f"id: {position}\n" if position else ""
        data = json.dumps(process_result(result), separators=(",", ":"))  # has no line break
        return f"{id_}event: next\ndata: {data}\n\n".encode()

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._keep_alive_seconds)
            await _send(send, _COMMENT)


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _set(event: asyncio.Event) -> None:
    await event.wait()
