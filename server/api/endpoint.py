"""GraphQL over HTTP, SSE and WebSocket, with every option of Strawberry's view chosen on purpose."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

from cross_web import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.schema import BaseSchema
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL

from server.api.accept import preferred
from server.api.context import Context
from server.api.cursor import Cursor
from server.api.limits import MAX_CHARACTERS, TOO_LONG
from server.api.sse import EVENT_STREAM, EventStream
from server.api.websocket import MAX_OPERATIONS, WebSocketHandler
from server.errors import ErrorCode

MakeContext: TypeAlias = Callable[[HTTPConnection], Context]

_JSON = "application/json"
_MAX_BODY_BYTES = 8 * 1024 * 1024
_KEEP_ALIVE_SECONDS = 15.0  # proxies commonly close what is silent for 60


class Endpoint(GraphQL[Context, None]):
    """An ASGI application for one path: queries and mutations by POST, everything by WebSocket, and by POST
    for who prefers an event stream. Event streams that are still open when ``closing`` is set are cut."""

    graphql_transport_ws_handler_class = WebSocketHandler

    def __init__(
        self,
        schema: BaseSchema,
        make_context: MakeContext,
        closing: asyncio.Event,
        *,
        keep_alive_seconds: float = _KEEP_ALIVE_SECONDS,
    ) -> None:
        super().__init__(
            schema,
            graphql_ide=None,
            allow_queries_via_get=False,
            subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL,),
            connection_init_wait_timeout=timedelta(seconds=10),
            multipart_uploads_enabled=False,
            max_subscriptions_per_connection=MAX_OPERATIONS,
            allowed_origins=("*",),  # server.guard judges the origin, on every transport and path
        )
        self._make_context = make_context
        self._closing = closing
        self._keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        try:
            response = await self._answer(Request(scope, _limited(receive)))
        except HTTPException as refused:
            response = _refusal(refused)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> ASGIApp:
        if request.method != "POST":
            raise HTTPException(405, "GraphQL is asked by POST with a JSON body, or over a WebSocket")
        answer = preferred(",".join(request.headers.getlist("accept")), (_JSON, EVENT_STREAM))
        if answer is None:
            raise HTTPException(406, f"Accept names neither {_JSON} nor {EVENT_STREAM}")
        return await (self.run(request) if answer == _JSON else self._stream(request))

    async def _stream(self, request: Request) -> EventStream:
        data: Any = await self.parse_http_body(self.request_adapter_class(request))  # one: batches are off
        cursor = Cursor(request.headers.get("last-event-id"))
        results = await self.schema.stream(
            data.query,
            variable_values=data.variables,
            context_value=replace(self._make_context(request), cursor=cursor),
            operation_name=data.operation_name,
            operation_extensions=data.extensions,
        )
        return EventStream(
            results, cursor, keep_alive_seconds=self._keep_alive_seconds, closing=self._closing
        )

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Context:
        return self._make_context(request)

    def decode_json(self, data: str | bytes) -> object:
        try:
            return json.loads(data)
        except (RecursionError, UnicodeDecodeError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from None

    def parse_json(self, data: str | bytes) -> Any:
        decoded = super().parse_json(data)
        if not isinstance(decoded, dict | list):
            raise HTTPException(400, "The request body is no JSON object")
        query = decoded.get("query") if isinstance(decoded, dict) else None
        if isinstance(query, str) and len(query) > MAX_CHARACTERS:
            raise HTTPException(413, TOO_LONG)
        return decoded


def _limited(receive: Receive) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MAX_BODY_BYTES:
            raise HTTPException(413, f"The request body exceeds {_MAX_BODY_BYTES} bytes")
        return message

    return limited


def _refusal(refused: HTTPException) -> Response:
    extensions = {"code": ErrorCode.GRAPHQL_VALIDATION_FAILED.value, "retryable": False}
    errors = [{"message": refused.reason, "extensions": extensions}]
    headers = {"Allow": "POST"} if refused.status_code == 405 else None
    return JSONResponse({"errors": errors}, refused.status_code, headers)
