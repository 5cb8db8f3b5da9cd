"""The server's side of graphql-transport-ws, where Strawberry's takes too much on trust."""

from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct
from strawberry.http.exceptions import WebSocketDisconnected
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.subscriptions.protocols.graphql_transport_ws.types import (
    CompleteMessage,
    Message,
    SubscribeMessage,
)

from server.api.context import Context
from server.api.limits import MAX_CHARACTERS, TOO_LONG
from server.errors import ErrorCode, to_chat_error

MAX_OPERATIONS = 100

# Strawberry repeats an id in the reason of a close frame, which has room for 123 bytes.
_Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[ -~]+$")]


class _ConnectionInit(Struct, tag="connection_init"):
    payload: dict[str, Any] = {}


class _Ping(Struct, tag="ping"):
    pass


class _Pong(Struct, tag="pong"):
    pass


class _Payload(Struct):
    query: str
    variables: dict[str, Any] | None = None
    operationName: str | None = None  # noqa: N815 - the protocol's name


class _Subscribe(Struct, tag="subscribe"):
    id: _Id
    payload: _Payload


class _Complete(Struct, tag="complete"):
    id: _Id


class WebSocketHandler(BaseGraphQLTransportWSHandler[Context, None]):
    """Closes a connection that breaks the protocol with 4400, whatever the breach; an operation beyond
    ``MAX_OPERATIONS`` on one connection, or with too long a document, is refused with a code."""

    async def handle_message(self, message: Message) -> None:
        try:
            msgspec.convert(message, _ConnectionInit | _Ping | _Pong | _Subscribe | _Complete)
        except msgspec.ValidationError:
            await self.handle_invalid_message("not a message of graphql-transport-ws")
            return
        await super().handle_message(message)

    async def handle_subscribe(self, message: SubscribeMessage) -> None:
        if not self.connection_acknowledged or message["id"] in self.operations:
            await super().handle_subscribe(message)
        elif len(self.operations) >= MAX_OPERATIONS:
            reason = f"{MAX_OPERATIONS} operations run on this connection; no more are taken"
            await self._refuse(message["id"], reason, ErrorCode.OVERLOADED)
        elif len(message["payload"]["query"]) > MAX_CHARACTERS:
            await self._refuse(message["id"], TOO_LONG, ErrorCode.GRAPHQL_PARSE_FAILED)
        else:
            await super().handle_subscribe(message)

    async def handle_complete(self, message: CompleteMessage) -> None:
        if (operation := self.operations.get(message["id"])) and operation.task:
            self.context.unsubscribed.add(operation.task)
        await super().handle_complete(message)

    async def _refuse(self, id_: str, reason: str, code: ErrorCode) -> None:
        extensions = {"code": code.value, "retryable": code is ErrorCode.OVERLOADED}
        payload = [{"message": reason, "extensions": extensions}]
        await self.send_message(cast("Message", {"id": id_, "type": "error", "payload": payload}))

    async def handle_task_exception(self, error: Exception) -> None:
        """A client that vanished while it was sent something is nobody's failure."""
        if not isinstance(error, WebSocketDisconnected):
            to_chat_error(error)  # which logs it
