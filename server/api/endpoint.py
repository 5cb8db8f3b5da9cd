"""GraphQL over HTTP and WebSocket, with every option of Strawberry's view chosen on purpose."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

from cross_web import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.schema import BaseSchema
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL

from server.api.context import Context
from server.api.websocket import MAX_OPERATIONS, WebSocketHandler
from server.errors import ErrorCode

MakeContext: TypeAlias = Callable[[HTTPConnection], Context]

_MAX_BODY_BYTES = 8 * 1024 * 1024


class Endpoint(GraphQL[Context, None]):
    """An ASGI application for one path: queries and mutations by POST, everything by WebSocket."""

    graphql_transport_ws_handler_class = WebSocketHandler

    def __init__(self, schema: BaseSchema, make_context: MakeContext) -> None:
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        try:
            response = await self.run(Request(scope, _limited(receive)))
        except HTTPException as refused:
            response = _refusal(refused)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

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
    return JSONResponse({"errors": errors}, refused.status_code)
