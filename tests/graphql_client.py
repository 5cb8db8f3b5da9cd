"""A GraphQL client for tests: queries and mutations by POST, everything by graphql-transport-ws."""

import asyncio
import itertools
import json
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

Json = dict[str, Any]

PROTOCOL = "graphql-transport-ws"
_PATIENCE_SECONDS = 20.0


class Refused(Exception):
    """The server answered a subscription with an ``error`` message."""

    def __init__(self, errors: list[Json]) -> None:
        super().__init__(errors)
        self.errors = errors
        self.message: str = errors[0]["message"]
        self.code: str = errors[0]["extensions"]["code"]


class Failed(Exception):
    """A result has errors."""

    def __init__(self, answer: Json) -> None:
        super().__init__(answer)
        self.data: Json | None = answer.get("data")
        self.errors: list[Json] = answer["errors"]
        self.message: str = self.errors[0]["message"]
        self.code: str = self.errors[0]["extensions"]["code"]


def data_of(answer: Json) -> Any:
    """The value of the answer's only field. Raises Failed."""
    if "errors" in answer:
        raise Failed(answer)
    (value,) = answer["data"].values()
    return value


class Operation:
    """One operation on a socket: iterate it for its results, until it completes. Raises Refused."""

    def __init__(self, socket: "Socket", id_: str) -> None:
        self._socket = socket
        self.id = id_

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Json:
        message = await self._socket.next_of(self.id)
        match message["type"]:
            case "next":
                payload: Json = message["payload"]
                return payload
            case "error":
                raise Refused(message["payload"])
            case "complete":
                raise StopAsyncIteration
        raise AssertionError(f"the server sent {message}")

    async def events(self) -> AsyncGenerator[Any]:
        """The values of the only field, one by one. Raises Failed and Refused."""
        async for payload in self:
            yield data_of(payload)

    async def rest(self) -> list[Any]:
        """All the events that are still to come."""
        return [event async for event in self.events()]

    async def until(self, typename: str) -> list[Any]:
        """The events up to the first of this type; the query has to ask for __typename."""
        seen = []
        async for event in self.events():
            seen.append(event)
            if event["__typename"] == typename:
                return seen
        raise AssertionError(f"no {typename} in {seen}")

    async def complete(self) -> None:
        """Unsubscribe."""
        await self._socket.send({"id": self.id, "type": "complete"})


class Socket:
    """A connection that speaks graphql-transport-ws. Only one task reads from it at a time."""

    def __init__(self, connection: ClientConnection, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self.connection = connection
        self._patience_seconds = patience_seconds
        self._ids = map(str, itertools.count(1))
        self._held: dict[str | None, deque[Json]] = defaultdict(deque)

    async def subscribe(self, query: str, **variables: Any) -> Operation:
        operation = Operation(self, next(self._ids))
        payload = {"query": query, "variables": variables}
        await self.send({"id": operation.id, "type": "subscribe", "payload": payload})
        return operation

    async def send(self, message: Mapping[str, Any]) -> None:
        await self.connection.send(json.dumps(message))

    async def receive(self) -> Json:
        """The next message, whatever it is. Raises websockets' ConnectionClosed."""
        async with asyncio.timeout(self._patience_seconds):
            message: Json = json.loads(await self.connection.recv())
        return message

    async def next_of(self, id_: str) -> Json:
        """The operation's next message; those of others are kept for them."""
        while not self._held[id_]:
            message = await self.receive()
            self._held[message.get("id")].append(message)
        return self._held[id_].popleft()

    def drop(self) -> None:
        """Vanish, as a client does whose network is gone."""
        self.connection.transport.abort()


class GraphQLClient:
    """``url`` is that of ``/graphql`` with http."""

    def __init__(self, url: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self.url = url
        self._patience_seconds = patience_seconds
        self.websocket_url = "ws" + url.removeprefix("http")
        self.http = httpx.AsyncClient(timeout=patience_seconds)

    async def post(self, query: str, **variables: Any) -> Json:
        """The whole answer."""
        response = await self.http.post(self.url, json={"query": query, "variables": variables})
        answer: Json = response.raise_for_status().json()
        return answer

    async def ask(self, query: str, **variables: Any) -> Any:
        """The value of the operation's only field. Raises Failed."""
        return data_of(await self.post(query, **variables))

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[Socket]:
        """A connection that the server has acknowledged; ``options`` are those of ``websockets.connect``."""
        async with connect(self.websocket_url, subprotocols=[Subprotocol(PROTOCOL)], **options) as connection:
            socket = Socket(connection, self._patience_seconds)
            await socket.send({"type": "connection_init"})
            assert await socket.receive() == {"type": "connection_ack"}
            yield socket
